"""The report and the endpoint call the same animals unknown."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image

from animl_pipeline.inference.classifier import CARD_FILE, Classifier, read_card
from animl_pipeline.inference.score_crops import score_crops
from animl_pipeline.steps.evaluation.metrics import measure_calibration
from animl_pipeline.storage.store import Store, digest_of
from tests.conftest import colour_model
from tests.support.endpoint_process import endpoint_process, ping, wait_until

SIZE = 32


def coloured_crop(seed: int) -> bytes:
    """A PNG between grey and one colour, so that some answers are sure and some are not."""
    rng = np.random.default_rng(seed)
    colour = 128 + rng.uniform(0, 100) * np.eye(3)[seed % 3]
    buffer = io.BytesIO()
    Image.fromarray((np.ones((SIZE, SIZE, 3)) * colour + rng.integers(-9, 9, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_report_and_endpoint_call_the_same_crops_unknown(store: Store, tmp_path: Path) -> None:
    folder = colour_model(tmp_path / "model")
    card = read_card(folder / CARD_FILE).model_copy(update={"temperature": 2.0, "thresholds": {"red": 0.45, "green": 0.5, "blue": 0.4}})
    (folder / CARD_FILE).write_text(card.model_dump_json(), encoding="utf-8")
    images = [coloured_crop(seed) for seed in range(30)]
    whole = {"ymin": 0.0, "xmin": 0.0, "ymax": 1.0, "xmax": 1.0}
    rows = []
    for n, data in enumerate(images):
        blob = store.put_blob(data)
        rows.append({"crop_id": digest_of(n), "class_id": "red", "location": "", "blob": blob, "bytes": len(data), "image": blob, **whole})
    scored = score_crops(pd.DataFrame(rows), Classifier.load(folder), store, card.model_input)
    with endpoint_process(folder, tmp_path / "log") as live:
        wait_until(lambda: ping(live.address) == 200, "the program answers")
        answers = [
            requests.post(f"{live.address}/invocations", json={"image": base64.b64encode(p).decode(), "bbox": [0, 0, 1, 1]}, timeout=60).json()
            for p in images
        ]
    unknown = [all(p < card.thresholds[c] for c, p in answer.items()) for answer in answers]
    assert 3 < sum(unknown) < 27
    assert measure_calibration(scored, card).unknown_share == pytest.approx(sum(unknown) / len(unknown))
    offline = (scored[[f"p_{c}" for c in card.class_ids()]].to_numpy() < [card.thresholds[c] for c in card.class_ids()]).all(axis=1)
    assert offline.tolist() == unknown

"""The images of the report: one of a sequence, the whole image with its box, dark crops brightened, never people, and a page that stays small."""

from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.steps.evaluation import report_images
from animl_pipeline.steps.evaluation.report_images import Gallery, data_uri, sequence_numbers
from animl_pipeline.storage.store import Store
from tests.support.colour_models import BOX, CropSpec, crop_rows, plan_of

RED = (200, 30, 30)


def mistakes(store: Store, taken: list[str], **columns: object) -> pd.DataFrame:
    """Crops of one camera at these times that should be red and are called green, the worst first."""
    rows = crop_rows([CropSpec("red", RED)] * len(taken), store, plan_of())
    scores = {"predicted": "green", "probability": np.linspace(0.9, 0.6, len(taken)), probability_column("red"): 0.1}
    return rows.assign(taken=taken, sequence="", with_people=False, **scores).assign(**columns)


def pixels(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_crops_of_a_camera_within_a_minute_are_a_sequence() -> None:
    day = "2026-05-31T08"
    table = pd.DataFrame(
        [
            ("a", f"{day}:00:00", "", "1", "fox", 0),
            ("a", f"{day}:00:50", "", "2", "fox", 0),
            ("a", f"{day}:01:40", "", "3", "fox", 0),  # 50 s after the last one
            ("a", f"{day}:03:00", "", "4", "fox", 1),
            ("b", f"{day}:00:01", "", "5", "fox", 2),  # another camera
            ("a", f"{day}:00:51", "", "6", "cat", 3),  # another answer
            ("a", "", "s1", "7", "fox", 4),  # without a time: of a sequence
            ("a", "unknown", "s1", "8", "fox", 4),
            ("a", "", "", "9", "fox", 5),
            ("a", "", "", "9", "fox", 5),  # twice in one image
            ("", f"{day}:00:00", "", "10", "fox", 6),  # two unknown cameras
            ("", f"{day}:00:00", "", "11", "fox", 7),
        ],
        columns=["location", "taken", "sequence", "image_id", "predicted", "number"],
    ).assign(source="isle", class_id="rat")  # fmt: skip
    shuffled = table.sample(frac=1, random_state=3)
    found = sequence_numbers(shuffled)
    pairs = set(zip(found, shuffled["number"], strict=True))
    assert len(pairs) == found.nunique() == table["number"].nunique()


def test_one_crop_of_a_sequence_is_shown_with_the_others_and_the_whole_image_behind_it(store: Store) -> None:
    rows = mistakes(store, ["2026-05-31T08:00:00", "2026-05-31T08:00:02", "2026-05-31T09:00:00", "2026-05-31T08:00:04"])
    first, second = Gallery((), store).show(rows, 6)
    assert (first["probability"], first["more"], len(first["others"])) == (0.9, 2, 2)
    assert (second["more"], second["others"]) == (0, [])
    assert first["whole"]["box"] == {"left": "25.00%", "top": "25.00%", "width": "50.00%", "height": "50.00%"}
    assert BOX.as_list() == [0.25, 0.25, 0.75, 0.75]
    assert pixels(first["whole"]["image"]).size == (64, 64)


def test_a_whole_image_comes_once_on_a_page_and_only_while_the_page_stays_small(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = mistakes(store, [f"2026-05-31T{hour:02}:00:00" for hour in range(9)])
    size = len(Gallery((), store).show(rows, 1)[0]["whole"]["image"])
    monkeypatch.setattr(report_images, "MAX_BEHIND", round(3.5 * size))
    gallery = Gallery((), store)
    shown = [crop["whole"] for crop in gallery.show(rows, 9)]
    assert [whole is not None for whole in shown] == [True] * 3 + [False] * 6
    again = [crop["whole"] for crop in gallery.show(rows, 2)]
    assert [(whole["anchor"], whole["image"]) for whole in again] == [(whole["anchor"], None) for whole in shown[:2]]


def test_neither_crop_nor_whole_image_of_people_is_shown(store: Store) -> None:
    times = [f"2026-05-31T{hour:02}:00:00" for hour in range(4)]
    rows = mistakes(store, times, with_people=[True, False, False, False], class_id=["red", "red", "blue", "red"])
    rows.loc[3, "predicted"] = "hiker"
    rows[probability_column("blue")] = 0.1
    assert [crop["taken"] for crop in Gallery(["blue", "hiker"], store).show(rows, 9)] == ["2026-05-31 01:00"]


def test_a_dark_crop_is_brighter_and_larger_on_the_page(store: Store) -> None:
    dark = Image.fromarray(np.random.default_rng(0).integers(5, 35, (400, 400, 3), np.uint8))
    shown = pixels(data_uri(dark.copy(), 320))
    assert np.asarray(shown.convert("L")).mean() > 2 * np.asarray(dark.convert("L")).mean()
    buffer = io.BytesIO()
    dark.save(buffer, "PNG")
    rows = mistakes(store, ["", ""], blob=store.put_blob(buffer.getvalue()))
    crop = Gallery((), store).show(rows.head(1), 1)[0]
    assert crop["dark"]
    assert pixels(crop["image"]).width > report_images.THUMBNAIL_SIZE

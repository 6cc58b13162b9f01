"""Predictions for a folder: the labels that Animl would show, in the files that other tools read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ImagesError
from animl_pipeline.review.predict_folder import predict_folder
from animl_pipeline.review.score_images import smooth_over_sequences
from animl_pipeline.review.write_predictions import write_predictions
from animl_pipeline.steps.detections.read_results_file import parse_results
from animl_pipeline.storage.store import Store
from tests.review.conftest import GREEN, GREY, RED, write_image, write_results

ANIMAL, PERSON = "1", "2"


def card_of_a_day(folder: Path) -> dict[str, list[tuple[str, float]]]:
    """A folder of images, and the boxes in them: a red burst with a grey image in it, a green animal, a person, an empty and a broken image."""
    names = [write_image(folder / "=north" / f"{i}.jpg", c, f"2024:05:31 10:00:0{i}") for i, c in enumerate((RED, GREY, RED))]
    names += [write_image(folder / "south" / f"{i}.jpg", GREEN, f"2024:05:31 1{i}:00:00") for i in range(3)]
    (folder / "south" / "broken.jpg").write_bytes(b"no image")
    boxes: list[list[tuple[str, float]]] = [[(ANIMAL, 0.9)]] * 4 + [[(PERSON, 0.8)], [(ANIMAL, 0.05)]]
    return dict(zip(names, boxes, strict=True)) | {"south/broken.jpg": [(ANIMAL, 0.7)]}


def test_a_folder_gets_the_labels_that_animl_would_show_in_three_formats(tmp_path: Path, plan: Plan, store: Store, settings: Settings) -> None:
    results = write_results(tmp_path / "boxes.json", card_of_a_day(tmp_path / "card"))
    found = predict_folder(tmp_path / "card", plan, store, settings, results=results)
    write_predictions(found, tmp_path / "out")

    data = (tmp_path / "out" / "predictions.json").read_bytes()
    written = json.loads(data)
    assert written["info"]["classifier"] == "colours 1"
    labels = {im["file"]: [d.get("classifications") for d in im["detections"]] for im in written["images"] if im["detections"] is not None}
    name = written["classification_categories"]
    assert [[(name[c], p > 0.8) for c, p in found[0]] for found in (labels["=north/0.jpg"], labels["south/0.jpg"])] == [
        [("red", True)],
        [("green", True)],
    ]
    assert labels["=north/1.jpg"] == [None]  # unknown
    assert labels["south/2.jpg"] == []  # below production's confidence
    assert [im["file"] for im in written["images"] if "failure" in im] == ["south/broken.jpg"]
    assert parse_results(data, "predictions.json", 0.1).by_file["south/1.jpg"][0].category == PERSON  # type: ignore[union-attr]

    table = pd.read_csv(tmp_path / "out" / "timelapse.csv").set_index(["RelativePath", "File"])
    assert list(table.loc["'=north", "Species"]) == ["red", "unknown", "red"]
    assert table.loc[("south", "0.jpg"), ["Species", "Count", "DateTime"]].tolist() == ["green", 1, "2024-05-31 10:00:00"]
    assert table.loc[("south", "1.jpg"), "Species"] == "person"
    assert table.loc[("south", "2.jpg"), "Species"] == "empty"

    rows = pd.read_csv(tmp_path / "out" / "observations.csv").set_index("mediaID")
    assert rows["observationType"].to_dict() == {
        "'=north/0.jpg": "animal", "'=north/1.jpg": "animal", "'=north/2.jpg": "animal", "south/0.jpg": "animal", "south/1.jpg": "human",
        "south/2.jpg": "blank",
    }  # fmt: skip
    assert rows.loc["south/0.jpg", "observationTags"] == "class:green"
    assert rows["observationID"].is_unique


def test_all_animals_of_a_sequence_get_one_answer_if_it_is_smoothed(tmp_path: Path, plan: Plan, store: Store, settings: Settings) -> None:
    results = write_results(tmp_path / "boxes.json", card_of_a_day(tmp_path / "card"))
    found = predict_folder(tmp_path / "card", plan, store, settings, results=results, smooth=True)
    assert found.boxes()["what"].tolist() == ["red", "red", "red", "green", "person"]
    logits = np.random.default_rng(0).normal(size=(4, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    mean = np.exp(logits[:3].mean(axis=0))
    np.testing.assert_allclose(smooth_over_sequences(p, np.array([7, 7, 7, 2]))[[0, 3]], [mean / mean.sum(), p[3]])


def test_a_folder_without_images_is_refused(tmp_path: Path, plan: Plan, store: Store, settings: Settings) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImagesError) as caught:
        predict_folder(tmp_path / "empty", plan, store, settings)
    assert caught.value.code == "no_images"

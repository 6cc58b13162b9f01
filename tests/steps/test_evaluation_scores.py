"""Intervals by bootstrap over locations, scores on slices, equivalent classes, and the table for Animl."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from animl_pipeline.inference.bootstrap_intervals import BootstrapDraws, percentile_interval, precision_recall_f1
from animl_pipeline.steps.evaluation.csv_tables_beside_report import animl_table
from animl_pipeline.steps.evaluation.metrics import compute_metrics
from animl_pipeline.steps.evaluation.slices_and_equivalents import name_sequences, score_slices, score_with_equivalents, vote_by_group
from tests.support.packaged_model import CLASSES

# -- intervals -------------------------------------------------------------------------------------------------------------------


def test_intervals_are_wide_if_one_location_fails() -> None:
    one_location_fails = pd.DataFrame({"location": np.repeat(["a", "b", "c", "d"], 50), "right": np.repeat([1, 1, 1, 0], 50)})
    mixed = pd.DataFrame({"location": np.tile(["a", "b", "c", "d"], 50), "right": np.repeat([1, 1, 1, 0], 50)})
    ends = []
    for rows in (one_location_fails, mixed):
        draws = BootstrapDraws(rows)
        share = draws.sums(rows["right"].to_numpy(np.float64)) / draws.sums(np.ones(len(rows)))
        ends.append(percentile_interval(share, draws.locations))
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0][0] <= 0.25
    assert ends[0][1] == 1
    assert ends[1][1] - ends[1][0] < 0.1


def test_scores_of_a_resample_are_those_of_scikit_learn_on_its_rows() -> None:
    from sklearn.metrics import average_precision_score, f1_score

    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"location": rng.choice(list("abcdef"), 200)})
    is_one, p = rng.random(200) < 0.3, np.round(rng.random(200), 2)
    predicted = rng.integers(0, 2, 200)
    draws = BootstrapDraws(rows)
    found, f1 = draws.average_precisions(p, is_one), precision_recall_f1(draws.confusion_matrices(is_one.astype(np.int64), predicted, 2))[2]
    for i in range(5):
        times = draws.weights[i][draws.location].astype(int)
        again = np.repeat(np.arange(200), times)
        assert found[i] == pytest.approx(average_precision_score(is_one[again], p[again]))
        assert f1[i, 1] == pytest.approx(f1_score(is_one[again], predicted[again]))


def test_a_class_at_one_location_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    location = ["a", "b", "c"] * 20 + ["a"] * 10
    class_id, predicted = ["red"] * 60 + ["green"] * 10, np.where(rng.random(70) < 0.8, ["red"] * 60 + ["green"] * 10, "blue")
    scored = pd.DataFrame(
        {"class_id": class_id, "predicted": predicted, "location": location} | {f"p_{c}": np.where(predicted == c, 0.8, 0.1) for c in CLASSES}
    )
    red, green, _ = compute_metrics(scored, CLASSES).classes
    assert (green.locations, green.recall_interval, green.average_precision_interval) == (1, None, None)
    assert red.recall_interval is not None
    assert red.recall_interval[0] <= red.recall <= red.recall_interval[1]


# -- slices ----------------------------------------------------------------------------------------------------------------------


def scored_of(rows: list[tuple[str, str, float]], **columns: list[object]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["class_id", "predicted", "probability"])
    usual: dict[str, object] = {
        "source": "isle", "image_id": [f"i{n}" for n in range(len(rows))], "location": "isle/a", "sequence": "", "taken": "", "infrared": False,
        "ymin": 0.0, "xmin": 0.0, "ymax": 0.2, "xmax": 0.2,
    }  # fmt: skip
    return table.assign(**(usual | columns))


def test_images_within_a_minute_at_one_location_are_a_sequence_if_the_export_has_none() -> None:
    taken = ["2024-01-01T00:00:00", "2024-01-01T00:00:50", "2024-01-01T00:01:40", "2024-01-01T00:05:00", "", "2024-01-01T00:00:10", ""]
    locations = ["isle/a"] * 5 + ["isle/b"] * 2
    scored = scored_of([("red", "red", 0.9)] * 7, taken=taken, location=locations, sequence=["", "", "", "", "", "", "isle/s1"])
    names = name_sequences(scored)
    assert names[0] == names[1] == names[2]
    assert len({*names}) == 5


def test_a_sequence_gets_the_class_of_most_of_its_crops_and_mixed_ones_are_left_out() -> None:
    rows = [
        ("red", "green", 0.9),
        ("red", "red", 0.6),
        ("red", "red", 0.6),
        ("red", "red", 0.5),
        ("red", "green", 0.9),
        ("red", "red", 0.9),
        ("blue", "blue", 0.9),
    ]
    scored = scored_of(rows, sequence=["s1"] * 3 + ["s2"] * 2 + ["s3"] * 2)
    voted, mixed = vote_by_group(scored, name_sequences(scored))
    assert list(voted["predicted"]) == ["red", "green"]  # two of three; then one each, and green is more probable
    assert mixed == 1


def test_slices_are_by_infrared_pixels_box_size_image_and_sequence() -> None:
    scored = scored_of(
        [("red", "red", 0.9), ("red", "green", 0.9), ("green", "green", 0.9)],
        infrared=[False, True, True],
        ymax=[0.05, 0.2, 0.9],
        xmax=[0.05, 0.2, 0.2],
    )
    parts = {p.name.split(" (")[0]: p for p in score_slices(scored, CLASSES)}
    assert {name: (p.examples, p.accuracy) for name, p in parts.items()} == {
        "day": (1, 1), "night": (2, 0.5), "small": (1, 1), "medium": (1, 0), "large": (1, 1), "images": (3, pytest.approx(2 / 3)),
        "sequences": (3, pytest.approx(2 / 3)),
    }  # fmt: skip


def test_equivalent_classes_count_as_right() -> None:
    scored = scored_of([("red", "green", 0.9), ("red", "blue", 0.9), ("green", "green", 0.9)])
    found = score_with_equivalents(scored, CLASSES, {"red": ["green"]})
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.classes["red"][:2] == (1.0, 0.5)
    assert found.classes["green"][0] == 1.0


def test_the_table_for_animl_has_its_columns_and_counts() -> None:
    scored = scored_of(
        [("red", "red", 0.9), ("red", "green", 0.9), ("green", "green", 0.9)], location=["isle/Cove", "isle/Cove", "isle/CAM7-default"]
    )
    table = animl_table(scored, scored["predicted"], CLASSES)
    assert list(table.columns) == ["cameraId", "deploymentName", "targetClass", "TP", "FP", "FN", "precision", "recall", "f1"]
    rows = {(r.deploymentName, r.targetClass): (r.cameraId, r.TP, r.FP, r.FN) for r in table.itertuples()}
    assert rows["Cove", "red"] == ("", 1, 0, 1)
    assert rows["Cove", "green"] == ("", 0, 1, 0)
    assert rows["default", "green"] == ("CAM7", 1, 0, 0)
    assert rows["ALL", "green"] == ("", 1, 1, 0)

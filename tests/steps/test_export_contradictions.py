"""Ids and boxes that contradict each other: every label is kept that is certain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.storage.store import Store
from tests.support.coco_export import Export
from tests.support.export_tables import image_column, labels_of, problems_of
from tests.support.odd_exports import one_fox, source


def annotation_rows(store: Store, artifact: Artifact) -> pd.DataFrame:
    """annotations.parquet."""
    return store.table(artifact, EXPORT_ANNOTATIONS)


@pytest.mark.parametrize(
    ("said", "reviewed"), [(0, False), (0.0, False), ("false", False), ("False", False), (1, True), ("true", True), (True, True), (None, True)]
)
def test_a_label_is_validated_however_a_tool_writes_it(store: Store, settings: Settings, tmp_path: Path, said: Any, reviewed: bool) -> None:
    e = Export()
    e.annotation(e.image(), 1, validated=said, validated_by="")
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    assert annotation_rows(store, artifact)["reviewed"].tolist() == [reviewed]
    assert artifact.counts.notes.get("unreviewed", 0) == (not reviewed)


def test_an_image_id_of_several_files_gives_no_label(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = one_fox()
    for name in ("set0/a.jpg", "set1/a.jpg"):
        e.image(id="1", file_name=name)
    e.annotation("1", 1)
    e.annotation("1", 2)
    for _ in range(2):
        e.image(id="2", file_name="b.jpg")
    e.annotation("2", 2)
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    assert sorted(labels_of(store, artifact).values()) == ["Rat", "fox"]
    assert artifact.counts.dropped == {"ambiguous_image_id": 1, "label_of_ambiguous_image": 2, "duplicate_image": 1}
    assert ("ambiguous_image_id", "1") in problems_of(store, artifact)


@pytest.mark.parametrize("given", [{"id": 0}, {"id": None}, {"id": ""}, {"id": float("nan")}])
def test_labels_without_an_id_of_their_own_are_all_kept_with_ids_that_stay(
    store: Store, settings: Settings, tmp_path: Path, given: dict[str, Any]
) -> None:
    e = Export()
    for i in range(4):
        e.annotation(e.image(f"p{i}"), 1, [4, 4, 20, 20], **given)
    e.annotation(e.images[0]["id"], 2, [4, 4, 20, 20], **given)
    e.annotation(e.images[0]["id"], 1, [9, 9, 20, 20], **given)
    e.annotation(e.images[0]["id"], 1, [4, 4, 20, 20], **given)  # the first one again
    ids = []
    for more in range(2):
        (tmp_path / "a.json").write_bytes(e.json())
        artifact = export_annotations(source("a.json"), store, settings)
        assert artifact.counts.kept == 6 + more
        assert artifact.counts.dropped == {"duplicate_annotation": 1}
        assert sum(artifact.counts.notes.values()) == 6 + more
        ids.append(set(annotation_rows(store, artifact)["annotation_id"]))
        e.annotations.insert(0, {"image_id": e.image("new"), "category_id": 1} | given)
    assert len(ids[0]) == 6
    assert ids[0] < ids[1]


def test_ids_that_begin_anew_at_each_image_lose_no_label_and_others_keep_theirs(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for i in range(3):
        image = e.image(f"p{i}")
        e.annotation(image, 1, id=1)
        e.annotation(image, 2, id=2)
    e.annotation(e.image(), 1, id=9)
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    ids = annotation_rows(store, artifact)["annotation_id"]
    assert artifact.counts.kept == ids.nunique() == 7
    assert "9" in set(ids)
    assert artifact.counts.notes == {"annotation_id_of_several": 6}


UNUSABLE = [[1, 2], [None] * 4, [float("nan"), 1, 2, 3], [4, 4, -9, 9], [4, 4, 9, 0], [900, 4, 9, 9], {"x": 1}, "no", [3, 3, 0.4, 0.4]]


def test_a_label_whose_box_cannot_be_used_is_kept_for_the_whole_image(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = one_fox()
    for box in UNUSABLE:
        e.annotation(e.image(), 1, box)
    e.annotation(e.image(), 1, [])
    e.annotation(e.image(), 1, ["4", "4.5", "2e1", "20"])  # as tables of texts become JSON
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    boxes = annotation_rows(store, artifact)[list("xywh")]
    assert artifact.counts.kept == len(UNUSABLE) + 3
    assert artifact.counts.dropped == {}
    assert artifact.counts.notes == {"box_malformed": 5, "box_empty": 2, "box_outside": 1, "box_below_a_pixel": 1}
    assert boxes.notna().all(axis=1).tolist() == [True] + [False] * (len(UNUSABLE) + 1) + [True]


@pytest.mark.parametrize("size", [{}, {"width": None, "height": None}])
def test_boxes_between_0_and_1_are_read_as_shares_of_the_image(store: Store, settings: Settings, tmp_path: Path, size: dict[str, Any]) -> None:
    e = Export()
    e.annotation(e.image("cove", **size), 1, [0.25, 0.5, 0.5, 0.25])
    e.annotation(e.image("bay"), 1, [0.5, 0, 0.504, 1])
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    width, height = (image_column(store, artifact, c)[e.images[0]["id"]] for c in ("width", "height"))
    x, y, w, h = annotation_rows(store, artifact).loc[0, list("xywh")]
    assert (x / width, y / height, w / width, h / height) == (0.25, 0.5, 0.5, 0.25)
    assert artifact.counts.notes["relative_boxes"] == 1


def test_boxes_in_pixels_stay_in_pixels_beside_a_tiny_one(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = one_fox()
    e.annotation(e.image("bay"), 1, [0, 0, 1, 1])
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    assert "relative_boxes" not in artifact.counts.notes
    assert annotation_rows(store, artifact)["w"].tolist() == [20, 1]

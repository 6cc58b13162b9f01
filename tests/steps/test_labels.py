"""Labels: a class for each annotation or a reason why it has none, stable limits, MegaDetector's format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animl_pipeline.config import LabelsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import LabelsError
from animl_pipeline.core.location_names import tidy_name
from animl_pipeline.steps.labels import class_by_label, resolve_labels
from animl_pipeline.storage.store import Store
from tests.support.coco_export import CATEGORIES, Export
from tests.support.resolved_labels import SPEC, resolved, steps


def test_each_annotation_has_a_class_or_a_reason(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    fox = e.annotation(e.image("cove"), 1, [16, 12, 32, 24])
    rat = e.annotation(e.image("bay", seq_id="s1"), 2)
    e.annotation(e.image(), 0, [0, 0, 64, 48])
    e.annotation(e.image(), 3, [1, 1, 9, 9])
    e.annotation(e.image(), 1, [1, 1, 9, 9], validated=False)
    lost = e.image()
    e.annotation(lost, 1)
    del e.files[e.images[-1]["file_name"]]
    artifact = resolved(e, store, settings, tmp_path)
    t = store.table(artifact, "labels.parquet").set_index("annotation_id")
    assert dict(t["class_id"]) == {fox: "fox", rat: "rat"}
    assert list(t.loc[fox, ["ymin", "xmin", "ymax", "xmax"]]) == [0.25, 0.25, 0.75, 0.75]
    assert t.loc[rat, ["ymin", "xmin"]].isna().all()
    assert (t.loc[fox, "location"], t.loc[rat, "location"], t.loc[rat, "sequence"]) == ("isle/cove", "isle/bay", "isle/bay/s1")
    assert artifact.counts.dropped == {"empty": 1, "excluded": 1, "unreviewed": 1, "image_missing": 1}
    assert len(store.table(artifact, "dropped.parquet")) == 4


def test_a_label_that_the_plan_does_not_name_is_counted(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1)
    e.annotation(e.image(), 2)
    spec = {"classes": {"fox": ["fox"], "rat": ["rat"]}}
    e.annotation(e.image(), 3)
    counts = resolved(e, store, settings, tmp_path, spec).counts
    assert counts.dropped == {"unlisted_label": 1}
    assert counts.names_of("unlisted_label") == {"person": 1}
    assert (counts.drop_reasons(), counts.other_notes()) == ("1 unlisted label (person 1)", {"fox": 1, "rat": 1})


def test_of_many_labels_outside_the_plan_the_most_frequent_are_named(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.categories = [*CATEGORIES, *({"id": 100 + i, "name": f"kind {i}\n{'x' * 100}"} for i in range(30))]
    for i in range(30):
        for _ in range(1 + (i == 7)):
            e.annotation(e.image(), 100 + i)
    e.annotation(e.image(), 1)
    e.annotation(e.image(), 2)
    counts = resolved(e, store, settings, tmp_path, {"classes": {"fox": ["fox"], "rat": ["rat"]}}).counts
    names = counts.names_of("unlisted_label")
    assert sum(names.values()) == counts.dropped["unlisted_label"] == 31
    assert len(names) == 21
    assert [n for name, n in names.items() if name.startswith("kind 7")] == [2]
    assert all(name.isprintable() and len(name) <= 60 for name in names)


EXTRA = {
    "unlisted": ({"category": 4}, 1),
    "excluded": ({"category": 5}, 1),
    "unreviewed": ({"category": 2, "validated": False}, 1),
    "another class": ({"category": 2}, 2),
    "another class with a box": ({"category": 2, "bbox": [4, 4, 9, 9]}, 1),
    "an unlisted one with a box": ({"category": 4, "bbox": [4, 4, 9, 9]}, 1),
    "a category without a name": ({"category": 99}, 1),
    "the same class": ({"category": 1}, 0),
    "the same class, unreviewed": ({"category": 1, "validated": False}, 0),
    "a person": ({"category": 3}, 0),
    "empty": ({"category": 0}, 0),
}


@pytest.mark.parametrize("extra", EXTRA)
def test_a_label_without_a_box_is_ambiguous_beside_another_animal(store: Store, settings: Settings, tmp_path: Path, extra: str) -> None:
    e = Export()
    e.categories = [*CATEGORIES, {"id": 4, "name": "rabbit"}, {"id": 5, "name": "hare"}]
    e.annotation(e.image("bay"), 1)
    e.annotation(e.image("cove"), 2)
    both = e.image("cove")
    e.annotation(both, 1)
    fields, ambiguous = EXTRA[extra]
    e.annotation(both, **fields)
    spec = {"classes": {"fox": ["fox"], "rat": ["rat"]}, "exclude": ["hare", "person"]}
    artifact = resolved(e, store, settings, tmp_path, spec)
    assert artifact.counts.dropped.get("ambiguous_label", 0) == ambiguous


def test_two_records_of_one_file_are_one_image(store: Store, settings: Settings, tmp_path: Path) -> None:
    """One record says fox, the other rabbit, which the plan does not name: no crop of this file is surely a fox."""
    e = Export()
    e.categories = [*CATEGORIES, {"id": 4, "name": "rabbit"}]
    e.annotation(e.image("bay"), 1)
    e.annotation(e.image("bay"), 2)
    first = e.image("cove")
    e.images.append(e.images[-1] | {"id": "again"})
    e.annotation(first, 1)
    e.annotation("again", 4)
    spec = {"classes": {"fox": ["fox"], "rat": ["rat"]}}
    assert resolved(e, store, settings, tmp_path, spec).counts.dropped == {"unlisted_label": 1, "ambiguous_label": 1}


def test_only_boxes_that_a_person_drew_go_with_a_dropped_annotation(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    image = e.image()
    e.annotation(image, 1, [16, 12, 32, 24])
    e.annotation(e.image(), 2)
    drawn = e.annotation(image, 3, [32, 24, 16, 12])
    e.annotation(image, 3, [1, 1, 16, 12], validated=False)
    e.annotation(image, 3)
    table = store.table(resolved(e, store, settings, tmp_path), "dropped.parquet").set_index("annotation_id")
    assert list(table.loc[drawn, ["ymin", "xmin", "ymax", "xmax"]]) == [0.5, 0.5, 0.75, 0.75]
    assert table["ymin"].notna().sum() == 1


def test_a_sequence_id_counts_within_its_location(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for location, sequence, category in (("bay", "1", 1), ("cove", "1", 2), ("cove", "1", 1), ("cove", "2", 1), (None, "2", 1), (None, "1", 1)):
        e.annotation(e.image(location, seq_id=sequence), category)
    e.annotation(e.image("bay"), 1)
    artifact = resolved(e, store, settings, tmp_path)
    table = store.table(artifact, "labels.parquet").sort_values("annotation_id")
    assert list(table["sequence"]) == ["isle/bay/1", "isle/cove/1", "isle/cove/1", "isle/cove/2", "isle/cove/2", "isle//1", ""]
    assert artifact.counts.notes["sequence_ids_at_several_locations"] == 1


def test_names_that_look_alike_are_one_label(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    names = ["fox", "Red Fox ", "red\u00a0fox", "RED  FOX", "rat", "zorro\u0301", "ZORR\u00d3\t"]
    e.categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    for i in range(len(names)):
        e.annotation(e.image(), i)
    spec = {"classes": {"fox": ["red\u2009fox\u00a0", "fox", " zorr\u00f3"], "rat": ["Rat "]}}
    artifact = resolved(e, store, settings, tmp_path, spec)
    assert artifact.counts.dropped == {}
    assert artifact.counts.notes["fox"] == len(names) - 1


def test_boxes_are_cut_at_the_image_and_boxes_of_the_whole_image_are_ignored(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    over = e.annotation(e.image(), 1, [48, 36, 30, 30])
    full = e.annotation(e.image(), 2, [0, 0, 64, 47])
    artifact = resolved(e, store, settings, tmp_path)
    t = store.table(artifact, "labels.parquet").set_index("annotation_id")
    assert list(t.loc[over, ["ymin", "xmin", "ymax", "xmax"]]) == [0.75, 0.75, 1.0, 1.0]
    assert t.loc[full, ["ymin"]].isna().all()
    assert artifact.counts.notes["whole_image_box_ignored"] == 1


def test_a_box_is_relative_to_the_size_in_the_export_or_else_to_the_images_own_size(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    scaled = e.annotation(e.image(width=128, height=96), 1, [64, 48, 32, 24])
    sizeless = e.annotation(e.image(width=None, height=None), 2, [32, 24, 16, 12])
    t = store.table(resolved(e, store, settings, tmp_path), "labels.parquet").set_index("annotation_id")
    for annotation_id in (scaled, sizeless):
        assert list(t.loc[annotation_id, ["ymin", "xmin", "ymax", "xmax"]]) == [0.5, 0.5, 0.75, 0.75]


def test_limits_keep_the_same_annotations_when_the_data_grow(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for i in range(30):
        e.annotation(e.image(f"p{i % 2}"), 1, [4, 4, 20, 20])
    e.annotation(e.image("p0"), 2)
    spec = {"classes": {"fox": {"from": ["fox"], "max_per_location": 5}, "rat": ["rat"]}}
    first = resolved(e, store, settings, tmp_path / "a", spec)
    kept = set(store.table(first, "labels.parquet").query("class_id == 'fox'")["annotation_id"])
    assert len(kept) == 10
    assert first.counts.dropped == {"over_class_limit": 20}
    for _ in range(4):
        e.annotation(e.image("p7"), 1, [4, 4, 20, 20])
    grown = resolved(e, store, settings, tmp_path / "b", spec)
    assert kept < set(store.table(grown, "labels.parquet").query("class_id == 'fox'")["annotation_id"])


def test_the_error_about_a_class_without_annotations_lists_the_exports_labels(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1)
    with pytest.raises(LabelsError, match="fox 1") as caught:
        resolved(e, store, settings, tmp_path)
    assert caught.value.code == "too_few"


def test_unreviewed_annotations_are_kept_if_the_plan_says_so(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1, validated=False)
    e.annotation(e.image(), 2)
    assert resolved(e, store, settings, tmp_path, unreviewed="keep").counts.kept == 2


def test_sources_do_not_share_locations(store: Store, settings: Settings, tmp_path: Path) -> None:
    plan = LabelsConfig.model_validate(SPEC)
    both = []
    for project, category in (("isle", 1), ("cape", 2)):
        e = Export(project)
        e.annotation(e.image("cove"), category)
        both.append(steps(e, store, settings, tmp_path / project, plan))
    t = store.table(resolve_labels(both, plan, store, settings), "labels.parquet")
    assert set(t["location"]) == {"isle/cove", "cape/cove"}


def test_the_megadetector_file_passes_megadetectors_validator(store: Store, settings: Settings, tmp_path: Path) -> None:
    from megadetector.postprocessing.validate_batch_results import validate_batch_results

    e = Export()
    e.annotation(e.image(), 1, [16, 12, 32, 24], confidence=0.9)
    two = e.image()
    e.annotation(two, 2, [1, 2, 8, 9])
    e.annotation(two, 1, [30, 20, 30, 20])
    e.annotation(e.image(), 2)
    path = store.path(resolved(e, store, settings, tmp_path), "megadetector.json")
    checked = validate_batch_results(str(path))
    assert checked["validation_results"]["errors"] == []
    written = json.loads(path.read_text())
    assert sorted(len(i["detections"]) for i in written["images"]) == [0, 1, 2]
    assert written["classification_categories"] == {"0": "fox", "1": "rat"}


@given(
    st.dictionaries(
        st.text("abcdefXYZ ß", min_size=1, max_size=6).map(tidy_name).filter(bool), st.sampled_from(["fox", "rat"]), min_size=1, max_size=8
    )
)
def test_a_label_has_the_same_class_in_any_case(meaning: dict[str, str]) -> None:
    folded: dict[str, str] = {}
    for name, class_id in meaning.items():
        folded.setdefault(name.casefold(), class_id)
    classes = {c: ["zz-" + c, *(n for n, m in folded.items() if m == c)] for c in ("fox", "rat")}
    found = class_by_label(LabelsConfig.model_validate({"classes": classes, "empty": []}))
    for name in meaning:
        assert found[name.upper().casefold()] == found[name.casefold()] == folded[name.casefold()]


@pytest.mark.parametrize("exported", ["h\u00e9risson", "he\u0301risson"])
@pytest.mark.parametrize("planned", ["h\u00e9risson", "he\u0301risson", "H\u00c9RISSON"])
def test_both_ways_to_write_an_accent_are_the_same_label(store: Store, settings: Settings, tmp_path: Path, exported: str, planned: str) -> None:
    e = Export()
    e.categories = [{"id": 1, "name": exported}, {"id": 2, "name": "rat"}]
    e.annotation(e.image(), 1)
    e.annotation(e.image(), 2)
    spec = {"classes": {"hedgehog": [planned], "rat": ["rat"]}}
    assert resolved(e, store, settings, tmp_path, spec).counts.notes == {"hedgehog": 1, "rat": 1}

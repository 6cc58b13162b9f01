"""Labels: one class an object by name, a reason for every object left out, caps that do not wander, MegaDetector's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animl_pipeline.errors import LabelsError
from animl_pipeline.export import export_annotations
from animl_pipeline.images import fetch_images
from animl_pipeline.labels import SourceSteps, resolve_labels, wanted_names
from animl_pipeline.plan import LabelsPlan, SourcePlan
from animl_pipeline.records import Artifact
from animl_pipeline.settings import Settings
from animl_pipeline.store import Store
from tests.cct import Export

SPEC = {"classes": {"fox": ["Fox"], "rat": ["rat", "mouse"]}, "exclude": ["person"]}


def steps(e: Export, store: Store, settings: Settings, folder: Path, spec: LabelsPlan, **fields: Any) -> SourceSteps:
    e.write(folder)
    plan = SourcePlan.model_validate({"name": e.project, "export": str(folder / "export.json"), "images": str(folder / "images")} | fields)
    export = export_annotations(plan, store, settings)
    return SourceSteps(plan, export, fetch_images(plan, export, (*wanted_names(spec), "person", "empty"), store, settings))


def resolved(e: Export, store: Store, settings: Settings, folder: Path, spec: dict[str, Any] = SPEC, **fields: Any) -> Artifact:
    plan = LabelsPlan.model_validate(spec)
    return resolve_labels([steps(e, store, settings, folder, plan, **fields)], plan, store)


def test_each_object_has_a_class_by_name_or_a_reason(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    fox = e.object(e.picture("cove"), 1, [16, 12, 32, 24])
    rat = e.object(e.picture("bay", seq_id="s1"), 2)
    e.object(e.picture(), 0, [0, 0, 64, 48])
    e.object(e.picture(), 3, [1, 1, 9, 9])
    e.object(e.picture(), 1, [1, 1, 9, 9], validated=False)
    lost = e.picture()
    e.object(lost, 1)
    del e.pictures[e.images[-1]["file_name"]]
    artifact = resolved(e, store, settings, tmp_path)
    t = store.table(artifact, "labels.parquet").set_index("object_id")
    assert dict(t["label"]) == {fox: "fox", rat: "rat"}
    assert list(t.loc[fox, ["ymin", "xmin", "ymax", "xmax"]]) == [0.25, 0.25, 0.75, 0.75]
    assert t.loc[rat, ["ymin", "xmin"]].isna().all()
    assert (t.loc[fox, "place"], t.loc[rat, "place"], t.loc[rat, "sequence"]) == ("isle/cove", "isle/bay", "isle/s1")
    assert artifact.counts.dropped == {"empty": 1, "excluded": 1, "unreviewed": 1, "picture_unusable": 1}
    assert len(store.table(artifact, "dropped.parquet")) == 4


def test_a_name_that_no_class_lists_is_counted(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.object(e.picture(), 1)
    e.object(e.picture(), 2)
    spec = {"classes": {"fox": ["fox"], "rat": ["rat"]}}
    e.object(e.picture(), 3)
    assert resolved(e, store, settings, tmp_path, spec).counts.dropped == {"unlisted_name": 1}


def test_boxes_are_cut_at_the_frame_and_whole_frames_are_taken_as_none(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    over = e.object(e.picture(), 1, [48, 36, 30, 30])
    full = e.object(e.picture(), 2, [0, 0, 64, 47])
    artifact = resolved(e, store, settings, tmp_path)
    t = store.table(artifact, "labels.parquet").set_index("object_id")
    assert list(t.loc[over, ["ymin", "xmin", "ymax", "xmax"]]) == [0.75, 0.75, 1.0, 1.0]
    assert t.loc[full, ["ymin"]].isna().all()
    assert artifact.counts.noted["whole_frame_box_taken_as_none"] == 1


def test_a_box_is_relative_to_the_exports_size_and_to_the_pictures_own_where_that_is_missing(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    e = Export()
    scaled = e.object(e.picture(width=128, height=96), 1, [64, 48, 32, 24])
    sizeless = e.object(e.picture(width=None, height=None), 2, [32, 24, 16, 12])
    t = store.table(resolved(e, store, settings, tmp_path), "labels.parquet").set_index("object_id")
    for object_id in (scaled, sizeless):
        assert list(t.loc[object_id, ["ymin", "xmin", "ymax", "xmax"]]) == [0.5, 0.5, 0.75, 0.75]


def test_caps_hold_and_keep_the_same_objects_when_the_data_grow(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for i in range(30):
        e.object(e.picture(f"p{i % 2}"), 1, [4, 4, 20, 20])
    e.object(e.picture("p0"), 2)
    spec = {"classes": {"fox": {"from": ["fox"], "max_per_place": 5}, "rat": ["rat"]}}
    first = resolved(e, store, settings, tmp_path / "a", spec)
    kept = set(store.table(first, "labels.parquet").query("label == 'fox'")["object_id"])
    assert len(kept) == 10
    assert first.counts.dropped == {"over_cap": 20}
    for _ in range(4):
        e.object(e.picture("p7"), 1, [4, 4, 20, 20])
    grown = resolved(e, store, settings, tmp_path / "b", spec)
    assert kept < set(store.table(grown, "labels.parquet").query("label == 'fox'")["object_id"])


def test_a_class_without_an_example_says_what_the_exports_hold(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.object(e.picture(), 1)
    with pytest.raises(
        LabelsError, match=r"class 'rat' has no example \(no category of that name\); the exports hold: fox 1; mend labels\.classes\.rat\.from"
    ):
        resolved(e, store, settings, tmp_path)


def test_unreviewed_objects_stay_by_the_plans_word(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.object(e.picture(), 1, validated=False)
    e.object(e.picture(), 2)
    assert resolved(e, store, settings, tmp_path, unreviewed="keep").counts.kept == 2


def test_two_sources_keep_their_places_apart(store: Store, settings: Settings, tmp_path: Path) -> None:
    plan = LabelsPlan.model_validate(SPEC)
    both = []
    for project, category in (("isle", 1), ("cape", 2)):
        e = Export(project)
        e.object(e.picture("cove"), category)
        both.append(steps(e, store, settings, tmp_path / project, plan))
    t = store.table(resolve_labels(both, plan, store), "labels.parquet")
    assert set(t["place"]) == {"isle/cove", "cape/cove"}


def test_the_megadetector_file_passes_the_fields_own_validator(store: Store, settings: Settings, tmp_path: Path) -> None:
    from megadetector.postprocessing.validate_batch_results import validate_batch_results

    e = Export()
    e.object(e.picture(), 1, [16, 12, 32, 24], confidence=0.9)
    two = e.picture()
    e.object(two, 2, [1, 2, 8, 9])
    e.object(two, 1, [30, 20, 30, 20])
    e.object(e.picture(), 2)
    path = store.path(resolved(e, store, settings, tmp_path), "megadetector.json")
    checked = validate_batch_results(str(path))
    assert checked["validation_results"]["errors"] == []
    written = json.loads(path.read_text())
    assert sorted(len(i["detections"]) for i in written["images"]) == [0, 1, 2]
    assert written["classification_categories"] == {"0": "fox", "1": "rat"}


@given(st.dictionaries(st.text("abcdefXYZ ß", min_size=1, max_size=6), st.sampled_from(["fox", "rat"]), min_size=1, max_size=8))
def test_a_name_means_the_same_in_any_case(meaning: dict[str, str]) -> None:
    folded: dict[str, str] = {}
    for name, class_id in meaning.items():
        folded.setdefault(name.casefold(), class_id)
    classes = {c: ["zz-" + c, *(n for n, m in folded.items() if m == c)] for c in ("fox", "rat")}
    class_of = LabelsPlan.model_validate({"classes": classes, "empty": []}).class_of()
    for name in meaning:
        assert class_of[name.upper().casefold()] == class_of[name.casefold()] == folded[name.casefold()]

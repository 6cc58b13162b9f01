"""Labels: a class for each annotation or a reason why it has none, stable limits, MegaDetector's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animl_pipeline.config import LabelsConfig, Plan, SourceConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import LabelsError, PlanError
from animl_pipeline.core.location_names import tidy_name
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.labels import SourceArtifacts, class_by_label, preview_labels, resolve_labels, wanted_labels
from animl_pipeline.storage.store import Store
from tests.support.coco_export import CATEGORIES, Export

SPEC = {"classes": {"fox": ["Fox"], "rat": ["rat", "mouse"]}, "exclude": ["person"]}


def steps(e: Export, store: Store, settings: Settings, folder: Path, spec: LabelsConfig, **fields: Any) -> SourceArtifacts:
    e.write(folder)
    plan = SourceConfig.model_validate({"name": e.project, "export": str(folder / "export.json"), "images": str(folder / "images")} | fields)
    export = export_annotations(plan, store, settings)
    return SourceArtifacts(
        plan, export, download_images(plan, export, (*wanted_labels(spec, plan.name, settings), "person", "empty"), store, settings)
    )


def resolved(e: Export, store: Store, settings: Settings, folder: Path, spec: dict[str, Any] = SPEC, **fields: Any) -> Artifact:
    plan = LabelsConfig.model_validate(spec)
    return resolve_labels([steps(e, store, settings, folder, plan, **fields)], plan, store, settings)


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


# -- the plan's labels --------------------------------------------------------------------------------------------------

LILA = """dataset_name,query,taxonomy_level,scientific_name,common_name,class,order,family,genus,species
Isle Traps,fox,species,urocyon littoralis,island fox,mammalia,carnivora,canidae,urocyon,urocyon littoralis
Isle Traps,rat,genus,rattus,old world rats,mammalia,rodentia,muridae,rattus,
Isle Traps,dog,subspecies,canis familiaris,dog,mammalia,carnivora,canidae,canis,canis familiaris
Cape Traps,rat,genus,neotoma,wood rats,mammalia,rodentia,cricetidae,neotoma,
Cape Traps,empty,,,,,,,,
"""
MLMODEL = {
    "_id": "speciesnet",
    "categories": [
        {"_id": "a1", "name": "Fox", "taxonomy": "mammalia;carnivora;canidae;urocyon;littoralis"},
        {"_id": "a2", "name": "rat", "taxonomy": "1d22;mammalia;rodentia;muridae;rattus;;rattus species"},
        {"_id": "a3", "name": "person", "taxonomy": None},
    ],
}


def annotate(e: Export, *names: str) -> list[str]:
    """Add an image with one annotation for each label, and return the annotations' ids."""
    e.categories = [*CATEGORIES, *({"id": 100 + i, "name": name} for i, name in enumerate(names))]
    return [e.annotation(e.image(f"p{i}"), 100 + i, [4, 4, 20, 20]) for i in range(len(names))]


def classes_of(artifact: Artifact, store: Store) -> dict[str, str]:
    t = store.table(artifact, "labels.parquet")
    return dict(zip(t["annotation_id"], t["class_id"], strict=True))


def with_taxa(folder: Path, text: str, fox: dict[str, Any], rat: dict[str, Any], **more: Any) -> dict[str, Any]:
    (folder / "taxonomy").write_text(text)
    return {"classes": {"fox": fox, "rat": rat}, "taxonomy": {"table": str(folder / "taxonomy")} | more.pop("taxonomy", {})} | more


CANIDS, RODENTS = {"level": "family", "name": "Canidae"}, {"level": "order", "name": "rodentia"}


def test_a_label_may_have_different_classes_in_different_sources(store: Store, settings: Settings, tmp_path: Path) -> None:
    plan = LabelsConfig.model_validate(
        {"classes": {"fox": {"from": {"isle": ["fox"], "cape": ["rat"]}}, "rat": {"from": {"*": ["mouse"], "isle": ["rat"]}}}}
    )
    both, expected = [], {}
    for project, meaning in (("isle", {"fox": "fox", "rat": "rat", "mouse": "rat"}), ("cape", {"rat": "fox", "mouse": "rat"})):
        e = Export(project)
        expected |= {project + o: c for o, c in zip(annotate(e, *meaning), meaning.values(), strict=True)}
        both.append(steps(e, store, settings, tmp_path / project, plan))
    t = store.table(resolve_labels(both, plan, store, settings), "labels.parquet")
    assert dict(zip(t["source"] + t["annotation_id"], t["class_id"], strict=True)) == expected
    assert wanted_labels(plan, "cape", settings) == ("mouse", "rat")


@pytest.mark.parametrize("text", [LILA, json.dumps(MLMODEL), json.dumps([MLMODEL])], ids=["lila", "mlmodel", "mlmodels"])
def test_a_class_gets_the_labels_of_its_taxa(store: Store, settings: Settings, tmp_path: Path, text: str) -> None:
    e = Export()
    fox, rat, other = annotate(e, "FOX", "rat", "other")
    spec = with_taxa(tmp_path, text, {"taxa": [CANIDS]}, {"taxa": [RODENTS]})
    artifact = resolved(e, store, settings, tmp_path, spec)
    assert classes_of(artifact, store) == {fox: "fox", rat: "rat"}
    assert other not in classes_of(artifact, store)


def test_a_species_is_named_with_its_genus(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    fox, rat = annotate(e, "fox", "rat")
    spec = with_taxa(tmp_path, json.dumps(MLMODEL), {"taxa": [{"level": "species", "name": "Urocyon littoralis"}]}, {"from": ["rat"]})
    assert classes_of(resolved(e, store, settings, tmp_path, spec), store) == {fox: "fox", rat: "rat"}


def test_a_written_label_counts_before_taxa_and_a_narrow_taxon_before_a_wide_one(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    fox, rat, dog = annotate(e, "fox", "rat", "dog")
    carnivores = {"level": "order", "name": "carnivora"}
    spec = with_taxa(tmp_path, LILA, {"taxa": [CANIDS]}, {"from": ["rat"], "taxa": [carnivores]})
    assert classes_of(resolved(e, store, settings, tmp_path / "a", spec), store) == {fox: "fox", rat: "rat", dog: "fox"}
    spec["classes"]["rat"]["from"] = ["rat", "dog"]
    assert classes_of(resolved(e, store, settings, tmp_path / "b", spec), store) == {fox: "fox", rat: "rat", dog: "rat"}


@pytest.mark.parametrize(
    ("of_class", "of_all", "reason"),
    [
        ({"exclude": ["Dog"]}, {}, "unlisted_label"),
        ({"exclude_taxa": [{"level": "genus", "name": "canis"}]}, {}, "unlisted_label"),
        ({}, {"exclude": ["dog"]}, "excluded"),
        ({}, {"exclude_taxa": [{"level": "genus", "name": "canis"}]}, "excluded"),
    ],
)
def test_labels_of_a_taxon_can_be_excluded(
    store: Store, settings: Settings, tmp_path: Path, of_class: dict[str, Any], of_all: dict[str, Any], reason: str
) -> None:
    e = Export()
    fox, rat, _ = annotate(e, "fox", "rat", "dog")
    spec = with_taxa(tmp_path, LILA, {"taxa": [CANIDS]} | of_class, {"from": ["rat"]}, **of_all)
    artifact = resolved(e, store, settings, tmp_path, spec)
    assert classes_of(artifact, store) == {fox: "fox", rat: "rat"}
    assert artifact.counts.dropped == {reason: 1}


def test_a_label_with_two_lineages_is_a_conflict_until_the_plan_names_the_data_set(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    fox, rat = annotate(e, "fox", "rat")
    rats = {"taxa": [{"level": "family", "name": "muridae"}]}
    spec = with_taxa(tmp_path, LILA, {"from": ["fox"]}, rats)
    with pytest.raises(LabelsError, match=r"labels\.taxonomy\.datasets") as caught:
        resolved(e, store, settings, tmp_path, spec)
    assert caught.value.code == "conflict"
    assert classes_of(resolved(e, store, settings, tmp_path, spec | {"on_conflict": "warn"}), store) == {fox: "fox", rat: "rat"}
    spec["taxonomy"]["datasets"] = {"isle": "isle traps"}
    assert classes_of(resolved(e, store, settings, tmp_path, spec), store) == {fox: "fox", rat: "rat"}


def test_a_taxon_in_two_classes_is_a_conflict(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    fox, _ = annotate(e, "fox", "rat")
    spec = with_taxa(tmp_path, LILA, {"taxa": [CANIDS]}, {"from": ["rat"], "taxa": [CANIDS]})
    with pytest.raises(LabelsError) as caught:
        resolved(e, store, settings, tmp_path, spec)
    assert caught.value.code == "conflict"
    assert classes_of(resolved(e, store, settings, tmp_path, spec | {"on_conflict": "warn"}), store)[fox] == "fox"


@pytest.mark.parametrize(
    ("text", "more", "code"),
    [
        (None, {}, "no_taxonomy"),
        ("name,genus\n", {}, "unknown_columns"),
        ("{", {}, "not_json"),
        ("[" * 100_000, {}, "not_json"),
        (LILA + '"Isle Traps,owl', {}, "not_csv"),
        (LILA + '"' + "x" * 140_000, {}, "not_csv"),
        ('{"categories": []}', {}, "no_categories"),
        (LILA, {"datasets": {"isle": "Elsewhere"}}, "unknown_dataset"),
    ],
)
def test_a_taxonomy_that_cannot_be_used_is_refused_in_one_line(
    store: Store, settings: Settings, tmp_path: Path, text: str | None, more: dict[str, Any], code: str
) -> None:
    e = Export()
    annotate(e, "fox", "rat")
    spec = with_taxa(tmp_path, text or "", {"taxa": [CANIDS]}, {"from": ["rat"]}, taxonomy=more)
    if text is None:
        (tmp_path / "taxonomy").unlink()
    with pytest.raises(LabelsError) as caught:
        resolved(e, store, settings, tmp_path, spec)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_labels_are_made_again_when_the_taxonomy_changes(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    annotate(e, "fox", "rat", "dog")
    spec = with_taxa(tmp_path, LILA, {"taxa": [CANIDS]}, {"from": ["rat"]})
    assert resolved(e, store, settings, tmp_path, spec).counts.kept == 3
    (tmp_path / "taxonomy").write_text(LILA.replace("Isle Traps,dog", "Isle Traps,cat"))
    assert resolved(e, store, settings, tmp_path, spec).counts.kept == 2


def test_a_limit_keeps_first_what_the_plan_prioritizes(store: Store, settings: Settings, tmp_path: Path) -> None:
    rule = {"from": ["fox", "rat"], "max_count": 6, "prioritize": ["Rat", "cape", "fox"]}
    plan = LabelsConfig.model_validate({"classes": {"animal": rule, "person": ["person"]}})
    both = []
    for project in ("cape", "isle"):
        e = Export(project)
        for i in range(5):
            e.annotation(e.image(f"p{i}"), 1)
        for i in range(2):
            e.annotation(e.image(f"q{i}"), 2)
        e.annotation(e.image(), 3)
        both.append(steps(e, store, settings, tmp_path / project, plan))
    artifact = resolve_labels(both, plan, store, settings)
    t = store.table(artifact, "labels.parquet").query("class_id == 'animal'")
    assert t.groupby(["source", "label"]).size().to_dict() == {("cape", "Rat"): 2, ("isle", "Rat"): 2, ("cape", "fox"): 2}
    assert artifact.counts.dropped == {"over_class_limit": 8}


@pytest.mark.parametrize("expected", [{"min_count": 3}, {"min_locations": 2}])
def test_a_class_with_too_few_annotations_is_an_error_or_a_warning_as_the_plan_says(
    store: Store, settings: Settings, tmp_path: Path, expected: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    e = Export()
    for i in range(3):
        e.annotation(e.image(f"p{i}"), 1)
    for _ in range(2):
        e.annotation(e.image("cove"), 2)
    spec = SPEC | expected
    with pytest.raises(LabelsError) as caught:
        resolved(e, store, settings, tmp_path, spec)
    assert caught.value.code == "too_few"
    assert resolved(e, store, settings, tmp_path, spec | {"on_too_few": "warn"}).counts.kept == 5
    assert "class 'rat'" in caplog.text
    own_limits = {"classes": {"fox": ["fox"], "rat": {"from": ["rat"]} | dict.fromkeys(expected, 1)}} | expected
    assert resolved(e, store, settings, tmp_path, own_limits).counts.kept == 5


def test_exports_without_any_annotation_of_a_class_are_always_an_error(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1, validated=False)
    with pytest.raises(LabelsError) as caught:
        resolved(e, store, settings, tmp_path, SPEC | {"on_too_few": "warn"})
    assert (caught.value.code, caught.value.details) == ("no_labels", {"reasons": {"unreviewed": 1}})


def test_the_preview_has_the_counts_of_the_step(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for i in range(12):
        e.annotation(e.image(f"p{i % 2}"), 1 + i % 3, [4, 4, 20, 20], validated=i != 5)
    e.annotation(e.images[0]["id"], 1)
    e.annotation(e.image(), 0)
    spec = {"classes": {"fox": {"from": ["fox"], "max_per_location": 2}, "rat": ["rat"]}}
    artifact = resolved(e, store, settings, tmp_path, spec)
    source = {"name": "isle", "export": str(tmp_path / "export.json"), "images": str(tmp_path / "nowhere")}
    plan = Plan.model_validate({"model": "m", "sources": [source], "labels": spec})
    found = preview_labels(plan.sources, plan.labels, {"isle": export_annotations(plan.sources[0], store, settings)}, {}, store, settings)
    assert (found.annotations, found.dropped) == (artifact.counts.kept, artifact.counts.dropped)
    assert {c.id: c.annotations for c in found.classes} == {c: artifact.counts.notes[c] for c in ("fox", "rat")}
    assert [(c.annotations, c.locations, c.dropped.get("over_class_limit", 0)) for c in found.classes] == [(4, 2, 1), (4, 2, 0)]
    assert (found.unlisted, found.conflicts, found.too_few) == ({"person": 4}, (), ())


def test_the_preview_lists_faults_instead_of_raising(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1)
    e.write(tmp_path)
    labels = {"classes": {"fox": ["fox", "rat"], "rat": ["rat"]}, "on_conflict": "warn"}
    source = {"name": "isle", "export": str(tmp_path / "export.json"), "images": "nowhere"}
    plan = Plan.model_validate({"model": "m", "sources": [source], "labels": labels})
    found = preview_labels(
        plan.sources, plan.labels, {"isle": export_annotations(plan.sources[0], store, settings)}, {"isle": [e.images[0]["id"]]}, store, settings
    )
    assert ["'rat'" in line for line in found.conflicts] == [True]
    assert [line.split("'")[1] for line in found.too_few] == ["fox", "rat"]
    assert found.dropped == {"over_source_limit": 1}


def test_equivalents_change_no_labels(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1)
    e.annotation(e.image(), 2)
    spec = SPEC | {"equivalents": {"rat": ["fox"]}}
    assert not resolved(e, store, settings, tmp_path).cached
    assert resolved(e, store, settings, tmp_path, spec).cached


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ({"classes": {"a": {"taxa": [CANIDS]}, "b": ["b"]}}, "labels.taxonomy.table"),
        ({"classes": {"a": ["a"], "b": ["b"]}, "equivalents": {"a": ["c"]}}, "equivalents: 'c'"),
        ({"classes": {"a": {"from": {"cape": ["a"]}}, "b": ["b"]}}, "'cape'"),
        ({"classes": {"a": {"from": ["a"], "prioritize": ["cape"]}, "b": ["b"]}}, "prioritize: 'cape'"),
        ({"classes": {"a": {"from": ["a"], "exclude": ["A"]}, "b": ["b"]}}, "'a'"),
        ({"classes": {"a": {"max_count": 3}, "b": ["b"]}}, "from: "),
        ({"classes": {"a": {"from": {"isle": ["x"]}}, "b": {"from": {"*": ["X"]}}}}, "'x'"),
    ],
)
def test_a_section_that_does_not_fit_is_refused_in_one_line(labels: dict[str, Any], part: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_plan({"model": "m", "sources": [{"name": "isle", "export": "e.json", "images": "i"}], "labels": labels})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_may_name_a_label_of_seven_parts_by_its_common_name(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.categories = [
        {"id": i, "name": name}
        for i, name in enumerate(
            ["u1;;;;;;blank", "u2;mammalia;carnivora;canidae;vulpes;vulpes;Red Fox", "u3;mammalia;rodentia;muridae;rattus;rattus;"]
        )
    ]
    made = [e.annotation(e.image(), i) for i in range(3)]
    artifact = resolved(e, store, settings, tmp_path, {"classes": {"fox": ["red fox"], "rat": ["Rattus rattus"]}, "empty": ["blank"]})
    table = store.table(artifact, "labels.parquet").set_index("annotation_id")
    assert dict(table["class_id"]) == {made[1]: "fox", made[2]: "rat"}
    assert artifact.counts.dropped == {"empty": 1}

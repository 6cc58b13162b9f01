"""Labels: one class an object by name, a reason for every object left out, caps that do not wander, MegaDetector's JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animl_pipeline.config import LabelsConfig, Plan, SourceConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import LabelsError, PlanError
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.labels import SourceArtifacts, preview_labels, resolve_labels, wanted_labels
from animl_pipeline.storage.step_cache import Store
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


def test_each_object_has_a_class_by_name_or_a_reason(store: Store, settings: Settings, tmp_path: Path) -> None:
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
    assert (t.loc[fox, "location"], t.loc[rat, "location"], t.loc[rat, "sequence"]) == ("isle/cove", "isle/bay", "isle/s1")
    assert artifact.counts.dropped == {"empty": 1, "excluded": 1, "unreviewed": 1, "image_unusable": 1}
    assert len(store.table(artifact, "dropped.parquet")) == 4


def test_a_name_that_no_class_lists_is_counted(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1)
    e.annotation(e.image(), 2)
    spec = {"classes": {"fox": ["fox"], "rat": ["rat"]}}
    e.annotation(e.image(), 3)
    assert resolved(e, store, settings, tmp_path, spec).counts.dropped == {"unlisted_name": 1}


def test_boxes_are_cut_at_the_frame_and_whole_frames_are_taken_as_none(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    over = e.annotation(e.image(), 1, [48, 36, 30, 30])
    full = e.annotation(e.image(), 2, [0, 0, 64, 47])
    artifact = resolved(e, store, settings, tmp_path)
    t = store.table(artifact, "labels.parquet").set_index("annotation_id")
    assert list(t.loc[over, ["ymin", "xmin", "ymax", "xmax"]]) == [0.75, 0.75, 1.0, 1.0]
    assert t.loc[full, ["ymin"]].isna().all()
    assert artifact.counts.notes["whole_frame_box_taken_as_none"] == 1


def test_a_box_is_relative_to_the_exports_size_and_to_the_images_own_where_that_is_missing(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    scaled = e.annotation(e.image(width=128, height=96), 1, [64, 48, 32, 24])
    sizeless = e.annotation(e.image(width=None, height=None), 2, [32, 24, 16, 12])
    t = store.table(resolved(e, store, settings, tmp_path), "labels.parquet").set_index("annotation_id")
    for annotation_id in (scaled, sizeless):
        assert list(t.loc[annotation_id, ["ymin", "xmin", "ymax", "xmax"]]) == [0.5, 0.5, 0.75, 0.75]


def test_caps_hold_and_keep_the_same_objects_when_the_data_grow(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for i in range(30):
        e.annotation(e.image(f"p{i % 2}"), 1, [4, 4, 20, 20])
    e.annotation(e.image("p0"), 2)
    spec = {"classes": {"fox": {"from": ["fox"], "max_per_location": 5}, "rat": ["rat"]}}
    first = resolved(e, store, settings, tmp_path / "a", spec)
    kept = set(store.table(first, "labels.parquet").query("class_id == 'fox'")["annotation_id"])
    assert len(kept) == 10
    assert first.counts.dropped == {"over_cap": 20}
    for _ in range(4):
        e.annotation(e.image("p7"), 1, [4, 4, 20, 20])
    grown = resolved(e, store, settings, tmp_path / "b", spec)
    assert kept < set(store.table(grown, "labels.parquet").query("class_id == 'fox'")["annotation_id"])


def test_a_class_without_an_example_says_what_the_exports_hold(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1)
    with pytest.raises(
        LabelsError, match=r"class 'rat' has no example \(no category of that name\); the exports hold: fox 1; mend labels\.classes\.rat\.from"
    ):
        resolved(e, store, settings, tmp_path)


def test_unreviewed_objects_stay_by_the_plans_word(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1, validated=False)
    e.annotation(e.image(), 2)
    assert resolved(e, store, settings, tmp_path, unreviewed="keep").counts.kept == 2


def test_two_sources_keep_their_locations_apart(store: Store, settings: Settings, tmp_path: Path) -> None:
    plan = LabelsConfig.model_validate(SPEC)
    both = []
    for project, category in (("isle", 1), ("cape", 2)):
        e = Export(project)
        e.annotation(e.image("cove"), category)
        both.append(steps(e, store, settings, tmp_path / project, plan))
    t = store.table(resolve_labels(both, plan, store, settings), "labels.parquet")
    assert set(t["location"]) == {"isle/cove", "cape/cove"}


def test_the_megadetector_file_passes_the_fields_own_validator(store: Store, settings: Settings, tmp_path: Path) -> None:
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


@given(st.dictionaries(st.text("abcdefXYZ ß", min_size=1, max_size=6), st.sampled_from(["fox", "rat"]), min_size=1, max_size=8))
def test_a_name_means_the_same_in_any_case(meaning: dict[str, str]) -> None:
    folded: dict[str, str] = {}
    for name, class_id in meaning.items():
        folded.setdefault(name.casefold(), class_id)
    classes = {c: ["zz-" + c, *(n for n, m in folded.items() if m == c)] for c in ("fox", "rat")}
    class_of = LabelsConfig.model_validate({"classes": classes, "empty": []}).class_of()
    for name in meaning:
        assert class_of[name.upper().casefold()] == class_of[name.casefold()] == folded[name.casefold()]


@pytest.mark.parametrize("said", ["h\u00e9risson", "he\u0301risson"])
@pytest.mark.parametrize("meant", ["h\u00e9risson", "he\u0301risson", "H\u00c9RISSON"])
def test_an_accent_is_the_same_however_it_is_written(store: Store, settings: Settings, tmp_path: Path, said: str, meant: str) -> None:
    e = Export()
    e.categories = [{"id": 1, "name": said}, {"id": 2, "name": "rat"}]
    e.annotation(e.image(), 1)
    e.annotation(e.image(), 2)
    spec = {"classes": {"hedgehog": [meant], "rat": ["rat"]}}
    assert resolved(e, store, settings, tmp_path, spec).counts.notes == {"hedgehog": 1, "rat": 1}


# -- the specification --------------------------------------------------------------------------------------------------

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


def named(e: Export, *names: str) -> list[str]:
    """An object in a picture of its own for each category name; their ids come back."""
    e.categories = [*CATEGORIES, *({"id": 100 + i, "name": name} for i, name in enumerate(names))]
    return [e.annotation(e.image(f"p{i}"), 100 + i, [4, 4, 20, 20]) for i in range(len(names))]


def classes_of(artifact: Artifact, store: Store) -> dict[str, str]:
    t = store.table(artifact, "labels.parquet")
    return dict(zip(t["annotation_id"], t["class_id"], strict=True))


def with_taxa(folder: Path, text: str, fox: dict[str, Any], rat: dict[str, Any], **more: Any) -> dict[str, Any]:
    (folder / "taxonomy").write_text(text)
    return {"classes": {"fox": fox, "rat": rat}, "taxonomy": {"table": str(folder / "taxonomy")} | more.pop("taxonomy", {})} | more


CANIDS, RODENTS = {"level": "family", "name": "Canidae"}, {"level": "order", "name": "rodentia"}


def test_a_name_may_mean_one_class_in_one_source_and_another_in_the_next(store: Store, settings: Settings, tmp_path: Path) -> None:
    plan = LabelsConfig.model_validate(
        {"classes": {"fox": {"from": {"isle": ["fox"], "cape": ["rat"]}}, "rat": {"from": {"*": ["mouse"], "isle": ["rat"]}}}}
    )
    both, expected = [], {}
    for project, meaning in (("isle", {"fox": "fox", "rat": "rat", "mouse": "rat"}), ("cape", {"rat": "fox", "mouse": "rat"})):
        e = Export(project)
        expected |= {project + o: c for o, c in zip(named(e, *meaning), meaning.values(), strict=True)}
        both.append(steps(e, store, settings, tmp_path / project, plan))
    t = store.table(resolve_labels(both, plan, store, settings), "labels.parquet")
    assert dict(zip(t["source"] + t["annotation_id"], t["class_id"], strict=True)) == expected
    assert wanted_labels(plan, "cape", settings) == ("mouse", "rat")


@pytest.mark.parametrize("text", [LILA, json.dumps(MLMODEL), json.dumps([MLMODEL])], ids=["lila", "mlmodel", "mlmodels"])
def test_taxa_bring_the_names_that_the_taxonomy_puts_into_them(store: Store, settings: Settings, tmp_path: Path, text: str) -> None:
    e = Export()
    fox, rat, other = named(e, "FOX", "rat", "other")
    spec = with_taxa(tmp_path, text, {"taxa": [CANIDS]}, {"taxa": [RODENTS]})
    artifact = resolved(e, store, settings, tmp_path, spec)
    assert classes_of(artifact, store) == {fox: "fox", rat: "rat"}
    assert other not in classes_of(artifact, store)


def test_a_species_is_named_with_its_genus(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    fox, rat = named(e, "fox", "rat")
    spec = with_taxa(tmp_path, json.dumps(MLMODEL), {"taxa": [{"level": "species", "name": "Urocyon littoralis"}]}, {"from": ["rat"]})
    assert classes_of(resolved(e, store, settings, tmp_path, spec), store) == {fox: "fox", rat: "rat"}


def test_a_spelt_name_counts_before_taxa_and_a_narrow_taxon_before_a_wide_one(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    fox, rat, dog = named(e, "fox", "rat", "dog")
    carnivores = {"level": "order", "name": "carnivora"}
    spec = with_taxa(tmp_path, LILA, {"taxa": [CANIDS]}, {"from": ["rat"], "taxa": [carnivores]})
    assert classes_of(resolved(e, store, settings, tmp_path / "a", spec), store) == {fox: "fox", rat: "rat", dog: "fox"}
    spec["classes"]["rat"]["from"] = ["rat", "dog"]
    assert classes_of(resolved(e, store, settings, tmp_path / "b", spec), store) == {fox: "fox", rat: "rat", dog: "rat"}


@pytest.mark.parametrize(
    ("of_class", "of_all", "reason"),
    [
        ({"exclude": ["Dog"]}, {}, "unlisted_name"),
        ({"exclude_taxa": [{"level": "genus", "name": "canis"}]}, {}, "unlisted_name"),
        ({}, {"exclude": ["dog"]}, "excluded"),
        ({}, {"exclude_taxa": [{"level": "genus", "name": "canis"}]}, "excluded"),
    ],
)
def test_what_taxa_bring_and_is_not_meant_can_be_left_out(
    store: Store, settings: Settings, tmp_path: Path, of_class: dict[str, Any], of_all: dict[str, Any], reason: str
) -> None:
    e = Export()
    fox, rat, _ = named(e, "fox", "rat", "dog")
    spec = with_taxa(tmp_path, LILA, {"taxa": [CANIDS]} | of_class, {"from": ["rat"]}, **of_all)
    artifact = resolved(e, store, settings, tmp_path, spec)
    assert classes_of(artifact, store) == {fox: "fox", rat: "rat"}
    assert artifact.counts.dropped == {reason: 1}


def test_a_name_with_two_lineages_is_a_conflict_until_the_data_set_is_said(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    fox, rat = named(e, "fox", "rat")
    rats = {"taxa": [{"level": "family", "name": "muridae"}]}
    spec = with_taxa(tmp_path, LILA, {"from": ["fox"]}, rats)
    with pytest.raises(LabelsError, match=r"'rat' has several lineages .* labels\.taxonomy\.datasets"):
        resolved(e, store, settings, tmp_path, spec)
    assert classes_of(resolved(e, store, settings, tmp_path, spec | {"on_conflict": "warn"}), store) == {fox: "fox", rat: "rat"}
    spec["taxonomy"]["datasets"] = {"isle": "isle traps"}
    assert classes_of(resolved(e, store, settings, tmp_path, spec), store) == {fox: "fox", rat: "rat"}


def test_two_classes_that_claim_a_taxon_are_a_conflict(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    fox, _ = named(e, "fox", "rat")
    spec = with_taxa(tmp_path, LILA, {"taxa": [CANIDS]}, {"from": ["rat"], "taxa": [CANIDS]})
    with pytest.raises(LabelsError, match=r"'dog' is by its family in 'classes\.fox' and 'classes\.rat'|'fox' is by its family in"):
        resolved(e, store, settings, tmp_path, spec)
    assert classes_of(resolved(e, store, settings, tmp_path, spec | {"on_conflict": "warn"}), store)[fox] == "fox"


@pytest.mark.parametrize(
    ("text", "more", "line"),
    [
        (None, {}, r"labels\.taxonomy\.table .*: expected a taxonomy, found none"),
        ("name,genus\n", {}, "expected LILA's taxonomy mapping with the columns query"),
        ("{", {}, "is not JSON"),
        ("[" * 100_000, {}, "is not JSON"),
        (LILA + '"Isle Traps,owl', {}, r"is no CSV that can be read \(unexpected end of data\)"),
        (LILA + '"' + "x" * 140_000, {}, "is no CSV that can be read"),
        ('{"categories": []}', {}, "expected an MLModel document with categories, found none"),
        (
            LILA,
            {"datasets": {"isle": "Elsewhere"}},
            r"has no data set 'Elsewhere' \(labels\.taxonomy\.datasets\.isle\); it has: cape traps, isle traps",
        ),
    ],
)
def test_a_taxonomy_that_cannot_be_used_is_one_clear_line(
    store: Store, settings: Settings, tmp_path: Path, text: str | None, more: dict[str, Any], line: str
) -> None:
    e = Export()
    named(e, "fox", "rat")
    spec = with_taxa(tmp_path, text or "", {"taxa": [CANIDS]}, {"from": ["rat"]}, taxonomy=more)
    if text is None:
        (tmp_path / "taxonomy").unlink()
    with pytest.raises(LabelsError, match=line) as caught:
        resolved(e, store, settings, tmp_path, spec)
    assert "\n" not in str(caught.value)


def test_a_changed_taxonomy_makes_the_labels_anew(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    named(e, "fox", "rat", "dog")
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
    assert artifact.counts.dropped == {"over_cap": 8}


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"min_count": 3}, r"class 'rat' has 2 examples, expected at least 3 \(min_count\) \(none left out\)"),
        ({"min_locations": 2}, r"class 'rat' lives at 1 places, expected at least 2 \(min_locations\)"),
    ],
)
def test_a_class_with_too_little_is_refused_or_only_noted_by_the_plans_word(
    store: Store, settings: Settings, tmp_path: Path, asked: dict[str, int], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    e = Export()
    for i in range(3):
        e.annotation(e.image(f"p{i}"), 1)
    for _ in range(2):
        e.annotation(e.image("cove"), 2)
    spec = SPEC | asked
    with pytest.raises(LabelsError, match=line):
        resolved(e, store, settings, tmp_path, spec)
    assert resolved(e, store, settings, tmp_path, spec | {"on_too_few": "warn"}).counts.kept == 5
    assert "class 'rat'" in caplog.text
    spared = {"classes": {"fox": ["fox"], "rat": {"from": ["rat"]} | dict.fromkeys(asked, 1)}} | asked
    assert resolved(e, store, settings, tmp_path, spared).counts.kept == 5


def test_exports_without_any_object_of_a_class_end_in_one_line_whatever_the_plans_word(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1, validated=False)
    with pytest.raises(LabelsError, match="no object of the exports has a class: 1 unreviewed"):
        resolved(e, store, settings, tmp_path, SPEC | {"on_too_few": "warn"})


def test_a_preview_counts_what_the_step_then_keeps(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for i in range(12):
        e.annotation(e.image(f"p{i % 2}"), 1 + i % 3, [4, 4, 20, 20], validated=i != 5)
    e.annotation(e.images[0]["id"], 1)
    e.annotation(e.image(), 0)
    spec = {"classes": {"fox": {"from": ["fox"], "max_per_location": 2}, "rat": ["rat"]}}
    artifact = resolved(e, store, settings, tmp_path, spec)
    source = {"name": "isle", "export": str(tmp_path / "export.json"), "images": str(tmp_path / "nowhere")}
    plan = Plan.model_validate({"model": "m", "sources": [source], "labels": spec})
    found = preview_labels(plan, {"isle": export_annotations(plan.sources[0], store, settings)}, {}, store, settings)
    assert (found.objects, found.dropped) == (artifact.counts.kept, artifact.counts.dropped)
    assert {c.id: c.objects for c in found.classes} == {c: artifact.counts.notes[c] for c in ("fox", "rat")}
    assert [(c.objects, c.locations, c.over_cap) for c in found.classes] == [(4, 2, 1), (4, 2, 0)]
    assert (found.unlisted, found.conflicts, found.on_too_few) == ({"person": 4}, (), ())


def test_a_preview_says_what_is_wrong_instead_of_ending(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1)
    e.write(tmp_path)
    labels = {"classes": {"fox": ["fox", "rat"], "rat": ["rat"]}, "on_conflict": "warn"}
    source = {"name": "isle", "export": str(tmp_path / "export.json"), "images": "nowhere"}
    plan = Plan.model_validate({"model": "m", "sources": [source], "labels": labels})
    found = preview_labels(plan, {"isle": export_annotations(plan.sources[0], store, settings)}, {"isle": [e.images[0]["id"]]}, store, settings)
    assert found.conflicts == ("the name 'rat' is in 'classes.fox' and in 'classes.rat'",)
    assert [line[:15] for line in found.on_too_few] == ["the class 'fox'", "the class 'rat'"]
    assert found.dropped == {"image_unusable": 1}


def test_equivalents_say_which_predictions_are_right_and_make_nothing_anew(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(), 1)
    e.annotation(e.image(), 2)
    spec = SPEC | {"equivalents": {"rat": ["fox"]}}
    assert LabelsConfig.model_validate(spec).right_for() == {"fox": {"fox"}, "rat": {"rat", "fox"}}
    assert not resolved(e, store, settings, tmp_path).cached
    assert resolved(e, store, settings, tmp_path, spec).cached


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ({"classes": {"a": {"taxa": [CANIDS]}, "b": ["b"]}}, "a: taxa need a table"),
        ({"classes": {"a": ["a"], "b": ["b"]}, "equivalents": {"a": ["c"]}}, "equivalents: 'c' is no class"),
        ({"classes": {"a": {"from": {"cape": ["a"]}}, "b": ["b"]}}, "labels names the source 'cape'; the plan's sources are isle"),
        ({"classes": {"a": {"from": ["a"], "prioritize": ["cape"]}, "b": ["b"]}}, "'cape' is neither a source nor a name"),
        ({"classes": {"a": {"from": ["a"], "exclude": ["A"]}, "b": ["b"]}}, "'a' is in from and in exclude"),
        ({"classes": {"a": {"max_count": 3}, "b": ["b"]}}, "expected at least one category name"),
        ({"classes": {"a": {"from": {"isle": ["x"]}}, "b": {"from": {"*": ["X"]}}}}, "the name 'x' is in 'classes.a' and in 'classes.b'"),
    ],
)
def test_a_specification_that_cannot_be_meant_is_refused_in_one_line(labels: dict[str, Any], line: str) -> None:
    with pytest.raises(PlanError, match=re.escape(line)):
        check_plan({"model": "m", "sources": [{"name": "isle", "export": "e.json", "images": "i"}], "labels": labels})

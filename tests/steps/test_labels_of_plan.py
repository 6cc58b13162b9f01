"""The plan's labels: classes by label, source and taxon; limits, exclusions, equivalents; the preview."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from animl_pipeline.config import LabelsConfig, Plan, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import LabelsError, PlanError
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.labels import preview_labels, resolve_labels, wanted_labels
from animl_pipeline.storage.store import Store
from tests.support.coco_export import CATEGORIES, Export
from tests.support.resolved_labels import SPEC, resolved, steps

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


def test_the_order_of_the_classes_decides_a_conflict_in_a_store_that_knows_another_order(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    fox, both, rat = annotate(e, "fox", "canid", "rat")
    classes = {"fox": ["fox", "canid"], "rat": ["rat", "canid"]}
    for order, meaning in ((classes, "fox"), (dict(reversed(classes.items())), "rat")):
        artifact = resolved(e, store, settings, tmp_path, {"classes": order, "on_conflict": "warn"})
        assert classes_of(artifact, store) == {fox: "fox", both: meaning, rat: "rat"}


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

"""Garbage collection of images and crops: declared blobs stay, others go, and a run makes again what it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from animl_pipeline.config import Plan, load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.tables import write_parquet
from animl_pipeline.steps.crops import extract_crops
from animl_pipeline.steps.detections import detect_animals
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.labels import SourceArtifacts, resolve_labels, wanted_labels
from animl_pipeline.steps.splits import split_by_location
from animl_pipeline.storage.gc import GcRules
from animl_pipeline.storage.image_index import index_names
from animl_pipeline.storage.store import BlobColumn, StepOutput, Store, Workspace, open_store
from tests.support.stored_steps import collect, has_blob, report, sha256_of_bytes
from tests.support.tiny_project import write_project


class Steps(NamedTuple):
    """The steps up to the splits."""

    export: Artifact
    images: Artifact
    labels: Artifact
    detections: Artifact
    crops: Artifact
    splits: Artifact


def run_steps(plan: Plan, model_input: ModelInput, store: Store, settings: Settings) -> Steps:
    source, classes = plan.sources[0], tuple(plan.labels.classes)
    export = export_annotations(source, store, settings)
    images = download_images(source, export, wanted_labels(plan.labels, source.name, settings), store, settings, plan.images)
    labels = resolve_labels([SourceArtifacts(source, export, images)], plan.labels, store, settings)
    detections = detect_animals(labels, plan.detections, store, settings)
    crops = extract_crops(labels, detections, plan.crops, model_input, store, settings)
    return Steps(export, images, labels, detections, crops, split_by_location(crops, plan.splits, classes, store, plan.model))


def indexes(store: Store, group: str) -> list[str]:
    return [name for name in index_names(store.object_store) if name.startswith(f"{group}/")]


def test_a_needed_run_stays_cached_and_another_is_made_again_with_the_same_content(settings: Settings, tmp_path: Path) -> None:
    store, plan = open_store(settings), load_plan(write_project(tmp_path / "isle", locations=6, each=1))
    kept, other = (run_steps(plan, ModelInput(size=size), store, settings) for size in (32, 48))
    report(store, plan.model, kept.splits)
    result = collect(store, GcRules(images=True))
    assert [(group.why, group.number) for group in result.deleted if group.what == "steps"] == [("crops", 1), ("splits", 1)]
    names = {r["blob"] for group in ("crops", "images") for index in indexes(store, group) for r in store.read_index(index).values()}
    assert all(store.object_store.size(f"blobs/{name[:2]}/{name}") for name in names)
    assert all(a.cached for a in run_steps(plan, ModelInput(size=32), store, settings))
    again = run_steps(plan, ModelInput(size=48), store, settings)
    assert [a.cached for a in again] == [True, True, True, True, False, False]
    assert [(a.key, a.digest) for a in again] == [(a.key, a.digest) for a in other]


def test_downloaded_images_stay_unless_they_may_be_deleted_and_are_then_downloaded_again(settings: Settings, tmp_path: Path) -> None:
    store, plan = open_store(settings), load_plan(write_project(tmp_path / "isle", locations=6, each=1))
    first = run_steps(plan, ModelInput(size=32), store, settings)
    images = store.table(first.images, "images.parquet")
    collect(store)
    assert all(store.has_blobs(images["blob"].tolist(), images["bytes"].tolist()))
    collect(store, GcRules(images=True))
    assert list(store.object_store.names("blobs/")) == []
    assert not indexes(store, "images") + indexes(store, "crops")
    again = run_steps(plan, ModelInput(size=32), store, settings)
    assert [a.digest for a in again] == [a.digest for a in first]


def test_animls_answers_stay_while_the_index_names_them_and_those_of_an_interrupted_export_do_not(store: Store) -> None:
    store.put_blob(b"answer")
    store.add_to_index("animl/isle", {"exported": {"blobs": [sha256_of_bytes(b"answer")]}})
    store.put_blob(b"of an attempt")
    store.add_to_index("animl-windows/isle-1", {"w": {"answer": {"blob": sha256_of_bytes(b"of an attempt"), "bytes": 13}}})
    collect(store, GcRules(images=True))
    assert (has_blob(store, b"answer"), has_blob(store, b"of an attempt")) == (True, False)
    assert indexes(store, "animl") == ["animl/isle"]
    assert indexes(store, "animl-windows") == []


def test_a_blob_stays_if_its_manifest_declares_it_and_not_if_only_a_text_names_it(any_store: Store) -> None:
    def build(space: Workspace) -> StepOutput:
        (space.out / "notes.json").write_text(json.dumps([{"image": any_store.put_blob(b"named in a text")}]))
        table = pd.DataFrame({"image": [any_store.put_blob(b"in a column")], "size": [11], "other": [any_store.put_blob(b"in another")]})
        table["image"] = table["image"].astype("category")
        write_parquet(space.out / "t.parquet", table)
        column = BlobColumn(file="t.parquet", column="image", size_column="size")
        return StepOutput(Counts(kept=1), blobs=(column,), blob_digests=(any_store.put_blob(b"in the list"),))

    report(any_store, "isle", any_store.make(Step("evaluation", version=1), build=build))
    collect(any_store)
    data = (b"in a column", b"in the list", b"in another", b"named in a text")
    assert [has_blob(any_store, one) for one in data] == [True, True, False, False]

"""The first half of the street as Prefect tasks: from an export to crops in train, val and test."""

from __future__ import annotations

from typing import Any

from prefect import task

from animl_pipeline.config import CropsConfig, DetectionsConfig, ImagesConfig, LabelsConfig, SourceConfig, SplitsConfig
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.records import Artifact, ModelInput
from animl_pipeline.steps import crops as crops_room
from animl_pipeline.steps import detections as detections_room
from animl_pipeline.steps import export as export_room
from animl_pipeline.steps import images as images_room
from animl_pipeline.steps import labels as labels_room
from animl_pipeline.steps import splits as splits_room
from animl_pipeline.storage.step_cache import open_store
from tasks.policies import ONCE, PATIENT, shown


@task(name="export", task_run_name="export {source.name}", **PATIENT)
def export_annotations(source: SourceConfig) -> Any:
    """Read a source's export of labels, keep it untouched, and check it."""
    settings = load_settings()
    return shown(export_room.export_annotations(source, open_store(settings), settings))


@task(name="images", task_run_name="images {source.name}", **PATIENT)
def fetch_images(source: SourceConfig, export: Artifact, wanted: tuple[str, ...], spec: ImagesConfig) -> Any:
    """Fetch and verify the pictures that the export names and the plan wants."""
    settings = load_settings()
    return shown(images_room.fetch_images(source, export, wanted, open_store(settings), settings, spec))


@task(name="labels", task_run_name="labels", **ONCE)
def resolve_labels(sources: list[labels_room.SourceSteps], spec: LabelsConfig) -> Any:
    """Give each object its class by the label specification."""
    settings = load_settings()
    return shown(labels_room.resolve_labels(sources, spec, open_store(settings), settings))


@task(name="detections", task_run_name="detections", **PATIENT)
def detect_animals(labels: Artifact, spec: DetectionsConfig) -> Any:
    """Find boxes: people's where there are any, MegaDetector's elsewhere."""
    settings = load_settings()
    return shown(detections_room.detect_animals(labels, spec, open_store(settings), settings))


@task(name="look", task_run_name="look {share} of {of}", **PATIENT)
def look_at_share(labels: Artifact, spec: DetectionsConfig, share: int, of: int) -> int:
    """Look for animals in one share of the pictures: a worker's part of the step detections."""
    settings = load_settings()
    return detections_room.run_detector_share(labels, spec, share, of, open_store(settings), settings)


@task(name="cut", task_run_name="cut {share} of {of}", **PATIENT)
def cut_share(labels: Artifact, detections: Artifact, spec: CropsConfig, model_input: ModelInput, share: int, of: int) -> int:
    """Cut one share of the pictures: a worker's part of the step crops."""
    settings = load_settings()
    return crops_room.extract_crops_share(labels, detections, spec, model_input, share, of, open_store(settings), settings)


@task(name="crops", task_run_name="crops", **PATIENT)
def cut_crops(labels: Artifact, detections: Artifact, spec: CropsConfig, model_input: ModelInput) -> Any:
    """Cut labelled animals out of their pictures."""
    settings = load_settings()
    return shown(crops_room.extract_crops(labels, detections, spec, model_input, open_store(settings), settings))


@task(name="splits", task_run_name="splits", **ONCE)
def split_by_location(crops: Artifact, spec: SplitsConfig, classes: tuple[str, ...], lineage: str) -> Any:
    """Share places out to train, val and test; what was once tested on stays in test."""
    return shown(splits_room.split_by_location(crops, spec, classes, open_store(load_settings()), lineage))

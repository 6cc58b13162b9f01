"""Tasks from the export of labels to crops in train, val and test."""

from __future__ import annotations

from datetime import datetime

from prefect import task

from animl_pipeline.config import CropsConfig, DetectionsConfig, ImagesConfig, LabelsConfig, Plan, ProductionConfig, SourceConfig, SplitsConfig
from animl_pipeline.config.training import FrozenNetworkConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.sample_limit_and_false_box_types import FalseBoxClass
from animl_pipeline.deploy import trained_versions
from animl_pipeline.steps import crops as crops_step
from animl_pipeline.steps import detections as detections_step
from animl_pipeline.steps import embeddings as embeddings_step
from animl_pipeline.steps import export as export_step
from animl_pipeline.steps import images as images_step
from animl_pipeline.steps import labels as labels_step
from animl_pipeline.steps import splits as splits_step
from tasks.step_tasks_and_retries import LONG_WAIT, REMOTE_WORK, step_task
from tasks.store_and_data_paths import RunPaths


@step_task("export", "export {source.name}")
def export_annotations(source: SourceConfig, paths: RunPaths) -> Artifact:
    """Read and check a source's export of labels."""
    return export_step.export_annotations(source, paths.open_store(), paths.settings())


@step_task("images", "images {source.name}")
def download_images(source: SourceConfig, export: Artifact, labels: LabelsConfig, config: ImagesConfig, paths: RunPaths) -> Artifact:
    """Download and verify the images whose labels the plan wants."""
    settings = paths.settings()
    wanted = labels_step.wanted_labels(labels, source.name, settings)
    samples = labels_step.wanted_samples(labels, source.name, settings)
    store = paths.open_store()
    limits = labels_step.limits_of_classes(source, export, labels, store, settings)
    return images_step.download_images(source, export, wanted, store, settings, config, samples, limits)


@step_task("labels")
def resolve_labels(
    sources: tuple[SourceConfig, ...], exports: list[Artifact], images: list[Artifact], config: LabelsConfig, paths: RunPaths
) -> Artifact:
    """Give each annotation its class by the plan's label rules. ``exports`` and ``images`` are in the order of ``sources``."""
    found = [labels_step.SourceArtifacts(*of_source) for of_source in zip(sources, exports, images, strict=True)]
    return labels_step.resolve_labels(found, config, paths.open_store(), paths.settings())


@step_task("detections")
def detect_animals(
    labels: Artifact, config: DetectionsConfig, sources: tuple[SourceConfig, ...], false_boxes: FalseBoxClass | None, paths: RunPaths
) -> Artifact:
    """Find boxes: people's where there are any, MegaDetector's elsewhere."""
    folders = {source.name: source.images for source in sources}
    return detections_step.detect_animals(labels, config, paths.open_store(), paths.settings(), folders, false_boxes)


@task(name="detect", task_run_name="detect {share} of {of}", **REMOTE_WORK)
def run_detector_share(labels: Artifact, config: DetectionsConfig, share: int, of: int, false_boxes: FalseBoxClass | None, paths: RunPaths) -> int:
    """Run the detector on one share of the images: a cluster worker's part of the step detections."""
    return detections_step.run_detector_share(labels, config, share, of, paths.open_store(), paths.settings(), false_boxes)


@step_task("crops")
def extract_crops(
    labels: Artifact, detections: Artifact, config: CropsConfig, model_input: ModelInput, nothing: str | None, paths: RunPaths
) -> Artifact:
    """Crop the labelled animals out of their images, and the false boxes if ``nothing`` is their class."""
    return crops_step.extract_crops(labels, detections, config, model_input, paths.open_store(), paths.settings(), nothing)


@task(name="crop", task_run_name="crop {share} of {of}", **REMOTE_WORK)
def extract_crops_share(
    labels: Artifact, detections: Artifact, config: CropsConfig, model_input: ModelInput, share: int, of: int, nothing: str | None, paths: RunPaths
) -> int:
    """Crop one share of the images: a cluster worker's part of the step crops."""
    return crops_step.extract_crops_share(labels, detections, config, model_input, share, of, paths.open_store(), paths.settings(), nothing)


@step_task("splits")
def split_by_location(crops: Artifact, config: SplitsConfig, classes: tuple[str, ...], model: str, paths: RunPaths) -> Artifact:
    """Divide the locations into train, val and test. A location that was in test before stays there."""
    table = splits_step.read_split_table(config, paths.settings())
    return splits_step.split_by_location(crops, config, classes, paths.open_store(), model, table)


@step_task("embeddings")
def embed_crops(crops: Artifact, splits: Artifact, networks: tuple[FrozenNetworkConfig, ...], size: int, paths: RunPaths) -> Artifact:
    """Compute the embeddings of the crops of train and val by frozen networks, once for each crop and network."""
    return embeddings_step.embed_crops(crops, splits, networks, size, paths.open_store(), paths.settings())


@step_task("test_images")
def choose_test_images(
    sources: tuple[SourceConfig, ...],
    exports: list[Artifact],
    images: list[Artifact],
    splits: Artifact,
    labels: LabelsConfig,
    production: ProductionConfig,
    dates: SplitsConfig,
    paths: RunPaths,
) -> Artifact:
    """Choose the images on which the model is scored as in production. ``exports`` and ``images`` are in the order of ``sources``."""
    found = [labels_step.SourceArtifacts(*of_source) for of_source in zip(sources, exports, images, strict=True)]
    return labels_step.choose_test_images(found, splits, labels, production, dates, paths.open_store(), paths.settings())


@step_task("test_downloads", "test_downloads {source.name}")
def download_test_images(source: SourceConfig, test_images: Artifact, config: ImagesConfig, paths: RunPaths) -> Artifact:
    """Download the images on which the model is scored as in production."""
    return images_step.download_test_images(source, test_images, paths.open_store(), paths.settings(), config)


@step_task("test_detections")
def detect_in_test_images(
    test_images: Artifact,
    sources: tuple[SourceConfig, ...],
    downloads: list[Artifact],
    config: DetectionsConfig,
    production: ProductionConfig,
    paths: RunPaths,
) -> Artifact:
    """Run the detector on these images at the confidence of production. ``downloads`` are in the order of ``sources``."""
    by_source = {source.name: download for source, download in zip(sources, downloads, strict=True)}
    folders = {source.name: source.images for source in sources}
    return detections_step.detect_in_test_images(test_images, by_source, config, production, paths.open_store(), paths.settings(), folders)


@task(name="last training", task_run_name="last training", **REMOTE_WORK)
def last_training_start(plan: Plan, paths: RunPaths) -> datetime | None:
    """When the model's last completed training began; None if there was none."""
    return trained_versions.last_training_start(plan.model, paths.open_store())


@task(name="count validated", task_run_name="count validated {source.name}", **LONG_WAIT)
def count_validated(source: SourceConfig, since: datetime | None, paths: RunPaths) -> int:
    """The number of the source's images that hold labels validated since a time; None counts all."""
    return export_step.count_validated(source, since, paths.settings())

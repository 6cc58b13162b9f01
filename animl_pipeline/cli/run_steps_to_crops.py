"""A plan's labelled images and crops, made in this process: what the commands `evaluate` and `detectors compare` need, without Prefect.

The steps are those of a training, so what a training made is reused. No split is made: evaluating never freezes a location.
"""

from __future__ import annotations

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.storage.store import Store


def label_images(plan: Plan, store: Store, settings: Settings) -> Artifact:
    """The step labels of a plan: its images are downloaded, and their annotations have classes."""
    from animl_pipeline.steps.export import export_annotations
    from animl_pipeline.steps.images import download_images
    from animl_pipeline.steps.labels import SourceArtifacts, limits_of_classes, resolve_labels, wanted_labels, wanted_samples

    sources = []
    for source in plan.sources:
        export = export_annotations(source, store, settings)
        wanted, samples = wanted_labels(plan.labels, source.name, settings), wanted_samples(plan.labels, source.name, settings)
        limits = limits_of_classes(source, export, plan.labels, store, settings)
        images = download_images(source, export, wanted, store, settings, plan.images, samples, limits)
        sources.append(SourceArtifacts(source, export, images))
    return resolve_labels(sources, plan.labels, store, settings)


def make_crops(plan: Plan, store: Store, settings: Settings) -> Artifact:
    """The step crops of a plan."""
    from animl_pipeline.steps.crops import extract_crops
    from animl_pipeline.steps.detections import detect_animals

    labels = label_images(plan, store, settings)
    folders = {source.name: source.images for source in plan.sources}
    detections = detect_animals(labels, plan.detections, store, settings, folders, plan.false_box_class())
    return extract_crops(labels, detections, plan.crops, plan.model_input, store, settings, plan.labels.nothing_id)

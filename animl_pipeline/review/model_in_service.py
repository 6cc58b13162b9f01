"""The plan's model in service: which version served since when, and what the labels of its Animl projects mean."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.deploy.release_history import release_records, served_versions
from animl_pipeline.deploy.resource_names import animl_model_id
from animl_pipeline.steps.labels.class_mapping import EMPTY, map_labels
from animl_pipeline.steps.labels.read_taxonomy import read_taxonomy
from animl_pipeline.steps.monitor import ServedModel
from animl_pipeline.storage.store import Store

UNKNOWN_VERSION = "unknown"
"""The version that serves where the plan says since when, and the store has no release."""
Served = tuple[tuple[datetime, str], ...]


def versions_in_service(plan: Plan, store: Store) -> Served:
    """Since when which version serves; empty if no release of the model is known."""
    served = served_versions(release_records(plan, store))
    if plan.monitor.since is None:
        return served
    since = datetime.combine(plan.monitor.since, time(), UTC)
    before = [version for start, version in served if start <= since]
    return ((since, before[-1] if before else UNKNOWN_VERSION), *((start, version) for start, version in served if start > since))


def served_model(plan: Plan, sources: Sequence[str], served: Served, settings: Settings) -> ServedModel:
    """The model with the meanings of labels; of two sources that use a label differently, the first one counts.

    Raises:
        LabelsError: the plan's taxonomy cannot be read, or a label has two meanings by it.
    """
    taxonomy, meanings = read_taxonomy(plan.labels, settings), dict[str, str]()
    for source in reversed(sources):
        found = map_labels(plan.labels, source, taxonomy)
        meanings |= {label: "" for label, meaning in found.others.items() if meaning == EMPTY} | found.classes
    return ServedModel(
        model_id=animl_model_id(plan), classes=(*plan.labels.classes, *plan.labels.parents), equivalents=plan.labels.equivalents,
        parents=plan.labels.parents, meanings=meanings, served=tuple((start.timestamp(), version) for start, version in served),
        sequence_gap_s=plan.production.sequence_gap_seconds if plan.production else 3,
    )  # fmt: skip

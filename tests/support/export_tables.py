"""What the tables of an export say, for tests of the export step."""

from __future__ import annotations

from typing import Any

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS, EXPORT_IMAGES, EXPORT_PROBLEMS
from animl_pipeline.storage.store import Store


def export_source(export: str, **fields: Any) -> SourceConfig:
    """A source named isle."""
    return SourceConfig.model_validate({"name": "isle", "export": export} | fields)


def labels_of(store: Store, artifact: Artifact) -> dict[str, str]:
    """Image id → the label of its annotation."""
    table = store.table(artifact, EXPORT_ANNOTATIONS)
    return dict(zip(table["image_id"], table["label"], strict=True))


def image_column(store: Store, artifact: Artifact, column: str) -> dict[str, str]:
    """Image id → a value of the images table."""
    table = store.table(artifact, EXPORT_IMAGES)
    return dict(zip(table["image_id"], table[column], strict=True))


def locations_of(store: Store, artifact: Artifact) -> dict[str, str]:
    """Image id → location."""
    return image_column(store, artifact, "location")


def problems_of(store: Store, artifact: Artifact) -> set[tuple[str, str]]:
    """(problem, subject) of all problems."""
    table = store.table(artifact, EXPORT_PROBLEMS)
    return set(zip(table["problem"], table["subject"], strict=True))

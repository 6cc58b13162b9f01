"""The step export of a project on Animl's test server."""

from __future__ import annotations

from typing import Any

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.storage.store import open_store
from tests.support.animl_server import AnimlServer

NOT_WINDOWS = len(("export.json", "images.parquet", "annotations.parquet", "locations.parquet", "problems.parquet", "windows.json"))
TOKEN = "token-of-a-service-user"  # noqa: S105 - opens the test's own server


def source(**animl: Any) -> SourceConfig:
    return SourceConfig.model_validate({"name": "isle", "export": "animl://isle", "images": "images", "animl": {"window_images": 50} | animl})


def exported(here: Settings, **animl: Any) -> Artifact:
    return export_annotations(source(**animl), open_store(here), here)


def labels_of(here: Settings, artifact: Artifact) -> dict[str, str]:
    """Annotation id → label, as the tables have it."""
    table = open_store(here).table(artifact, "annotations.parquet")
    return dict(zip(table["annotation_id"], table["label"], strict=True))


def labels_in_animl(site: AnimlServer) -> dict[str, str]:
    """Object id → label, as Animl has it."""
    return {t.id: t.name for p in site.images if p.reviewed for t in p.objects}


def problems(here: Settings, artifact: Artifact) -> list[tuple[str, str, str]]:
    return list(open_store(here).table(artifact, "problems.parquet").itertuples(index=False, name=None))

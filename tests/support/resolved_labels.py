"""The step labels of one small export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from animl_pipeline.config import LabelsConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.labels import SourceArtifacts, resolve_labels, wanted_labels
from animl_pipeline.storage.store import Store
from tests.support.coco_export import Export

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

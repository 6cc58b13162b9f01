"""The step images of one small export."""

from __future__ import annotations

from pathlib import Path

from animl_pipeline.config import ImagesConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.storage.store import Store
from tests.support.coco_export import Export

WANTED = ("fox", "rat")


def island(n: int = 6) -> Export:
    e = Export()
    for i in range(n):
        e.annotation(e.image(f"p{i % 3}"), bbox=[4, 4, 20, 20])
    return e


def download(
    e: Export, images: str, store: Store, settings: Settings, tmp_path: Path, path_field: str = "file_name", config: ImagesConfig | None = None
) -> Artifact:
    (tmp_path / "export.json").write_bytes(e.json())
    source = SourceConfig.model_validate({"name": "isle", "export": str(tmp_path / "export.json"), "images": images, "path_field": path_field})
    return download_images(source, export_annotations(source, store, settings), WANTED, store, settings, config)


def missing(store: Store, artifact: Artifact) -> dict[str, str]:
    t = store.table(artifact, "missing.parquet")
    return dict(zip(t["image_id"], t["reason"], strict=True))

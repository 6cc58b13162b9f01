"""A small export, and the error in which one ends."""

from __future__ import annotations

from typing import Any

import pytest

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.storage.store import Store
from tests.support.coco_export import Export
from tests.support.export_tables import export_source


def source(export: str, **fields: Any) -> SourceConfig:
    return export_source(export, **({"images": "images"} | fields))


def export_error(plan: SourceConfig, store: Store, settings: Settings) -> ExportError:
    """The error in which an export ends; its message is one line."""
    with pytest.raises(ExportError) as caught:
        export_annotations(plan, store, settings)
    assert "\n" not in str(caught.value)
    return caught.value


def one_fox() -> Export:
    e = Export()
    e.annotation(e.image("cove"), 1, [4, 4, 20, 20])
    return e

"""The declaration of the step export, which its formats share."""

from __future__ import annotations

from animl_pipeline.core.step import Step
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS, EXPORT_IMAGES, EXPORT_LOCATIONS, EXPORT_PROBLEMS

STEP = Step(
    "export", version=1, sections=("sources",), reads=(), writes=(EXPORT_IMAGES, EXPORT_ANNOTATIONS, EXPORT_PROBLEMS, EXPORT_LOCATIONS), libraries=()
)

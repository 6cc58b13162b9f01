"""One project's plan, made of its parts."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, model_validator

from animl_pipeline.plan.fields import Name, short
from animl_pipeline.plan.labels import LabelsPlan
from animl_pipeline.plan.release import PackagePlan, ReleasePlan
from animl_pipeline.plan.seeing import CropsPlan, DetectionsPlan
from animl_pipeline.plan.sources import SourcePlan
from animl_pipeline.plan.splits import SplitsPlan
from animl_pipeline.plan.training import TrainPlan
from animl_pipeline.records import ClassInfo, Record, View


class Plan(Record):
    """One project's plan."""

    model: Name = Field(description="names the model, its packages and its endpoint")
    description: str = ""
    sources: tuple[SourcePlan, ...] = Field(min_length=1)
    labels: LabelsPlan
    view: View = View()
    detections: DetectionsPlan = DetectionsPlan()
    crops: CropsPlan = CropsPlan()
    splits: SplitsPlan = SplitsPlan()
    train: TrainPlan = TrainPlan()
    package: PackagePlan = PackagePlan()
    release: ReleasePlan = ReleasePlan()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [s.name for s in self.sources]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"sources: two have the name {twice[0]!r}; names keep places apart, so each needs its own")
        if self.splits.val + self.splits.test >= 0.9:
            raise ValueError("splits: val and test leave less than a tenth to train")
        if not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", self.endpoint_name()):
            raise ValueError(
                f"release.endpoint: {short(self.endpoint_name())} is no name for SageMaker: at most 63 letters, digits and '-', no '-' at either end"
            )
        return self

    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes in the plan's order, which is the order of the model's outputs."""
        return tuple(ClassInfo(id=c, name=c) for c in self.labels.classes)

    def endpoint_name(self) -> str:
        """The endpoint's stable name."""
        return self.release.endpoint.format(model=self.model, concurrency=self.release.max_concurrency)

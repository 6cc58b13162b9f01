"""One project's plan, made of its parts."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, model_validator

from animl_pipeline.plan.fields import Name, short
from animl_pipeline.plan.images import ImagesPlan
from animl_pipeline.plan.judging import AuditPlan, GatePlan, ThresholdsPlan
from animl_pipeline.plan.labels import LabelsPlan
from animl_pipeline.plan.release import PackagePlan, ReleasePlan
from animl_pipeline.plan.seeing import CropsPlan, DetectionsPlan
from animl_pipeline.plan.sources import SourcePlan
from animl_pipeline.plan.splits import SplitsPlan
from animl_pipeline.plan.training import TrainPlan
from animl_pipeline.plan.watching import WatchPlan
from animl_pipeline.records import ClassInfo, Record, View


class Plan(Record):
    """One project's plan."""

    model: Name = Field(description="names the model, its packages and its endpoint")
    description: str = ""
    sources: tuple[SourcePlan, ...] = Field(min_length=1)
    labels: LabelsPlan
    view: View = View()
    images: ImagesPlan = ImagesPlan()
    detections: DetectionsPlan = DetectionsPlan()
    crops: CropsPlan = CropsPlan()
    splits: SplitsPlan = SplitsPlan()
    train: TrainPlan = TrainPlan()
    thresholds: ThresholdsPlan = ThresholdsPlan()
    gate: GatePlan = GatePlan()
    audit: AuditPlan = AuditPlan()
    package: PackagePlan = PackagePlan()
    release: ReleasePlan = ReleasePlan()
    watch: WatchPlan = WatchPlan()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [s.name for s in self.sources]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"sources: two have the name {twice[0]!r}; names keep places apart, so each needs its own")
        self.labels.check_sources(names)
        self.splits.check_places({s.place_space() for s in self.sources})
        if self.splits.val + self.splits.test >= 0.9:
            raise ValueError("splits: val and test leave less than a tenth to train")
        self.thresholds.check(tuple(self.labels.classes))
        endpoints = self.release.endpoints(self.model, "0" * 12)
        for name in (e.endpoint for e in endpoints):
            if not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", name):
                raise ValueError(
                    f"release.endpoint: {short(name)} is no name for SageMaker: at most 63 letters, digits and '-', no '-' at either end"
                )
        if len({e.endpoint for e in endpoints}) < len(endpoints):
            raise ValueError(
                f"release: both endpoints would be called {endpoints[0].endpoint!r}; put {{purpose}} or {{concurrency}} into release.endpoint"
            )
        strangers = sorted((self.release.register_.named_classes() if self.release.register_ else set()) - set(self.labels.classes))
        if strangers:
            raise ValueError(f"release.register: {strangers[0]!r} is no class of labels.classes ({', '.join(self.labels.classes)})")
        return self

    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes in the plan's order, which is the order of the model's outputs."""
        return tuple(ClassInfo(id=c, name=c) for c in self.labels.classes)

    def endpoint_name(self, version: str = "") -> str:
        """The (first) endpoint's name: stable, or that of a version where the plan switches by SSM."""
        return self.release.endpoints(self.model, version)[0].endpoint

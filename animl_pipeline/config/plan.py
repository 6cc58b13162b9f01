"""One project's plan, made of its parts."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import Field, model_validator

from animl_pipeline.config.detection import CropsPlan, DetectionsPlan
from animl_pipeline.config.evaluation import AuditPlan, GatePlan, ThresholdsPlan
from animl_pipeline.config.fields import Name, short
from animl_pipeline.config.labels import LabelsPlan
from animl_pipeline.config.plan_file import check_plan
from animl_pipeline.config.release import PackagePlan, ReleasePlan
from animl_pipeline.config.sources import ImagesPlan, SourcePlan
from animl_pipeline.config.splits import SplitsPlan
from animl_pipeline.config.training import TrainPlan
from animl_pipeline.config.triggers import WatchPlan
from animl_pipeline.core.records import ClassInfo, Record, View


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


class Overrides(Record):
    """Changes for one run; what is left empty stays as the plan says. The card records what was used."""

    epochs: int | None = Field(default=None, ge=1, le=10**6, title="Epochs", description="train.epochs: how often every crop is seen")
    batch_size: int | None = Field(default=None, ge=1, le=10**6, title="Batch size", description="train.batch_size: lower it when memory runs out")
    learning_rate: float | None = Field(default=None, gt=0, le=1, title="Learning rate", description="train.lr")
    seed: int | None = Field(default=None, ge=0, lt=2**63, title="Seed", description="train.seed: another draw of the same training")
    max_per_place: int | None = Field(
        default=None, ge=1, title="Most objects of one place", description="labels.max_per_place: for classes without their own"
    )

    def applied(self, plan: Plan) -> Plan:
        """The plan with these changes, checked as a whole.

        Raises:
            PlanError: a change does not fit the plan.
        """
        train = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.learning_rate, "seed": self.seed}
        changes: dict[str, dict[str, Any]] = {"train": train, "labels": {"max_per_place": self.max_per_place}}
        data = plan.model_dump(mode="json", by_alias=True)
        for section, values in changes.items():
            data[section] |= {key: value for key, value in values.items() if value is not None}
        return check_plan(data, f"the plan of {plan.model} with this run's changes") if self != Overrides() else plan

"""The plan of one project: all sections of its YAML file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Self

from pydantic import Field, model_validator

from animl_pipeline.config.detections_and_crops import CropsConfig, DetectionsConfig
from animl_pipeline.config.evaluation import AuditConfig, AutoAcceptConfig, GateConfig, ProductionConfig, ThresholdsConfig
from animl_pipeline.config.labels import LabelsConfig
from animl_pipeline.config.monitor import MonitorConfig
from animl_pipeline.config.package_and_release import PackageConfig, ReleaseConfig
from animl_pipeline.config.review import ReviewConfig
from animl_pipeline.config.sources_and_images import ImagesConfig, SourceConfig
from animl_pipeline.config.splits import SplitsConfig
from animl_pipeline.config.training import TrainingConfig
from animl_pipeline.config.value_types_and_messages import Name, explain_unknown_classes, shorten
from animl_pipeline.core.animl_and_sagemaker_limits import MODELS_WITH_OWN_INTERFACES
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.model_card import ClassInfo, ModelInput
from animl_pipeline.core.sample_limit_and_false_box_types import FalseBoxClass


class WatchConfig(Record):
    """When the flow `watch` starts a training."""

    new_images: int = Field(default=500, ge=1, le=10**9, description="start when people have validated this many images since the last training")


class Plan(Record):
    """One project's plan."""

    model: Name = Field(description="name of the model, its packages and its endpoint")
    description: str = Field(default="", description="a sentence or two for the model card")
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    labels: LabelsConfig
    model_input: ModelInput = ModelInput()
    images: ImagesConfig = ImagesConfig()
    detections: DetectionsConfig = DetectionsConfig()
    crops: CropsConfig = CropsConfig()
    splits: SplitsConfig = SplitsConfig()
    train: TrainingConfig = TrainingConfig()
    thresholds: ThresholdsConfig = ThresholdsConfig()
    production: ProductionConfig | None = Field(default=ProductionConfig(), description="null: the model is scored on crops only")
    gate: GateConfig = GateConfig()
    auto_accept: AutoAcceptConfig | None = Field(default=AutoAcceptConfig(), description="null: nothing is said about images without review")
    audit: AuditConfig = AuditConfig()
    package: PackageConfig = PackageConfig()
    release: ReleaseConfig = ReleaseConfig()
    watch: WatchConfig = WatchConfig()
    monitor: MonitorConfig = MonitorConfig()
    review: ReviewConfig = ReviewConfig()

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        classes = tuple(self.labels.classes)
        checks: tuple[Callable[[], None], ...] = (
            self._check_source_names,
            lambda: self.labels.check_sources([s.name for s in self.sources]),
            lambda: self.splits.check_locations({s.namespace() for s in self.sources}),
            self._check_shares,
            lambda: self.thresholds.check(classes, (*self.labels.parents, *([other.id] if (other := self.labels.other_animal) else []))),
            lambda: self.monitor.check(classes),
            self._check_detector_for_false_boxes,
            self._check_endpoint_names,
            self._check_model_ids,
            self._check_first_model,
            self._check_registered_classes,
        )
        problems = [problem for check in checks if (problem := _failure(check))]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _check_source_names(self) -> None:
        names = [s.name for s in self.sources]
        for twice in sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"sources: two have the name {twice!r}; every source needs its own, because it keeps locations apart")

    def _check_shares(self) -> None:
        if self.splits.val + self.splits.test >= 0.9:
            raise ValueError("splits: val and test leave less than a tenth of the crops to train on")

    def _check_detector_for_false_boxes(self) -> None:
        if self.labels.nothing and self.detections.source == "annotations":
            raise ValueError(
                "labels.nothing: expected detections.source auto, detector or results, found annotations: a detector must find the false boxes"
            )

    def _check_first_model(self) -> None:
        if self.gate.first_model not in {None, self.model}:
            raise ValueError(f"gate.first_model: expected the plan's model {self.model!r} or null, found {shorten(self.gate.first_model or '')}")

    def _check_registered_classes(self) -> None:
        named = self.release.register_.named_classes() if self.release.register_ else set()
        if unknown := explain_unknown_classes(named, (*self.labels.classes, *self.labels.parents)):
            raise ValueError(f"release.register: {unknown}")

    def _check_endpoint_names(self) -> None:
        endpoints = self.release.endpoints(self.model, "0" * 12)
        for name in (e.endpoint for e in endpoints):
            if not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", name):
                raise ValueError(
                    f"release.endpoint: SageMaker takes at most 63 letters, digits and '-', with no '-' at either end; found {shorten(name)}"
                )
        if len({e.endpoint for e in endpoints}) < len(endpoints):
            raise ValueError(
                f"release: both endpoints would be called {endpoints[0].endpoint!r}; put {{purpose}} or {{concurrency}} into release.endpoint"
            )

    def _check_model_ids(self) -> None:
        register = self.release.register_
        named = {"model": self.model} | ({"release.register.model_id": register.model_id} if register and register.model_id else {})
        for key, model_id in named.items():
            if model_id in MODELS_WITH_OWN_INTERFACES:
                raise ValueError(
                    f"{key}: Animl has an interface of its own for the model {model_id!r}: {MODELS_WITH_OWN_INTERFACES[model_id]}. The endpoint of "
                    "this plan would not answer it; choose another name"
                )

    def classes(self) -> tuple[ClassInfo, ...]:
        """The classes in the plan's order, which is the order of the model's outputs; the class for false boxes, if there is one, is the last."""
        return tuple(ClassInfo(id=c, name=c) for c in self.labels.class_ids())

    def false_box_class(self) -> FalseBoxClass | None:
        """The class for false boxes; None if the plan has none. Its boxes are those that production will send to the model."""
        if self.labels.nothing is None:
            return None
        return FalseBoxClass(self.labels.nothing.id, self.production.detector_confidence if self.production else None)

    def endpoint_name(self, version: str = "") -> str:
        """The name of the (first) endpoint; where the plan switches by SSM, of one version's endpoint."""
        return self.release.endpoints(self.model, version)[0].endpoint


def _failure(check: Callable[[], None]) -> str:
    """What a check says is wrong, "" if nothing is."""
    try:
        check()
    except ValueError as e:
        return str(e)
    return ""

"""The plan's sections ``package`` and ``release``: the package, its SageMaker endpoints, and its registration in Animl."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from animl_pipeline.config.value_types_and_messages import shorten
from animl_pipeline.core.animl_and_sagemaker_limits import ANIML_BATCH_CONCURRENCY
from animl_pipeline.core.frozen_record import Record, Share

Purpose = Literal["realtime", "batch"]
"""Animl asks one endpoint about single new images, and another about its batches of images."""
Memory = Literal[1024, 2048, 3072, 4096, 5120, 6144]
"""Megabytes that SageMaker offers to a serverless endpoint."""
Concurrency = Annotated[int, Field(ge=1, le=200)]
InstanceType = Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$")]
Colour = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")]


class PackageConfig(Record):
    """Section ``package``: the checks that every package must pass."""

    torch_onnx_tolerance: float = Field(default=1e-4, gt=0, le=1, description="largest difference of a probability on real crops")
    reference_predictions: int = Field(default=16, ge=1, description="test crops that the live check sends to the endpoint")


class PlannedEndpoint(Record):
    """One endpoint of a plan. ``base_name`` is the same for all versions; ``endpoint`` is the name for one version."""

    purpose: Purpose
    base_name: str
    endpoint: str
    memory_mb: int
    max_concurrency: int
    instance_type: str | None
    instances: int


class BatchEndpointConfig(Record):
    """A second endpoint for Animl's batches of images, so that they do not delay single new images."""

    max_concurrency: Concurrency = Field(default=ANIML_BATCH_CONCURRENCY, description="requests that a serverless endpoint answers at a time")
    memory_mb: Memory | None = Field(default=None, description="null: the same as the realtime endpoint")
    instance_type: InstanceType | None = Field(default=None, description="an instance that is always on; null: serverless")
    instances: int = Field(default=1, ge=1, le=100, description="how many instances, with an instance_type")


class RegisterConfig(Record):
    """What Animl learns about a released model: SSM parameters, MLModel document, thresholds and automation rules."""

    model_id: str | None = Field(default=None, pattern=r"^[^.$\x00-\x20][^.\x00-\x20]*$", description="the MLModel's _id; null: the plan's model")
    ssm: bool = Field(default=True, description="write the SSM parameters that hold the endpoints' names")
    parameter: str = Field(default="/ml/{model}-{purpose}-endpoint-{stage}", description="name of the SSM parameters that hold the endpoints' names")
    conf_threshold: Share = Field(default=0.8, description="confidence from which on Animl shows a label")
    thresholds: dict[str, Share] = Field(default={}, description="confidence threshold per class; other classes use conf_threshold")
    disabled: tuple[str, ...] = Field(default=(), description="classes whose predictions Animl does not keep")
    colours: dict[str, Colour] = Field(default={}, description="colour per class; other classes get one")
    taxonomy: dict[str, str] = Field(default={}, description="taxonomy per class, as in Animl's MLModel categories")
    rule_projects: tuple[str, ...] = Field(default=(), description="projects whose automation rules get the new thresholds")
    existing_thresholds: Literal["keep", "replace"] = Field(
        default="keep",
        description="thresholds in these rules that a person chose; those that equal the model's default or an earlier registration's are "
        "replaced in any case",
    )

    @field_validator("parameter")
    @classmethod
    def _check_parameter(cls, value: str) -> str:
        if not re.fullmatch(r"/([A-Za-z0-9_.\-/]|\{model\}|\{purpose\}|\{stage\})+", value) or "{purpose}" not in value:
            raise ValueError(f"expected /… with {{purpose}}, and optionally {{model}} and {{stage}}; found {shorten(value)}")
        return value

    def named_classes(self) -> set[str]:
        """Every class that this section names."""
        return {*self.thresholds, *self.disabled, *self.colours, *self.taxonomy}


class ReplayConfig(Record):
    """Run the new model on the last images in service before a person is asked for approval."""

    images: int = Field(default=0, ge=0, le=20_000, description="how many; Animl is asked for their labels, and they are downloaded; 0: no replay")


class ReleaseConfig(Record):
    """Section ``release``: endpoint names and sizes, approval and registration. Roles, buckets and images are settings."""

    endpoint: str = Field(default="{model}-concurrency-{concurrency}", description="name of the endpoint; may hold {purpose} and {version}, too")
    memory_mb: Memory = Field(default=6144, description="memory of a serverless endpoint")
    max_concurrency: Concurrency = Field(default=20, description="requests that a serverless endpoint answers at a time")
    instance_type: InstanceType | None = Field(default=None, description="an instance that is always on, such as ml.c6i.large; null: serverless")
    instances: int = Field(default=1, ge=1, le=100, description="how many instances, with an instance_type")
    batch_endpoint: BatchEndpointConfig | None = Field(
        default=None, description="a second endpoint for Animl's batches; null: none. Left out: one of 80 at a time if the plan has `register`"
    )
    switch: Literal["endpoint", "ssm"] = Field(
        default="endpoint", description="endpoint: update it under its name; ssm: a new endpoint for each version, whose name SSM holds"
    )
    tolerance: float = Field(default=0.02, gt=0, le=1, description="largest difference between a live and an offline probability in the live check")
    timeout_s: int = Field(default=900, ge=10, le=86_400, description="seconds that an update of the endpoint may take")
    keep_versions: int = Field(default=3, ge=1, le=100, description="released versions that `release gc` keeps for a rollback")
    approval: Literal["auto", "required"] = Field(default="auto", description="auto: the verdict is enough; required: a person must approve")
    approval_timeout_days: float = Field(default=7, gt=0, le=365, description="how long a release waits for its approval")
    replay: ReplayConfig = ReplayConfig()
    start: Literal["manually", "after_retrain"] = Field(
        default="manually", description="after_retrain: on a Prefect server, a training with the verdict promote starts the release"
    )
    register_: RegisterConfig | None = Field(default=None, alias="register", description="what Animl learns about the model; null: nothing")

    @field_validator("endpoint")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not re.fullmatch(r"([A-Za-z0-9-]|\{model\}|\{concurrency\}|\{purpose\}|\{version\})+", value):
            raise ValueError(f"expected letters, digits, '-', {{model}}, {{concurrency}}, {{purpose}} and {{version}}, found {shorten(value)}")
        return value

    @model_validator(mode="after")
    def _check_switch(self) -> Self:
        versioned = "{version}" in self.endpoint
        if self.switch == "ssm" and not (versioned and self.register_ is not None and self.register_.ssm):
            raise ValueError("switch: ssm needs {version} in `endpoint`, and `register` with ssm: true, whose parameters it switches")
        if self.switch == "endpoint" and versioned:
            raise ValueError("endpoint: with switch: endpoint the name must stay the same, so {version} may not be in it")
        return self

    @model_validator(mode="before")
    @classmethod
    def _add_batch_endpoint(cls, data: Any) -> Any:
        """Where a release registers its model, Animl's batches get an endpoint of their own, unless the plan says null."""
        if not isinstance(data, Mapping) or "batch_endpoint" in data or data.get("register") is None:
            return data
        name = str(data.get("endpoint", cls.model_fields["endpoint"].default))
        other_width = data.get("max_concurrency", cls.model_fields["max_concurrency"].default) != ANIML_BATCH_CONCURRENCY
        apart = "{purpose}" in name or ("{concurrency}" in name and other_width)  # otherwise both would have the same name
        return {**data, "batch_endpoint": {}} if apart else data

    def batch_warning(self) -> str | None:
        """What is wrong with the endpoint that Animl's batches will call; None if it is wide enough, or if nothing is registered."""
        if self.register_ is None or not self.register_.ssm:
            return None
        batch = self.endpoints("model", "1")[-1]
        if batch.instance_type is not None or batch.max_concurrency >= ANIML_BATCH_CONCURRENCY:
            return None
        return (
            f"Animl's batches send up to {ANIML_BATCH_CONCURRENCY} requests at the same time, and the endpoint that they call takes "
            f"{batch.max_concurrency}; what is throttled 5 times loses its labels. Set release.batch_endpoint to {{max_concurrency: "
            f"{ANIML_BATCH_CONCURRENCY}}}, with {{purpose}} or {{concurrency}} in release.endpoint"
        )

    def endpoints(self, model: str, version: str = "") -> tuple[PlannedEndpoint, ...]:
        """The plan's endpoints, realtime first, with their names for one version of a model."""
        realtime = PlannedEndpoint(
            purpose="realtime",
            base_name=self._name(model, "realtime", self.max_concurrency, ""),
            endpoint=self._name(model, "realtime", self.max_concurrency, version),
            memory_mb=self.memory_mb,
            max_concurrency=self.max_concurrency,
            instance_type=self.instance_type,
            instances=self.instances,
        )
        batch = self.batch_endpoint
        if batch is None:
            return (realtime,)
        return realtime, PlannedEndpoint(
            purpose="batch",
            base_name=self._name(model, "batch", batch.max_concurrency, ""),
            endpoint=self._name(model, "batch", batch.max_concurrency, version),
            memory_mb=batch.memory_mb or self.memory_mb,
            max_concurrency=batch.max_concurrency,
            instance_type=batch.instance_type,
            instances=batch.instances,
        )

    def _name(self, model: str, purpose: Purpose, concurrency: int, version: str) -> str:
        name = self.endpoint.format(model=model, concurrency=concurrency, purpose=purpose, version=version)
        return re.sub("--+", "-", name).strip("-") if "{version}" in self.endpoint else name

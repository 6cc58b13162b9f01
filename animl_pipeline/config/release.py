"""What a package must hold to, the endpoints that it goes to, and what Animl is told of it."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from animl_pipeline.config.fields import short
from animl_pipeline.core.records import Record, Share

Purpose = Literal["realtime", "batch"]
Memory = Literal[1024, 2048, 3072, 4096, 5120, 6144]
InstanceType = Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$")]
Colour = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")]


class PackageConfig(Record):
    """What a package must hold to."""

    torch_onnx_tolerance: float = Field(default=1e-4, gt=0, le=1, description="largest |probability| difference on real crops")
    reference_predictions: int = Field(default=16, ge=1, description="test crops sent to the endpoint at release")


class EndpointConfig(Record):
    """One endpoint of a plan: ``line`` is its name for good, ``endpoint`` what it is called with this version."""

    purpose: Purpose
    line: str
    endpoint: str
    memory_mb: int
    max_concurrency: int
    instance_type: str | None
    instances: int


class BatchEndpointConfig(Record):
    """A second endpoint, for Animl's batches of pictures, so that they do not hold up pictures that come in one by one."""

    max_concurrency: int = Field(default=80, ge=1, le=200)
    memory_mb: Memory | None = Field(default=None, description="null: as the first endpoint's")
    instance_type: InstanceType | None = None
    instances: int = Field(default=1, ge=1, le=100)


class RegisterConfig(Record):
    """What Animl is told of a released model: SSM parameters, the MLModel document, categoryConfig, automation rules."""

    model_id: str | None = Field(default=None, pattern=r"^[^.$\x00-\x20][^.\x00-\x20]*$", description="the MLModel's _id; null: the plan's model")
    ssm: bool = Field(default=True, description="write the SSM parameters that hold the endpoints' names")
    parameter: str = "/ml/{model}-{purpose}-endpoint-{stage}"
    conf_threshold: Share = 0.8
    thresholds: dict[str, Share] = Field(default={}, description="confidence per class, where it is not conf_threshold")
    disabled: tuple[str, ...] = Field(default=(), description="classes whose predictions Animl does not keep")
    colours: dict[str, Colour] = Field(default={}, description="classes without one get one")
    taxonomy: dict[str, str] = Field(default={}, description="per class, as Animl's MLModel categories hold it")
    rule_projects: tuple[str, ...] = Field(default=(), description="projects whose automation rules get the new categoryConfig")

    @field_validator("parameter")
    @classmethod
    def _is_a_parameter(cls, value: str) -> str:
        if not re.fullmatch(r"/([A-Za-z0-9_.\-/]|\{model\}|\{purpose\}|\{stage\})+", value) or "{purpose}" not in value:
            raise ValueError(f"expected /…, with {{purpose}} and if need be {{model}} and {{stage}} in it, found {short(value)}")
        return value

    def named_classes(self) -> set[str]:
        """Every class that is spoken of."""
        return {*self.thresholds, *self.disabled, *self.colours, *self.taxonomy}


class ReleaseConfig(Record):
    """The endpoints' names and sizes. Roles, buckets and images are settings."""

    endpoint: str = "{model}-concurrency-{concurrency}"
    memory_mb: Memory = 6144
    max_concurrency: int = Field(default=20, ge=1, le=200)
    instance_type: InstanceType | None = Field(default=None, description="a machine that is always on, such as ml.c6i.large; null: serverless")
    instances: int = Field(default=1, ge=1, le=100)
    batch: BatchEndpointConfig | None = Field(default=None, description="a second endpoint for Animl's batches; null: none")
    switch: Literal["endpoint", "ssm"] = Field(
        default="endpoint", description="update behind a stable name, or a new endpoint a version and SSM's value"
    )
    tolerance: float = Field(default=0.02, gt=0, le=1, description="largest |probability live - offline| at the check")
    timeout_s: int = Field(default=900, ge=10, le=86_400)
    keep: int = Field(default=3, ge=1, le=100, description="released versions that clearing away leaves to go back to")
    approval: Literal["auto", "required"] = Field(default="auto", description="auto: the verdict suffices; required: a person says yes, by name")
    approval_timeout_days: float = Field(default=7, gt=0, le=365, description="how long a release waits for its approval")
    start: Literal["by_hand", "after_retrain"] = Field(
        default="by_hand", description="after_retrain: on a Prefect server, a training whose verdict is to promote starts the release"
    )
    register_: RegisterConfig | None = Field(default=None, alias="register", description="what Animl is told; null: nothing")

    @field_validator("endpoint")
    @classmethod
    def _known_fields(cls, value: str) -> str:
        if not re.fullmatch(r"([A-Za-z0-9-]|\{model\}|\{concurrency\}|\{purpose\}|\{version\})+", value):
            raise ValueError(f"expected letters, digits, '-', {{model}}, {{concurrency}}, {{purpose}} and {{version}}, found {short(value)}")
        return value

    @model_validator(mode="after")
    def _switched_one_way(self) -> Self:
        versioned = "{version}" in self.endpoint
        if self.switch == "ssm" and not (versioned and self.register_ is not None and self.register_.ssm):
            raise ValueError("switch: ssm needs {version} in `endpoint`, and `register` with ssm: true, whose parameters it switches")
        if self.switch == "endpoint" and versioned:
            raise ValueError("endpoint: with switch: endpoint the name must stay the same, so {version} may not be in it")
        return self

    def endpoints(self, model: str, version: str = "") -> tuple[EndpointConfig, ...]:
        """The plan's endpoints, realtime first, with their names for one version of a model."""
        first = EndpointConfig(
            purpose="realtime",
            line=self._name(model, "realtime", self.max_concurrency, ""),
            endpoint=self._name(model, "realtime", self.max_concurrency, version),
            memory_mb=self.memory_mb,
            max_concurrency=self.max_concurrency,
            instance_type=self.instance_type,
            instances=self.instances,
        )
        if self.batch is None:
            return (first,)
        n = self.batch.max_concurrency
        second = EndpointConfig(
            purpose="batch",
            line=self._name(model, "batch", n, ""),
            endpoint=self._name(model, "batch", n, version),
            memory_mb=self.batch.memory_mb or self.memory_mb,
            max_concurrency=n,
            instance_type=self.batch.instance_type,
            instances=self.batch.instances,
        )
        return first, second

    def _name(self, model: str, purpose: Purpose, concurrency: int, version: str) -> str:
        name = self.endpoint.format(model=model, concurrency=concurrency, purpose=purpose, version=version)
        return re.sub("--+", "-", name).strip("-") if "{version}" in self.endpoint else name

"""What a package must hold to, and the endpoint that it goes to."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from animl_pipeline.plan.fields import short
from animl_pipeline.records import Record


class PackagePlan(Record):
    """What a package must hold to."""

    torch_onnx_tolerance: float = Field(default=1e-4, gt=0, le=1, description="largest |probability| difference on real crops")
    golden: int = Field(default=16, ge=1, description="test crops sent to the endpoint at release")


class ReleasePlan(Record):
    """The endpoint's name and size. Roles, buckets and images are settings."""

    endpoint: str = "{model}-concurrency-{concurrency}"
    memory_mb: Literal[1024, 2048, 3072, 4096, 5120, 6144] = 6144
    max_concurrency: int = Field(default=20, ge=1, le=200)
    tolerance: float = Field(default=0.02, gt=0, le=1, description="largest |probability live - offline| at the check")
    timeout_s: int = Field(default=900, ge=10, le=86_400)

    @field_validator("endpoint")
    @classmethod
    def _known_fields(cls, value: str) -> str:
        if not re.fullmatch(r"([A-Za-z0-9-]|\{model\}|\{concurrency\})+", value):
            raise ValueError(f"expected letters, digits, '-', {{model}} and {{concurrency}}, found {short(value)}")
        return value

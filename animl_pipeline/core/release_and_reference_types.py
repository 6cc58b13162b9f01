"""What a release needs and records: reference predictions, the live check's latency, the approval, the release itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from animl_pipeline.core.box_type import Box
from animl_pipeline.core.frozen_record import Digest, Record


class ReferencePrediction(Record):
    """The packaged model's offline answer for one box of one image, by class id. The live check compares with it."""

    image: str = Field(description="file name inside the package's folder reference_predictions/")
    box: Box
    probabilities: dict[str, float]


class Latency(Record):
    """Response times of a live endpoint, in milliseconds. The first answer may include the endpoint's start."""

    first_ms: float
    p50_ms: float = Field(description="median of the other answers")
    p95_ms: float = Field(description="95th percentile of the other answers")


class Approval(Record):
    """A person's approval of the release of one package."""

    by: str = Field(pattern=r"\S", max_length=200, description="the person, as they name themselves")
    note: str = Field(default="", max_length=2000)
    at: str = Field(description="ISO time, UTC")
    given_in: Literal["prefect", "command line"]

    def __str__(self) -> str:
        """One line for log messages."""
        return f"approved by {self.by} ({self.at}, {self.given_in})" + (f": {self.note}" if self.note else "")


class Release(Record):
    """A model version behind an endpoint: its names in SageMaker and the results of the live check."""

    endpoint: str
    endpoint_config: str
    sagemaker_model: str
    version: str
    package_digest: Digest | None = Field(description="None after a rollback to a configuration that this pipeline did not release")
    previous_config: str | None
    checked: int = Field(description="reference predictions compared with the live endpoint")
    max_difference: float = Field(description="largest |live probability - offline probability|")
    changed: bool = Field(description="false if the endpoint already served this package")
    latency: Latency | None = None
    approval: Approval | None = Field(default=None, description="None if the plan needs no approval")
    batch: Release | None = Field(default=None, description="the same version behind the endpoint for batches, if the plan has one")

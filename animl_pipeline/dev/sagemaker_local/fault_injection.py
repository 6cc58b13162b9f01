"""Faults on demand: what goes wrong on AWS now and then goes wrong here when it is asked for.

Set at the start (``local_sagemaker(faults=…)``, ``--faults JSON``) or while the server runs (``POST /local/faults`` with
some of the fields; ``GET`` shows them). A number of times counts down as it is used up.
"""

from __future__ import annotations

import threading
from typing import Any

from pydantic import Field, ValidationError

from animl_pipeline.core.records import Record
from animl_pipeline.dev.sagemaker_local.api_validation import ApiError


class Faults(Record):
    """What shall go wrong. All is well by default; the limits are SageMaker's own."""

    switch_s: float = Field(default=0, ge=0, le=3600, description="so long Creating and Updating last at least; AWS takes minutes")
    image_cannot_start: int = Field(default=0, ge=0, description="so many programs end before they listen")
    never_pings: int = Field(default=0, ge=0, description="so many programs never answer /ping in time")
    ping_s: float = Field(default=180, gt=0, le=180, description="how long a program may take to answer /ping")
    update_fails: int = Field(default=0, ge=0, description="so many updates fail for a reason of AWS's own; the config before stays")
    no_capacity: int = Field(default=0, ge=0, description="so many training jobs get no machine")
    training_cannot_start: int = Field(default=0, ge=0, description="so many containers of training jobs cannot start")
    spot_interruptions: int = Field(default=0, ge=0, description="so often a training on spare capacity is interrupted after a checkpoint")
    throttled: int = Field(default=0, ge=0, description="so many control calls are throttled")
    invocations_throttled: int = Field(default=0, ge=0, description="so many requests to endpoints are throttled")
    quota_concurrency: int = Field(default=1000, ge=0, description="serverless concurrency that the account may have in all")
    answer_delay_s: float = Field(default=0, ge=0, le=3600, description="so much later each program answers")
    answer_s: float = Field(default=60, gt=0, le=60, description="how long a program may take to answer a request")
    max_payload: int = Field(default=4 * 1024 * 1024, ge=1, description="bytes that a request to a serverless endpoint may have")


class Knobs:
    """The faults of a running server."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._lock = threading.Lock()

    def now(self) -> Faults:
        """The faults as they are."""
        return self._faults

    def turn(self, changes: dict[str, Any]) -> Faults:
        """Change some of them; all of them come back.

        Raises:
            ApiError: there is no such fault, or the value does not fit.
        """
        with self._lock:
            try:
                self._faults = Faults.model_validate(self._faults.model_dump() | changes)
            except ValidationError as e:
                first = e.errors(include_url=False, include_input=False)[0]
                raise ApiError("ValidationException", f"faults: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e
            return self._faults

    def strikes(self, fault: str) -> bool:
        """Whether a fault that is counted happens now; it is one fewer then."""
        with self._lock:
            left: int = getattr(self._faults, fault)
            if left:
                self._faults = self._faults.model_copy(update={fault: left - 1})
            return left > 0

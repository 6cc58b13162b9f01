"""Faults that happen on AWS now and then, and here on request.

Set them at the start (``local_sagemaker(faults=…)``, ``--faults JSON``) or while the server runs (``POST /local/faults`` with
some of the fields; ``GET`` shows them). A fault with a number of times happens that often.
"""

from __future__ import annotations

import threading
from typing import Any

from pydantic import Field, ValidationError

from animl_pipeline.core.frozen_record import Record
from animl_pipeline.dev.sagemaker_local.api_validation import ApiError


class Faults(Record):
    """All injected faults. By default there are none; the limits are SageMaker's own."""

    switch_s: float = Field(default=0, ge=0, le=3600, description="seconds that Creating and Updating take at least; AWS takes minutes")
    image_cannot_start: int = Field(default=0, ge=0, description="number of programs that end before they listen")
    never_pings: int = Field(default=0, ge=0, description="number of programs that never answer /ping in time")
    ping_s: float = Field(default=180, gt=0, le=180, description="seconds that a program may take to answer /ping")
    update_fails: int = Field(default=0, ge=0, description="number of updates that fail inside AWS; the config before stays")
    no_capacity: int = Field(default=0, ge=0, description="number of training jobs that get no instance")
    training_cannot_start: int = Field(default=0, ge=0, description="number of training containers that cannot start")
    spot_interruptions: int = Field(default=0, ge=0, description="number of times that spot training is interrupted after a checkpoint")
    throttled: int = Field(default=0, ge=0, description="number of control calls that are throttled")
    invocations_throttled: int = Field(default=0, ge=0, description="number of requests to endpoints that are throttled")
    quota_concurrency: int = Field(default=1000, ge=0, description="total serverless concurrency of the account")
    answer_delay_s: float = Field(default=0, ge=0, le=3600, description="seconds by which each answer is delayed")
    answer_s: float = Field(default=60, gt=0, le=60, description="seconds that a program may take to answer a request")
    max_payload: int = Field(default=4 * 1024 * 1024, ge=1, description="bytes that a request to a serverless endpoint may have")


class FaultSwitches:
    """The faults of a running server."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._lock = threading.Lock()

    def now(self) -> Faults:
        """The present faults."""
        return self._faults

    def change(self, changes: dict[str, Any]) -> Faults:
        """Change some faults; returns all.

        Raises:
            ApiError: the fault does not exist, or its value does not fit.
        """
        with self._lock:
            try:
                self._faults = Faults.model_validate(self._faults.model_dump() | changes)
            except ValidationError as e:
                first = e.errors(include_url=False, include_input=False)[0]
                raise ApiError("ValidationException", f"faults: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e
            return self._faults

    def happens(self, fault: str) -> bool:
        """Whether a counted fault happens now; if so, it is counted down."""
        with self._lock:
            left: int = getattr(self._faults, fault)
            if left:
                self._faults = self._faults.model_copy(update={fault: left - 1})
            return left > 0

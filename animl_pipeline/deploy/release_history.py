"""Records of releases and rollbacks.

Each record is a small file in the store, ``releases/<base name>/<id>.json``, written before the endpoint changes. A killed
release leaves a record in the state ``begun``. The next release or rollback finds it and finishes or undoes it.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from animl_pipeline.config import Plan
from animl_pipeline.config.package_and_release import Purpose
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.release_and_reference_types import Approval, Latency, Release
from animl_pipeline.deploy.live_check import LiveCheckResult
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)

Kind = Literal["release", "rollback"]


class ReleaseRecord(Record):
    """One change of an endpoint.

    ``base_name`` is the endpoint's name without a version; the history is kept under it. If the release switches an SSM
    ``parameter``, every version has its own ``endpoint``, and ``previous_endpoint`` is the parameter's value before.
    ``package`` is None after a rollback to a config that this pipeline did not release.
    """

    id: str
    kind: Kind
    state: Literal["begun", "done", "rolled_back"]
    base_name: str
    endpoint: str
    parameter: str | None = None
    previous_endpoint: str | None = None
    endpoint_config: str
    previous_config: str | None
    sagemaker_model: str
    version: str
    package: Artifact | None
    checked: int = 0
    max_difference: float = 0.0
    latency: Latency | None = None
    forced: str = Field(default="", description="why it was released although the verdict is not to promote")
    approval: Approval | None = Field(default=None, description="None if the plan needs no approval, or after a rollback")
    begun_at: str
    ended_at: str = ""
    reason: str = Field(default="", description="why it was undone")

    @model_validator(mode="before")
    @classmethod
    def _read_older_formats(cls, value: Any) -> Any:
        """Records of earlier versions call the base name ``line``, or have none, and an approval's ``given_in`` ``door``."""
        if not isinstance(value, dict) or "endpoint" not in value or "base_name" in value:
            return value
        approval = value.get("approval")
        if isinstance(approval, dict) and "door" in approval:
            approval = {("given_in" if k == "door" else k): v for k, v in approval.items()}
        older = {k: v for k, v in value.items() if k != "line"}
        return older | {"base_name": value.get("line", value["endpoint"]), "approval": approval}

    def to_release(self, *, changed: bool) -> Release:
        """The result for the caller of a release or rollback."""
        shared = {name: getattr(self, name) for name in Release.model_fields if name in ReleaseRecord.model_fields}
        return Release(**shared, package_digest=self.package.digest if self.package else None, changed=changed)


History = tuple[ReleaseRecord, ...]


def release_records(plan: Plan, store: Store, purpose: Purpose = "realtime") -> History:
    """All releases and rollbacks of a plan's endpoint, the oldest first."""
    return tuple(r for e in plan.release.endpoints(plan.model) if e.purpose == purpose for r in read_records(e.base_name, store))


def read_records(base_name: str, store: Store) -> History:
    """All records of an endpoint, the oldest first. Records that this version cannot read are left out, with a warning."""
    records = []
    for name in sorted(store.object_store.names(f"releases/{base_name}/")):
        try:
            records.append(ReleaseRecord.model_validate_json(store.object_store.read(name) or b""))
        except ValidationError:
            log.warning("%s in the store is not a release record that this version can read; it is ignored", name)
    return tuple(records)


def release_of_config(config: str, history: History) -> ReleaseRecord | None:
    """The latest successful release of an endpoint config, None if there is none."""
    done = [r for r in history if r.endpoint_config == config and r.kind == "release" and r.state == "done"]
    return done[-1] if done else None


def new_record(kind: Kind, **values: Any) -> ReleaseRecord:
    """A record in the state ``begun``, not yet written to the store."""
    return ReleaseRecord(id=f"{time.time_ns():020d}", kind=kind, state="begun", begun_at=_now(), **values)


def new_rollback_record(
    base_name: str, now: tuple[str, str], target: tuple[str, str], release: ReleaseRecord | None, sagemaker_model: str, parameter: str | None
) -> ReleaseRecord:
    """The record of a rollback, not yet written to the store.

    Args:
        base_name: the endpoint's base name.
        now: endpoint and config that answer now.
        target: endpoint and config that shall answer again.
        release: the release of the target's config, None if this pipeline did not release it.
        sagemaker_model: the model of the target's config.
        parameter: the SSM parameter to switch, None if the endpoint itself is updated.
    """
    return new_record(
        "rollback",
        base_name=base_name,
        endpoint=target[0],
        endpoint_config=target[1],
        previous_config=now[1] if target[0] == now[0] else None,
        parameter=parameter,
        previous_endpoint=now[0] if parameter else None,
        sagemaker_model=sagemaker_model,
        version=release.version if release else "unknown",
        package=release.package if release else None,
    )


def write_record(record: ReleaseRecord, store: Store) -> ReleaseRecord:
    """Write a record to the store, and return it."""
    store.object_store.put(f"releases/{record.base_name}/{record.id}.json", record.model_dump_json(indent=1).encode())
    return record


def close_record(
    record: ReleaseRecord, state: Literal["done", "rolled_back"], store: Store, *, reason: str = "", check: LiveCheckResult | None = None
) -> ReleaseRecord:
    """Write how a release ended, and return the new record."""
    ended: dict[str, Any] = {"state": state, "reason": reason, "ended_at": _now()}
    return write_record(record.model_copy(update=ended | (check.as_dict() if check else {})), store)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

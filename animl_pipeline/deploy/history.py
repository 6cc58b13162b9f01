"""What was released, when, and how it ended: one small file a release in the store, written before the endpoint changes.

A release that was killed leaves a record in the state ``begun``; the next call finds it and finishes or undoes it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError, model_validator

from animl_pipeline.config import Plan
from animl_pipeline.config.release import Purpose
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.records import Approval, Artifact, Latency, Record
from animl_pipeline.deploy.live_check import Checked
from animl_pipeline.storage.step_cache import Store

log = logging.getLogger(__name__)


class ReleaseRecord(Record):
    """One change of what answers. ``package`` is None when it was rolled back to a config that was not released from here.

    ``line`` is the endpoint's name for good, under which its history is kept. Where SSM's ``parameter`` is what is switched,
    each version has an ``endpoint`` of its own, and ``previous_endpoint`` is what the parameter held before.
    """

    id: str
    kind: Literal["release", "rollback"]
    state: Literal["begun", "done", "rolled_back"]
    line: str
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
    forced: str = Field(default="", description="why it was released although the report does not say promote")
    approval: Approval | None = Field(default=None, description="who said yes to it; None: the plan asks for none, or it is a rollback")
    begun_at: str
    ended_at: str = ""
    reason: str = ""

    @model_validator(mode="before")
    @classmethod
    def _of_the_first_version(cls, value: Any) -> Any:
        """Records of version 0.1.0 name the endpoint alone, which had one name for good."""
        return {"line": value["endpoint"]} | value if isinstance(value, dict) and "endpoint" in value else value


def release_history(plan: Plan, store: Store, purpose: Purpose = "realtime") -> tuple[ReleaseRecord, ...]:
    """Every release and rollback of a plan's endpoint, the oldest first."""
    return tuple(r for e in plan.release.endpoints(plan.model) if e.purpose == purpose for r in records_of(e.line, store))


def records_of(line: str, store: Store) -> tuple[ReleaseRecord, ...]:
    """Every record of an endpoint, the oldest first."""
    known = []
    for name in sorted(store.object_store.names(f"releases/{line}/")):
        try:
            known.append(ReleaseRecord.model_validate_json(store.object_store.read(name) or b""))
        except ValidationError:
            log.warning("%s in the store is not a release record of this version; left out", name)
    return tuple(known)


def released(config: str, history: tuple[ReleaseRecord, ...]) -> ReleaseRecord | None:
    """The latest release that put a config in service and held."""
    held = [r for r in history if r.endpoint_config == config and r.kind == "release" and r.state == "done"]
    return held[-1] if held else None


def new_record(kind: Literal["release", "rollback"], **values: Any) -> ReleaseRecord:
    """A record in the state ``begun`` that is not written down yet."""
    return ReleaseRecord(id=f"{time.time_ns():020d}", kind=kind, state="begun", begun_at=_now(), **values)


def begin(record: ReleaseRecord, store: Store) -> ReleaseRecord:
    """Write down what is about to change."""
    return _keep(record, store)


def close(
    record: ReleaseRecord, state: Literal["done", "rolled_back"], store: Store, *, reason: str = "", checked: Checked | None = None
) -> ReleaseRecord:
    """Write down how it ended."""
    ended: dict[str, Any] = {"state": state, "reason": reason, "ended_at": _now()}
    if checked is not None:
        ended |= {"checked": checked.crops, "max_difference": checked.max_difference, "latency": checked.latency}
    return _keep(record.model_copy(update=ended), store)


@contextmanager
def one_at_a_time(line: str, store: Store, timeout_s: float) -> Iterator[None]:
    """Only one release of an endpoint at a time on this machine.

    Raises:
        ReleaseError: another one did not end in time.
    """
    folder = store.local / "work"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"release-{line}.lock", timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout as e:
        raise ReleaseError(f"another release of {line} is under way for more than {timeout_s:.0f} s; wait for it or end it") from e
    try:
        yield
    finally:
        lock.release()


@contextmanager
def all_at_rest(lines: Sequence[str], store: Store, timeout_s: float) -> Iterator[None]:
    """:func:`one_at_a_time` for several endpoints, in an order that is the same for everybody.

    Raises:
        ReleaseError: another release did not end in time.
    """
    with ExitStack() as held:
        for line in sorted(lines):
            held.enter_context(one_at_a_time(line, store, timeout_s))
        yield


def _keep(record: ReleaseRecord, store: Store) -> ReleaseRecord:
    store.object_store.put(f"releases/{record.line}/{record.id}.json", record.model_dump_json(indent=1).encode())
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

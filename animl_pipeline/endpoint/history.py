"""What was released, when, and how it ended: one small file a release in the store, written before the endpoint changes.

A release that was killed leaves a record in the state ``begun``; the next call finds it and finishes or undoes it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError

from animl_pipeline.errors import ReleaseError
from animl_pipeline.plan import Plan
from animl_pipeline.records import Artifact, Record
from animl_pipeline.store import Store

log = logging.getLogger(__name__)


class ReleaseRecord(Record):
    """One change of an endpoint. ``package`` is None when it was rolled back to a config that was not released from here."""

    id: str
    kind: Literal["release", "rollback"]
    state: Literal["begun", "done", "rolled_back"]
    endpoint: str
    endpoint_config: str
    previous_config: str | None
    sagemaker_model: str
    version: str
    package: Artifact | None
    checked: int = 0
    max_difference: float = 0.0
    begun_at: str
    ended_at: str = ""
    reason: str = ""


def release_history(plan: Plan, store: Store) -> tuple[ReleaseRecord, ...]:
    """Every release and rollback of the plan's endpoint, the oldest first."""
    return records_of(plan.endpoint_name(), store)


def records_of(endpoint: str, store: Store) -> tuple[ReleaseRecord, ...]:
    """Every record of an endpoint, the oldest first."""
    found = []
    for name in sorted(store.depot.names(f"releases/{endpoint}/")):
        try:
            found.append(ReleaseRecord.model_validate_json(store.depot.read(name) or b""))
        except ValidationError:
            log.warning("%s in the store is not a release record of this version; left out", name)
    return tuple(found)


def begin(record: ReleaseRecord, store: Store) -> ReleaseRecord:
    """Write down what is about to change."""
    return _keep(record, store)


def new_record(
    kind: Literal["release", "rollback"], endpoint: str, config: str, previous: str | None, model: str, version: str, package: Artifact | None
) -> ReleaseRecord:
    """A record in the state ``begun`` that is not written down yet."""
    return ReleaseRecord(
        id=f"{time.time_ns():020d}",
        kind=kind,
        state="begun",
        endpoint=endpoint,
        endpoint_config=config,
        previous_config=previous,
        sagemaker_model=model,
        version=version,
        package=package,
        begun_at=_now(),
    )


def close(
    record: ReleaseRecord, state: Literal["done", "rolled_back"], store: Store, *, reason: str = "", checked: int = 0, max_difference: float = 0.0
) -> ReleaseRecord:
    """Write down how it ended."""
    ended = {"state": state, "reason": reason, "checked": checked, "max_difference": max_difference, "ended_at": _now()}
    return _keep(record.model_copy(update=ended), store)


@contextmanager
def one_at_a_time(endpoint: str, store: Store, timeout_s: float) -> Iterator[None]:
    """Only one release of an endpoint at a time on this machine.

    Raises:
        ReleaseError: another one did not end in time.
    """
    folder = store.local / "work"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"release-{endpoint}.lock", timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout as e:
        raise ReleaseError(f"another release of {endpoint} is under way for more than {timeout_s:.0f} s; wait for it or end it") from e
    try:
        yield
    finally:
        lock.release()


def _keep(record: ReleaseRecord, store: Store) -> ReleaseRecord:
    store.depot.put(f"releases/{record.endpoint}/{record.id}.json", record.model_dump_json(indent=1).encode())
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

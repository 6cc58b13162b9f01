"""Records of releases and rollbacks.

Each record is a small file in the store, ``releases/<base name>/<id>.json``, written before the endpoint changes. A killed
release leaves a record in the state ``begun``. The next release or rollback finds it and finishes or undoes it.

Ids are numbers that only grow, so the order does not depend on a clock. The last successful change of each model is also noted with
its reports, so a missing record is noticed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from animl_pipeline.config import Plan
from animl_pipeline.config.package_and_release import Purpose
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.release_and_reference_types import Approval, Latency, Release
from animl_pipeline.deploy.live_check import LiveCheckResult
from animl_pipeline.deploy.resource_names import slug
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)

Kind = Literal["release", "rollback"]
FOLDER = "releases/"
ID_DIGITS = 20
"""Digits of an id. Ids of earlier versions are times in nanoseconds; later ones count on from them."""


class ReleaseRecord(Record):
    """One change of an endpoint.

    ``id`` is "" until the record is written. ``model`` is the plan's model; "" in records of earlier versions. ``base_name`` is the
    endpoint's name without a version; the history is kept under it. If the release switches an SSM ``parameter``, every version has
    its own ``endpoint``, and ``previous_endpoint`` is the parameter's value before. ``package`` is None after a rollback to a config
    that this pipeline did not release.
    """

    id: str
    model: str = ""
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


class ModelReleases(NamedTuple):
    """The releases and rollbacks of a model.

    Attributes:
        records: those that can be read, the oldest first.
        problem: why there may be others, in words that say what to do; "" if the records are complete.
    """

    records: History
    problem: str


class _LastChange(Record):
    """The last successful change of a model's endpoints, as it is noted with the model's reports."""

    base_name: str
    id: str


def release_records(plan: Plan, store: Store, purpose: Purpose = "realtime") -> History:
    """All releases and rollbacks of a plan's endpoint, the oldest first."""
    return tuple(r for e in plan.release.endpoints(plan.model) if e.purpose == purpose for r in read_records(e.base_name, store))


def read_records(base_name: str, store: Store) -> History:
    """All records of an endpoint, the oldest first. Records that this version cannot read are left out, with a warning."""
    records, unreadable = _read_all(store.object_store.names(f"{FOLDER}{base_name}/"), store)
    for name in unreadable:
        log.warning("%s in the store is not a release record that this version can read; it is ignored", name)
    return records


def records_of_model(model: str, store: Store, base_names: Sequence[str] = ()) -> ModelReleases:
    """All records of a model, whatever the names of its endpoints, and those of some endpoints, whatever their model.

    A record that cannot be read may be of any model, so it is a problem for all of them.

    ``base_names``: base names of the endpoints whose records count as well.
    """
    records, unreadable = _read_all(store.object_store.names(FOLDER), store)
    found = tuple(r for r in records if r.base_name in base_names or _is_of_model(r, model))
    problem = ""
    if unreadable:
        problem = (
            f"{len(unreadable)} of the release records in the store cannot be read, such as {unreadable[0]}; restore it from a copy of the store"
        )
    elif missing := _missing_record(model, found, store):
        problem = f"the release record {missing} is not in the store or has changed; restore it from a copy of the store"
    return ModelReleases(found, problem)


def _read_all(names: Iterable[str], store: Store) -> tuple[History, list[str]]:
    """The records with these names, the oldest first, and the names of those that cannot be read."""
    records, unreadable = [], []
    for name in names:
        try:
            record = ReleaseRecord.model_validate_json(store.object_store.read(name) or b"")
        except ValidationError:
            unreadable.append(name)
            continue
        if name.endswith(f"/{record.id}.json"):
            records.append(record)
        else:
            unreadable.append(name)  # a copy of another record
    return tuple(sorted(records, key=lambda r: (_number(r.id), r.id))), unreadable


def _number(record_id: str) -> int:
    return int(record_id) if record_id.isdecimal() else 0


def _is_of_model(record: ReleaseRecord, model: str) -> bool:
    """Whether a record is of a model. Those of earlier versions do not name it, but SageMaker's model is called ``<model>-<version>-…``."""
    return record.model == model if record.model else record.sagemaker_model.startswith(f"{model}-{slug(record.version)}"[:53])


def _missing_record(model: str, found: History, store: Store) -> str:
    """The name of the last successful change of a model, if its record is not there; "" if it is, or if there is none."""
    name = _last_change_name(model)
    data = store.object_store.read(name)
    if data is None:
        return ""
    try:
        last = _LastChange.model_validate_json(data)
    except ValidationError:
        return name
    there = any((r.base_name, r.id, r.state) == (last.base_name, last.id, "done") for r in found)
    return "" if there else f"{FOLDER}{last.base_name}/{last.id}.json"


def _last_change_name(model: str) -> str:
    return f"reports/{model}/last_release.json"


def release_of_config(config: str, history: History) -> ReleaseRecord | None:
    """The latest successful release of an endpoint config, None if there is none."""
    done = [r for r in history if r.endpoint_config == config and r.kind == "release" and r.state == "done"]
    return done[-1] if done else None


def served_versions(history: History) -> tuple[tuple[datetime, str], ...]:
    """Since when which version of a model serves, in order of time, by an endpoint's successful releases and rollbacks."""
    done = [(datetime.fromisoformat(r.ended_at or r.begun_at), r.version) for r in history if r.state == "done"]
    return tuple(sorted((t.replace(tzinfo=UTC) if t.tzinfo is None else t, version) for t, version in done))


def new_record(kind: Kind, **values: Any) -> ReleaseRecord:
    """A record in the state ``begun``, not yet written to the store."""
    return ReleaseRecord(id="", kind=kind, state="begun", begun_at=_now(), **values)


def new_rollback_record(
    base_name: str, now: tuple[str, str], target: tuple[str, str], release: ReleaseRecord | None, sagemaker_model: str, parameter: str | None
) -> ReleaseRecord:
    """The record of a rollback, not yet written to the store.

    ``now``: endpoint and config that answer now. ``target``: endpoint and config that shall answer again. ``release``: the release of the
    target's config, None if this pipeline did not release it. ``parameter``: the SSM parameter to switch, None if the endpoint itself is
    updated.
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
    """Write a record to the store, and return it. A new record gets an id that is higher than all others."""
    if not record.id:
        return _write_new(record, store)
    store.object_store.put(_record_name(record), record.model_dump_json(indent=1).encode())
    return record


def _write_new(record: ReleaseRecord, store: Store) -> ReleaseRecord:
    number = max((_number(name.rpartition("/")[2].removesuffix(".json")) for name in store.object_store.names(FOLDER)), default=0)
    while True:
        number += 1
        new = record.model_copy(update={"id": f"{number:0{ID_DIGITS}d}"})
        if store.object_store.put_if_absent(_record_name(new), new.model_dump_json(indent=1).encode()):
            return new


def _record_name(record: ReleaseRecord) -> str:
    return f"{FOLDER}{record.base_name}/{record.id}.json"


def close_record(
    record: ReleaseRecord, state: Literal["done", "rolled_back"], store: Store, *, reason: str = "", check: LiveCheckResult | None = None
) -> ReleaseRecord:
    """Write how a release ended, and return the new record."""
    ended: dict[str, Any] = {"state": state, "reason": reason, "ended_at": _now()}
    closed = write_record(record.model_copy(update=ended | (check.as_dict() if check else {})), store)
    if state == "done" and closed.model:
        last = _LastChange(base_name=closed.base_name, id=closed.id)
        store.object_store.put(_last_change_name(closed.model), last.model_dump_json().encode())
    return closed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

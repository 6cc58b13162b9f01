"""Who needs steps: the newest reports, the releases that serve or can be gone back to, and whoever used one lately.

The frozen test set hangs on no step: its register lies in the store's memory, which clearing leaves alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from animl_pipeline.core.errors import StoreError
from animl_pipeline.core.records import Digest
from animl_pipeline.storage.gc.stored_steps import Id
from animl_pipeline.storage.object_store import ObjectStore

M = TypeVar("M", bound="_Told")


class Root(NamedTuple):
    """A step that somebody needs, and why."""

    id: Id
    why: str


class _Told(BaseModel):
    """Of a record, what must be known; other versions may tell more."""

    model_config = ConfigDict(extra="ignore")


class _Artifact(_Told):
    step: str
    key: Digest

    def id(self) -> Id:
        return Id(self.step, self.key)


class _Report(_Told):
    model_artifact: _Artifact
    evaluation: _Artifact
    package: _Artifact


class _Change(_Told):
    """A release or a rollback."""

    kind: Literal["release", "rollback"]
    state: str
    endpoint_config: str
    previous_config: str | None
    version: str
    package: _Artifact | None


def roots(object_store: ObjectStore, keep: int) -> list[Root]:
    """The steps that reports and releases need.

    Args:
        depot: the store's.
        keep: how many released versions of each endpoint can be gone back to.

    Raises:
        StoreError: a report or a release record cannot be read: nobody knows what it needs.
    """
    return [*_of_reports(object_store), *_of_releases(object_store, keep)]


def _of_reports(object_store: ObjectStore) -> Iterator[Root]:
    for lying in object_store.lying("reports/"):
        model, name = lying.name.removeprefix("reports/").rpartition("/")[::2]
        if name == "newest.json":
            report = _read(object_store, lying.name, _Report)
            for artifact in (report.package, report.evaluation, report.model_artifact):
                yield Root(artifact.id(), f"newest report of {model}")


def _of_releases(object_store: ObjectStore, keep: int) -> Iterator[Root]:
    lines: dict[str, list[_Change]] = {}
    for name in sorted(lying.name for lying in object_store.lying("releases/")):
        lines.setdefault(name.removeprefix("releases/").rpartition("/")[0], []).append(_read(object_store, name, _Change))
    for line, changes in lines.items():
        for change in _needed(changes, keep):
            if change.package is not None:
                yield Root(change.package.id(), f"releases of {line}")


def _needed(changes: Sequence[_Change], keep: int) -> Iterator[_Change]:
    """Of an endpoint's changes, the oldest first: those half done, the last ``keep`` versions, and what was served before the present one."""
    yield from (c for c in changes if c.state not in {"done", "rolled_back"})
    done = [c for c in changes if c.state == "done"]
    last: dict[str, _Change] = {}
    for change in reversed(done):
        last.setdefault(change.endpoint_config, change)
    yield from list(last.values())[:keep]
    if done:
        yield from _before(done[-1], done)


def _before(now: _Change, done: Sequence[_Change]) -> Iterator[_Change]:
    """The present version however often it was packaged, the champion that it was compared with, and what a rollback goes back to."""
    yield from (c for c in done if c.version == now.version)
    first = next(i for i, c in enumerate(done) if c.version == now.version)
    yield from done[:first][-1:]
    configs = {c.previous_config for c in done if c.endpoint_config == now.endpoint_config}
    for config in configs - {None}:
        yield from [c for c in done if c.endpoint_config == config][-1:]


def _read(object_store: ObjectStore, name: str, kind: type[M]) -> M:
    try:
        return kind.model_validate_json(object_store.read(name) or b"")
    except ValidationError as e:
        raise StoreError(
            f"{object_store}/{name} cannot be read as a {'report' if kind is _Report else 'release record'}; which steps it needs is unknown, so nothing is "
            "cleared: restore it from a copy of the store, or delete it if nobody needs it"
        ) from e

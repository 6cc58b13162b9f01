"""What nobody needs any more goes from a store; never what a report, a release or the frozen test set needs, nor what is young.

It goes in an order in which a kill harms nothing: manifests first, so that no step misses a part; then files without a step;
then what is remembered of pictures that go; the pictures themselves last.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from pydantic import Field

from animl_pipeline.core.errors import StoreError
from animl_pipeline.core.progress import track
from animl_pipeline.core.records import Record
from animl_pipeline.storage import image_index
from animl_pipeline.storage.gc import local_files
from animl_pipeline.storage.gc.references import CROPS, IMAGES, WINDOWS, memories, named_by, needed, remembered
from animl_pipeline.storage.gc.roots import Root, roots
from animl_pipeline.storage.gc.stored_steps import Standing, Step, standing
from animl_pipeline.storage.locks import clearing
from animl_pipeline.storage.object_store import StoredObject
from animl_pipeline.storage.step_cache import Store

log = logging.getLogger(__name__)

DAY = 86_400.0
BATCH = 200
BLOBS = "pictures, crops, answers"


class Rules(Record):
    """What may go."""

    older_than: float = Field(default=30, ge=1, le=36_500, description="days without use; what is younger stays, whoever needs it")
    keep: int = Field(default=3, ge=1, le=100, description="released versions of each endpoint that can be gone back to")
    images: bool = Field(default=False, description="whether fetched pictures that no step names may go: they can be fetched again")


class Pile(NamedTuple):
    """Things that stay or go for one reason."""

    what: str
    why: str
    things: int
    bytes: int


class Cleared(NamedTuple):
    """What goes, what stays, and why; ``lacking`` are steps that reports and releases name and the store does not hold."""

    goes: tuple[Pile, ...]
    stays: tuple[Pile, ...]
    lacking: tuple[Root, ...]

    @property
    def bytes(self) -> int:
        """What is freed."""
        return sum(p.bytes for p in self.goes)


class _Going(NamedTuple):
    """What goes."""

    steps: list[Step]
    strays: list[StoredObject]
    windows: list[StoredObject]
    blobs: dict[str, StoredObject]  # by sha256
    local_files: list[StoredObject]  # on this machine


def clear_store(store: Store, rules: Rules, *, look_only: bool = True, now: float | None = None) -> Cleared:
    """Delete what nobody needs; or, with ``look_only``, say what would go.

    Needed are the steps that the newest reports and the releases to go back to were made from, with all blobs that these
    steps name; whatever was made or used within ``older_than`` days, with what it was made from; pictures that were fetched,
    unless ``pictures`` is set; and the whole memory but that of blobs that go.

    Args:
        store: a folder or S3.
        rules: what may go.
        look_only: delete nothing.
        now: in seconds since 1970; for tests.

    Raises:
        StoreError: a run makes a step on this machine, or made one meanwhile; or what is needed cannot be read.
    """
    limit = (now or time.time()) - rules.older_than * DAY
    if look_only:
        return _sorted_out(store, standing(store.object_store), rules, limit)[1]
    with clearing(store.local / "work"):
        before = standing(store.object_store)
        going, said = _sorted_out(store, before, rules, limit)
        if _used_meanwhile(before, standing(store.object_store)):
            raise StoreError(f"a run made or used a step in {store.object_store} meanwhile; nothing was cleared, do it when no run is under way")
        _delete(store, going)
    log.info("cleared %s: %.1f MB freed", store.object_store, said.bytes / 1e6)
    return said


def _used_meanwhile(before: Standing, after: Standing) -> bool:
    return any(i not in before.steps or before.steps[i].used != step.used for i, step in after.steps.items())


def _sorted_out(store: Store, there: Standing, rules: Rules, limit: float) -> tuple[_Going, Cleared]:
    named = roots(store.object_store, rules.keep)
    young = [Root(s.id, f"used within {rules.older_than:g} days") for s in there.steps.values() if s.used >= limit]
    stay = needed(there.steps, [*named, *young])
    blobs = {b.name.rpartition("/")[2]: b for b in store.object_store.lying("blobs/")}
    why = _kept_blobs(store, [(there.steps[i], stay[i]) for i in stay], blobs, rules, limit)
    going = _Going(
        steps=[s for i, s in there.steps.items() if i not in stay],
        strays=[f for f in there.strays if f.at < limit],
        windows=[s for s in store.object_store.lying(f"memory/{WINDOWS}/") if s.at < limit],
        blobs={name: b for name, b in blobs.items() if name not in why},
        local_files=[*local_files.left_over(store, limit), *local_files.copies(store, stay), *local_files.curves(store, stay, limit)],
    )
    stays = _filled(
        *_piles("steps", stay.values(), [there.steps[i].bytes for i in stay]),
        *_piles(BLOBS, why.values(), [blobs[name].bytes for name in why]),
        _pile("register", "what was once tested on or learnt from", store.object_store.lying("memory/splits/")),
    )
    return going, Cleared(_piled(going), stays, tuple(dict.fromkeys(r for r in named if r.id not in there.steps)))


def _piled(going: _Going) -> tuple[Pile, ...]:
    return _filled(
        *_piles("steps", [s.id.step for s in going.steps], [s.bytes for s in going.steps]),
        _pile("files", "without a step: broken off, or half cleared", going.strays),
        _pile(BLOBS, "no step that stays names them", going.blobs.values()),
        _pile("memory", "of exports that were broken off", going.windows),
        _pile("scratch", "on this machine", going.local_files),
    )


def _kept_blobs(store: Store, stay: Sequence[tuple[Step, str]], blobs: Mapping[str, StoredObject], rules: Rules, limit: float) -> dict[str, str]:
    """Each blob that stays, and why: by the first reason found."""
    why: dict[str, str] = {}

    def _note(names: Iterable[str], reason: str) -> None:
        for name in names:
            if name in blobs:
                why.setdefault(name, reason)

    with track("what steps name", len(stay)) as step:
        for one, reason in stay:
            for names in named_by(one, store):
                _note(names, reason)
            step(1)
    spared = {CROPS, WINDOWS} | ({IMAGES} if rules.images else set())
    for names in remembered(store, frozenset(spared)):
        _note(names, "remembered")
    _note((name for name, blob in blobs.items() if blob.at >= limit), f"younger than {rules.older_than:g} days")
    return why


def _delete(store: Store, going: _Going) -> None:
    object_store = store.object_store
    _away("manifests", [s.manifest for s in going.steps], object_store.delete_all)
    files = [name for s in going.steps for name in s.files if name != s.manifest]
    _away("files", [*files, *(f.name for f in going.strays)], object_store.delete_all)
    _away("memory", [s.name for s in going.windows], object_store.delete_all)
    if going.blobs:
        for name in memories(store):
            if name.partition("/")[0] in {CROPS, IMAGES}:
                image_index.forget(object_store, name, lambda record: record.get("blob") in going.blobs)
    _away("blobs", [b.name for b in going.blobs.values()], object_store.delete_all)
    for lying in going.local_files:
        local_files.remove(lying)


def _away(what: str, names: Sequence[str], delete: Callable[[Sequence[str]], None]) -> None:
    with track(f"clearing {what}", len(names)) as step:
        for start in range(0, len(names), BATCH):
            delete(names[start : start + BATCH])
            step(len(names[start : start + BATCH]))


def _pile(what: str, why: str, things: Iterable[StoredObject]) -> Pile:
    sizes = [t.bytes for t in things]
    return Pile(what, why, len(sizes), sum(sizes))


def _piles(what: str, whys: Iterable[str], sizes: Iterable[int]) -> list[Pile]:
    """A pile for each reason, in the order in which reasons come."""
    of: dict[str, list[int]] = {}
    for why, size in zip(whys, sizes, strict=True):
        of.setdefault(why, []).append(size)
    return [Pile(what, why, len(each), sum(each)) for why, each in of.items()]


def _filled(*piles: Pile) -> tuple[Pile, ...]:
    return tuple(p for p in piles if p.things)

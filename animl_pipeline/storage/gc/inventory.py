"""What lies in a store, by kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from animl_pipeline.storage.gc.local_files import files_below
from animl_pipeline.storage.gc.references import needed
from animl_pipeline.storage.gc.roots import roots
from animl_pipeline.storage.gc.stored_steps import standing
from animl_pipeline.storage.object_store import StoredObject
from animl_pipeline.storage.step_cache import Store


class Holding(NamedTuple):
    """Things of one kind. ``needed``: how many of them reports and releases need; None where nobody counts."""

    kind: str
    things: int
    bytes: int
    oldest: float | None  # seconds since 1970
    newest: float | None
    needed: int | None = None


class Inventory(NamedTuple):
    """All that lies in a store: steps by room, then the rest."""

    steps: tuple[Holding, ...]
    rest: tuple[Holding, ...]

    @property
    def bytes(self) -> int:
        """What all of it takes."""
        return sum(h.bytes for h in (*self.steps, *self.rest))


def take_inventory(store: Store, keep: int) -> Inventory:
    """What lies in a store, and how many steps the newest reports and the last ``keep`` releases of each endpoint need.

    Raises:
        StoreError: a manifest, report or release record cannot be read.
    """
    found = standing(store.object_store)
    stays = needed(found.steps, roots(store.object_store, keep))
    by_room: dict[str, list[StoredObject]] = defaultdict(list)
    for step in found.steps.values():
        by_room[step.id.step].append(StoredObject(step.id.key, step.bytes, step.used))
    steps = tuple(_holding(room, of)._replace(needed=sum(i.step == room for i in stays)) for room, of in by_room.items())
    kinds: dict[str, list[StoredObject]] = defaultdict(list)
    for lying in store.object_store.lying(""):
        if not lying.name.startswith("steps/"):
            kinds[_kind(lying.name)].append(lying)
    rest = [_holding("files without a step", found.strays)] if found.strays else []
    rest += [_holding(kind, kinds[kind]) for kind in sorted(kinds)]
    return Inventory(steps, (*rest, _holding("scratch on this machine", files_below(store.local / "work"))))


def _kind(name: str) -> str:
    first, _, rest = name.partition("/")
    if first == "blobs":
        return "pictures, crops, answers"
    return f"memory of {rest.partition('/')[0]}" if first == "memory" else first


def _holding(kind: str, things: Iterable[StoredObject]) -> Holding:
    things = list(things)
    ages = [t.at for t in things]
    return Holding(kind, len(things), sum(t.bytes for t in things), min(ages, default=None), max(ages, default=None))

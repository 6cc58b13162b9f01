"""What lies in a store, by kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from animl_pipeline.depot import Lying
from animl_pipeline.retention.reach import needed
from animl_pipeline.retention.roots import roots
from animl_pipeline.retention.scratch import files_below
from animl_pipeline.retention.standing import standing
from animl_pipeline.store import Store


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
    found = standing(store.depot)
    stays = needed(found.steps, roots(store.depot, keep))
    by_room: dict[str, list[Lying]] = defaultdict(list)
    for step in found.steps.values():
        by_room[step.id.step].append(Lying(step.id.key, step.bytes, step.used))
    steps = tuple(_holding(room, of)._replace(needed=sum(i.step == room for i in stays)) for room, of in by_room.items())
    kinds: dict[str, list[Lying]] = defaultdict(list)
    for lying in store.depot.lying(""):
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


def _holding(kind: str, things: Iterable[Lying]) -> Holding:
    things = list(things)
    ages = [t.at for t in things]
    return Holding(kind, len(things), sum(t.bytes for t in things), min(ages, default=None), max(ages, default=None))

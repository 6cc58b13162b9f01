"""What a store holds, by kind: count, size, age, and how much of it is needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from animl_pipeline.storage.gc.references import find_roots, needed_steps
from animl_pipeline.storage.gc.stored_steps import read_stored_steps
from animl_pipeline.storage.object_store import WORK, StoredObject
from animl_pipeline.storage.store import Store

BLOBS = "images, crops, Animl's answers"


class InventoryRow(NamedTuple):
    """Objects of one kind.

    ``oldest``: time of the oldest, in seconds since 1970; None if there is none. ``needed``: how many reports and releases need; None if this
    is not known for the kind.
    """

    kind: str
    number: int
    bytes: int
    oldest: float | None
    newest: float | None
    needed: int | None = None


class Inventory(NamedTuple):
    """Everything that a store holds: a row for each step, then the rest."""

    steps: tuple[InventoryRow, ...]
    others: tuple[InventoryRow, ...]

    @property
    def bytes(self) -> int:
        """The size of everything."""
        return sum(row.bytes for row in (*self.steps, *self.others))


def read_inventory(store: Store, keep: int) -> Inventory:
    """What a store holds, and how many steps the newest reports and the last ``keep`` releases of each endpoint need.

    Raises:
        StoreError: a manifest, report or release record cannot be read.
    """
    stored = read_stored_steps(store.object_store)
    needed = needed_steps(stored.steps, find_roots(store.object_store, keep))
    by_step: dict[str, list[StoredObject]] = defaultdict(list)
    for step in stored.steps.values():
        by_step[step.id.step].append(StoredObject(step.id.key, step.bytes, step.used))
    steps = tuple(_row(name, of)._replace(needed=sum(i.step == name for i in needed)) for name, of in by_step.items())
    kinds: dict[str, list[StoredObject]] = defaultdict(list)
    for found in store.object_store.objects(""):
        if not found.name.startswith("steps/"):
            kinds[_kind(found.name)].append(found)
    others = [_row("files without a step", stored.files_without_step)] if stored.files_without_step else []
    others += [_row(kind, kinds[kind]) for kind in sorted(kinds)]
    return Inventory(steps, (*others, _row("files of running steps on this machine", files_below(store.local / WORK))))


def files_below(folder: Path) -> Iterator[StoredObject]:
    """The files below a folder of this machine."""
    for path in folder.rglob("*"):
        try:
            if not path.is_dir():
                found = path.lstat()
                yield StoredObject(str(path), found.st_size, found.st_mtime)
        except FileNotFoundError:  # deleted meanwhile
            continue


def _kind(name: str) -> str:
    first, _, rest = name.partition("/")
    if first == "blobs":
        return BLOBS
    return f"index of {rest.partition('/')[0]}" if first == "index" else first


def _row(kind: str, objects: Iterable[StoredObject]) -> InventoryRow:
    objects = list(objects)
    times = [o.modified for o in objects]
    return InventoryRow(kind, len(objects), sum(o.bytes for o in objects), min(times, default=None), max(times, default=None))

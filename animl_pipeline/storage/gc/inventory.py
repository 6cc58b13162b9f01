"""What lies in a store, by kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from animl_pipeline.core.errors import StoreError
from animl_pipeline.core.records import Digest
from animl_pipeline.storage.gc.local_files import files_below
from animl_pipeline.storage.gc.references import needed
from animl_pipeline.storage.gc.roots import roots
from animl_pipeline.storage.object_store import Depot, Lying
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


MANIFEST = "manifest.json"
ROOM_ORDER = ("export", "images", "labels", "detections", "crops", "splits", "fold", "model", "calibration", "evaluation", "package")
READERS = 16
"""Manifests read at a time: in S3 each is a request."""


class Id(NamedTuple):
    """Which step: its name and its key."""

    step: str
    key: str

    def __str__(self) -> str:
        return f"{self.step} {self.key[:12]}"


class Step(NamedTuple):
    """A step in the store."""

    id: Id
    digest: str
    inputs: Mapping[str, str]  # by name, the digests of the artifacts (and of other things) that it was made from
    files: Mapping[str, int]  # by name in the store, their bytes; the manifest's, too
    made: frozenset[str]  # the content of its files, by sha256
    used: float  # when it was made or last used, in seconds since 1970

    @property
    def bytes(self) -> int:
        """What its files take."""
        return sum(self.files.values())

    @property
    def manifest(self) -> str:
        """The name of its manifest."""
        return f"steps/{self.id.step}/{self.id.key}/{MANIFEST}"


class Standing(NamedTuple):
    """What lies under steps/."""

    steps: dict[Id, Step]
    strays: tuple[Lying, ...]  # files of steps that have no manifest: broken off, or on their way out


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    sha256: Digest


class _Told(BaseModel):
    """Of a manifest, what must be known; other versions may tell more."""

    model_config = ConfigDict(extra="ignore")

    step: str
    key: Digest
    digest: Digest
    inputs: dict[str, str]
    files: dict[str, _File]


def standing(depot: Depot) -> Standing:
    """All steps of a store.

    Raises:
        StoreError: a manifest cannot be read: nobody knows what it needs.
    """
    of: dict[str, list[Lying]] = defaultdict(list)
    for lying in depot.lying("steps/"):
        of["/".join(lying.name.split("/")[:3])].append(lying)
    whole = [folder for folder, files in of.items() if any(f.name == f"{folder}/{MANIFEST}" for f in files)]
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda folder: _read(depot, folder, of[folder]), whole)
        steps = {step.id: step for step in read if step is not None}
    strays = tuple(f for folder, files in of.items() if folder not in set(whole) for f in files)
    return Standing({i: steps[i] for i in sorted(steps, key=_along_the_street)}, strays)


def _along_the_street(one: Id) -> tuple[int, Id]:
    return ROOM_ORDER.index(one.step) if one.step in ROOM_ORDER else len(ROOM_ORDER), one


def _read(depot: Depot, folder: str, files: list[Lying]) -> Step | None:
    name = f"{folder}/{MANIFEST}"
    data = depot.read(name)
    if data is None:  # it went meanwhile
        return None
    try:
        told = _Told.model_validate_json(data)
    except ValidationError:
        told = None
    if told is None or f"steps/{told.step}/{told.key}" != folder:
        raise StoreError(
            f"expected a step's manifest in {depot}/{name}, found another thing; what it needs is unknown, so nothing is cleared: "
            "restore it from a copy of the store, or delete it, then its step is made anew"
        )
    used = next(f.at for f in files if f.name == name)
    made = frozenset(f.sha256 for f in told.files.values())
    return Step(Id(told.step, told.key), told.digest, told.inputs, {f.name: f.bytes for f in files}, made, used)

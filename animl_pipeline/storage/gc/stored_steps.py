"""The steps of a store as their manifests describe them, and the files that no manifest names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from animl_pipeline.core.errors import StoreError
from animl_pipeline.core.records import Digest
from animl_pipeline.storage.object_store import ObjectStore, StoredObject

MANIFEST = "manifest.json"
ROOM_ORDER = ("export", "images", "labels", "detections", "crops", "splits", "fold", "training", "calibration", "evaluation", "package")
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
    strays: tuple[StoredObject, ...]  # files of steps that have no manifest: broken off, or on their way out


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


def standing(object_store: ObjectStore) -> Standing:
    """All steps of a store.

    Raises:
        StoreError: a manifest cannot be read: nobody knows what it needs.
    """
    of: dict[str, list[StoredObject]] = defaultdict(list)
    for lying in object_store.lying("steps/"):
        of["/".join(lying.name.split("/")[:3])].append(lying)
    whole = [folder for folder, files in of.items() if any(f.name == f"{folder}/{MANIFEST}" for f in files)]
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda folder: _read(object_store, folder, of[folder]), whole)
        steps = {step.id: step for step in read if step is not None}
    strays = tuple(f for folder, files in of.items() if folder not in set(whole) for f in files)
    return Standing({i: steps[i] for i in sorted(steps, key=_along_the_street)}, strays)


def _along_the_street(one: Id) -> tuple[int, Id]:
    return ROOM_ORDER.index(one.step) if one.step in ROOM_ORDER else len(ROOM_ORDER), one


def _read(object_store: ObjectStore, folder: str, files: list[StoredObject]) -> Step | None:
    name = f"{folder}/{MANIFEST}"
    data = object_store.read(name)
    if data is None:  # it went meanwhile
        return None
    try:
        told = _Told.model_validate_json(data)
    except ValidationError:
        told = None
    if told is None or f"steps/{told.step}/{told.key}" != folder:
        raise StoreError(
            f"expected a step's manifest in {object_store}/{name}, found another thing; what it needs is unknown, so nothing is cleared: "
            "restore it from a copy of the store, or delete it, then its step is made anew"
        )
    used = next(f.at for f in files if f.name == name)
    made = frozenset(f.sha256 for f in told.files.values())
    return Step(Id(told.step, told.key), told.digest, told.inputs, {f.name: f.bytes for f in files}, made, used)

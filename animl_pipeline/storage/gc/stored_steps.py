"""The steps of a store as their manifests describe them, and the files that no manifest names."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from animl_pipeline.core.errors import StoreError
from animl_pipeline.storage.manifest import MANIFEST_FILE, Manifest, manifest_name, parse_manifest
from animl_pipeline.storage.object_store import ObjectStore, StoredObject

STEP_ORDER = ("export", "images", "labels", "detections", "crops", "splits", "fold", "training", "calibration", "evaluation", "package")
READERS = 16
"""Manifests read at a time: in S3 each is a request."""


class StepId(NamedTuple):
    """Which step: its name and its key."""

    step: str
    key: str

    def __str__(self) -> str:
        return f"{self.step} {self.key[:12]}"


class StoredStep(NamedTuple):
    """A step in the store.

    ``used``: when it was made or last used, in seconds since 1970.
    """

    manifest: Manifest
    files: tuple[StoredObject, ...]
    used: float

    @property
    def id(self) -> StepId:
        """Its name and key."""
        return StepId(self.manifest.step, self.manifest.key)

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(f.bytes for f in self.files)

    @property
    def manifest_name(self) -> str:
        """The name of its manifest in the store."""
        return manifest_name(*self.id)


class StoredSteps(NamedTuple):
    """All steps of a store, and files of steps without a manifest: interrupted ones, or half deleted ones."""

    steps: dict[StepId, StoredStep]
    files_without_step: tuple[StoredObject, ...]


def read_stored_steps(object_store: ObjectStore) -> StoredSteps:
    """All steps of a store, in the order of the pipeline.

    Raises:
        StoreError: a manifest cannot be read, so that it is not known what its step needs (code ``unreadable_record``).
    """
    folders: dict[StepId, list[StoredObject]] = defaultdict(list)
    others: list[StoredObject] = []
    for found in object_store.objects("steps/"):
        parts = found.name.split("/")
        if len(parts) > 3:
            folders[StepId(parts[1], parts[2])].append(found)
        else:
            others.append(found)
    complete = {i: files for i, files in folders.items() if any(f.name == manifest_name(*i) for f in files)}
    others += [f for i, files in folders.items() if i not in complete for f in files]
    with ThreadPoolExecutor(READERS) as pool:
        steps = [s for s in pool.map(lambda i: _read(object_store, i, complete[i]), sorted(complete, key=_pipeline_order)) if s is not None]
    return StoredSteps({s.id: s for s in steps}, tuple(others))


def _pipeline_order(one: StepId) -> tuple[int, StepId]:
    return STEP_ORDER.index(one.step) if one.step in STEP_ORDER else len(STEP_ORDER), one


def _read(object_store: ObjectStore, one: StepId, files: list[StoredObject]) -> StoredStep | None:
    name = manifest_name(*one)
    data = object_store.read(name)
    if data is None:  # deleted meanwhile
        return None
    try:
        manifest = parse_manifest(data, *one)
    except ValueError as e:
        raise StoreError(
            f"{object_store}/{name} is not the manifest of its step, so it is unknown what the step needs, and nothing is deleted: restore "
            f"{MANIFEST_FILE} from a copy of the store, or delete it, then the step runs again",
            code="unreadable_record",
        ) from e
    return StoredStep(manifest, tuple(files), next(f.modified for f in files if f.name == name))

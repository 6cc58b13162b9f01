"""Delete from a store what is not needed; never what a report, a release or the frozen test set needs, nor what is young.

The order makes a kill harmless: first manifests, so that no step misses a file; then files without a step; then index records of
blobs that are deleted; the blobs themselves last.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from animl_pipeline.core.errors import StoreError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.progress import track
from animl_pipeline.storage import image_index
from animl_pipeline.storage.gc.inventory import BLOBS, files_below
from animl_pipeline.storage.gc.references import (
    ANIML_WINDOWS,
    CROPS,
    IMAGES,
    TEST_SETS,
    Root,
    blobs_of_indexes,
    blobs_of_step,
    find_roots,
    indexes,
    needed_steps,
)
from animl_pipeline.storage.gc.stored_steps import StepId, StoredStep, StoredSteps, read_stored_steps
from animl_pipeline.storage.local_locks import STEPS_LOCK, gc_lock
from animl_pipeline.storage.object_store import PARTS, WORK, FolderObjectStore, StoredObject
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)

DAY_S = 86_400.0
BATCH = 200
"""Objects deleted between two steps of the progress bar."""
OTHER_LOCKS = ("release-", "animl-")
"""Locks in the same folder that do not belong to steps; they stay."""


class GcRules(Record):
    """What may be deleted."""

    older_than: float = Field(default=30, ge=1, le=36_500, description="days without use; younger objects stay even if nothing needs them")
    keep: int = Field(default=3, ge=1, le=100, description="released versions of each endpoint that can be gone back to")
    images: bool = Field(default=False, description="whether downloaded images that no step names may be deleted: they can be downloaded again")


class GcGroup(NamedTuple):
    """Objects that are deleted or kept for one reason."""

    what: str
    why: str
    number: int
    bytes: int


class GcReport(NamedTuple):
    """What is deleted, what is kept, and why; ``missing`` are steps that reports and releases name and the store lacks."""

    deleted: tuple[GcGroup, ...]
    kept: tuple[GcGroup, ...]
    missing: tuple[Root, ...]

    @property
    def bytes(self) -> int:
        """The size of what is deleted."""
        return sum(group.bytes for group in self.deleted)


class _Garbage(NamedTuple):
    """What is deleted."""

    steps: list[StoredStep]
    files_without_step: list[StoredObject]
    windows: list[StoredObject]
    blobs: dict[str, StoredObject]  # by sha256
    local: list[StoredObject]  # on this machine


def collect_garbage(store: Store, rules: GcRules, *, dry_run: bool = True, now: float | None = None) -> GcReport:
    """Delete what is not needed, or only report it.

    Needed are: the steps that the newest reports and the releases to go back to were made from, with all blobs that these steps
    declare; everything made or used within ``rules.older_than`` days, with the steps that it was made from; downloaded images,
    unless ``rules.images``; and the image index, except records of blobs that are deleted.

    Raises:
        StoreError: a run builds a step on this machine, or built one meanwhile (code ``store_in_use``); or it cannot be read what is needed (code
            ``unreadable_record``).
    """
    limit = (now or time.time()) - rules.older_than * DAY_S
    if dry_run:
        return _find_garbage(store, read_stored_steps(store.object_store), rules, limit)[1]
    with gc_lock(store.local / WORK):
        before = read_stored_steps(store.object_store)
        garbage, report = _find_garbage(store, before, rules, limit)
        if _used_meanwhile(before, read_stored_steps(store.object_store)):
            raise StoreError(
                f"a run made or used a step in {store.object_store} meanwhile; nothing was deleted, try again when no run is active",
                code="store_in_use",
            )
        _delete(store, garbage)
    log.info("garbage collection in %s: %.1f MB freed", store.object_store, report.bytes / 1e6)
    return report


def _used_meanwhile(before: StoredSteps, after: StoredSteps) -> bool:
    return any(i not in before.steps or before.steps[i].used != step.used for i, step in after.steps.items())


def _find_garbage(store: Store, stored: StoredSteps, rules: GcRules, limit: float) -> tuple[_Garbage, GcReport]:
    steps = stored.steps
    roots = find_roots(store.object_store, rules.keep)
    young = [Root(s.id, f"used within {rules.older_than:g} days") for s in steps.values() if s.used >= limit]
    needed = needed_steps(steps, [*roots, *young])
    blobs = {b.name.rpartition("/")[2]: b for b in store.object_store.objects("blobs/")}
    why_kept = _kept_blobs(store, [(steps[i], needed[i]) for i in needed], blobs, rules, limit)
    garbage = _Garbage(
        steps=[s for i, s in steps.items() if i not in needed],
        files_without_step=[f for f in stored.files_without_step if f.modified < limit],
        windows=[s for s in store.object_store.objects(f"{image_index.FOLDER}{ANIML_WINDOWS}/") if s.modified < limit],
        blobs={name: b for name, b in blobs.items() if name not in why_kept},
        local=[*_old_work_files(store, limit), *_local_copies(store, needed), *_training_curves(store, needed, limit)],
    )
    deleted = [
        *_groups("steps", [(s.id.step, s.bytes) for s in garbage.steps]),
        *_groups("files", [("without a step: interrupted, or half deleted", f.bytes) for f in garbage.files_without_step]),
        *_groups(BLOBS, [("no step that stays names them", b.bytes) for b in garbage.blobs.values()]),
        *_groups("index", [("of exports that were interrupted", s.bytes) for s in garbage.windows]),
        *_groups("files of interrupted steps", [("on this machine", f.bytes) for f in garbage.local]),
    ]
    kept = [
        *_groups("steps", [(why, steps[i].bytes) for i, why in needed.items()]),
        *_groups(BLOBS, [(why, blobs[name].bytes) for name, why in why_kept.items()]),
        *_groups("test set", [("locations in test sets", s.bytes) for s in store.object_store.objects(f"{image_index.FOLDER}{TEST_SETS}/")]),
    ]
    return garbage, GcReport(tuple(deleted), tuple(kept), tuple(dict.fromkeys(r for r in roots if r.id not in steps)))


def _kept_blobs(
    store: Store, needed: Sequence[tuple[StoredStep, str]], blobs: Mapping[str, StoredObject], rules: GcRules, limit: float
) -> dict[str, str]:
    """Each blob that stays, and why: by the first reason found."""
    kept: dict[str, str] = {}

    def note(names: Iterable[str], why: str) -> None:
        for name in names:
            if name in blobs:
                kept.setdefault(name, why)

    with track("blobs of steps", len(needed)) as step_done:
        for step, why in needed:
            for names in blobs_of_step(step, store):
                note(names, why)
            step_done(1)
    for names in blobs_of_indexes(store, images=not rules.images):
        note(names, "in the image index")
    note((name for name, blob in blobs.items() if blob.modified >= limit), f"younger than {rules.older_than:g} days")
    return kept


def _delete(store: Store, garbage: _Garbage) -> None:
    object_store = store.object_store
    _in_batches("manifests", [s.manifest_name for s in garbage.steps], object_store.delete_many)
    files = [f.name for s in garbage.steps for f in s.files if f.name != s.manifest_name]
    _in_batches("files", [*files, *(f.name for f in garbage.files_without_step)], object_store.delete_many)
    _in_batches("index", [s.name for s in garbage.windows], object_store.delete_many)
    if garbage.blobs:
        for name in indexes(store, IMAGES, CROPS):
            image_index.remove_from_index(object_store, name, lambda record: record.get("blob") in garbage.blobs)
    _in_batches("blobs", [b.name for b in garbage.blobs.values()], object_store.delete_many)
    for found in garbage.local:
        _remove(found)


def _in_batches(what: str, names: Sequence[str], delete: Callable[[Sequence[str]], None]) -> None:
    with track(f"deleting {what}", len(names)) as step_done:
        for start in range(0, len(names), BATCH):
            delete(names[start : start + BATCH])
            step_done(len(names[start : start + BATCH]))


def _groups(what: str, whys_and_bytes: Iterable[tuple[str, int]]) -> list[GcGroup]:
    """A group for each reason, in the order in which the reasons come."""
    sizes: dict[str, list[int]] = {}
    for why, size in whys_and_bytes:
        sizes.setdefault(why, []).append(size)
    return [GcGroup(what, why, len(of), sum(of)) for why, of in sizes.items()]


# -- files of this machine --------------------------------------------------------------------------------------------


def _old_work_files(store: Store, limit: float) -> list[StoredObject]:
    """Files and folders of interrupted steps that were not changed since ``limit``; a folder counts as one."""
    work = store.local / WORK
    paths = [path for path in (sorted(work.iterdir()) if work.is_dir() else ()) if not _stays(path.name)]
    paths += sorted((work / PARTS).glob("*"))
    return [found for path in paths if (found := _describe(path)) is not None and found.modified < limit]


def _local_copies(store: Store, keep: Collection[StepId]) -> list[StoredObject]:
    """Local copies of steps that do not stay in S3; none if the store is a folder."""
    if isinstance(store.object_store, FolderObjectStore):
        return []
    folders = [path for path in (store.local / "steps").glob("*/*") if StepId(path.parent.name, path.name) not in keep]
    return [found for path in sorted(folders) if (found := _describe(path)) is not None]


def _training_curves(store: Store, keep: Collection[StepId], limit: float) -> list[StoredObject]:
    """TensorBoard's curves of trainings that do not stay and were not changed since ``limit``."""
    names = {f"{i.step}-{i.key[:16]}" for i in keep}
    folders = [path for path in sorted((store.local / "tensorboard").glob("*/*")) if path.name not in names]
    return [found for path in folders if (found := _describe(path)) is not None and found.modified < limit]


def _remove(found: StoredObject) -> None:
    """Delete a file or a folder of this machine."""
    path = Path(found.name)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _stays(name: str) -> bool:
    return name in {STEPS_LOCK, PARTS} or (name.endswith(".lock") and name.startswith(OTHER_LOCKS))


def _describe(path: Path) -> StoredObject | None:
    """A file or a folder with all its files, as new as the newest of them."""
    try:
        own = path.lstat()
    except FileNotFoundError:
        return None
    files = list(files_below(path)) if path.is_dir() else []
    size = sum(f.bytes for f in files) if path.is_dir() else own.st_size
    return StoredObject(str(path), size, max([own.st_mtime, *(f.modified for f in files)]))

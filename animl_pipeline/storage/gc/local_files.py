"""What steps under way wrote on this machine and nobody fetches any more; and copies of steps that are gone from S3."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from animl_pipeline.storage.gc.stored_steps import Id
from animl_pipeline.storage.locks import BUILDERS
from animl_pipeline.storage.object_store import FolderObjectStore, StoredObject
from animl_pipeline.storage.step_cache import Store

PARTS = "parts"
"""Files being written: whoever writes there next removes what a killed process left."""
LOCKS_OF_OTHERS = ("release-", "animl-")
"""Locks that are not held under the builders' one."""


def left_over(store: Store, limit: float) -> list[StoredObject]:
    """What lies in the store's scratch and was not touched since ``limit``; a folder counts as one."""
    work = store.local / "work"
    found = [(path, _whole(path)) for path in (sorted(work.iterdir()) if work.is_dir() else ()) if not _is_in_use(path.name)]
    return [whole for _, whole in found if whole is not None and whole.at < limit]


def copies(store: Store, stay: Collection[Id]) -> list[StoredObject]:
    """Local copies of steps that do not stay in S3; none where the store is a folder."""
    if isinstance(store.object_store, FolderObjectStore):
        return []
    folders = [path for path in (store.local / "steps").glob("*/*") if Id(path.parent.name, path.name) not in stay]
    return [whole for path in sorted(folders) if (whole := _whole(path)) is not None]


def curves(store: Store, stay: Collection[Id], limit: float) -> list[StoredObject]:
    """TensorBoard's curves of trainings that do not stay, and were not gone on with since ``limit``."""
    names = {f"{i.step}-{i.key[:16]}" for i in stay}
    folders = [path for path in sorted((store.local / "tensorboard").glob("*/*")) if path.name not in names]
    return [whole for path in folders if (whole := _whole(path)) is not None and whole.at < limit]


def files_below(folder: Path) -> Iterator[StoredObject]:
    """Files below a folder on this machine; those that went meanwhile are left out."""
    for path in folder.rglob("*"):
        try:
            if not path.is_dir():
                found = path.lstat()
                yield StoredObject(str(path), found.st_size, found.st_mtime)
        except FileNotFoundError:
            continue


def remove(lying: StoredObject) -> None:
    """Remove a file or a folder of this machine."""
    path = Path(lying.name)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_in_use(name: str) -> bool:
    return name in {BUILDERS, PARTS} or (name.endswith(".lock") and name.startswith(LOCKS_OF_OTHERS))


def _whole(path: Path) -> StoredObject | None:
    """A file or folder with all that it holds, as old as the youngest of it."""
    try:
        own = path.lstat()
    except FileNotFoundError:
        return None
    files = list(files_below(path)) if path.is_dir() else []
    size = sum(f.bytes for f in files) if path.is_dir() else own.st_size
    return StoredObject(str(path), size, max([own.st_mtime, *(f.at for f in files)]))

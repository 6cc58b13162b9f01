"""Write files so that a reader never sees half a file, and turn the disk's errors into one clear line."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from animl_pipeline.core.errors import StoreError

TEMPORARY = ".part-"
"""What the name of a file that is being written begins with; then come the machine, the process id and a random part."""
MACHINE = re.sub(r"[^A-Za-z0-9]", "", platform.node()) or "local"


def write_atomic(path: Path, data: bytes, *, durable: bool = True, temporary_folder: Path | None = None) -> None:
    """Write a file so that it is there whole or not at all.

    ``durable``: whether the content survives a power cut from now on. If not, ``os.sync`` makes it survive later. ``temporary_folder``: where
    the file is written before it gets its name; None: the file's own folder.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    with disk_errors(path):
        try:
            _write_and_rename(path, data, durable, temporary_folder or path.parent)
        except OSError as e:
            if e.errno != errno.EXDEV:  # the two folders are on different disks
                raise
            _write_and_rename(path, data, durable, path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in ``folder`` of processes of this machine that no longer run: a kill left them."""
    for path in folder.glob(f"{TEMPORARY}{MACHINE}-*"):
        pid = path.name.removeprefix(f"{TEMPORARY}{MACHINE}-").partition("-")[0]
        if pid.isdigit() and not _runs(int(pid)):
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs as another user
        return True
    return True


def _write_and_rename(path: Path, data: bytes, durable: bool, folder: Path) -> None:
    part = folder / f"{TEMPORARY}{MACHINE}-{os.getpid()}-{uuid.uuid4().hex}"
    try:
        _write(part, data, durable)
        try:
            part.replace(path)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _write(path: Path, data: bytes, durable: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        handle = os.open(path, flags, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, flags, 0o666)
    with os.fdopen(handle, "wb", buffering=0) as file:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        if durable:
            os.fsync(handle)


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a full disk, a used-up quota, and a file that the system does not let grow further."""


@contextmanager
def full_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into one clear line; other errors pass. ``path`` is what is written, if the error does not name it.

    Raises:
        StoreError: the disk is full.
    """
    try:
        yield
    except OSError as e:
        if e.errno not in FULL:
            raise
        full = Path(e.filename) if isinstance(e.filename, str) else path
        free = f"{shutil.disk_usage(_existing_parent(full.absolute())).free / 1e6:.0f} MB left"
        raise StoreError(
            f"the disk of {full.parent} is full ({e.strerror}; {free}); delete something and run again, everything made so far is kept",
            code="disk_full",
        ) from e


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of writing ``path`` into one clear line.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    try:
        with full_disk_errors(path):
            yield
    except OSError as e:
        raise StoreError(
            f"{path} cannot be written ({e.strerror}); check the folder's permissions or set ANIML_STORE to another", code="cannot_write"
        ) from e


def _existing_parent(path: Path) -> Path:
    return next(p for p in path.parents if p.exists())

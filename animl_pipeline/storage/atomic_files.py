"""Where a process writes files before they get their names, so that nothing half-written is ever seen or left lying about."""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import shutil
import threading
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Corner:
    """A process's own folder for files that are being written, locked while the process lives.

    A process that was killed leaves its folder without a lock; whoever opens a corner beside it removes it.
    """

    def __init__(self, beside: Path) -> None:
        self._beside = beside
        self._opening = threading.Lock()
        self._folder: Path | None = None
        self._numbers = itertools.count()

    def write(self, target: Path, data: bytes, *, durable: bool = True) -> None:
        """Write a file that is there whole or not at all; after a power cut, too, if it is ``lasting``."""
        try:
            part = self._written(data, durable)
        except FileNotFoundError:  # somebody cleared the folder away
            self._folder = None
            part = self._written(data, durable)
        try:
            _move(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _written(self, data: bytes, durable: bool) -> Path:
        part = self._open() / f"{next(self._numbers)}"
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            if durable:
                os.fsync(handle)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        return part

    def _open(self) -> Path:
        with self._opening:
            if self._folder is None:
                self._beside.mkdir(parents=True, exist_ok=True)
                with _locked(self._beside / "lock"):
                    for left in self._beside.glob("*.lock"):
                        _clear_if_left(left)
                    folder = self._beside / uuid.uuid4().hex
                    folder.mkdir()
                    handle = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
                    fcntl.flock(handle, fcntl.LOCK_EX)
                weakref.finalize(self, _leave, folder, handle)
                self._folder = folder
            return self._folder


def _move(part: Path, target: Path) -> None:
    try:
        part.replace(target)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)


def settle(folder: Path) -> None:
    """Have all that was written to a folder's file system on the disk: a flush for many files costs little more than for one."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):  # Linux has it; elsewhere all file systems are flushed
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if library.syncfs(handle):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Nobody else is in here."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _clear_if_left(lock: Path) -> None:
    """Remove a corner whose process is no more."""
    handle = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is at work
        os.close(handle)
        return
    _leave(lock.with_suffix(""), handle)


def _leave(folder: Path, handle: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)
    os.close(handle)

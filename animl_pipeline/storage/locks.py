"""Who works on a store at a time, on this machine: builders of steps side by side, who clears away alone."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from animl_pipeline.core.errors import StoreError
from animl_pipeline.storage.object_store import disk

log = logging.getLogger(__name__)

BUILDERS = "builders.lock"
"""Held together by all who build a step, by nobody else while the store is cleared."""


@contextmanager
def building(work: Path, step: str, key: str) -> Iterator[None]:
    """One builder of a step at a time, and none while the store is cleared; whoever must wait says so.

    Args:
        work: the store's folder for what is under way on this machine.
        step: the step's name.
        key: the step's key.
    """
    with _opened(work) as handle:
        if not _taken(handle, fcntl.LOCK_SH):
            log.info("%s: the store in %s is being cleared; waiting for the end of that", step, work.parent)
            fcntl.flock(handle, fcntl.LOCK_SH)
        lock = _one_builder(work / f"{step}-{key[:16]}.lock", step)
        try:
            yield
        finally:
            lock.release()


@contextmanager
def clearing(work: Path) -> Iterator[None]:
    """Nobody builds a step on this machine meanwhile.

    Raises:
        StoreError: somebody does now.
    """
    with _opened(work) as handle:
        if not _taken(handle, fcntl.LOCK_EX):
            raise StoreError(f"a run makes a step in {work.parent} now; wait for its end, then clear the store")
        yield


def _one_builder(path: Path, step: str) -> FileLock:
    lock = FileLock(path)
    with disk(path):
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            log.info("%s: another run makes the same step in %s; waiting for it", step, path.parent.parent)
            lock.acquire()
    return lock


@contextmanager
def _opened(work: Path) -> Iterator[int]:
    """The file that builders hold; it is given back explicitly, since processes forked meanwhile hold it as well."""
    with disk(work / BUILDERS):
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work / BUILDERS, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield handle
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _taken(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

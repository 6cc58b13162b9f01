"""Locks of this machine: many runs may build steps at once, each step once; garbage collection and an endpoint's release run alone."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from animl_pipeline.core.errors import ReleaseError, StoreError
from animl_pipeline.storage.atomic_files import disk_errors

if TYPE_CHECKING:
    from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)

STEPS_LOCK = "steps.lock"
"""Shared by all that build a step; garbage collection holds it alone."""


@contextmanager
def step_lock(work: Path, step: str, key: str) -> Iterator[None]:
    """Hold the lock of a step; wait, with a log line, while another run builds it or garbage collection runs.

    ``work``: the store's folder for what is under way on this machine.
    """
    with _open(work) as handle:
        if not _lock(handle, fcntl.LOCK_SH):
            log.info("%s: garbage collection is running in %s; waiting", step, work.parent)
            fcntl.flock(handle, fcntl.LOCK_SH)
        lock = FileLock(work / f"{step}-{key[:16]}.lock")
        with disk_errors(work):
            try:
                lock.acquire(timeout=0.2)
            except Timeout:
                log.info("%s: another run is building this step in %s; waiting for it to finish", step, work.parent)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()


@contextmanager
def gc_lock(work: Path) -> Iterator[None]:
    """Hold the lock of garbage collection: no step is built on this machine meanwhile.

    Raises:
        StoreError: a step is being built now (code ``store_in_use``).
    """
    with _open(work) as handle:
        if not _lock(handle, fcntl.LOCK_EX):
            raise StoreError(f"a run is building a step in {work.parent} now; wait until it ends, then run garbage collection", code="store_in_use")
        yield


@contextmanager
def _open(work: Path) -> Iterator[int]:
    """The file of the shared lock. It is unlocked explicitly, because processes forked meanwhile hold it as well."""
    with disk_errors(work / STEPS_LOCK):
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work / STEPS_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield handle
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def release_locks(base_names: Sequence[str], store: Store, timeout_s: float) -> Iterator[None]:
    """Lock several endpoints, so that only one release of each runs at a time on this machine.

    Raises:
        ReleaseError: another release did not end within ``timeout_s``.
    """
    folder = store.local / "work"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for base_name in sorted(base_names):  # always the same order, so that two releases cannot block each other
            try:
                locks.enter_context(FileLock(folder / f"release-{base_name}.lock", timeout=timeout_s))
            except Timeout as e:
                raise ReleaseError(
                    f"another release of {base_name} has been running for more than {timeout_s:.0f} s; wait for it or end it", code="release_running"
                ) from e
        yield

"""Locks so that one machine releases an endpoint only once at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from filelock import FileLock, Timeout

from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.storage.store import Store


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

"""How many bytes a store may still grow by: counted once, then kept by all who fetch into it in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from animl_pipeline.storage.step_cache import Store

_lock = threading.Lock()
_open: dict[str, Budget] = {}


class Budget:
    """What a store holds, and up to where it may grow."""

    def __init__(self, most: int, held: int) -> None:
        self.most = most
        self.held = held
        self.users = 0

    def take(self, size: int) -> bool:
        """Whether ``size`` bytes more are within the budget; if so they are counted."""
        with _lock:
            if self.held + size > self.most:
                return False
            self.held += size
            return True


@contextmanager
def budget_of(store: Store, most: int | None) -> Iterator[Budget | None]:
    """The budget of a store while someone fetches into it; sources fetched at the same time share it. None: no limit."""
    if most is None:
        yield None
        return
    location = f"{store.object_store}|{most}"
    with _lock:
        budget = _open.get(location)
        if budget is None:
            budget = _open[location] = Budget(most, store.object_store.total())
        budget.users += 1
    try:
        yield budget
    finally:
        with _lock:
            budget.users -= 1
            if not budget.users:
                _open.pop(location, None)

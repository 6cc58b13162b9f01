"""Pictures fetched by many workers, each picture ending in an answer: where it is, or why it is not.

Workers take one picture after the other from a shared row, so nothing grows with the number of pictures but the answers.
"""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
import time
from collections.abc import Generator, Iterator
from typing import NamedTuple

from animl_pipeline.core.errors import ImageError
from animl_pipeline.steps.images.concurrency import Pace
from animl_pipeline.steps.images.disk_budget import Budget
from animl_pipeline.steps.images.verify_jpeg import image_size
from animl_pipeline.storage.remote import ATTEMPTS, Fetched, Remote, RemoteError, pause_s
from animl_pipeline.storage.step_cache import Store

MOST_BYTES = 256 * 2**20
"""A larger file is no picture of a camera trap, and is not read."""


class Wanted(NamedTuple):
    """One picture to fetch: its row, its path, and the md5 that its id names ("" where it names none)."""

    row: int
    path: str
    md5: str


class Arrived(NamedTuple):
    """A picture that is in the store."""

    blob: str
    bytes: int
    width: int
    height: int
    md5: str


class Lost(NamedTuple):
    """A picture that is not: the reason to count by, what was said, whether another run may get it, whether anybody was there."""

    reason: str
    detail: str
    retryable: bool = False
    offline: bool = False


Answers = queue.SimpleQueue[tuple[Wanted, Arrived | Lost] | BaseException | None]
"""Answers, a fault that ends everything, and None from each worker that ends."""

OVER_BUDGET = Lost("over_budget", "left out: the store would grow beyond images.max_disk", retryable=True)


class Fetching(NamedTuple):
    """What workers share."""

    remote: Remote
    store: Store
    budget: Budget | None
    pace: Pace
    patience_s: float
    """How long a host that was there may be gone."""


def fetch(todo: Iterator[Wanted], shared: Fetching, workers: int) -> Generator[list[tuple[Wanted, Arrived | Lost]]]:
    """Answers as they come, a few at a time, in any order; an empty list where a second passed without any.

    What is over the budget ends the fetching: the pictures not asked for by then have no answer.

    Raises:
        Whatever is not one picture's fault, such as StoreError: after the answers that came before it.
    """
    answers: Answers = queue.SimpleQueue()
    row = _Row(todo)
    for n in range(workers):
        threading.Thread(target=_work, args=(n, row, shared, answers), name=f"fetch {n}", daemon=True).start()
    try:
        working = workers
        while working:
            items = _waiting(answers)
            working -= items.count(None)
            yield [item for item in items if isinstance(item, tuple)]
            for fault in (item for item in items if isinstance(item, BaseException)):
                raise fault
    finally:
        shared.pace.abort()


class _Row:
    """Pictures in a row, handed out to many."""

    def __init__(self, todo: Iterator[Wanted]) -> None:
        self._todo = todo
        self._lock = threading.Lock()

    def next(self) -> Wanted | None:
        with self._lock:
            return next(self._todo, None)


def _waiting(answers: Answers) -> list[tuple[Wanted, Arrived | Lost] | BaseException | None]:
    """All that has been answered by now; waits up to a second for the first."""
    items = []
    try:
        items.append(answers.get(timeout=1))
        while True:
            items.append(answers.get_nowait())
    except queue.Empty:
        return items


def _work(number: int, row: _Row, shared: Fetching, answers: Answers) -> None:
    """One worker: a picture after the other, while there are any and it may."""
    try:
        while shared.pace.may_ask(number):
            wanted = row.next()
            if wanted is None:
                shared.pace.finish()
                return
            answer = fetch_one(wanted, shared)
            answers.put((wanted, answer))
            if answer is OVER_BUDGET:
                shared.pace.finish()
    except BaseException as e:  # noqa: BLE001 - the thread that gathers raises it
        answers.put(e)
    finally:
        answers.put(None)


def fetch_one(wanted: Wanted, shared: Fetching) -> Arrived | Lost:
    """What became of one picture.

    What may heal is asked for again. Bytes that are not what they should be are asked for again, too, until the same bytes
    came twice: they are what lies there.
    """
    before = ""
    for attempt in itertools.count(1):
        begun = time.monotonic()
        try:
            fetched = shared.remote.once(wanted.path, MOST_BYTES)
        except RemoteError as e:
            shared.pace.told(time.monotonic() - begun, trouble=e.retryable, contact=not e.offline)
            if not e.retryable or not _patient(attempt, e, shared) or not shared.pace.pause(pause_s(attempt, e)):
                return Lost(e.reason, str(e), e.retryable, e.offline)
            continue
        shared.pace.told(time.monotonic() - begun, trouble=False)
        md5 = hashlib.md5(fetched.data, usedforsecurity=False).hexdigest()
        answer = _judged(wanted, fetched, md5)
        if isinstance(answer, Arrived):
            return _kept(answer, fetched.data, shared)
        if not answer.retryable or md5 == before or attempt >= ATTEMPTS:
            return answer._replace(retryable=answer.retryable and md5 != before)
        before = md5
    raise AssertionError


def _patient(attempt: int, error: RemoteError, shared: Fetching) -> bool:
    """Whether to ask again: a few times; longer where somebody was there and is gone, since all pictures would be lost otherwise."""
    if not error.offline:
        return attempt < ATTEMPTS
    contact = shared.pace.contact
    left_lately = contact is not None and time.monotonic() - contact < shared.patience_s
    shared.pace.gone = shared.pace.gone or not (left_lately or attempt < ATTEMPTS)
    return not shared.pace.gone


def _judged(wanted: Wanted, fetched: Fetched, md5: str) -> Arrived | Lost:
    """What the bytes are. ``heals`` where they may have changed on their way.

    An md5 in the picture's id is the last word on its bytes; else what the server says of them counts.
    """
    data = fetched.data
    if wanted.md5 and md5 != wanted.md5:
        return Lost("wrong_md5", f"{wanted.path}: expected md5 {wanted.md5}, found {md5} in {len(data):,} bytes", retryable=True)
    if not wanted.md5 and fetched.md5 not in {None, md5}:
        return Lost("wrong_md5", f"{wanted.path}: the server says md5 {fetched.md5}, found {md5} in {len(data):,} bytes", retryable=True)
    try:
        width, height = image_size(data)
    except ImageError as e:
        return Lost("broken_image", f"{wanted.path}: {e}", retryable=md5 not in {wanted.md5, fetched.md5})
    return Arrived("", len(data), width, height, md5)


def _kept(answer: Arrived, data: bytes, shared: Fetching) -> Arrived | Lost:
    """The picture put into the store, if the budget has room."""
    sha256 = hashlib.sha256(data).hexdigest()
    if shared.budget is not None and not shared.store.has_blob(sha256, len(data)) and not shared.budget.take(len(data)):
        return OVER_BUDGET
    return answer._replace(blob=shared.store.put_blob(data, durable=False, sha256=sha256))

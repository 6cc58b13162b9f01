"""Download images with many threads. Each image ends as :class:`Downloaded` or as :class:`Failed` with a reason.

Workers take one request after another from a shared iterator, so memory grows with the answers only.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.decode_image import DecodeBudget, decoded_bytes, open_image
from animl_pipeline.core.errors import ImageError, ImagesError
from animl_pipeline.core.image_orientation import read_orientation
from animl_pipeline.core.image_structure import ALL_FORMATS
from animl_pipeline.steps.images.adaptive_download_limit import AdaptiveLimit
from animl_pipeline.storage.read_remote_files import ATTEMPTS, MAX_WAIT_S, Fetched, LocalFolder, RemoteError, RemoteFolder, open_remote, retry_pause_s
from animl_pipeline.storage.store import Store

MAX_BYTES = 256 * 2**20
"""A larger file is not a camera-trap image, and is not read."""
DEADLINE_S = 600.0
"""Seconds that one image may take to arrive."""
FORMAT_NOT_ALLOWED = "format_not_allowed"
"""The reason for an image whose format the plan does not name."""
START_OF_JPEG, END_OF_JPEG = b"\xff\xd8", b"\xff\xd9"

_decode_budget = DecodeBudget()  # many images are downloaded at a time, few are decoded at a time


class Request(NamedTuple):
    """One image to download: its row among the wanted images, its path, and the md5 in its id ("" for none)."""

    row: int
    path: str
    md5: str


class Downloaded(NamedTuple):
    """An image that is in the store: sha256 and bytes of its file, size in pixels as stored, md5, EXIF orientation (1 to 8), and when the
    file was changed, if it is of this machine (ns since 1970; else 0).
    """

    blob: str
    bytes: int
    width: int
    height: int
    md5: str
    orientation: int
    changed_ns: int = 0


class Failed(NamedTuple):
    """An image that is not in the store.

    Attributes:
        reason: a word to count by.
        detail: what the host answered.
        retryable: whether another run may get it.
        offline: the host was not reached, refused our credentials, or asks to wait longer than a run waits.
    """

    reason: str
    detail: str
    retryable: bool = False
    offline: bool = False


Answer = tuple[Request, Downloaded | Failed]
Answers = queue.SimpleQueue[Answer | BaseException | None]
"""Answers, an exception that ends the download, and None from each worker that ends."""

OVER_BUDGET = Failed("over_budget", "not downloaded: the store would grow beyond images.max_disk", retryable=True)


# -- the limit on disk space -------------------------------------------------------------------------------------------

_budgets_lock = threading.Lock()
_budgets: dict[str, DiskBudget] = {}


class DiskBudget:
    """How many bytes the store holds, and how many it may hold. All downloads into it in this process share one budget."""

    def __init__(self, maximum: int, used: int) -> None:
        self.maximum = maximum
        self.used = used
        self.users = 0

    def reserve(self, size: int) -> bool:
        """Whether ``size`` more bytes fit. If they do, they are counted."""
        with _budgets_lock:
            if self.used + size > self.maximum:
                return False
            self.used += size
            return True


@contextmanager
def disk_budget(store: Store, maximum: int | None) -> Iterator[DiskBudget | None]:
    """The budget of a store, with the store's size as measured by the first download that is now running. None: no limit."""
    if maximum is None:
        yield None
        return
    key = f"{store.object_store}|{maximum}"
    with _budgets_lock:
        budget = _budgets.get(key)
        if budget is None:
            budget = _budgets[key] = DiskBudget(maximum, store.object_store.total_bytes())
        budget.users += 1
    try:
        yield budget
    finally:
        with _budgets_lock:
            budget.users -= 1
            if not budget.users:
                _budgets.pop(key, None)


# -- many workers ------------------------------------------------------------------------------------------------------


class Session(NamedTuple):
    """What the workers of one download share. A host that answered within the last ``patience_s`` seconds gets more tries."""

    host: RemoteFolder
    store: Store
    budget: DiskBudget | None
    limit: AdaptiveLimit
    patience_s: float
    formats: tuple[str, ...] = ALL_FORMATS


def open_image_host(source: SourceConfig, settings: Settings) -> RemoteFolder:
    """The folder or host of a source's images. Sends no request.

    Raises:
        ImagesError: it is a folder that does not exist.
    """
    host = open_remote(source.images, settings, DEADLINE_S)
    if isinstance(host, LocalFolder) and not os.path.isdir(host.folder):  # noqa: PTH112 - Path.is_dir raises where a name is too long
        raise ImagesError(
            f"source {source.name!r}: expected a folder of images at {host.folder}, found none; correct sources.images in the plan or set ANIML_DATA",
            code="no_folder",
        )
    return host


def download(requests: Iterator[Request], session: Session, workers: int) -> Generator[list[Answer]]:
    """Answers in any order, a few at a time; an empty list after each second without one.

    When the disk budget is used up, the download ends; images that were not requested by then have no answer.

    Raises:
        Exception: whatever is not the fault of one image, such as StoreError, after the answers that came before it.
    """
    answers: Answers = queue.SimpleQueue()
    shared = _SharedIterator(requests)
    for n in range(workers):
        threading.Thread(target=_work, args=(n, shared, session, answers), name=f"download {n}", daemon=True).start()
    try:
        working = workers
        while working:
            items = _collect(answers)
            working -= items.count(None)
            yield [item for item in items if isinstance(item, tuple)]
            for error in (item for item in items if isinstance(item, BaseException)):
                raise error
    finally:
        session.limit.abort()


class _SharedIterator:
    """An iterator that many threads may use."""

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests = requests
        self._lock = threading.Lock()

    def next(self) -> Request | None:
        with self._lock:
            return next(self._requests, None)


def _collect(answers: Answers) -> list[Answer | BaseException | None]:
    """All answers so far. Waits up to a second for the first."""
    items: list[Answer | BaseException | None] = []
    try:
        items.append(answers.get(timeout=1))
        while True:
            items.append(answers.get_nowait())
    except queue.Empty:
        return items


def _work(number: int, requests: _SharedIterator, session: Session, answers: Answers) -> None:
    """One worker: download images until none is left."""
    try:
        while session.limit.wait_for_turn(number):
            request = requests.next()
            if request is None:
                session.limit.finish()
                return
            answer = _download_one(request, session)
            answers.put((request, answer))
            if answer is OVER_BUDGET:
                session.limit.finish()
    except BaseException as e:  # noqa: BLE001 - `download` raises it in the caller's thread
        answers.put(e)
    finally:
        answers.put(None)


# -- one image ---------------------------------------------------------------------------------------------------------


def _download_one(request: Request, session: Session) -> Downloaded | Failed:
    """Download, verify and store one image. Temporary failures are tried again.

    Wrong bytes are requested again, too, until the same bytes came twice: then the host's file is wrong.
    """
    previous_md5, waited = "", 0.0
    for attempt in itertools.count(1):
        started = time.monotonic()
        try:
            fetched = session.host.read_once(request.path, MAX_BYTES)
        except RemoteError as e:
            session.limit.record(time.monotonic() - started, failed=e.retryable, connected=not e.offline)
            pause = retry_pause_s(attempt, e)
            waited += pause or 0.0
            if pause is None or waited > MAX_WAIT_S or not _may_retry(attempt, e, session) or not session.limit.sleep(pause, e):
                return Failed(e.reason, str(e), e.retryable, e.offline or (e.retryable and pause is None))
            continue
        session.limit.record(time.monotonic() - started, failed=False)
        md5 = hashlib.md5(fetched.data, usedforsecurity=False).hexdigest()
        answer = _verify(request, fetched, md5, session.formats)
        if isinstance(answer, Downloaded):
            return _store(answer, fetched.data, session)
        if not answer.retryable or md5 == previous_md5 or attempt >= ATTEMPTS:
            return answer._replace(retryable=answer.retryable and md5 != previous_md5)
        previous_md5 = md5
    raise AssertionError


def _may_retry(attempt: int, error: RemoteError, session: Session) -> bool:
    """Whether to try again: a few times, or longer if the host answered a short while ago (otherwise all images would fail)."""
    if not error.offline:
        return attempt < ATTEMPTS
    last = session.limit.last_contact
    recent = last is not None and time.monotonic() - last < session.patience_s
    session.limit.host_gone = session.limit.host_gone or not (recent or attempt < ATTEMPTS)
    return not session.limit.host_gone


def _verify(request: Request, fetched: Fetched, md5: str, formats: Sequence[str]) -> Downloaded | Failed:
    """Check the bytes. The failure is retryable where the bytes may have changed on their way.

    The md5 in the image's id decides. Without one, the md5 that the server gave counts, if it gave one.
    """
    path, data = request.path, fetched.data
    expected = request.md5 or fetched.md5
    if expected and expected != md5:
        origin = "" if request.md5 else " from the server"
        return Failed("wrong_md5", f"{path}: expected md5 {expected}{origin}, found {md5} in {len(data):,} bytes", retryable=True)
    try:
        width, height = image_size(data, formats)
    except ImageError as e:
        if e.code == FORMAT_NOT_ALLOWED:
            return Failed(FORMAT_NOT_ALLOWED, f"{path}: {e}; name it in images.formats of the plan")
        return Failed("broken_image", f"{path}: {e}", retryable=md5 not in {request.md5, fetched.md5})
    return Downloaded("", len(data), width, height, md5, read_orientation(data), fetched.changed_ns)


def image_size(data: bytes, formats: Sequence[str] = ALL_FORMATS) -> tuple[int, int]:
    """Width and height in pixels, as stored, of an image that is complete.

    A JPEG with a readable header and its end marker counts as complete: a file that was cut off anywhere has no end marker. Its
    pixels are decoded later, by the detector and for the crop. Everything else is decoded here. No image that decodes is refused.

    Raises:
        ImageError: the bytes are not an image of these formats, or are damaged.
    """
    header = _decode_budget.read_header(data, formats)
    if not (data.startswith(START_OF_JPEG) and data.endswith(END_OF_JPEG)):
        with _decode_budget.reserve(decoded_bytes(header)):
            open_image(data, formats)
    return header.width, header.height


def _store(answer: Downloaded, data: bytes, session: Session) -> Downloaded | Failed:
    """Put the image into the store, if the disk budget allows it."""
    sha256 = hashlib.sha256(data).hexdigest()
    if session.budget is not None and not session.store.has_blob(sha256, len(data)) and not session.budget.reserve(len(data)):
        return OVER_BUDGET
    return answer._replace(blob=session.store.put_blob(data, durable=False, sha256=sha256))

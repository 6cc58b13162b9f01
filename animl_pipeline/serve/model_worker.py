"""The classifier behind the endpoint: loaded in a worker thread, then called by as many threads as there are cores.

A request whose client has left, or whose time is over, is not worked on. Images whose decoding may take long have threads of
their own, so that the others do not wait for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from animl_pipeline.core.decode_image import DecodeBudget, ImageHeader, decoded_bytes, open_image
from animl_pipeline.core.errors import ImageError, PipelineError
from animl_pipeline.core.image_structure import DEFAULT_FORMATS, identify_format
from animl_pipeline.core.model_input import square_around
from animl_pipeline.serve.crop_process import PROCESS_BYTES, crop_in_process
from animl_pipeline.serve.http_errors import RequestError
from animl_pipeline.serve.json_logging import log_event, milliseconds_since
from animl_pipeline.serve.limits import ANSWER_S, MAX_BODY, MAX_REQUESTS, Admission, Deadline, MemoryLimits, usable_cores, usable_memory
from animl_pipeline.serve.request_parsing import ClassifyRequest, parse_request

if TYPE_CHECKING:
    from animl_pipeline.inference.classifier import Classifier

Answer = dict[str, float] | list[dict[str, float]]
T = TypeVar("T")

MAX_QUICK_PIXELS = 32_000_000
"""Pixels of an image, or of a square around a box, that this process decodes and crops itself. Pillow holds Python's lock while it crops,
and a few more would hold up /ping. Animl sends at most ten million."""
MAX_QUICK_WORK = 500_000_000
"""The same pixels times the scans of a JPEG: about a second of work."""
MAX_SLOW_REQUESTS = 8
"""Requests with an image that is slow to decode, waiting or being answered."""


class SlowRequest(NamedTuple):
    """A request whose image is decoded in a process of its own, and the side of its largest square in pixels."""

    request: ClassifyRequest
    header: ImageHeader
    side: int


class ModelWorker:
    """The classifier and its threads: one for each core, each with one onnxruntime thread.

    ``failure``: why the model could not be loaded, None if it could.
    """

    def __init__(
        self,
        model: Path,
        max_body: int = MAX_BODY,
        *,
        max_requests: int = MAX_REQUESTS,
        memory: int | None = None,
        formats: Sequence[str] = DEFAULT_FORMATS,
        answer_s: float = ANSWER_S,
        on_loaded: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        limits = MemoryLimits.for_memory(memory or usable_memory())
        self.model = model
        self.max_body = max_body
        self.admission = Admission(max_requests, max(limits.requests, max_body))
        self.classifier: Classifier | None = None
        self.failure: str | None = None
        self._formats = tuple(formats)
        self._answer_s = answer_s
        self._budget = DecodeBudget(limits.images)
        self._on_loaded = on_loaded
        self._on_failure = on_failure
        self._threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="answer")
        self._slow_threads = ThreadPoolExecutor(max(1, usable_cores() // 2), thread_name_prefix="answer-slowly")
        self._slow_requests = 0

    def start(self) -> None:
        """Start to load the model in a worker thread."""
        self._threads.submit(self._load)

    def stop(self) -> None:
        """Finish the running requests."""
        for threads in (self._threads, self._slow_threads):
            threads.shutdown(wait=True, cancel_futures=True)

    async def answer(self, content_type: str, body: bytes, gone: asyncio.Task[None]) -> Answer:
        """Class id → probability, the most probable class last, or a list of these for several boxes.

        ``gone``: done when the client has disconnected.

        Raises:
            RequestError: 400 or 415 for a wrong request, 429 or 503 while the endpoint is busy or loading, 499 if the client is gone.
        """
        self.require_classifier()
        deadline = Deadline(self._answer_s)
        found = await _run_in(self._threads, deadline, gone, lambda: self._answer(content_type, body, deadline))
        return await self._answer_slowly(found, deadline, gone) if isinstance(found, SlowRequest) else found

    def require_classifier(self) -> Classifier:
        """The loaded classifier.

        Raises:
            RequestError: 503, it is still loading or cannot be loaded.
        """
        if self.classifier is None:
            raise RequestError(503, self.failure or "the model is still loading; try again in a moment")
        return self.classifier

    def _load(self) -> None:
        started = time.monotonic()
        try:
            from animl_pipeline.inference.classifier import Classifier

            self.classifier = Classifier.load(self.model, threads=1)
            log_event("loaded", model=self.classifier.card.model, version=self.classifier.card.version, ms=milliseconds_since(started))
            self._on_loaded()
        except PipelineError as e:
            self._fail(str(e))
        except Exception as e:  # noqa: BLE001 - if this thread ended silently, /ping would answer 503 for ever
            self._fail(f"the model cannot be loaded: {type(e).__name__}: {e}")

    def _fail(self, failure: str) -> None:
        self.failure = failure
        log_event("not loaded", level=logging.ERROR, error=failure)
        self._on_failure()

    def _answer(self, content_type: str, body: bytes, deadline: Deadline) -> Answer | SlowRequest:
        """The answer, or what is to be answered by :meth:`_answer_slowly`."""
        deadline.check()
        request = parse_request(content_type, body)
        header = _decode(self._budget.read_header, request.image, self._formats)
        classifier = self.require_classifier()
        side = max(square_around(box, header.width, header.height, classifier.card.model_input.margin).side for box in request.boxes)
        if _is_slow(request.image, header, side):
            return SlowRequest(request, header, side)
        answers = []
        with self._budget.reserve(self._memory_for(header, side)):
            deadline.check()
            image = _decode(open_image, request.image, self._formats)
            for box in request.boxes:
                deadline.check()
                try:
                    answers.append(best_last(classifier.classify(image, box)))
                except ImageError as e:
                    raise RequestError(400, f"bbox: {e}") from e
        return answers if request.is_list else answers[0]

    async def _answer_slowly(self, slow: SlowRequest, deadline: Deadline, gone: asyncio.Task[None]) -> Answer:
        """The answer for an image that is decoded in a process of its own."""
        if self._slow_requests >= MAX_SLOW_REQUESTS:
            raise RequestError(429, f"the endpoint is busy with {MAX_SLOW_REQUESTS} images that are slow to decode; try again in a moment")
        self._slow_requests += 1
        try:
            return await _run_in(self._slow_threads, deadline, gone, lambda: self._answer_in_process(slow, deadline))
        finally:
            self._slow_requests -= 1

    def _answer_in_process(self, slow: SlowRequest, deadline: Deadline) -> Answer:
        deadline.check()
        classifier, request = self.require_classifier(), slow.request
        model_input = classifier.card.model_input
        size = self._memory_for(slow.header, slow.side, PROCESS_BYTES)
        with self._budget.reserve(size):
            crops = crop_in_process(request.image, request.boxes, model_input, deadline, formats=self._formats, memory=size - PROCESS_BYTES)
            with closing(crops):
                answers = [best_last(classifier.classify_crop(crop)) for crop in crops]
        return answers if request.is_list else answers[0]

    def _memory_for(self, header: ImageHeader, side: int, process: int = 0) -> int:
        """Bytes for the decoded image, the largest square cropped from it, and the process that does this.

        Raises:
            RequestError: 400, that is more than the whole limit for images.
        """
        size = process + decoded_bytes(header, side)
        if size > self._budget.size:
            raise RequestError(
                400,
                f"image: decoding and cropping it takes {size / 1e6:,.0f} MB, but only {self._budget.size / 1e6:,.0f} MB are available for images; "
                "shrink the image, or give the endpoint more memory",
            )
        return size


def best_last(probabilities: dict[str, float]) -> dict[str, float]:
    """The same probabilities in ascending order: the most probable class is the last key.

    Animl reads the keys in their order and puts each class that passes its threshold in front of the labels, so it shows the last one.
    """
    return dict(sorted(probabilities.items(), key=lambda item: item[1]))


def _is_slow(image: bytes, header: ImageHeader, side: int) -> bool:
    """Whether an image is decoded and cropped in a process of its own."""
    pixels = header.width * header.height
    large = max(pixels, side * side) > MAX_QUICK_PIXELS or pixels * header.scans > MAX_QUICK_WORK
    return large or identify_format(image) not in DEFAULT_FORMATS


def _decode(read: Callable[[bytes, Sequence[str]], T], image: bytes, formats: Sequence[str]) -> T:
    """``read(image, formats)``, with all errors of a decoder as status 400."""
    try:
        return read(image, formats)
    except ImageError as e:
        advice = "; send it as JPEG, or start the endpoint with ANIML_IMAGE_FORMATS" if e.code == "format_not_allowed" else ""
        raise RequestError(400, f"image: {e}{advice}") from e
    except Exception as e:  # damaged bytes make decoders raise errors of many kinds (struct.error, KeyError, …)
        raise RequestError(400, f"image: cannot be decoded: {type(e).__name__}") from e


async def _run_in(threads: ThreadPoolExecutor, deadline: Deadline, gone: asyncio.Task[None], work: Callable[[], T]) -> T:
    """What ``work`` returns in one of ``threads``. It is not begun after the client is gone or its time is over."""
    job = threads.submit(work)
    result = asyncio.wrap_future(job)
    either: set[asyncio.Future[Any]] = {result, gone}
    await asyncio.wait(either, timeout=deadline.remaining(), return_when=asyncio.FIRST_COMPLETED)
    if not result.done():
        if gone.done():
            deadline.cancel()
        if job.cancel():
            raise deadline.error()
    return await result  # work that has begun sees the deadline between two steps

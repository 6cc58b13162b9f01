"""The classifier behind the endpoint: loaded in a worker thread, then called by as many threads as there are cores."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from animl_pipeline.core.decode_budget import DecodeBudget, decoded_bytes
from animl_pipeline.core.decode_image import ImageHeader, open_image, read_header
from animl_pipeline.core.errors import ImageError, PipelineError
from animl_pipeline.core.model_input import square_around
from animl_pipeline.serve.admission_control import MAX_BODY, MAX_REQUESTS, Admission, MemoryLimits
from animl_pipeline.serve.container_limits import usable_cores, usable_memory
from animl_pipeline.serve.http_errors import RequestError
from animl_pipeline.serve.json_logging import log_event, milliseconds_since
from animl_pipeline.serve.request_parsing import ClassifyRequest, parse_request

if TYPE_CHECKING:
    from animl_pipeline.inference.classifier import Classifier

Answer = dict[str, float] | list[dict[str, float]]
T = TypeVar("T")


class ModelWorker:
    """The classifier and its threads: one for each core, each with one onnxruntime thread.

    Attributes:
        classifier: None until the model is loaded.
        failure: why the model could not be loaded, None if it could.
    """

    def __init__(
        self,
        model: Path,
        max_body: int = MAX_BODY,
        *,
        max_requests: int = MAX_REQUESTS,
        memory: int | None = None,
        on_loaded: Callable[[], None] = lambda: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        limits = MemoryLimits.for_memory(memory or usable_memory())
        self.model = model
        self.max_body = max_body
        self.admission = Admission(max_requests, max(limits.requests, max_body))
        self.classifier: Classifier | None = None
        self.failure: str | None = None
        self._budget = DecodeBudget(limits.images)
        self._on_loaded = on_loaded
        self._on_failure = on_failure
        self._threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="answer")

    def start(self) -> None:
        """Start to load the model in a worker thread."""
        self._threads.submit(self._load)

    def stop(self) -> None:
        """Finish the running requests."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def answer(self, content_type: str, body: bytes) -> Answer:
        """Class id → probability, the most probable class last, or a list of these for several boxes. A worker thread parses, decodes and classifies.

        Raises:
            RequestError: 400 or 415 for a wrong request, 503 while the model is loading.
        """
        self.require_classifier()
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, content_type, body)

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

    def _answer(self, content_type: str, body: bytes) -> Answer:
        request = parse_request(content_type, body)
        answers = self._classify(request)
        return answers if request.is_list else answers[0]

    def _classify(self, request: ClassifyRequest) -> list[dict[str, float]]:
        classifier = self.require_classifier()
        header = _decode(read_header, request.image)
        with self._budget.reserve(self._memory_for(header, request, classifier.card.model_input.margin)):
            image = _decode(open_image, request.image)
            try:
                return [best_last(classifier.classify(image, box)) for box in request.boxes]
            except ImageError as e:
                raise RequestError(400, f"bbox: {e}") from e

    def _memory_for(self, header: ImageHeader, request: ClassifyRequest, margin: float) -> int:
        """Bytes for the decoded image and the largest square cropped from it.

        Raises:
            RequestError: 400, that is more than the whole limit for images.
        """
        size = decoded_bytes(header, max(square_around(box, header.width, header.height, margin).side for box in request.boxes))
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


def _decode(read: Callable[[bytes], T], image: bytes) -> T:
    """``read(image)``, with all errors of a decoder as status 400."""
    try:
        return read(image)
    except ImageError as e:
        raise RequestError(400, f"image: {e}") from e
    except Exception as e:  # damaged bytes make decoders raise errors of many kinds (struct.error, KeyError, …)
        raise RequestError(400, f"image: cannot be decoded: {type(e).__name__}") from e

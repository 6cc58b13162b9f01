"""The classifier behind the endpoint: loaded in a thread while /ping says 503, asked by as many threads as there are cores."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from animl_pipeline.core.errors import ImageError, PipelineError
from animl_pipeline.core.imaging import DecodeBudget, ImageHeader, decoded_bytes, open_image, read_header, square_around
from animl_pipeline.serve.container_resources import give_memory_back, usable_cores, usable_memory
from animl_pipeline.serve.errors import Refusal
from animl_pipeline.serve.json_logging import milliseconds_since, note
from animl_pipeline.serve.limits import MAX_BODY, MAX_IN_HAND, Door, Limits
from animl_pipeline.serve.request_parsing import Question, read_question

if TYPE_CHECKING:
    from animl_pipeline.inference.classifier import Classifier

Answer = dict[str, float] | list[dict[str, float]]
Read = TypeVar("Read")

TIDY_EVERY = 64
"""Requests after which freed memory is returned; more often costs more time than it saves memory."""


class Program:
    """The classifier, once it is loaded, and the threads that ask it: one a core, each with one thread of onnxruntime's."""

    def __init__(
        self,
        model: Path,
        max_body: int = MAX_BODY,
        *,
        max_in_hand: int = MAX_IN_HAND,
        memory: int | None = None,
        loaded: Callable[[], None] = lambda: None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        limits = Limits.of(memory or usable_memory())
        self.model = model
        self.max_body = max_body
        self.door = Door(max_in_hand, max(limits.requests, max_body))
        self.classifier: Classifier | None = None
        self.fault: str | None = None
        self._images = DecodeBudget(limits.images)
        self._loaded = loaded
        self._failed = failed
        self._answered = itertools.count(1)
        self._threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="answer")

    def begin(self) -> None:
        """Load in a worker thread."""
        self._threads.submit(self._load)

    def end(self) -> None:
        """Finish what is under way."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def answer(self, content_type: str, body: bytes) -> Answer:
        """Every class's probability, a list of such where several boxes were asked about; a worker thread decodes and infers.

        Raises:
            Refusal: what is wrong with the request, or 503 while loading.
        """
        self.ready()
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, content_type, body)

    def ready(self) -> Classifier:
        """The loaded classifier.

        Raises:
            Refusal: 503, it is not there yet or cannot be loaded.
        """
        if self.classifier is None:
            raise Refusal(503, self.fault or "the model is still loading; ask again in a moment")
        return self.classifier

    def _load(self) -> None:
        started = time.monotonic()
        try:
            from animl_pipeline.inference.classifier import Classifier

            self.classifier = Classifier.load(self.model, threads=1)
            note("loaded", model=self.classifier.card.model, version=self.classifier.card.version, ms=milliseconds_since(started))
            self._loaded()
        except PipelineError as e:
            self._give_up(str(e))
        except Exception as e:  # noqa: BLE001 - a thread that dies in silence would leave /ping at 503 for ever
            self._give_up(f"the model cannot be loaded: {type(e).__name__}: {e}")

    def _give_up(self, fault: str) -> None:
        self.fault = fault
        note("not loaded", level=logging.ERROR, error=fault)
        self._failed()

    def _answer(self, content_type: str, body: bytes) -> Answer:
        try:
            question = read_question(content_type, body)
            answers = self._ask(question)
            return answers if question.several else answers[0]
        finally:
            if next(self._answered) % TIDY_EVERY == 0:
                give_memory_back()

    def _ask(self, question: Question) -> list[dict[str, float]]:
        classifier = self.ready()
        header = _decoded(read_header, question.image)
        with self._images.reserve(self._room_for(header, question, classifier.card.model_input.margin)):
            image = _decoded(open_image, question.image)
            try:
                return [classifier.classify(image, box) for box in question.boxes]
            except ImageError as e:
                raise Refusal(400, f"bbox: {e}") from e

    def _room_for(self, header: ImageHeader, question: Question, margin: float) -> int:
        """Memory that the picture and its largest square take.

        Raises:
            Refusal: 400, that is more than all there is.
        """
        size = decoded_bytes(header, max(square_around(box, header.width, header.height, margin).side for box in question.boxes))
        if size > self._images.size:
            raise Refusal(
                400,
                f"image: decoding it and cutting its box out takes {size / 1e6:,.0f} MB, {self._images.size / 1e6:,.0f} MB are there for pictures; "
                "shrink the picture, or give the endpoint more memory",
            )
        return size


def _decoded(read: Callable[[bytes], Read], image: bytes) -> Read:
    """What ``read`` makes of a picture's bytes.

    Raises:
        Refusal: 400, they are at fault.
    """
    try:
        return read(image)
    except ImageError as e:
        raise Refusal(400, f"image: {e}") from e
    except Exception as e:  # decoders fall over hostile bytes in their own ways (struct.error, KeyError, …)
        raise Refusal(400, f"image: not a picture that decodes: {type(e).__name__}") from e

"""A detector over many pictures, each looked at once in its life: what was seen is remembered after every batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.imaging import DecodeBudget, open_image
from animl_pipeline.core.progress import track
from animl_pipeline.core.records import Box
from animl_pipeline.steps.detections.choose_detector import Choice, check_finds_people, choose_detector
from animl_pipeline.steps.detections.detector import ANIMAL, Detection, Detector
from animl_pipeline.storage.step_cache import Store, batches, digest_of

log = logging.getLogger(__name__)

BROKEN = "image_broken"
LOOKING_AT_ONCE = 2
"""Batches that a GPU is given at a time: it looks at one while the processor sorts out what it saw in the other."""
T = TypeVar("T")
R = TypeVar("R")


def run_detector(blobs: list[str], choice: Choice, spec: DetectionsConfig, store: Store, settings: Settings) -> dict[str, list[Detection] | str]:
    """What the detector finds in each picture, or the reason why it was not looked at.

    Args:
        blobs: pictures in the store, by sha256, each once.
        choice: the detector, loaded only when there is a picture that it has not seen.
        spec: how many pictures are noted at a time, and whether persons are to be found.
        store: holds the pictures and the memory.
        settings: how many pictures are decoded at a time.

    Raises:
        DetectionsError, WeightsError: the detector cannot be loaded.
        DamagedError: the store lacks a picture.
    """
    name = memory_name(choice)
    seen = store.read_index(name)
    todo = [blob for blob in blobs if blob not in seen]
    if spec.images_with_people == "drop":
        check_finds_people(choice.load().categories, choice.name)
    log.info("detections: %d pictures for %s, %d of them seen before", len(blobs), choice.name, len(blobs) - len(todo))
    with track("detections", len(blobs), len(blobs) - len(todo)) as step:
        for batch in _answers(todo, choice, spec, store, settings) if todo else ():
            store.add_to_index(name, batch)
            seen |= batch
            step(len(batch))
    return {blob: _from_record(seen[blob]) for blob in blobs}


def find_animals(data: bytes, spec: DetectionsConfig, settings: Settings) -> list[Box]:
    """The boxes of the animals in one picture, most certain first; nothing is remembered.

    Raises:
        PictureError: the picture does not decode.
        DetectionsError, WeightsError: the detector cannot be loaded.
    """
    open_image(data)  # what is no picture is said before anything is loaded
    detector = choose_detector(spec, settings).load()
    (found,) = detector.predict([detector.preprocess(data)])
    return [Box.of([f.ymin, f.xmin, f.ymax, f.xmax]) for f in found if f.category == ANIMAL]


def memory_name(choice: Choice) -> str:
    """Where answers of this detector are remembered."""
    return f"detections/{digest_of([choice.sha256, choice.recipe, choice.image_size, choice.confidence])[:32]}"


def _answers(todo: list[str], choice: Choice, spec: DetectionsConfig, store: Store, settings: Settings) -> Iterator[dict[str, dict[str, Any]]]:
    """Batches of picture → record, in order; the next batch is prepared while this one is looked at."""
    detector = choice.load()
    threads = min(settings.workers, os.cpu_count() or 1) if detector.alone else settings.workers

    memory = DecodeBudget()

    def prepare(blob: str) -> Any:
        return _prepared(store.blob(blob), detector, memory)

    def look(blob: str) -> dict[str, Any]:
        return _records([prepare(blob)], detector)[0]

    pool, lookers = ThreadPoolExecutor(threads), ThreadPoolExecutor(LOOKING_AT_ONCE)
    groups = batches(todo, spec.batch_size)
    try:
        if detector.alone:
            answers = _ahead(pool, look, groups)
        else:
            answers = _behind(lookers, lambda ready: _records(ready, detector), _ahead(pool, prepare, groups))
        for batch, records in zip(batches(todo, spec.batch_size), answers, strict=True):
            yield dict(zip(batch, records, strict=True))
    finally:
        for some in (pool, lookers):
            some.shutdown(cancel_futures=True)  # what stopped one picture would stop each that still waits, after all its tries


def _prepared(data: bytes, detector: Detector, memory: DecodeBudget) -> Any:
    """What the detector makes of a picture, None where it is no picture."""
    try:
        with memory.reserve_for(data):
            return detector.preprocess(data)
    except ImageError as e:
        log.warning("detections: a picture is left out: %s", e)
        return None


def _records(prepared: list[Any], detector: Detector) -> list[dict[str, Any]]:
    """What is remembered of each picture."""
    whole = [p for p in prepared if p is not None]
    answers = iter(detector.predict(whole) if whole else [])
    return [{"failure": BROKEN} if p is None else {"boxes": [list(found) for found in next(answers)]} for p in prepared]


def _from_record(record: dict[str, Any]) -> list[Detection] | str:
    return str(record["failure"]) if "failure" in record else [Detection(*box) for box in record["boxes"]]


def _ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], groups: Iterable[list[T]]) -> Iterator[list[R]]:
    """Each group's results in order, while the next group is being worked on."""
    waiting: list[Future[R]] = []
    for group in groups:
        ready, waiting = waiting, [pool.submit(work, item) for item in group]
        if ready:
            yield [future.result() for future in ready]
    if waiting:
        yield [future.result() for future in waiting]


def _behind(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Each item's result in order, while the next item is being worked on."""
    waiting: Future[R] | None = None
    for item in items:
        ready, waiting = waiting, pool.submit(work, item)
        if ready is not None:
            yield ready.result()
    if waiting is not None:
        yield waiting.result()

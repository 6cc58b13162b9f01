"""A detector over many pictures, each looked at once in its life: what was seen is remembered after every batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from animl_pipeline.detections.detector import ANIMAL, Detector, Found, Prepared
from animl_pipeline.detections.families import Choice, choose_detector
from animl_pipeline.errors import PictureError
from animl_pipeline.pixels import open_picture
from animl_pipeline.plan import DetectionsPlan
from animl_pipeline.progress import track
from animl_pipeline.records import Box
from animl_pipeline.settings import Settings
from animl_pipeline.store import Store, batches, digest_of

log = logging.getLogger(__name__)

BROKEN = "picture_broken"
T = TypeVar("T")
R = TypeVar("R")


def look_at(blobs: list[str], choice: Choice, spec: DetectionsPlan, store: Store, settings: Settings) -> dict[str, list[Found] | str]:
    """What the detector finds in each picture, or the reason why it was not looked at.

    Args:
        blobs: pictures in the store, by sha256, each once.
        choice: the detector, loaded only when there is a picture that it has not seen.
        spec: the plan's numbers; only ``image_size`` and ``confidence`` change an answer.
        store: holds the pictures and the memory.
        settings: how many pictures are decoded at a time.

    Raises:
        DetectionsError, WeightsError: the detector cannot be loaded.
        DamagedError: the store lacks a picture.
    """
    name = memory_name(choice, spec)
    seen = store.recall(name)
    todo = [blob for blob in blobs if blob not in seen]
    log.info("detections: %d pictures for %s, %d of them seen before", len(blobs), choice.name, len(blobs) - len(todo))
    with track("detections", len(blobs), len(blobs) - len(todo)) as step:
        for batch in _answers(todo, choice, spec, store, settings) if todo else ():
            store.remember(name, batch)
            seen |= batch
            step(len(batch))
    return {blob: _from_record(seen[blob]) for blob in blobs}


def find_animals(data: bytes, spec: DetectionsPlan, settings: Settings) -> list[Box]:
    """The boxes of the animals in one picture, most certain first; nothing is remembered.

    Raises:
        PictureError: the picture does not decode.
        DetectionsError, WeightsError: the detector cannot be loaded.
    """
    picture = open_picture(data)
    detector = choose_detector(spec, settings).load()
    return [Box.of([f.ymin, f.xmin, f.ymax, f.xmax]) for f in detector.predict(detector.preprocess(picture)) if f.category == ANIMAL]


def memory_name(choice: Choice, spec: DetectionsPlan) -> str:
    """Where answers of this detector under these settings are remembered."""
    return f"detections/{digest_of([choice.sha256, choice.recipe, spec.image_size, spec.confidence])[:32]}"


def _answers(todo: list[str], choice: Choice, spec: DetectionsPlan, store: Store, settings: Settings) -> Iterator[dict[str, dict[str, Any]]]:
    """Batches of picture → record, in order; the next batch is decoded while the network looks at this one."""
    detector = choice.load()
    with ThreadPoolExecutor(settings.workers) as pool:

        def prepare(blob: str) -> tuple[str, Prepared | None]:
            return blob, _prepared(store.blob(blob), detector)

        for ready in _ahead(pool, prepare, batches(todo, spec.batch_size)):
            yield {blob: _record(prepared, detector) for blob, prepared in ready}


def _prepared(data: bytes, detector: Detector) -> Prepared | None:
    try:
        return detector.preprocess(open_picture(data))
    except PictureError as e:
        log.warning("detections: a picture is left out: %s", e)
        return None


def _record(prepared: Prepared | None, detector: Detector) -> dict[str, Any]:
    if prepared is None:
        return {"failure": BROKEN}
    return {"boxes": [list(found) for found in detector.predict(prepared)]}


def _from_record(record: dict[str, Any]) -> list[Found] | str:
    return str(record["failure"]) if "failure" in record else [Found(*box) for box in record["boxes"]]


def _ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], groups: Iterable[list[T]]) -> Iterator[list[R]]:
    """Each group's results in order, while the next group is being worked on."""
    waiting: list[Future[R]] = []
    for group in groups:
        ready, waiting = waiting, [pool.submit(work, item) for item in group]
        if ready:
            yield [future.result() for future in ready]
    if waiting:
        yield [future.result() for future in waiting]

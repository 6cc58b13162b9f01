"""Run a detector over many images. Each image is detected once: the results are added to the store's index after every batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import BlobReader
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import DecodeBudget, open_image
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.progress import track
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.detections.choose_detector import ChosenDetector, check_finds_people, choose_detector
from animl_pipeline.steps.detections.detector import Detection, Detector
from animl_pipeline.storage.store import Store, batches

log = logging.getLogger(__name__)

IMAGE_BROKEN = "image_broken"
"""The reason for an image that does not decode."""
GPU_BATCHES = 2
"""Batches that a GPU has at a time: it computes one while the CPU reads the boxes out of the other."""
Record = dict[str, Any]
"""What the index holds of an image: ``boxes``, or the ``failure``."""
T = TypeVar("T")
R = TypeVar("R")


def run_detector(
    blobs: list[str], detector: ChosenDetector, config: DetectionsConfig, store: Store, settings: Settings, images: BlobReader | None = None
) -> dict[str, list[Detection] | str]:
    """The detections of each image, or the reason why there are none, by the image's sha256.

    ``images``: holds the images instead of the store.

    Raises:
        DetectionsError, WeightsError: the detector cannot be loaded, or fails.
        DamagedError: the store lacks an image.
    """
    index = detector.index_name()
    records = store.read_index(index)
    missing = [blob for blob in blobs if blob not in records]
    if config.images_with_people == "drop":
        check_finds_people(detector.load().categories, detector.name)
    log.info("detections: %d images for %s, %d of them finished earlier", len(blobs), detector.name, len(blobs) - len(missing))
    with track("detections", len(blobs), len(blobs) - len(missing)) as advance:
        for batch in _detect(missing, detector.load(), config.batch_size, images or store, settings) if missing else ():
            store.add_to_index(index, batch)
            records |= batch
            advance(len(batch))
    return {blob: _from_record(records[blob]) for blob in blobs}


def find_animals(data: bytes, config: DetectionsConfig, settings: Settings) -> list[Box]:
    """The boxes of the animals in one image, highest confidence first. Nothing is stored.

    Raises:
        ImageError: the image does not decode.
        DetectionsError, WeightsError: the detector cannot be loaded.
    """
    open_image(data)  # report a broken image before a detector is loaded
    detector = choose_detector(config, settings).load()
    (detections,) = detector.predict([detector.preprocess(data)])
    return [Box.of([d.ymin, d.xmin, d.ymax, d.xmax]) for d in detections if d.category == ANIMAL]


def _detect(blobs: list[str], detector: Detector, batch_size: int, store: BlobReader, settings: Settings) -> Iterator[dict[str, Record]]:
    """Batches of blob → record, in order. The next batch is read and decoded while this one is in the detector."""
    budget = DecodeBudget()

    def preprocess(blob: str) -> Any:
        data = store.blob(blob)
        try:
            with budget.reserve_for(data):
                return detector.preprocess(data)
        except ImageError as e:
            log.warning("detections: an image is left out: %s", e)
            return None

    def predict(inputs: list[Any]) -> list[Record]:
        valid = [i for i in inputs if i is not None]
        results = iter(detector.predict(valid) if valid else [])
        return [{"failure": IMAGE_BROKEN} if i is None else {"boxes": [list(d) for d in next(results)]} for i in inputs]

    def detect_one(blob: str) -> Record:
        return predict([preprocess(blob)])[0]

    threads = settings.workers if detector.batched else min(settings.workers, os.cpu_count() or 1)
    pool, gpu = ThreadPoolExecutor(threads), ThreadPoolExecutor(GPU_BATCHES)
    groups = batches(blobs, batch_size)
    records: Iterable[list[Record]]
    if detector.batched:
        inputs = _map_ahead(lambda group: _submit_each(pool, preprocess, group), groups)
        records = _map_ahead(lambda batch: gpu.submit(predict, batch).result, inputs)
    else:
        records = _map_ahead(lambda group: _submit_each(pool, detect_one, group), groups)
    try:
        for group, group_records in zip(batches(blobs, batch_size), records, strict=True):
            yield dict(zip(group, group_records, strict=True))
    finally:
        for executor in (pool, gpu):
            executor.shutdown(cancel_futures=True)  # an error of one image would only repeat for those that still wait


def _submit_each(pool: ThreadPoolExecutor, work: Callable[[T], R], items: list[T]) -> Callable[[], list[R]]:
    """Start the work on all items; the result is a function that waits for all of them."""
    futures = [pool.submit(work, item) for item in items]
    return lambda: [future.result() for future in futures]


def _map_ahead(start: Callable[[T], Callable[[], R]], items: Iterable[T]) -> Iterator[R]:
    """The result for each item in order. The work on the next item starts before the result of this one is waited for."""
    wait: Callable[[], R] | None = None
    for item in items:
        previous, wait = wait, start(item)
        if previous is not None:
            yield previous()
    if wait is not None:
        yield wait()


def _from_record(record: Record) -> list[Detection] | str:
    return str(record["failure"]) if "failure" in record else [Detection(*box) for box in record["boxes"]]

"""Boxes of pictures are cut out: every picture decoded once for all of its boxes, and no box ever cut twice."""

from __future__ import annotations

import io
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from PIL import Image

from animl_pipeline.config.settings import Settings
from animl_pipeline.core import imaging
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.imaging import DecodeBudget, ImageHeader, decoded_bytes, extract_crop, open_image, read_header, square_around
from animl_pipeline.core.progress import track
from animl_pipeline.core.records import Box, ModelInput
from animl_pipeline.core.step import installed_version
from animl_pipeline.steps.crops import perceptual_hash
from animl_pipeline.steps.crops.match_labels import Chosen, Corners
from animl_pipeline.steps.crops.perceptual_hash import compute_phash
from animl_pipeline.storage.step_cache import Store, batches, digest_of

log = logging.getLogger(__name__)

BATCH, BATCH_A_CUTTER = 32, 8
"""Pictures at least between two notes of what was cut, and for each that is cut at a time; a kill loses at most the work on these."""

LOSSLESS: dict[str, Any] = {"format": "WEBP", "lossless": True, "quality": 0, "method": 0}
"""How a crop is kept: WebP's lossless mode at its fastest, which takes less time and room than PNG at its fastest."""


class Crop(NamedTuple):
    """A crop in the store, and what the whole picture looks like (:func:`likeness`)."""

    blob: str
    bytes: int
    phash: str


class Cut(NamedTuple):
    """A picture's views, a box each (None where it does not decode), and what the whole picture looks like."""

    views: list[bytes] | None
    look: str


def cut_boxes(chosen: Iterable[Chosen], model_input: ModelInput, store: Store, settings: Settings) -> dict[str, Crop]:
    """The crop of every box that can be cut out, by ``box_key``; a picture that does not decode has none.

    Raises:
        DamagedError: the store lacks a picture.
    """
    name = f"crops/{digest_of([model_input.size, model_input.margin, imaging.VERSION, installed_version('pillow'), LOSSLESS])[:32]}"
    known = store.read_index(name)
    looks_name = f"likeness/{perceptual_hash.VERSION}"
    looks = store.read_index(looks_name)
    boxes: dict[str, set[Corners]] = defaultdict(set)
    for c in chosen:
        boxes[c.what.blob].add(c.where.box)

    todo = _not_whole(boxes, known, looks, store)
    log.info("crops: %d pictures, %d of them cut before", len(boxes), len(boxes) - len(todo))
    cutters = min(settings.workers, os.cpu_count() or 1)
    cut_image = partial(_cut_image, model_input=model_input, memory=DecodeBudget())
    with (
        ThreadPoolExecutor(settings.workers) as travels,
        ThreadPoolExecutor(cutters) as pool,
        track("crops", len(boxes), len(boxes) - len(todo)) as step,
    ):
        try:
            for batch in batches(todo, max(BATCH, BATCH_A_CUTTER * cutters)):
                new, new_looks = _cut_batch(batch, boxes, cut_image, store, travels, pool, step)
                store.object_store.flush()  # one flush for the crops of a batch, before it is noted that they are there
                store.add_to_index(name, new)
                store.add_to_index(looks_name, new_looks)
                known |= new
                looks |= new_looks
        finally:
            travels.shutdown(wait=False, cancel_futures=True)  # what stopped one picture would stop each that still waits
    keys = [(blob, box_key(blob, corners)) for blob, all_corners in boxes.items() for corners in all_corners]
    return {key: Crop(known[key]["blob"], known[key]["bytes"], looks[blob]["phash"]) for blob, key in keys if "blob" in known[key]}


def _cut_batch(
    batch: list[str],
    boxes: Mapping[str, set[Corners]],
    cut_image: Callable[[Future[bytes], list[Corners]], Cut],
    store: Store,
    travels: ThreadPoolExecutor,
    pool: ThreadPoolExecutor,
    step: Callable[[int], None],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Box → where its crop is or why it is not, and picture → what it looks like, of some pictures."""
    new: dict[str, dict[str, Any]] = {}
    looks: dict[str, dict[str, Any]] = {}
    reads = [travels.submit(store.blob, blob) for blob in batch]
    cuts = [pool.submit(cut_image, read, sorted(boxes[blob])) for blob, read in zip(batch, reads, strict=True)]
    keeps = [travels.submit(_kept, blob, sorted(boxes[blob]), done, store) for blob, done in zip(batch, cuts, strict=True)]
    for blob, done, keep in zip(batch, cuts, keeps, strict=True):
        new |= keep.result()
        looks[blob] = {"phash": done.result().look}
        step(1)
    return new, looks


def box_key(blob: str, corners: Corners) -> str:
    """A box of a picture, in text: the same for the same bytes and numbers, on every machine."""
    return f"{blob}|{'|'.join(repr(float(v)) for v in corners)}"


def _not_whole(boxes: Mapping[str, set[Corners]], known: Mapping[str, Any], looks: Mapping[str, Any], store: Store) -> list[str]:
    """The pictures, sorted, of which a box was never cut, or its crop is no longer in the store."""
    keys = {blob: [box_key(blob, corners) for corners in boxes[blob]] for blob in sorted(boxes)}
    cut_before = {key: known[key] for some in keys.values() for key in some if "blob" in known.get(key, {})}
    there = store.has_blobs([r["blob"] for r in cut_before.values()], [r["bytes"] for r in cut_before.values()])
    lost = {key for key, is_there in zip(cut_before, there, strict=True) if not is_there}
    return [blob for blob, some in keys.items() if blob not in looks or any(key not in known or key in lost for key in some)]


def _cut_image(read: Future[bytes], boxes: list[Corners], model_input: ModelInput, memory: DecodeBudget) -> Cut:
    """The views of the boxes, encoded without loss."""
    data = read.result()
    try:
        with memory.reserve(_bytes_of(read_header(data), boxes, model_input)):
            image = open_image(data)
            return Cut([_encoded(extract_crop(image, Box.of(corners), model_input)) for corners in boxes], compute_phash(image))
    except ImageError as e:
        log.warning("crops: a picture is left out: %s", e)
        return Cut(None, "")


def _bytes_of(header: ImageHeader, boxes: list[Corners], model_input: ModelInput) -> int:
    """Memory that cutting the boxes out takes; one after the other is a square beside the picture."""
    return decoded_bytes(header, max(square_around(Box.of(b), header.width, header.height, model_input.margin).side for b in boxes))


def _encoded(model_input: Image.Image) -> bytes:
    buffer = io.BytesIO()
    model_input.save(buffer, **LOSSLESS)
    return buffer.getvalue()


def _kept(blob: str, boxes: list[Corners], done: Future[Cut], store: Store) -> dict[str, dict[str, Any]]:
    """Box → where its crop is, or why it is not."""
    views = done.result().views
    if views is None:
        return {box_key(blob, corners): {"failure": "image_broken"} for corners in boxes}
    return {box_key(blob, corners): {"blob": store.put_blob(v, durable=False), "bytes": len(v)} for corners, v in zip(boxes, views, strict=True)}

"""Extract crops from images. Each image is decoded once for all of its boxes, and a crop is never extracted twice."""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from animl_pipeline.config.settings import Settings
from animl_pipeline.core import model_input as imaging
from animl_pipeline.core.box_type import Box, BoxTuple
from animl_pipeline.core.decode_image import DecodeBudget, ImageHeader, decoded_bytes, open_image
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.model_input import extract_crop, square_around
from animl_pipeline.core.progress import track
from animl_pipeline.core.step_declaration import installed_version
from animl_pipeline.steps.crops.match_labels import Match
from animl_pipeline.storage.store import Store, batches, digest_of

log = logging.getLogger(__name__)

BATCH_PER_WORKER = 8
"""Images per worker between two writes to the index. A killed process loses at most the work on one batch."""
LOSSLESS: dict[str, Any] = {"format": "WEBP", "lossless": True, "quality": 0, "method": 0}
"""Crops are stored as lossless WebP in its fastest mode, which takes less time and space than PNG in its fastest mode."""
IMAGE_BROKEN = "image_broken"

IndexRecords = dict[str, dict[str, Any]]
"""Key → record of an image index."""
PHASH_VERSION = 1
"""Raised when an image gets another hash."""
CELLS = 9
SAMPLED_PIXELS = (768, 384)
"""Pixels across and down that are sampled. They are enough for the mean of a cell, and all pixels would take three times as long."""
MIN_CONTRAST = 2.0
"""Standard deviation of the cells in grey levels. An image below it, such as a black one, has nothing to recognise it by."""


class Crop(NamedTuple):
    """A stored crop: its sha256, its size in bytes, and the perceptual hash of the whole image."""

    blob: str
    bytes: int
    phash: str


def extract_boxes(matches: Iterable[Match], model_input: ModelInput, store: Store, settings: Settings) -> dict[str, Crop]:
    """The crop of each box, by :func:`box_key`. A box of an image that does not decode has none.

    Raises:
        DamagedError: the store lacks an image.
    """
    index = f"crops/{digest_of([model_input.size, model_input.margin, imaging.VERSION, installed_version('pillow'), LOSSLESS])[:32]}"
    phash_index = f"phash/{digest_of([PHASH_VERSION, installed_version('pillow')])[:32]}"
    crops, phashes = store.read_index(index), store.read_index(phash_index)
    boxes: dict[str, set[BoxTuple]] = defaultdict(set)
    for match in matches:
        boxes[match.annotation.blob].add(match.animal.box)
    missing = _images_to_crop(boxes, crops, phashes, store)
    log.info("crops: %d images, %d of them finished earlier", len(boxes), len(boxes) - len(missing))
    crop_image = partial(_crop_image, boxes=boxes, model_input=model_input, store=store, budget=DecodeBudget())
    with ThreadPoolExecutor(settings.workers) as pool, track("crops", len(boxes), len(boxes) - len(missing)) as advance:
        for batch in batches(missing, BATCH_PER_WORKER * settings.workers):
            new_crops: IndexRecords = {}
            new_phashes: IndexRecords = {}
            for blob, (records, phash) in zip(batch, pool.map(crop_image, batch), strict=True):
                new_crops |= records
                new_phashes[blob] = {"phash": phash}
                advance(1)
            store.object_store.flush()  # one flush for the crops of a batch, before the index says that they exist
            store.add_to_index(index, new_crops)
            store.add_to_index(phash_index, new_phashes)
            crops |= new_crops
            phashes |= new_phashes
    keys = [(blob, box_key(blob, box)) for blob, image_boxes in boxes.items() for box in image_boxes]
    return {key: Crop(crops[key]["blob"], crops[key]["bytes"], phashes[blob]["phash"]) for blob, key in keys if "blob" in crops[key]}


def box_key(blob: str, box: BoxTuple) -> str:
    """A box of an image as text, the same for the same bytes and numbers on every machine."""
    return f"{blob}|{'|'.join(repr(float(v)) for v in box)}"


def _images_to_crop(boxes: Mapping[str, set[BoxTuple]], crops: IndexRecords, phashes: IndexRecords, store: Store) -> list[str]:
    """The images, sorted, with a box that has no crop yet, or whose crop is no longer in the store."""
    keys = {blob: [box_key(blob, box) for box in boxes[blob]] for blob in sorted(boxes)}
    stored = {key: crops[key] for image_keys in keys.values() for key in image_keys if "blob" in crops.get(key, {})}
    present = store.has_blobs([r["blob"] for r in stored.values()], [r["bytes"] for r in stored.values()])
    lost = {key for key, is_present in zip(stored, present, strict=True) if not is_present}
    return [blob for blob, image_keys in keys.items() if blob not in phashes or any(key not in crops or key in lost for key in image_keys)]


def _crop_image(
    blob: str, boxes: Mapping[str, set[BoxTuple]], model_input: ModelInput, store: Store, budget: DecodeBudget
) -> tuple[IndexRecords, str]:
    """The index records of an image's crops, which are stored now, and the image's perceptual hash."""
    image_boxes = sorted(boxes[blob])
    data = store.blob(blob)
    try:
        with budget.reserve(_bytes_needed(budget.read_header(data), image_boxes, model_input)):
            image = open_image(data)
            crops = [_encode(image, box, model_input) for box in image_boxes]
            phash = compute_phash(image)
    except ImageError as e:
        log.warning("crops: an image is left out: %s", e)
        return {box_key(blob, box): {"failure": IMAGE_BROKEN} for box in image_boxes}, ""
    stored = [{"blob": store.put_blob(crop, durable=False), "bytes": len(crop)} for crop in crops]
    return {box_key(blob, box): record for box, record in zip(image_boxes, stored, strict=True)}, phash


def _bytes_needed(header: ImageHeader, boxes: list[BoxTuple], model_input: ModelInput) -> int:
    """Memory to decode an image and hold the largest of its squares, one at a time."""
    return decoded_bytes(header, max(square_around(Box.of(b), header.width, header.height, model_input.margin).side for b in boxes))


def _encode(image: Any, box: BoxTuple, model_input: ModelInput) -> bytes:
    buffer = io.BytesIO()
    extract_crop(image, Box.of(box), model_input).save(buffer, **LOSSLESS)
    return buffer.getvalue()


def compute_phash(image: Image.Image) -> str:
    """A perceptual hash as 32 hexadecimal digits, nearly the same when an image is resized or encoded again; "" with too little contrast.

    It is a difference hash: the image is shrunk to 9 x 9 grey cells, and for each of 8 x 8 cells one bit says whether the next cell to the
    right is brighter, and one whether the next cell below is. After N. Krawetz, "Kind of Like That" (hackerfactor.com, 2013), in both
    directions. Only the middle four fifths of the height count, because cameras print text above and below.
    """
    width, height = image.size
    middle = (0, round(0.1 * height), width, max(round(0.9 * height), round(0.1 * height) + 1))
    sampled = (min(width, SAMPLED_PIXELS[0]), min(middle[3] - middle[1], SAMPLED_PIXELS[1]))
    small = image.resize(sampled, Image.Resampling.NEAREST, box=middle).resize((CELLS, CELLS), Image.Resampling.BOX).convert("L")
    grey = np.asarray(small, np.int16)
    if grey.std() < MIN_CONTRAST:
        return ""
    right = grey[:-1, 1:] > grey[:-1, :-1]
    below = grey[1:, :-1] > grey[:-1, :-1]
    return np.packbits(np.concatenate([right.ravel(), below.ravel()])).tobytes().hex()

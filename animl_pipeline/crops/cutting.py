"""Boxes of pictures are cut out: every picture decoded once for all of its boxes, and no box ever cut twice."""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from animl_pipeline.crops.choosing import Chosen, Corners
from animl_pipeline.errors import PictureError
from animl_pipeline.pixels import cut, open_picture
from animl_pipeline.progress import track
from animl_pipeline.records import Box, View
from animl_pipeline.settings import Settings
from animl_pipeline.sources import code_digest
from animl_pipeline.store import Store, batches, digest_of

log = logging.getLogger(__name__)

BATCH = 64
"""Pictures between two notes of what was cut; a kill loses at most the work on these."""


class Crop(NamedTuple):
    """A crop in the store."""

    blob: str
    bytes: int


def cut_boxes(chosen: Iterable[Chosen], view: View, store: Store, settings: Settings) -> dict[str, Crop]:
    """The crop of every box that can be cut out, by ``box_key``; a picture that does not decode has none.

    Raises:
        DamagedError: the store lacks a picture.
    """
    name = f"crops/{digest_of([view.size, view.margin, code_digest('pixels')])[:32]}"
    known = store.recall(name)
    boxes: dict[str, set[Corners]] = defaultdict(set)
    for c in chosen:
        boxes[c.what.blob].add(c.where.box)

    def is_whole(blob: str) -> bool:
        return all(_is_there(known.get(box_key(blob, corners)), store) for corners in boxes[blob])

    with ThreadPoolExecutor(settings.workers) as pool:
        pictures = sorted(boxes)
        todo = [blob for blob, whole in zip(pictures, pool.map(is_whole, pictures), strict=True) if not whole]
        log.info("crops: %d pictures, %d of them cut before", len(boxes), len(boxes) - len(todo))
        with track("crops", len(boxes), len(boxes) - len(todo)) as step:
            for batch in batches(todo, BATCH):
                new: dict[str, dict[str, Any]] = {}
                for records in pool.map(lambda blob: _cut_picture(blob, boxes[blob], view, store), batch):
                    new |= records
                    step(1)
                store.remember(name, new)
                known |= new
    keys = [box_key(blob, corners) for blob, all_corners in boxes.items() for corners in all_corners]
    return {key: Crop(known[key]["blob"], known[key]["bytes"]) for key in keys if "blob" in known[key]}


def box_key(blob: str, corners: Corners) -> str:
    """A box of a picture, in text: the same for the same bytes and numbers, on every machine."""
    return f"{blob}|{'|'.join(repr(float(v)) for v in corners)}"


def _is_there(record: Mapping[str, Any] | None, store: Store) -> bool:
    return record is not None and ("failure" in record or store.has_blob(record["blob"], record["bytes"]))


def _cut_picture(blob: str, boxes: set[Corners], view: View, store: Store) -> dict[str, dict[str, Any]]:
    """Box → where its crop is, or why it is not."""
    try:
        picture = open_picture(store.blob(blob))
    except PictureError as e:
        log.warning("crops: a picture is left out: %s", e)
        return {box_key(blob, corners): {"failure": "picture_broken"} for corners in boxes}
    records: dict[str, dict[str, Any]] = {}
    for corners in sorted(boxes):
        buffer = io.BytesIO()
        cut(picture, Box.of(corners), view).save(buffer, "PNG", compress_level=1)  # small gains of size cost much time
        records[box_key(blob, corners)] = {"blob": store.put_blob(buffer.getvalue()), "bytes": buffer.tell()}
    return records

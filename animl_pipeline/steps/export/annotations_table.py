"""The objects of an export, batch by batch, as one table; what is wrong with which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from animl_pipeline.steps.export.columns import BAD_BOX, BOX, Bools, box_text, boxes, column, first_fit, numbers, text, texts
from animl_pipeline.steps.export.problems import Problems

COLUMNS = ("annotation_id", "image_id", "label", "x", "y", "w", "h", "confidence", "reviewed")
FAULTS = ("malformed_object", "duplicate_object", "unknown_image", "unknown_category", "malformed_object", "box_empty", "box_outside")
"""In the order in which they are looked for; of several the first counts."""
SLACK = 1
"""Pixels by which a rounded box may pass the frame without a word."""


class ObjectRows:
    """The objects seen so far. Their categories' names are known only at the end: exports say them last."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._boxes: list[Any] = []
        self._kinds: list[Any] = []
        self._categories: dict[Any, int] = {}
        self._malformed: dict[int, str] = {}
        self._bad_boxes: dict[int, str] = {}
        self.seen = 0

    def add(self, found: list[Any]) -> None:
        """Take in the next records."""
        rows: list[dict[str, Any]] = [row if isinstance(row, dict) else {} for row in found]
        ids, raw_boxes = texts(column(rows, "id")), column(rows, "bbox")
        categories = column(rows, "category_id")
        xywh, kinds = boxes(raw_boxes)
        unusable = np.asarray(pc.equal(ids, "").to_numpy(zero_copy_only=False), bool)
        unusable[[i for i, c in enumerate(categories) if isinstance(c, (bool, list, dict))]] = True
        self._malformed |= {self.seen + int(i): text(found[i])[:80] for i in np.flatnonzero(unusable)}
        self._bad_boxes |= {self.seen + int(i): f"bbox {raw_boxes[i]!r}"[:160] for i in np.flatnonzero(kinds == BAD_BOX)}
        columns = {
            "annotation_id": ids,
            "image_id": texts(column(rows, "image_id")),
            "category": pa.array([-1 if isinstance(c, (bool, list, dict)) else self._code(c) for c in categories], pa.int32()),
            "confidence": pa.array(numbers(column(rows, "confidence"))),
            "reviewed": pa.array([row.get("validated") is not False and row.get("validated_by") != "Not Reviewed" for row in rows], pa.bool_()),
        }
        self._batches.append(pa.RecordBatch.from_pydict(columns))
        self._boxes.append(xywh)
        self._kinds.append(kinds)
        self.seen += len(rows)

    def _code(self, category: Any) -> int:
        return self._categories.setdefault(category, len(self._categories))

    def table(self, images: pa.Table, name_of: Callable[[Any], str], problems: Problems) -> pa.Table:
        """The objects that count, their columns as ``COLUMNS``.

        Args:
            images: those that count, with ``image_id, width, height``.
            name_of: tells the name of a category id, "" where there is none.
            problems: takes in what is wrong.
        """
        t = pa.Table.from_batches(self._batches, SCHEMA)
        xywh, kinds = np.concatenate([np.empty((0, 4)), *self._boxes]), np.concatenate([np.empty(0, np.int8), *self._kinds])
        name = pa.array([name_of(c) for c in self._categories] + [""], pa.string())  # the last: of no category
        category = t["category"].to_numpy()
        frame = _frames(t["image_id"], images)
        ids = t["annotation_id"].combine_chunks()
        faults = self._faults(xywh, kinds, frame, np.asarray(pc.equal(name, "").to_numpy(zero_copy_only=False), bool)[category])
        kept, later = first_fit(ids, ~np.any(list(faults.values()), axis=0))
        self._list_faults(problems, faults, later, t, xywh, frame)
        _list_oddities(problems, kept, t, xywh, frame, name, category)
        rows = {
            "annotation_id": ids,
            "image_id": t["image_id"],
            "label": name.take(pa.array(np.where(category < 0, len(name) - 1, category))),
            **{c: pa.array(xywh[:, i]) for i, c in enumerate("xywh")},
            "confidence": t["confidence"],
            "reviewed": t["reviewed"],
        }
        table = pa.table(rows)
        return table if kept.all() else table.filter(kept)

    def _faults(self, xywh: Any, kinds: Any, frame: Any, nameless: Bools) -> dict[str, Bools]:
        """What may be wrong with each object, aside from being there twice."""
        x, y, w, h = xywh.T
        malformed = np.zeros(len(xywh), bool)
        malformed[list(self._malformed)] = True
        box, sized = kinds == BOX, frame.min(1) > 0
        outside = (x >= frame[:, 0]) | (y >= frame[:, 1]) | (x + w <= 0) | (y + h <= 0)
        return {
            "malformed": malformed,
            "unknown_image": frame[:, 0] < 0,
            "unknown_category": nameless,
            "bad_box": kinds == BAD_BOX,
            "box_empty": box & ((w <= 0) | (h <= 0)),
            "box_outside": box & sized & outside,
        }

    def _list_faults(self, problems: Problems, faults: dict[str, Bools], later: Bools, t: pa.Table, xywh: Any, frame: Any) -> None:
        """List each object that is left out under the first of its faults."""
        raw = {code: category for category, code in self._categories.items()}
        image_ids, codes = t["image_id"], t["category"].to_numpy()
        tell: dict[str, Callable[[int], str]] = {
            "malformed": lambda i: self._malformed[i],
            "duplicate_object": lambda i: "the first one counts",
            "unknown_image": lambda i: f"image_id {image_ids[i].as_py()!r}"[:160],
            "unknown_category": lambda i: f"category_id {raw[codes[i]]!r}",
            "bad_box": lambda i: self._bad_boxes[i],
            "box_empty": lambda i: f"bbox {box_text(xywh[i])}",
            "box_outside": lambda i: f"bbox {box_text(xywh[i])} in {frame[i, 0]} x {frame[i, 1]}",
        }
        told = np.zeros(len(later), bool)
        for fault, detail in tell.items():
            here = (later if fault == "duplicate_object" else faults[fault]) & ~told
            told |= here
            rows = [int(i) for i in np.flatnonzero(here)]
            subjects = [""] * len(rows) if fault == "malformed" else t["annotation_id"].take(pa.array(rows, pa.int64())).to_pylist()
            problem = "malformed_object" if fault in {"malformed", "bad_box"} else fault
            problems.add(problem, subjects, [detail(i) for i in rows])


SCHEMA = pa.schema(
    [("annotation_id", pa.string()), ("image_id", pa.string()), ("category", pa.int32()), ("confidence", pa.float64()), ("reviewed", pa.bool_())]
)


def _frames(image_ids: pa.ChunkedArray, images: pa.Table) -> Any:
    """[n, 2] width and height of each object's image: 0 where it says none, -1 where it is not there."""
    at = pc.index_in(image_ids, value_set=images["image_id"].combine_chunks()).fill_null(-1).to_numpy()
    sides = np.stack([np.append(images[c].to_numpy(), -1) for c in ("width", "height")], axis=1)
    sides[(sides == 0).any(1)] = 0
    return sides[at]


def _list_oddities(problems: Problems, kept: Bools, t: pa.Table, xywh: Any, frame: Any, name: pa.Array, category: Any) -> None:
    """List what is odd about the objects that are kept."""
    x, y, w, h = xywh.T
    unreviewed = kept & ~t["reviewed"].to_numpy()
    labels = np.array([f"label {n!r}" for n in name.to_pylist()], object)
    problems.add("unreviewed", t["annotation_id"].filter(unreviewed).to_pylist(), labels[category[unreviewed]].tolist())
    within = (x >= -SLACK) & (y >= -SLACK) & (x + w <= frame[:, 0] + SLACK) & (y + h <= frame[:, 1] + SLACK)
    partly = kept & (frame[:, 0] > 0) & ~np.isnan(x) & ~within
    details = [f"bbox {box_text(xywh[i])} in {frame[i, 0]} x {frame[i, 1]}; it will be cut at the frame" for i in np.flatnonzero(partly)]
    problems.add("box_partly_outside", t["annotation_id"].filter(partly).to_pylist(), details)

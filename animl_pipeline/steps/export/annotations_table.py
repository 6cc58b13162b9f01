"""Build the annotations table of an export from batches of COCO annotation and category records, and list what is wrong with which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from animl_pipeline.steps.export import columns_from_json
from animl_pipeline.steps.export.columns_from_json import BAD_BOX, BOX, Bools, as_mask, column, to_text
from animl_pipeline.steps.export.problems import Problems

SLACK = 1
"""Pixels by which a box may reach over the edge of its image without a note: exports round their boxes."""
_BATCH = pa.schema(
    [("annotation_id", pa.string()), ("image_id", pa.string()), ("category", pa.int32()), ("confidence", pa.float64()), ("reviewed", pa.bool_())]
)


class AnnotationsTable:
    """The annotation records seen so far, as columns. Labels come at the end: exports list their categories last."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._boxes: list[Any] = []
        self._kinds: list[Any] = []
        self._codes: dict[Any, int] = {}
        self._malformed: dict[int, str] = {}
        self._bad_boxes: dict[int, str] = {}
        self.seen = 0

    def add(self, records: list[Any]) -> None:
        """Take in the next records, whatever JSON values they are."""
        rows: list[dict[str, Any]] = [row if isinstance(row, dict) else {} for row in records]
        ids, raw_boxes, categories = columns_from_json.text_column(column(rows, "id")), column(rows, "bbox"), column(rows, "category_id")
        boxes, kinds = columns_from_json.box_columns(raw_boxes)
        malformed = as_mask(pc.equal(ids, ""))
        malformed[[i for i, c in enumerate(categories) if isinstance(c, (bool, list, dict))]] = True
        self._malformed |= {self.seen + int(i): to_text(records[i])[:80] for i in np.flatnonzero(malformed)}
        self._bad_boxes |= {self.seen + int(i): f"bbox {raw_boxes[i]!r}"[:160] for i in np.flatnonzero(kinds == BAD_BOX)}
        batch = {
            "annotation_id": ids,
            "image_id": columns_from_json.text_column(column(rows, "image_id")),
            "category": pa.array([-1 if isinstance(c, (bool, list, dict)) else self._code(c) for c in categories], pa.int32()),
            "confidence": pa.array(columns_from_json.number_column(column(rows, "confidence"))),
            "reviewed": pa.array([row.get("validated") is not False and row.get("validated_by") != "Not Reviewed" for row in rows], pa.bool_()),
        }
        self._batches.append(pa.RecordBatch.from_pydict(batch))
        self._boxes.append(boxes)
        self._kinds.append(kinds)
        self.seen += len(rows)

    def _code(self, category: Any) -> int:
        return self._codes.setdefault(category, len(self._codes))

    def table(self, images: pa.Table, label_of: Callable[[Any], str], problems: Problems) -> pa.Table:
        """The usable annotations with the columns of EXPORT_ANNOTATIONS.

        Args:
            images: the usable images, with ``image_id, width, height``.
            label_of: category id → label, "" where there is none.
            problems: takes in what is wrong with the others.
        """
        table = pa.Table.from_batches(self._batches, _BATCH)
        boxes, kinds = np.concatenate([np.empty((0, 4)), *self._boxes]), np.concatenate([np.empty(0, np.int8), *self._kinds])
        labels = pa.array([label_of(c) for c in self._codes] + [""], pa.string())  # the last one: no category
        category = table["category"].to_numpy()
        category = np.where(category < 0, len(labels) - 1, category)
        label = labels.take(pa.array(category))
        sizes = _image_sizes(table["image_id"], images)
        ids = table["annotation_id"].combine_chunks()
        faults = self._faults(boxes, kinds, sizes, as_mask(pc.equal(labels, ""))[category])
        kept, later = columns_from_json.first_of_each_id(ids, ~np.any(list(faults.values()), axis=0))
        self._list_faults(problems, faults, later, table, boxes, sizes)
        _list_notes(problems, kept, table, boxes, sizes, label)
        all_columns = {
            "annotation_id": ids,
            "image_id": table["image_id"],
            "label": label,
            **{name: pa.array(boxes[:, i]) for i, name in enumerate("xywh")},
            "confidence": table["confidence"],
            "reviewed": table["reviewed"],
        }
        made = pa.table(all_columns)
        return made if kept.all() else made.filter(kept)

    def _faults(self, boxes: Any, kinds: Any, sizes: Any, without_label: Bools) -> dict[str, Bools]:
        """Fault → which annotations have it, apart from duplicates."""
        x, y, w, h = boxes.T
        malformed = np.zeros(len(boxes), bool)
        malformed[list(self._malformed)] = True
        has_box, has_size = kinds == BOX, sizes.min(1) > 0
        outside = (x >= sizes[:, 0]) | (y >= sizes[:, 1]) | (x + w <= 0) | (y + h <= 0)
        return {
            "malformed": malformed,
            "unknown_image": sizes[:, 0] < 0,
            "unknown_category": without_label,
            "bad_box": kinds == BAD_BOX,
            "box_empty": has_box & ((w <= 0) | (h <= 0)),
            "box_outside": has_box & has_size & outside,
        }

    def _list_faults(self, problems: Problems, faults: dict[str, Bools], later: Bools, table: pa.Table, boxes: Any, sizes: Any) -> None:
        """List each dropped annotation under the first of its faults, in the order below."""
        raw_categories = {code: category for category, code in self._codes.items()}
        image_ids, codes = table["image_id"], table["category"].to_numpy()
        details: dict[str, Callable[[int], str]] = {
            "malformed": lambda i: self._malformed[i],
            "duplicate_annotation": lambda i: "the first one is used",
            "unknown_image": lambda i: f"image_id {image_ids[i].as_py()!r}"[:160],
            "unknown_category": lambda i: f"category_id {raw_categories[codes[i]]!r}",
            "bad_box": lambda i: self._bad_boxes[i],
            "box_empty": lambda i: f"bbox {columns_from_json.format_box(boxes[i])}",
            "box_outside": lambda i: f"bbox {columns_from_json.format_box(boxes[i])} in {sizes[i, 0]} x {sizes[i, 1]}",
        }
        listed = np.zeros(len(later), bool)
        for fault, detail in details.items():
            mask = (later if fault == "duplicate_annotation" else faults[fault]) & ~listed
            listed |= mask
            rows = [int(i) for i in np.flatnonzero(mask)]
            subjects = [""] * len(rows) if fault == "malformed" else table["annotation_id"].take(pa.array(rows, pa.int64())).to_pylist()
            reason = "malformed_annotation" if fault in {"malformed", "bad_box"} else fault
            problems.add_many(reason, subjects, [detail(i) for i in rows])


def _image_sizes(image_ids: pa.ChunkedArray, images: pa.Table) -> Any:
    """[n, 2] width and height of each annotation's image: 0 where unknown, -1 where the image is not in the table."""
    row = pc.index_in(image_ids, value_set=images["image_id"].combine_chunks()).fill_null(-1).to_numpy()
    sizes = np.stack([np.append(images[c].to_numpy(), -1) for c in ("width", "height")], axis=1)
    sizes[(sizes == 0).any(1)] = 0
    return sizes[row]


def _list_notes(problems: Problems, kept: Bools, table: pa.Table, boxes: Any, sizes: Any, labels: pa.Array) -> None:
    """List what is odd about annotations that are kept."""
    x, y, w, h = boxes.T
    unreviewed = pa.array(kept & ~table["reviewed"].to_numpy())
    coded = labels.filter(unreviewed).dictionary_encode()
    details = pa.array([f"label {label!r}" for label in coded.dictionary.to_pylist()], pa.string())
    problems.add_many("unreviewed", table["annotation_id"].filter(unreviewed), details.take(coded.indices))
    within = (x >= -SLACK) & (y >= -SLACK) & (x + w <= sizes[:, 0] + SLACK) & (y + h <= sizes[:, 1] + SLACK)
    partly = kept & (sizes[:, 0] > 0) & ~np.isnan(x) & ~within
    texts = [
        f"bbox {columns_from_json.format_box(boxes[i])} in {sizes[i, 0]} x {sizes[i, 1]}; it will be clipped to the image"
        for i in np.flatnonzero(partly)
    ]
    problems.add_many("box_partly_outside", table["annotation_id"].filter(pa.array(partly)).to_pylist(), texts)


class Categories:
    """The categories seen so far. One id must mean one name: a wrong one would make wrong labels.

    Ids are compared as text, since some tools write 7 in one part and "7" in the other. Names are in Unicode's form NFC.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._ambiguous: dict[str, str] = {}
        self._malformed: list[str] = []

    def add(self, records: list[Any]) -> None:
        """Take in the next records."""
        for row in records:
            key, name = (_category_key(row.get("id")), normalize("NFC", to_text(row.get("name")))) if isinstance(row, dict) else ("", "")
            if not key or not name:
                self._malformed.append(to_text(row)[:80])
            elif (known := self._names.setdefault(key, name)) != name:
                self._ambiguous[key] = f"the id of {known!r} and of {name!r}; annotations with it are dropped"

    def labels(self, problems: Problems) -> Callable[[Any], str]:
        """A function from an annotation's category id to its label ("" where it has none); ``problems`` takes in what is wrong."""
        for row in self._malformed:
            problems.add("malformed_category", "", row)
        for key, detail in self._ambiguous.items():
            problems.add("ambiguous_category", key, detail)
        return lambda category: "" if (key := _category_key(category)) in self._ambiguous else self._names.get(key, "")


def _category_key(category: Any) -> str:
    """A category's id as text, "" for values that cannot be one."""
    return "" if isinstance(category, (bool, list, dict)) else to_text(category)

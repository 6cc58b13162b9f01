"""Build the annotations table of an export from batches of COCO annotation and category records, and list what is wrong with which."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from animl_pipeline.core.location_names import tidy_name
from animl_pipeline.steps.export import columns_from_json
from animl_pipeline.steps.export.columns_from_json import BAD_BOX, BOX, Bools, Floats, as_mask, column, format_box, to_text
from animl_pipeline.steps.export.problems import Problems

UNKNOWN_CATEGORY = "unknown category"
"""Begins the label of an annotation whose category has no name, or two. It names no class, but it says that something else is in the image."""
_BATCH = pa.schema(
    [("annotation_id", pa.string()), ("image_id", pa.string()), ("category", pa.int32()), ("confidence", pa.float64()), ("reviewed", pa.bool_())]
)
SLACK = 1
"""Pixels by which a box may reach over the edge of its image without a note: exports round their boxes."""
RELATIVE_SLACK = 0.01
"""The same as a share of the image, for relative boxes."""
VALIDATED = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
"""How tools write ``validated``: JSON's true and false, or the 1, 0.0 or text of a database or table."""
LABEL_IS_KEPT = "the label is kept for the whole image"


class AnnotationsTable:
    """The annotation records seen so far, as columns. Labels come at the end: exports list their categories last.

    Attributes:
        seen: how many records were seen.
        labelled: how many of the annotations in the table have a category with a name.
    """

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._boxes: list[Any] = []
        self._kinds: list[Any] = []
        self._codes: dict[Any, int] = {}
        self._malformed: dict[int, str] = {}
        self._bad_boxes: dict[int, str] = {}
        self.seen = 0
        self.labelled = 0

    def add(self, records: list[Any]) -> None:
        """Take in the next records, whatever JSON values they are."""
        rows: list[dict[str, Any]] = [row if isinstance(row, dict) else {} for row in records]
        ids, raw_boxes, categories = columns_from_json.text_column(column(rows, "id")), column(rows, "bbox"), column(rows, "category_id")
        boxes, kinds = columns_from_json.box_columns(raw_boxes)
        self._malformed |= {self.seen + i: to_text(row)[:80] for i, row in enumerate(records) if not isinstance(row, dict)}
        self._bad_boxes |= {self.seen + int(i): f"bbox {raw_boxes[i]!r}"[:160] for i in np.flatnonzero(kinds == BAD_BOX)}
        batch = {
            "annotation_id": ids,
            "image_id": columns_from_json.text_column(column(rows, "image_id")),
            "category": pa.array([-1 if isinstance(c, (bool, list, dict)) else self._code(c) for c in categories], pa.int32()),
            "confidence": pa.array(columns_from_json.number_column(column(rows, "confidence"))),
            "reviewed": pa.array([_is_reviewed(row) for row in rows], pa.bool_()),
        }
        self._batches.append(pa.RecordBatch.from_pydict(batch))
        self._boxes.append(boxes)
        self._kinds.append(kinds)
        self.seen += len(rows)

    def _code(self, category: Any) -> int:
        return self._codes.setdefault(category, len(self._codes))

    def tables(self, images: pa.Table, ambiguous_images: pa.Array, label_of: Callable[[Any], str], problems: Problems) -> tuple[pa.Table, pa.Table]:
        """The usable annotations with the columns of EXPORT_ANNOTATIONS; and the images, with the size that their boxes refer to.

        A label whose box cannot be used is kept without it.

        ``ambiguous_images``: ids that several image files have. ``label_of``: category id → label, "" where there is none.
        """
        table = pa.Table.from_batches(self._batches, _BATCH).combine_chunks()
        boxes, kinds = np.concatenate([np.empty((0, 4)), *self._boxes]), np.concatenate([np.empty(0, np.int8), *self._kinds])
        sizes = _image_sizes(table["image_id"], images)
        if are_relative(boxes, sizes):
            problems.add("relative_boxes", "", f"all {int((kinds == BOX).sum())} boxes are between 0 and 1; they are read as shares of the image")
            images, sizes = with_unit_sizes(images), np.where(sizes == 0, 1, sizes)
            boxes = boxes * np.tile(sizes, 2)
        labels, has_name = self._labels(table["category"].to_numpy(), label_of)
        faults = self._faults(table["image_id"], sizes, ambiguous_images)
        usable = ~np.any(list(faults.values()), axis=0)
        unusable = unusable_boxes(boxes, kinds, sizes)
        details = {reason: self._box_details(np.flatnonzero(mask & usable), boxes, kinds, sizes) for reason, mask in unusable.items()}
        boxes[np.any(list(unusable.values()), axis=0)] = np.nan
        given, image_ids = table["annotation_id"].combine_chunks(), table["image_id"].combine_chunks()
        ids, repeated = unique_annotation_ids(given, image_ids, labels, boxes, usable, problems)
        kept = usable & ~repeated
        self._list_faults(problems, faults | {"duplicate_annotation": repeated}, ids, image_ids)
        for reason, mask in unusable.items():
            problems.add_many(reason, ids.filter(pa.array(mask & usable)), details[reason])
        self._list_nameless(problems, kept & ~has_name, ids, table["category"].to_numpy())
        _list_notes(problems, kept, ids, labels, boxes, sizes, table["reviewed"].to_numpy())
        self.labelled = int((kept & has_name).sum())
        all_columns = {
            "annotation_id": ids,
            "image_id": image_ids,
            "label": labels,
            **{name: pa.array(boxes[:, i]) for i, name in enumerate("xywh")},
            "confidence": table["confidence"],
            "reviewed": table["reviewed"],
        }
        made = pa.table(all_columns)
        return (made if kept.all() else made.filter(kept)), images

    def _labels(self, category: Any, label_of: Callable[[Any], str]) -> tuple[pa.Array, Bools]:
        """The label of each annotation; and whether its category has a name."""
        named = [*map(label_of, self._codes), ""]  # the last one: no category
        texts = [f"{UNKNOWN_CATEGORY} {to_text(c)}".strip() for c in self._codes] + [UNKNOWN_CATEGORY]
        code = np.where(category < 0, len(named) - 1, category)
        labels = pa.array([name or text for name, text in zip(named, texts, strict=True)], pa.string())
        return labels.take(pa.array(code, pa.int64())), np.array([bool(name) for name in named])[code]

    def _faults(self, image_ids: pa.ChunkedArray, sizes: Any, ambiguous_images: pa.Array) -> dict[str, Bools]:
        """Fault → which annotations have it; the first one counts."""
        malformed = np.zeros(len(sizes), bool)
        malformed[list(self._malformed)] = True
        no_image = (sizes[:, 0] < 0) & ~malformed
        of_several = no_image & columns_from_json.as_mask(pc.is_in(image_ids, value_set=ambiguous_images))
        return {"malformed_annotation": malformed, "label_of_ambiguous_image": of_several, "unknown_image": no_image & ~of_several}

    def _box_details(self, rows: Iterable[Any], boxes: Floats, kinds: Any, sizes: Any) -> list[str]:
        """What is wrong with the boxes of these rows."""
        return [f"{self._bad_boxes[i] if kinds[i] == BAD_BOX else box_in_image(boxes[i], sizes[i])}; {LABEL_IS_KEPT}" for i in map(int, rows)]

    def _list_faults(self, problems: Problems, faults: dict[str, Bools], ids: pa.Array, image_ids: pa.Array) -> None:
        """List each dropped annotation."""
        details: dict[str, Callable[[int], str]] = {
            "malformed_annotation": lambda i: self._malformed[i],
            "duplicate_annotation": lambda _: "the first one is used",
            "unknown_image": lambda i: f"image_id {image_ids[i].as_py()!r}"[:160],
            "label_of_ambiguous_image": lambda i: f"several image files have the id {image_ids[i].as_py()!r}"[:160],
        }
        for fault, mask in faults.items():
            rows = [int(i) for i in np.flatnonzero(mask)]
            problems.add_many(fault, ids.take(pa.array(rows, pa.int64())), [details[fault](i) for i in rows])

    def _list_nameless(self, problems: Problems, mask: Bools, ids: pa.Array, category: Any) -> None:
        raw = {code: c for c, code in self._codes.items()}
        problems.add_many("category_without_name", ids.filter(pa.array(mask)), [f"category_id {raw.get(code)!r}"[:160] for code in category[mask]])


def _is_reviewed(row: dict[str, Any]) -> bool:
    """Whether a person validated a label. Animl names no user for old labels, so ``validated`` alone counts where it is there."""
    said = VALIDATED.get(to_text(row.get("validated")).strip().casefold())
    return row.get("validated_by") != "Not Reviewed" if said is None else said


def _image_sizes(image_ids: pa.ChunkedArray, images: pa.Table) -> Any:
    """[n, 2] width and height of each annotation's image: 0 where unknown, -1 where the image is not in the table."""
    row = pc.index_in(image_ids, value_set=images["image_id"].combine_chunks()).fill_null(-1).to_numpy()
    sizes = np.stack([np.append(images[c].to_numpy(), -1) for c in ("width", "height")], axis=1)
    sizes[(sizes == 0).any(1)] = 0
    return sizes[row]


def _list_notes(problems: Problems, kept: Bools, ids: pa.Array, labels: pa.Array, boxes: Floats, sizes: Any, reviewed: Bools) -> None:
    """List what is odd about annotations that are kept."""
    unreviewed = pa.array(kept & ~reviewed)
    coded = labels.filter(unreviewed).dictionary_encode()
    details = pa.array([f"label {label!r}" for label in coded.dictionary.to_pylist()], pa.string())
    problems.add_many("unreviewed", ids.filter(unreviewed), details.take(coded.indices))
    partly = kept & is_partly_outside(boxes, sizes)
    texts = [f"{box_in_image(boxes[i], sizes[i])}; it will be clipped to the image" for i in np.flatnonzero(partly)]
    problems.add_many("box_partly_outside", ids.filter(pa.array(partly)), texts)


class Categories:
    """The categories seen so far. One id must mean one name: a wrong one would make wrong labels.

    Ids are compared as text, since some tools write 7 in one part and "7" in the other. Names are tidied: see
    :func:`~animl_pipeline.core.location_names.tidy_name`. Names that differ in case only are one name.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._ambiguous: dict[str, str] = {}
        self._malformed: list[str] = []

    def add(self, records: list[Any]) -> None:
        """Take in the next records."""
        for row in records:
            key, name = (_category_key(row.get("id")), tidy_name(to_text(row.get("name")))) if isinstance(row, dict) else ("", "")
            if not key or not name:
                self._malformed.append(to_text(row)[:80])
            elif (known := self._names.setdefault(key, name)).casefold() != name.casefold():
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


class AnnotationIds(NamedTuple):
    """An id for each annotation: text [n]; and which annotations are repetitions of an earlier one: bool [n]."""

    ids: pa.Array
    repeated: Bools


def unique_annotation_ids(ids: pa.Array, image_ids: pa.Array, labels: pa.Array, boxes: Floats, usable: Bools, problems: Problems) -> AnnotationIds:
    """An id of its own for each usable annotation: tools leave ids out, write 0 for all, or begin again at each image.

    An annotation with the id, image, label and box of an earlier one is a repetition. Annotations without an id, and those that
    share theirs with another label or image, get an id that is made from these four values, so that it stays when the export grows.

    Args:
        ids: text [n], "" where there is none.
        image_ids: text [n].
        labels: text [n].
        boxes: float [n, 4], NaN where there is none.
        usable: bool [n]; the others keep what they have.
        problems: takes in how many ids were made.
    """
    if pc.count_distinct(ids).as_py() == len(ids) and not pc.any(pc.equal(ids, "")).as_py():
        return AnnotationIds(ids, np.zeros(len(ids), bool))
    codes = {name: column.dictionary_encode().indices.to_numpy() for name, column in (("id", ids), ("image", image_ids), ("label", labels))}
    rows = pd.DataFrame({**codes, **{side: boxes[:, i] for i, side in enumerate("xywh")}})[usable]
    repeated, shared = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    repeated[usable] = rows.duplicated()
    left = usable & ~repeated
    shared[left] = rows.loc[left[usable], "id"].duplicated(keep=False)
    without = left & as_mask(pc.equal(ids, ""))
    new = np.flatnonzero(without | shared)
    given, images, names = (column.take(pa.array(new)).to_pylist() for column in (ids, image_ids, labels))
    made = [f"{image}#{_digest(*values)}" for image, values in zip(images, zip(given, names, boxes[new], strict=True), strict=True)]
    texts = np.asarray(ids.to_pylist(), object)
    texts[new] = made
    for reason, mask in (("annotation_without_id", without), ("annotation_id_of_several", shared & ~without)):
        problems.add_many(reason, texts[mask].tolist(), [f"id {text!r}"[:160] for text in ids.filter(pa.array(mask)).to_pylist()])
    return AnnotationIds(pa.array(texts, pa.string()), repeated)


def _digest(annotation_id: str, label: str, box: Floats) -> str:
    return hashlib.sha256(repr((annotation_id, label, box.tolist())).encode()).hexdigest()[:16]


def are_relative(boxes: Floats, sizes: Any) -> bool:
    """Whether all boxes of a file are between 0 and 1, although its images are larger than a pixel.

    Args:
        boxes: [n, 4] x, y, width and height; NaN without a box.
        sizes: [n, 2] width and height of the image in pixels; 0 where unknown, 1 where boxes are known to be relative, -1 for no image.
    """
    counted = ~np.isnan(boxes).any(1) & (sizes.min(1) >= 0) & (sizes.max(1) != 1)
    x, y, w, h = boxes[counted].T
    inside = (np.minimum(x, y) >= -RELATIVE_SLACK) & (np.maximum(x + w, y + h) <= 1 + RELATIVE_SLACK)
    return bool(counted.any() and inside.all())


def with_unit_sizes(images: pa.Table) -> pa.Table:
    """The images, with 1 x 1 as the size of those whose size is unknown, so that relative boxes are right for them, too."""
    unknown = (images["width"].to_numpy() == 0) | (images["height"].to_numpy() == 0)
    for side in ("width", "height"):
        values = np.where(unknown, 1, images[side].to_numpy())
        images = images.set_column(images.schema.get_field_index(side), side, pa.array(values))
    return images


def unusable_boxes(boxes: Floats, kinds: Any, sizes: Any) -> dict[str, Bools]:
    """Reason → which boxes cannot be used for it; the first reason that applies counts. Shapes as in :func:`are_relative`."""
    x, y, w, h = boxes.T
    has_box, has_size = kinds == BOX, sizes.min(1) > 0
    reasons = {
        "box_malformed": kinds == BAD_BOX,
        "box_empty": has_box & ((w <= 0) | (h <= 0)),
        "box_outside": has_box & has_size & ((x >= sizes[:, 0]) | (y >= sizes[:, 1]) | (x + w <= 0) | (y + h <= 0)),
        "box_below_a_pixel": has_box & (sizes.min(1) > 1) & (np.maximum(w, h) < 1),
    }
    listed = np.zeros(len(boxes), bool)
    for reason, mask in reasons.items():
        reasons[reason] = mask & ~listed
        listed |= mask
    return reasons


def is_partly_outside(boxes: Floats, sizes: Any) -> Bools:
    """Which boxes reach over the edge of their image, of those whose image has a known size."""
    x, y, w, h = boxes.T
    slack = np.where(sizes.max(1) == 1, RELATIVE_SLACK, SLACK)
    within = (x >= -slack) & (y >= -slack) & (x + w <= sizes[:, 0] + slack) & (y + h <= sizes[:, 1] + slack)
    return np.asarray((sizes[:, 0] > 0) & ~np.isnan(x) & ~within, bool)


def box_in_image(box: Floats, size: Any) -> str:
    """A box and the size of its image, for a message."""
    return f"bbox {format_box(box)}" + (f" in {size[0]} x {size[1]}" if min(size) > 0 else "")

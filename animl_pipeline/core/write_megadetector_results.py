"""MegaDetector's batch results format, which many camera-trap tools read: https://lila.science/megadetector-output-format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

FORMAT_VERSION = "1.6"
ANIMAL, PERSON, VEHICLE = "1", "2", "3"
CATEGORIES = {ANIMAL: "animal", PERSON: "person", VEHICLE: "vehicle"}
"""The detector's categories."""
IMAGE_ORIENTATION, AS_STORED = "image_orientation", "as stored"
"""A key of our own in the file's info: boxes are relative to the pixels as stored, without turning the image by its EXIF orientation."""
LINES = 50_000
"""Images written at a time."""


class ResultBoxes(NamedTuple):
    """Boxes of many images, as columns.

    Attributes:
        image: int [n], each box's position in the list of files.
        category: the detector's category of each box, a key of ``CATEGORIES``.
        confidence: float [n], 0 to 1.
        boxes: float [n, 4], ``ymin, xmin, ymax, xmax``, relative.
        class_number: int [n], each box's position in the list of classes, -1 for none; None without a classification.
        class_confidence: float [n], its probability; None: 1, as for a person's label.
    """

    image: NDArray[np.integer[Any]]
    category: Sequence[str]
    confidence: NDArray[np.floating[Any]]
    boxes: NDArray[np.floating[Any]]
    class_number: NDArray[np.integer[Any]] | None = None
    class_confidence: NDArray[np.floating[Any]] | None = None


def write_results(
    path: Path,
    info: Mapping[str, Any],
    files: Sequence[str] | pa.Array,
    boxes: ResultBoxes,
    *,
    classes: Sequence[str] = (),
    failures: Mapping[int, str] | None = None,
) -> None:
    """Write a batch results file. The same arguments give the same bytes, because it holds no time.

    Each image is one line. Images are sorted by file name; the boxes of an image keep their order. Boxes are written as the format
    wants them: [x_min, y_min, width, height].

    ``info``: keys of the format's ``info``, such as ``detector``; the format version is added. ``classes``: class ids, when the boxes have a
    class. ``failures``: position in ``files`` → why there is no result.
    """
    names = pa.array(files, pa.string()) if not isinstance(files, pa.Array) else files
    image_order = pc.sort_indices(names).to_numpy()
    rank = np.empty(len(names), np.int64)
    rank[image_order] = np.arange(len(names))
    box_order = np.argsort(rank[boxes.image], kind="stable")
    ends = np.bincount(rank[boxes.image], minlength=len(names)).cumsum()
    offsets = pa.array(np.append(0, ends), pa.int32())
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, _boxes_as_json(boxes, box_order)), ",")
    lines = pc.binary_join_element_wise('{"file":', _quote(names.take(pa.array(image_order))), ',"detections":[', joined, "]}", "")
    lines = _replace_failures(lines, names, rank, failures or {})
    with path.open("wb") as f:
        f.write(_head(info, classes).encode())
        for start in range(0, len(lines), LINES):
            f.write(b",\n" if start else b"")
            f.write(b",\n".join(lines.slice(start, LINES).cast(pa.binary()).to_pylist()))
        f.write(b"\n]}\n")


def _head(info: Mapping[str, Any], classes: Sequence[str]) -> str:
    """The start of the file, up to the first image."""
    head: dict[str, Any] = {"info": {"format_version": FORMAT_VERSION, IMAGE_ORIENTATION: AS_STORED, **info}, "detection_categories": CATEGORIES}
    if classes:
        head["classification_categories"] = {str(i): c for i, c in enumerate(classes)}
    return json.dumps(head, ensure_ascii=False).removesuffix("}") + ', "images": [\n'


def _boxes_as_json(boxes: ResultBoxes, order: NDArray[np.intp]) -> pa.Array:
    """A JSON object for each box, in this order."""
    ymin, xmin, ymax, xmax = boxes.boxes.reshape(-1, 4)[order].astype(float).T
    corners = [pa.array(np.round(v, 6)).cast(pa.string()) for v in (xmin, ymin, xmax - xmin, ymax - ymin)]
    confidence = _as_decimals(boxes.confidence[order])
    category = pa.array(boxes.category, pa.string()).take(pa.array(order))
    parts: list[Any] = ['{"category":"', category, '","conf":', confidence, ',"bbox":[']
    parts += [corners[0], ",", corners[1], ",", corners[2], ",", corners[3], "]"]
    if boxes.class_number is not None:
        sure = np.ones(len(order)) if boxes.class_confidence is None else boxes.class_confidence[order]
        number = boxes.class_number[order]
        label = pc.binary_join_element_wise(',"classifications":[["', pa.array(number).cast(pa.string()), '",', _as_decimals(sure), "]]", "")
        parts += [pc.if_else(pa.array(number >= 0), label, "")]
    return pc.binary_join_element_wise(*parts, "}", "")


def _as_decimals(values: NDArray[np.floating[Any]]) -> pa.Array:
    """Numbers from 0 to 1 as text; some readers want a decimal point."""
    return pc.replace_substring_regex(pa.array(values.astype(float)).cast(pa.string()), r"^([01])$", r"\1.0")


def _replace_failures(lines: pa.Array, names: pa.Array, rank: NDArray[np.int64], failures: Mapping[int, str]) -> pa.Array:
    """The lines, with the failed images' lines in their stead."""
    if not failures:
        return lines
    failed = {int(rank[i]): {"file": names[i].as_py(), "failure": reason, "detections": None} for i, reason in failures.items()}
    at = sorted(failed)
    mask = np.zeros(len(lines), bool)
    mask[at] = True
    return pc.replace_with_mask(lines, pa.array(mask), pa.array([json.dumps(failed[i], ensure_ascii=False) for i in at], pa.string()))


def _quote(names: pa.Array) -> pa.Array:
    """The names as JSON strings."""
    plain = pc.binary_join_element_wise('"', names, '"', "")
    special = pc.match_substring_regex(names, r'["\\\x00-\x1f]').to_numpy(zero_copy_only=False)
    if not special.any():
        return plain
    return pa.array([json.dumps(name) if s else text for name, text, s in zip(names.to_pylist(), plain.to_pylist(), special, strict=True)])

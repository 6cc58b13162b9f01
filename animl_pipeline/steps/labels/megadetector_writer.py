"""Labels in MegaDetector's batch format, which the field's tools read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LINES = 50_000
"""Images written together."""


def write_batch_file(path: Path, labels: pa.Table, confidence: Any, classes: list[str]) -> None:
    """Write boxes and classes in MegaDetector's batch format: bbox [x_min, y_min, width, height], relative.

    Format: https://lila.science/megadetector-output-format. A box drawn by hand has confidence 1. An image is a line; its
    name has the source's in front.

    Args:
        path: where to.
        labels: as the step's labels.parquet.
        confidence: of each row, NaN for drawn by hand.
        classes: class ids in the plan's order.
    """
    files = pc.binary_join_element_wise(labels["source"], labels["file_name"], "/").combine_chunks().dictionary_encode()
    order = np.argsort(_ranks(files.dictionary)[files.indices.to_numpy()], kind="stable")
    code = files.indices.to_numpy()[order]
    first = np.flatnonzero(np.diff(code, prepend=-1))
    boxed = ~np.isnan(labels["ymin"].to_numpy()[order])
    detections = _detections(labels, confidence, classes, order[boxed])
    offsets = np.append(np.append(0, np.cumsum(boxed))[first], boxed.sum()).astype(np.int32)
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), detections), ",")
    names = _quoted(files.dictionary.take(pa.array(code[first])))
    lines = pc.binary_join_element_wise('{"file":', names, ',"detections":[', joined, "]}", "")
    with path.open("wb") as f:
        f.write(_head(classes).encode())
        for start in range(0, len(lines), LINES):
            f.write(b",\n" if start else b"")
            f.write(b",\n".join(lines.slice(start, LINES).cast(pa.binary()).to_pylist()))
        f.write(b"\n]}\n")


def _head(classes: list[str]) -> str:
    head = {
        "info": {"format_version": "1.6", "detector": "human review", "classifier": "human review"},
        "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
        "classification_categories": {str(i): c for i, c in enumerate(classes)},
    }
    return json.dumps(head, ensure_ascii=False)[:-1] + ', "images": [\n'


def _detections(labels: pa.Table, confidence: Any, classes: list[str], rows: Any) -> pa.Array:
    """Each box as JSON."""
    ymin, xmin, ymax, xmax = (labels[c].to_numpy()[rows] for c in ("ymin", "xmin", "ymax", "xmax"))
    box = [pa.array(np.round(v, 6)).cast(pa.string()) for v in (xmin, ymin, xmax - xmin, ymax - ymin)]
    certainty = pa.array(np.round(np.nan_to_num(confidence[rows], nan=1.0).clip(0, 1), 4)).cast(pa.string())
    certainty = pc.replace_substring_regex(certainty, r"^([01])$", r"\1.0")  # readers ask for a number with a point
    number = pc.index_in(labels["class_id"].take(rows), value_set=pa.array(classes)).cast(pa.string())
    if isinstance(number, pa.ChunkedArray):
        number = number.combine_chunks()
    parts = ['{"category":"1","conf":', certainty, ',"bbox":[', box[0], ",", box[1], ",", box[2], ",", box[3]]
    return pc.binary_join_element_wise(*parts, '],"classifications":[["', number, '",1.0]]}', "")


def _quoted(names: pa.Array) -> pa.Array:
    """Names as JSON texts."""
    plain = pc.binary_join_element_wise('"', names, '"', "")
    odd = pc.match_substring_regex(names, r'["\\\x00-\x1f]').to_numpy(zero_copy_only=False)
    if not odd.any():
        return plain
    return pa.array([json.dumps(name) if o else text for name, text, o in zip(names.to_pylist(), plain.to_pylist(), odd, strict=True)])


def _ranks(names: pa.Array) -> Any:
    """The place of each name in the order of the names."""
    ranks = np.empty(len(names), np.int64)
    ranks[pc.sort_indices(names).to_numpy()] = np.arange(len(names))
    return ranks

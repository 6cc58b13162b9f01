"""The images of an export, batch by batch, as one table; what is wrong with which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from animl_pipeline.config import SourceConfig
from animl_pipeline.steps.export.columns import Bools, column, first_fit, sizes, text, texts
from animl_pipeline.steps.export.problems import Problems
from animl_pipeline.storage.remote_files import RemoteError, check_relative_path

COLUMNS = ("image_id", "file_name", "path", "location", "taken", "sequence", "width", "height")
PLAIN_PATH = r"^\w\w[\w /.:'()+,&@=-]*$"
"""Paths that, without two dots in a row, are safe at a glance; others are looked at one by one."""


class ImageRows:
    """The images seen so far."""

    def __init__(self, source: SourceConfig) -> None:
        self._source = source
        self._batches: list[pa.RecordBatch] = []
        self._nameless: list[str] = []
        self._unsafe: dict[int, str] = {}
        self._sizeless: dict[int, str] = {}
        self._seen = 0

    def add(self, found: list[Any]) -> None:
        """Take in the next records."""
        rows: list[dict[str, Any]] = [row if isinstance(row, dict) else {} for row in found]
        ids, raw_paths = texts(column(rows, "id")), column(rows, self._source.key)
        said, names = texts(raw_paths), texts(column(rows, "file_name"))
        paths = pc.replace_substring(said, "\\", "/")  # as Windows writes them
        raw_sizes = column(rows, "width"), column(rows, "height")
        width, height = (sizes(values) for values in raw_sizes)
        columns = {
            "image_id": ids,
            "file_name": pc.if_else(pc.equal(names, ""), paths, names),
            "path": paths,
            "location": texts(column(rows, self._source.location_field)),
            "taken": texts(column(rows, "datetime")),
            "sequence": texts(column(rows, "seq_id")),
            "width": pa.array(width),
            "height": pa.array(height),
        }
        self._nameless += [text(found[i])[:80] for i in np.flatnonzero(_mask(pc.equal(ids, "")))]
        self._unsafe |= {self._seen + i: f"{self._source.key} = {raw_paths[i]!r}"[:160] for i in _unsafe(paths)}
        for i in np.flatnonzero((width == 0) | (height == 0)):
            said = (raw_sizes[0][i], raw_sizes[1][i])
            self._sizeless[self._seen + int(i)] = _UNSAID if said == (None, None) else _size_text(*said)
        self._batches.append(pa.RecordBatch.from_pydict(columns))
        self._seen += len(rows)

    def table(self, problems: Problems, locations: Mapping[str, str]) -> pa.Table:
        """The images that count, their columns as ``COLUMNS``; ``places`` says which place a location is part of."""
        t = pa.Table.from_batches(self._batches, SCHEMA)
        ids = t["image_id"].combine_chunks()
        named = _mask(pc.not_equal(ids, ""))
        safe = np.ones(len(ids), bool)
        safe[list(self._unsafe)] = False
        kept, later = first_fit(ids, named & safe)
        later &= named
        problems.add("image_without_id", [""] * len(self._nameless), self._nameless)
        problems.add("duplicate_image", ids.filter(later).to_pylist(), "the first one counts")
        _note(problems, "unsafe_path", ids, self._unsafe, named & ~later)
        _note(problems, "missing_size", ids, self._sizeless, kept)
        if not kept.all():
            t = t.filter(kept)
        return t.set_column(t.schema.get_field_index("location"), "location", _renamed(t["location"], locations)) if locations else t


SCHEMA = pa.schema([(c, pa.int64() if c in {"width", "height"} else pa.string()) for c in COLUMNS])


def _size_text(width: Any, height: Any) -> str:
    return f"width {width!r}, height {height!r}; the picture's own counts"


_UNSAID = _size_text(None, None)


def _note(problems: Problems, problem: str, ids: pa.Array, details: dict[int, str], where: Bools) -> None:
    """List a problem of single images, where it counts."""
    rows = [i for i in details if where[i]]
    problems.add(problem, ids.take(pa.array(rows, pa.int64())).to_pylist(), [details[i] for i in rows])


def _mask(values: Any) -> Bools:
    return np.asarray(values.to_numpy(zero_copy_only=False), bool)


def _unsafe(paths: pa.StringArray) -> list[int]:
    """The rows whose path would leave the pictures' place."""
    plain = pc.and_not(pc.match_substring_regex(paths, PLAIN_PATH), pc.match_substring(paths, ".."))
    return [int(i) for i in np.flatnonzero(~_mask(plain)) if not _is_safe(paths[int(i)].as_py())]


def _is_safe(name: str) -> bool:
    try:
        check_relative_path(name)
    except RemoteError:
        return False
    return True


def _renamed(column: pa.ChunkedArray, locations: Mapping[str, str]) -> pa.Array:
    coded = column.combine_chunks().dictionary_encode()
    names = pa.array([locations.get(name, name) for name in coded.dictionary.to_pylist()], pa.string())
    return names.take(coded.indices)

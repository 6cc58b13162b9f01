"""Build the images table of an export from batches of COCO image records, and list what is wrong with which."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.capture_times import to_iso
from animl_pipeline.core.location_names import known_locations
from animl_pipeline.core.table_schemas import EXPORT_IMAGES
from animl_pipeline.steps.export.columns_from_json import Bools, as_mask, column, first_of_each_id, size_column, text_column, to_text
from animl_pipeline.steps.export.problems import Problems
from animl_pipeline.storage.read_remote_files import RemoteError, check_relative_path

PLAIN_PATH = r"^\w\w[\w /.:'()+,&@=-]*$"
"""Paths of this form without two dots in a row are safe. All others are checked one by one, which takes longer."""


class ImagesTable:
    """The image records seen so far, as columns.

    Attributes:
        ambiguous: after :meth:`table`, the ids that several image files have. It is not known which of them a label with such an id means.
    """

    def __init__(self, source: SourceConfig) -> None:
        self._source = source
        self._batches: list[pa.RecordBatch] = []
        self._without_id: list[str] = []
        self._unsafe: dict[int, str] = {}
        self._without_size: dict[int, str] = {}
        self._seen = 0
        self.ambiguous = pa.array([], pa.string())

    def add(self, records: list[Any]) -> None:
        """Take in the next records, whatever JSON values they are."""
        rows: list[dict[str, Any]] = [row if isinstance(row, dict) else {} for row in records]
        ids, raw_paths = text_column(column(rows, "id")), column(rows, self._source.path_field)
        names = text_column(column(rows, "file_name"))
        paths = pc.replace_substring(text_column(raw_paths), "\\", "/")  # as Windows writes them
        raw_sizes = column(rows, "width"), column(rows, "height")
        width, height = (size_column(values) for values in raw_sizes)
        columns = {
            "image_id": ids,
            "file_name": pc.if_else(pc.equal(names, ""), paths, names),
            "path": paths,
            "location": text_column(column(rows, self._source.location_field)),
            "taken": text_column(column(rows, "datetime")),
            "sequence": text_column(column(rows, "seq_id")),
            "width": pa.array(width),
            "height": pa.array(height),
        }
        self._without_id += [to_text(records[i])[:80] for i in np.flatnonzero(as_mask(pc.equal(ids, "")))]
        self._unsafe |= {self._seen + i: f"{self._source.path_field} = {raw_paths[i]!r}"[:160] for i in _unsafe_rows(paths)}
        for i in np.flatnonzero((width == 0) | (height == 0)):
            size = (raw_sizes[0][i], raw_sizes[1][i])
            self._without_size[self._seen + int(i)] = _NO_SIZE if size == (None, None) else _size_text(*size)
        self._batches.append(pa.RecordBatch.from_pydict(columns))
        self._seen += len(rows)

    def table(self, problems: Problems) -> pa.Table:
        """The usable images with the columns of EXPORT_IMAGES; ``problems`` takes in the others."""
        table = pa.Table.from_batches(self._batches, EXPORT_IMAGES.schema())
        ids = table["image_id"].combine_chunks()
        named = as_mask(pc.not_equal(ids, ""))
        safe = np.ones(len(ids), bool)
        safe[list(self._unsafe)] = False
        of_several = self._list_ambiguous(ids, table["path"].combine_chunks(), named, problems)
        kept, later = first_of_each_id(ids, named & safe & ~of_several)
        duplicates = ids.filter(later & named).to_pylist()
        problems.add_many("image_without_id", [""] * len(self._without_id), self._without_id)
        problems.add_many("duplicate_image", duplicates, ["the first one is used"] * len(duplicates))
        _list_rows(problems, "unsafe_path", ids, self._unsafe, named & ~later & ~of_several)
        _list_rows(problems, "missing_size", ids, self._without_size, kept)
        return _with_iso_times(_with_known_locations(table if kept.all() else table.filter(kept), problems), problems)

    def _list_ambiguous(self, ids: pa.Array, paths: pa.Array, named: Bools, problems: Problems) -> Bools:
        """Which records have an id that records of other files have, too: bool [n]."""
        _, later = first_of_each_id(ids, named)
        if not (later & named).any():
            return np.zeros(len(ids), bool)
        files = pd.DataFrame({"id": ids.to_pandas(), "path": paths.to_pandas()})[named]
        of_several = files.drop_duplicates().groupby("id", sort=True)["path"].agg(list)
        of_several = of_several[of_several.map(len) > 1]
        self.ambiguous = pa.array(of_several.index.tolist(), pa.string())
        details = [f"{len(paths)} files have this id: {', '.join(paths[:3])}; give each image an id of its own" for paths in of_several]
        problems.add_many("ambiguous_image_id", self.ambiguous, details)
        return as_mask(pc.is_in(ids, value_set=self.ambiguous))


def _with_iso_times(images: pa.Table, problems: Problems) -> pa.Table:
    """The images with their times in ISO 8601's form, and without a time where it is ambiguous or none, which is noted."""
    written = images["taken"].to_pandas()
    times = to_iso(written)
    faults = {
        "ambiguous_time": (times.ambiguous, "the day or the month may come first; expected a form such as 2024-05-31T10:00:00"),
        "unreadable_time": (times.unreadable, "expected a form such as 2024-05-31T10:00:00"),
    }
    for reason, (mask, expected) in faults.items():
        problems.add_many(reason, images["image_id"].filter(pa.array(mask)), [f"{text[:80]!r}: {expected}" for text in written[mask]])
    texts = times.texts.mask(times.ambiguous | times.unreadable, "")
    return images.set_column(images.schema.get_field_index("taken"), "taken", pa.array(texts, pa.string()))


def _with_known_locations(images: pa.Table, problems: Problems) -> pa.Table:
    """The images with each location in one spelling, and without a location where its name is a placeholder, which is noted."""
    coded = images["location"].combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    location_of = known_locations(names)
    locations = pa.array([location_of[name] for name in names], pa.string()).take(coded.indices)
    placeholder = pc.and_(pc.equal(locations, ""), pc.not_equal(images["location"].combine_chunks(), ""))
    details = pa.array([f"location {name!r} counts as unknown"[:160] for name in names], pa.string()).take(coded.indices)
    problems.add_many("placeholder_location", images["image_id"].combine_chunks().filter(placeholder), details.filter(placeholder))
    return images.set_column(images.schema.get_field_index("location"), "location", locations)


def _size_text(width: Any, height: Any) -> str:
    return f"width {width!r}, height {height!r}; the size of the image file is used"


_NO_SIZE = _size_text(None, None)  # one text for a million images, not one each


def _list_rows(problems: Problems, reason: str, ids: pa.Array, details: dict[int, str], mask: Bools) -> None:
    """List a problem of single rows, where the mask holds."""
    rows = [i for i in details if mask[i]]
    problems.add_many(reason, ids.take(pa.array(rows, pa.int64())).to_pylist(), [details[i] for i in rows])


def _unsafe_rows(paths: pa.StringArray) -> list[int]:
    """The rows whose path would leave the folder of the images."""
    plain = pc.and_not(pc.match_substring_regex(paths, PLAIN_PATH), pc.match_substring(paths, ".."))
    return [int(i) for i in np.flatnonzero(~as_mask(plain)) if not is_safe_path(paths[int(i)].as_py())]


def is_safe_path(path: str) -> bool:
    """Whether a path is relative and stays below the folder of the images."""
    try:
        check_relative_path(path)
    except RemoteError:
        return False
    return True

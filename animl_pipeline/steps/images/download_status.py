"""The status of each wanted image: in the store, failed, or not yet requested.

Columns with a row for each image, not a record for each image, so that a million images fit into memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.image_orientation import read_orientation
from animl_pipeline.steps.images.download import Downloaded, Failed, Request
from animl_pipeline.storage.image_index import iter_index
from animl_pipeline.storage.store import Store

_ID_WITH_MD5 = re.compile(r"^[^:]+:([0-9a-f]{32})$")
FIELDS: dict[str, Any] = {
    "blob": "S64", "bytes": np.int64, "width": np.int32, "height": np.int32, "md5": "S32", "orientation": np.int8, "changed_ns": np.int64,
}  # fmt: skip
"""Fields of :class:`Downloaded`, with their numpy types."""
ADDED_LATER = {"orientation", "changed_ns"}
"""Fields that older records of an index do not have."""


class DownloadStatus:
    """The status of the images in a table with the columns image_id and path.

    Attributes:
        in_store: bool [n], whether the store holds the image.
        failed: row → why the image is not in the store.
    """

    def __init__(self, images: pd.DataFrame) -> None:
        self.image_ids = images["image_id"].to_numpy(dtype=object)
        self.paths = images["path"].to_numpy(dtype=object)
        self.in_store = np.zeros(len(images), bool)
        self.failed: dict[int, Failed] = {}
        self._columns = _empty_columns(len(images))

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: str, store: Store, folder: Path | None) -> None:
        """Mark the images that an earlier run downloaded and that are still in the store.

        ``folder``: where the images are on this machine, if they are there: a file that was replaced since is no longer in the store.
        """
        if not len(self):
            return
        codes, paths = pd.factorize(pd.Series(self.paths), use_na_sentinel=False)
        row_of = {path: i for i, path in enumerate(paths)}
        known, columns = np.zeros(len(paths), bool), _empty_columns(len(paths))
        for path, record in iter_index(store.object_store, index):
            i = row_of.get(path)
            if i is not None and record.keys() >= FIELDS.keys() - ADDED_LATER:
                known[i] = True
                for name, column in columns.items():
                    column[i] = record.get(name, 0)
        rows = np.flatnonzero(known)
        known[rows] = store.has_blobs(columns["blob"][rows].astype(str).tolist(), columns["bytes"][rows].tolist())
        if folder is not None:
            for i in np.flatnonzero(known).tolist():
                known[i] = not _was_replaced(folder / paths[i], columns["bytes"][i], columns["changed_ns"][i])
        self.in_store = known[codes] & self._md5_agrees(columns["md5"][codes])
        for name, column in self._columns.items():
            column[self.in_store] = columns[name][codes][self.in_store]

    def add_orientations(self, store: Store) -> dict[str, dict[str, object]]:
        """Read the orientation of images that were downloaded before it was recorded, and return their complete records by path."""
        rows = np.flatnonzero(self.in_store & (self._columns["orientation"] == 0))
        for row in rows:
            self._columns["orientation"][row] = read_orientation(store.blob(self._columns["blob"][row].decode()))
        return {self.paths[row]: {name: _plain(column[row]) for name, column in self._columns.items()} for row in rows}

    def requests(self) -> Iterator[Request]:
        """A request for each image that is not in the store."""
        for row in np.flatnonzero(~self.in_store).tolist():
            found = _ID_WITH_MD5.match(self.image_ids[row])
            yield Request(row, self.paths[row], found[1] if found else "")

    def add(self, row: int, answer: Downloaded | Failed) -> None:
        """Record an answer."""
        if isinstance(answer, Failed):
            self.failed[row] = answer
            return
        self.in_store[row] = True
        for name, column in self._columns.items():
            column[row] = getattr(answer, name)

    def fail_rest(self, failed: Failed) -> None:
        """Mark all images without an answer as failed."""
        for row in np.flatnonzero(~self.in_store).tolist():
            self.failed.setdefault(row, failed)

    def is_final(self) -> bool:
        """Whether no failure is one that may pass."""
        return not any(failed.retryable for failed in self.failed.values())

    def downloaded_table(self) -> pd.DataFrame:
        """The images in the store, as the table DOWNLOADED_IMAGES."""
        rows = np.flatnonzero(self.in_store)
        numbers = {name: self._columns[name][rows].astype(np.int64) for name in ("bytes", "width", "height", "orientation")}
        return pd.DataFrame({"image_id": self.image_ids[rows], "path": self.paths[rows], "blob": self._columns["blob"][rows].astype(str)} | numbers)

    def missing_table(self) -> pd.DataFrame:
        """The images that failed, as the table MISSING_IMAGES."""
        rows = sorted(self.failed)
        failed = [self.failed[row] for row in rows]
        return pd.DataFrame(
            {"image_id": self.image_ids[rows], "path": self.paths[rows], "reason": [f.reason for f in failed], "detail": [f.detail for f in failed]}
        )

    def _md5_agrees(self, md5: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Whether each row's md5 is the one in the image's id. True where the id has none."""
        expected = pd.Series(self.image_ids, dtype="str").str.extract(_ID_WITH_MD5, expand=False).fillna("").to_numpy(dtype="S32")
        agrees: NDArray[np.bool_] = (expected == b"") | (expected == md5)
        return agrees


def _was_replaced(file: Path, size: int, changed_ns: int) -> bool:
    """Whether a file is another one than before. One that is gone is not: the store still has it. ``changed_ns``: 0 if that was not recorded."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return False
    return found.st_size != size or changed_ns not in {0, found.st_mtime_ns}


def _plain(value: Any) -> str | int:
    """A numpy value as JSON has it."""
    return value.decode() if isinstance(value, bytes) else int(value)


def _empty_columns(n: int) -> dict[str, NDArray[Any]]:
    return {name: np.zeros(n, kind) for name, kind in FIELDS.items()}

"""What is known of an export's pictures, one number a picture: columns, not a record each, so that a million fit.

Of each picture the table holds its row's answer: in the store (blob, bytes, size), or lost (reason, detail), or not yet known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.steps.images.download import Arrived, Lost, Wanted
from animl_pipeline.storage.image_index import each
from animl_pipeline.storage.step_cache import Store

_MD5_ID = re.compile(r"^[^:]+:([0-9a-f]{32})$")
FIELDS: dict[str, Any] = {"blob": "S64", "bytes": np.int64, "width": np.int32, "height": np.int32, "md5": "S32"}
"""What is known of a picture that arrived."""


class Known:
    """The answers so far, a row a picture of ``images`` (columns image_id and path)."""

    def __init__(self, images: pd.DataFrame) -> None:
        self.image_ids = images["image_id"].to_numpy(dtype=object)
        self.paths = images["path"].to_numpy(dtype=object)
        self.here = np.zeros(len(images), bool)
        self.lost: dict[int, Lost] = {}
        self._columns = _empty(len(images))

    def __len__(self) -> int:
        return len(self.paths)

    def md5_of(self, row: int) -> str:
        """The md5 that a picture's id names, "" where it names none."""
        found = _MD5_ID.match(self.image_ids[row])
        return found[1] if found else ""

    def recall(self, memory: str, store: Store) -> None:
        """Take over what was fetched before and is in the store still."""
        if not len(self):
            return
        codes, paths = pd.factorize(pd.Series(self.paths), use_na_sentinel=False)
        row_of = {path: i for i, path in enumerate(paths)}
        known, columns = np.zeros(len(paths), bool), _empty(len(paths))
        for path, record in each(store.object_store, memory):
            i = row_of.get(path)
            if i is not None and record.keys() >= FIELDS.keys():
                known[i] = True
                for name, column in columns.items():
                    column[i] = record[name]
        held = np.flatnonzero(known)
        known[held] = store.has_blobs(columns["blob"][held].astype(str).tolist(), columns["bytes"][held].tolist())
        self.here = known[codes] & self._fits(columns["md5"][codes])
        for name, column in self._columns.items():
            column[self.here] = columns[name][codes][self.here]

    def todo(self) -> Iterator[Wanted]:
        """The pictures that are not here."""
        for row in np.flatnonzero(~self.here).tolist():
            yield Wanted(row, self.paths[row], self.md5_of(row))

    def add(self, row: int, answer: Arrived | Lost) -> None:
        """An answer."""
        if isinstance(answer, Lost):
            self.lost[row] = answer
            return
        self.here[row] = True
        for name, column in self._columns.items():
            column[row] = getattr(answer, name)

    def unanswered(self) -> NDArray[np.int64]:
        """The rows of which nothing is known."""
        rows = np.flatnonzero(~self.here)
        return rows[[row not in self.lost for row in rows.tolist()]] if self.lost else rows

    def arrived(self) -> pd.DataFrame:
        """image_id, path, blob, bytes, width, height of the pictures in the store."""
        rows = np.flatnonzero(self.here)
        numbers = {name: self._columns[name][rows].astype(np.int64) for name in ("bytes", "width", "height")}
        return pd.DataFrame({"image_id": self.image_ids[rows], "path": self.paths[rows], "blob": self._columns["blob"][rows].astype(str)} | numbers)

    def missing(self) -> pd.DataFrame:
        """image_id, path, reason, detail of the others."""
        rows = sorted(self.lost)
        return pd.DataFrame(
            {
                "image_id": self.image_ids[rows],
                "path": self.paths[rows],
                "reason": [self.lost[r].reason for r in rows],
                "detail": [self.lost[r].detail for r in rows],
            }
        )

    def _fits(self, md5: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Whether each row's id, where it names an md5, names this one."""
        named = pd.Series(self.image_ids, dtype="str").str.extract(_MD5_ID, expand=False).fillna("").to_numpy(dtype="S32")
        fits: NDArray[np.bool_] = (named == b"") | (named == md5)
        return fits


def _empty(n: int) -> dict[str, NDArray[Any]]:
    return {name: np.zeros(n, kind) for name, kind in FIELDS.items()}

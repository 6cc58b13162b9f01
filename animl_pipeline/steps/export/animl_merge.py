"""Merge Animl's answers into one export: later answers replace earlier ones, and labels replace category ids.

The merge is a table on disk with one row for each image and each annotation, so it needs little memory. An image in a later
answer takes all its annotations from there, so that an annotation that was deleted since is gone.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from animl_pipeline.steps.export.columns_from_json import to_text
from animl_pipeline.steps.export.to_coco import Row, write_joined

SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -131072;
CREATE TABLE images (id TEXT PRIMARY KEY, row TEXT);
CREATE TABLE annotations (id TEXT PRIMARY KEY, image TEXT, label TEXT, row TEXT);
CREATE INDEX annotations_of ON annotations (image);
CREATE TABLE labels (label TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE odd (part TEXT, label TEXT, row TEXT, PRIMARY KEY (part, label, row)) WITHOUT ROWID;
"""
"""``odd`` holds records that cannot be merged; they are written as they are, and counted as problems when tables are made."""

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class ExportMerge:
    """A merge in progress, in a temporary file that its block removes."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._path.unlink(missing_ok=True)

    def add(self, coco: dict[str, Any], includes: Callable[[str], bool] = lambda taken: True) -> int:
        """Add an answer and return how many images it changed.

        ``includes``: says by an image's capture time whether to take the image.
        """
        labels = {c.get("id"): to_text(c.get("name")) for c in coco["categories"] if isinstance(c, dict) and isinstance(c.get("id"), (int, str))}
        annotations, odd = _by_image(coco["annotations"])
        changed = 0
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR IGNORE INTO labels VALUES (?)", [(label,) for label in labels.values() if label])
        seen: set[str] = set()
        for image in coco["images"]:
            if not isinstance(image, dict) or not isinstance(image.get("id"), str) or image["id"] in seen:
                self._keep_odd("images", "", image)
            elif includes(str(image.get("datetime"))):
                seen.add(image["id"])
                changed += self._replace(image, annotations.pop(image["id"], []), labels)
            else:
                annotations.pop(image["id"], None)
        for row in [*odd, *(row for rows in annotations.values() for row in rows)]:
            self._keep_odd("annotations", labels.get(_category_id(row), "") if isinstance(row, dict) else "", row)
        self._db.execute("COMMIT")
        return changed

    def _replace(self, image: Row, annotations: list[Row], labels: dict[Any, str]) -> bool:
        """Put an image and its annotations in place of an earlier answer's; returns whether that changed anything."""
        new: dict[str, tuple[str, str, str, str]] = {}
        for row in annotations:
            label = labels.get(_category_id(row), "")
            if not isinstance(row.get("id"), str) or row["id"] in new or not label:
                self._keep_odd("annotations", label, row)
            else:
                new[row["id"]] = (row["id"], image["id"], label, _ENCODER.encode(_without_category(row)))
        encoded, after = _ENCODER.encode(image), sorted(new.values())
        before = self._db.execute("SELECT row FROM images WHERE id = ?", (image["id"],)).fetchone()
        if before == (encoded,):
            rows = self._db.execute("SELECT id, image, label, row FROM annotations WHERE image = ? ORDER BY id", (image["id"],)).fetchall()
            if rows == after:
                return False
        if before is not None:
            self._db.execute("DELETE FROM annotations WHERE image = ?", (image["id"],))
        self._db.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", (image["id"], encoded))
        self._db.executemany("INSERT OR REPLACE INTO annotations VALUES (?, ?, ?, ?)", after)
        return True

    def _keep_odd(self, part: str, label: str, row: Any) -> None:
        row = _without_category(row) if isinstance(row, dict) and part == "annotations" else row
        self._db.execute("INSERT OR IGNORE INTO odd VALUES (?, ?, ?)", (part, label, _ENCODER.encode(row)))

    def digest(self) -> str:
        """The sha256 of the merged records."""
        hashed = hashlib.sha256()
        queries = ("row FROM images ORDER BY id", "label || row FROM annotations ORDER BY id", "label FROM labels ORDER BY label")
        for query in queries:
            for (row,) in self._db.execute(f"SELECT {query}"):
                hashed.update(row.encode() + b"\n")
        return hashed.hexdigest()

    def image_ids(self) -> set[str]:
        """The ids of all images."""
        return {image for (image,) in self._db.execute("SELECT id FROM images")}

    def write(self, path: Path) -> None:
        """Write one COCO for Camera Traps file, sorted by id. Category 0 is "empty"; the others follow by name."""
        labels = [label for (label,) in self._db.execute("SELECT label FROM labels WHERE label != 'empty' ORDER BY label")]
        number = {label: i for i, label in enumerate(["empty", *labels])}
        categories = json.dumps([{"id": i, "name": label} for label, i in number.items()], ensure_ascii=False)
        with path.open("w", encoding="utf-8") as f:
            f.write('{"images": [\n')
            write_joined(f.write, self._image_rows())
            f.write('\n], "annotations": [\n')
            write_joined(f.write, self._annotation_rows(number))
            f.write(f'\n], "categories": {categories}, "info": {{"version": "1.0", "description": "Merged from exports of Animl"}}}}\n')

    def _image_rows(self) -> Iterator[str]:
        yield from (row for (row,) in self._db.execute("SELECT row FROM images ORDER BY id"))
        yield from (row for (row,) in self._db.execute("SELECT row FROM odd WHERE part = 'images' ORDER BY label, row"))

    def _annotation_rows(self, number: dict[str, int]) -> Iterator[str]:
        for label, row in self._db.execute("SELECT label, row FROM annotations ORDER BY id"):
            yield f'{row[:-1]},"category_id":{number[label]}}}'
        for label, row in self._db.execute("SELECT label, row FROM odd WHERE part = 'annotations' ORDER BY label, row"):
            yield f'{row[:-1]},"category_id":{number.get(label, "null")}}}' if row.startswith('{"') else row


def _by_image(rows: list[Any]) -> tuple[dict[str, list[Row]], list[Any]]:
    """Image id → its annotations, and the records that name no image."""
    found: dict[str, list[Row]] = {}
    odd = []
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("image_id"), str):
            found.setdefault(row["image_id"], []).append(row)
        else:
            odd.append(row)
    return found, odd


def _category_id(row: Row) -> Any:
    value = row.get("category_id")
    return value if isinstance(value, (int, str)) else None


def _without_category(row: Row) -> Row:
    return {k: v for k, v in row.items() if k != "category_id"}

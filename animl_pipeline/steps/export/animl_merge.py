"""Many answers as one export: later answers win, names instead of category ids, nothing held in memory.

A table on the disk holds one row an image and one an object. An image that a later answer holds takes all its objects from
there, so that an object that was deleted meanwhile is gone.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from animl_pipeline.steps.export.columns import text

Row = dict[str, Any]

SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -131072;
CREATE TABLE images (id TEXT PRIMARY KEY, row TEXT);
CREATE TABLE objects (id TEXT PRIMARY KEY, image TEXT, name TEXT, row TEXT);
CREATE INDEX objects_of ON objects (image);
CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE odd (part TEXT, name TEXT, row TEXT, PRIMARY KEY (part, name, row)) WITHOUT ROWID;
"""


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class Merge:
    """An export in the making, in a file that is scratch."""

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

    def add(self, cct: dict[str, Any], holds: Callable[[str], bool] = lambda taken: True) -> int:
        """Lay an answer over what is there; how many images changed comes back.

        Args:
            cct: COCO for Camera Traps.
            holds: tells by an image's capture time whether it counts.
        """
        names = {c.get("id"): text(c.get("name")) for c in cct["categories"] if isinstance(c, dict) and isinstance(c.get("id"), (int, str))}
        objects, strays = _by_image(cct["annotations"])
        changed = 0
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR IGNORE INTO names VALUES (?)", [(n,) for n in names.values() if n])
        seen: set[str] = set()
        for image in cct["images"]:
            if not isinstance(image, dict) or not isinstance(image.get("id"), str) or image["id"] in seen:
                self._keep_odd("images", "", image)
            elif holds(str(image.get("datetime"))):
                seen.add(image["id"])
                changed += self._lay(image, objects.pop(image["id"], []), names)
            else:
                objects.pop(image["id"], None)
        for row in [*strays, *(row for rows in objects.values() for row in rows)]:
            self._keep_odd("annotations", names.get(_category(row), "") if isinstance(row, dict) else "", row)
        self._db.execute("COMMIT")
        return changed

    def _lay(self, image: Row, objects: list[Row], names: dict[Any, str]) -> bool:
        """Put an image and its objects where an earlier answer's may be; whether that changed anything."""
        new = {}
        for row in objects:
            name = names.get(_category(row), "")
            if not isinstance(row.get("id"), str) or row["id"] in new or not name:
                self._keep_odd("annotations", name, row)
            else:
                new[row["id"]] = (row["id"], image["id"], name, _plain({k: v for k, v in row.items() if k != "category_id"}))
        after = sorted(new.values())
        before = self._db.execute("SELECT row FROM images WHERE id = ?", (image["id"],)).fetchone()
        if before == (_plain(image),):
            rows = self._db.execute("SELECT id, image, name, row FROM objects WHERE image = ? ORDER BY id", (image["id"],)).fetchall()
            if rows == after:
                return False
        if before is not None:
            self._db.execute("DELETE FROM objects WHERE image = ?", (image["id"],))
        self._db.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", (image["id"], _plain(image)))
        self._db.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", after)
        return True

    def _keep_odd(self, part: str, name: str, row: Any) -> None:
        """Keep a record that cannot be merged as it is: what is wrong with it is said, and counted, when tables are made."""
        if isinstance(row, dict) and part == "annotations":
            row = {k: v for k, v in row.items() if k != "category_id"}
        self._db.execute("INSERT OR IGNORE INTO odd VALUES (?, ?, ?)", (part, name, _plain(row)))

    def digest(self) -> str:
        """The sha256 of what the answers amount to."""
        hashed = hashlib.sha256()
        for query in ("SELECT row FROM images ORDER BY id", "SELECT name || row FROM objects ORDER BY id", "SELECT name FROM names ORDER BY name"):
            for (row,) in self._db.execute(query):
                hashed.update(row.encode() + b"\n")
        return hashed.hexdigest()

    def images(self) -> set[str]:
        """The ids of all images."""
        return {image for (image,) in self._db.execute("SELECT id FROM images")}

    def write(self, path: Path) -> None:
        """Write one COCO for Camera Traps file, its records in the order of their ids; "empty" is category 0, the others follow by name."""
        names = [n for (n,) in self._db.execute("SELECT name FROM names WHERE name != 'empty' ORDER BY name")]
        number = {name: i for i, name in enumerate(["empty", *names])}
        categories = json.dumps([{"id": i, "name": n} for n, i in number.items()], ensure_ascii=False)
        with path.open("w", encoding="utf-8") as f:
            f.write('{"images": [\n')
            _write_joined(f.write, self._rows("images"))
            f.write('\n], "annotations": [\n')
            _write_joined(f.write, self._annotations(number))
            f.write(f'\n], "categories": {categories}, "info": {{"version": "1.0", "description": "Merged from exports of Animl"}}}}\n')

    def _rows(self, part: str) -> Iterator[str]:
        yield from (row for (row,) in self._db.execute("SELECT row FROM images ORDER BY id"))
        yield from (row for (row,) in self._db.execute("SELECT row FROM odd WHERE part = ? ORDER BY name, row", (part,)))

    def _annotations(self, number: dict[str, int]) -> Iterator[str]:
        query = "SELECT name, row FROM objects ORDER BY id"
        for name, row in self._db.execute(query):
            yield f'{row[:-1]},"category_id":{number[name]}}}'
        for name, row in self._db.execute("SELECT name, row FROM odd WHERE part = 'annotations' ORDER BY name, row"):
            yield f'{row[:-1]},"category_id":{number.get(name, "null")}}}' if row.startswith('{"') else row


def _by_image(rows: list[Any]) -> tuple[dict[str, list[Row]], list[Any]]:
    """The annotations of each image, and what is no annotation."""
    found: dict[str, list[Row]] = {}
    strays = []
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("image_id"), str):
            found.setdefault(row["image_id"], []).append(row)
        else:
            strays.append(row)
    return found, strays


def _category(row: Row) -> Any:
    value = row.get("category_id")
    return value if isinstance(value, (int, str)) else None


def _plain(row: Any) -> str:
    return _ENCODER.encode(row)


def _write_joined(write: Callable[[str], Any], rows: Iterator[str]) -> None:
    for i, row in enumerate(rows):
        write(row if i == 0 else f",\n{row}")

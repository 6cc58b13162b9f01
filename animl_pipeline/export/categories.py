"""What the categories of an export are called. One number must mean one name: a wrong one would make wrong labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unicodedata import normalize

from animl_pipeline.export.problems import Problems
from animl_pipeline.export.values import text


class Categories:
    """The categories seen so far. Ids are compared as texts: some tools write 7 here and "7" there. Names are in Unicode's form NFC."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._unclear: dict[str, str] = {}
        self._malformed: list[str] = []

    def add(self, rows: list[Any]) -> None:
        """Take in the next records."""
        for row in rows:
            number, name = (category_key(row.get("id")), normalize("NFC", text(row.get("name")))) if isinstance(row, dict) else ("", "")
            if not number or not name:
                self._malformed.append(text(row)[:80])
            elif (known := self._names.setdefault(number, name)) != name:
                self._unclear[number] = f"the id of {known!r} and of {name!r}; what has it is left out"[:160]

    def names(self, problems: Problems) -> Callable[[Any], str]:
        """What tells the name of an annotation's category, "" where it has none; ``problems`` takes in what is wrong."""
        problems.add("malformed_category", [""] * len(self._malformed), self._malformed)
        problems.add("ambiguous_category", list(self._unclear), list(self._unclear.values()))
        return lambda category: "" if (key := category_key(category)) in self._unclear else self._names.get(key, "")


def category_key(category: Any) -> str:
    """A category's id as text, "" for what cannot be one."""
    return "" if isinstance(category, (bool, list, dict)) else text(category)

"""What the categories of an export are called. One number must mean one name: a wrong one would make wrong labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from unicodedata import normalize

import pyarrow as pa

from animl_pipeline.steps.export.columns import text


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


Problem = tuple[str, str, str]
"""Its kind, the record that it concerns, and a detail for a person."""
LOSES = frozenset(
    "image_without_id duplicate_image unsafe_path unknown_image unknown_category duplicate_object malformed_object box_empty box_outside "
    "not_a_picture name_not_utf8 link_to_a_folder not_in_a_class_folder picture_elsewhere failed_picture "
    "unclassified camera_setup superseded_by_people same_label_again "
    "of_a_picture_left_out event_without_pictures event_told_by_its_pictures event_with_several_kinds".split()
)
"""Problems for which a record is left out; with the others it is kept and noted."""


class Problems:
    """The problems found so far."""

    def __init__(self, known: Iterable[Problem] = ()) -> None:
        self._parts: list[pa.Table] = []
        self._counts: dict[str, int] = {}
        kinds: dict[str, tuple[list[str], list[str]]] = {}
        for problem, subject, detail in known:
            subjects, details = kinds.setdefault(problem, ([], []))
            subjects.append(subject)
            details.append(detail)
        for problem, (subjects, details) in kinds.items():
            self.add(problem, subjects, details)

    def add(self, problem: str, subjects: list[str], detail: str | list[str]) -> None:
        """List a problem of some records; one detail for all of them, or one for each."""
        if not subjects:
            return
        details = [detail] * len(subjects) if isinstance(detail, str) else detail
        columns = {"problem": [problem] * len(subjects), "subject": subjects, "detail": details}
        self._parts.append(pa.table(columns, schema=SCHEMA))
        self._counts[problem] = self._counts.get(problem, 0) + len(subjects)

    def dropped(self) -> dict[str, int]:
        """How many records were left out, by kind."""
        return {p: n for p, n in self._counts.items() if p in LOSES}

    def noted(self) -> dict[str, int]:
        """How many records are odd and kept, by kind."""
        return {p: n for p, n in self._counts.items() if p not in LOSES}

    def most(self) -> list[tuple[str, int]]:
        """All kinds with their numbers, the most frequent first."""
        return sorted(self._counts.items(), key=lambda item: -item[1])

    def table(self) -> pa.Table:
        """``problem, subject, detail``, a row a problem."""
        return pa.concat_tables([SCHEMA.empty_table(), *self._parts])


SCHEMA = pa.schema([(c, pa.string()) for c in ("problem", "subject", "detail")])

"""What is wrong with an export: listed record by record, counted by kind."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

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

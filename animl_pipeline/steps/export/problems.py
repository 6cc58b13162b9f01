"""The problems of an export's records, counted by reason and listed record by record for problems.parquet."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.table_schemas import EXPORT_PROBLEMS
from animl_pipeline.steps.export.columns_from_json import to_text
from animl_pipeline.storage.store import Store

DROPPED = frozenset(
    "image_without_id ambiguous_image_id label_of_ambiguous_image duplicate_image unsafe_path unknown_image unknown_category "
    "duplicate_annotation malformed_annotation "
    "not_an_image name_not_utf8 link_to_a_folder not_in_a_class_folder image_elsewhere failed_image unclassified camera_setup "
    "superseded_by_people repeated_label label_of_dropped_image event_without_images event_images_already_labelled "
    "event_without_time event_with_several_labels image_in_events_of_several_labels".split()
)
"""Reasons for which a record is dropped. For all other reasons it is kept and the problem is noted."""
Texts: TypeAlias = list[str] | pa.Array | pa.ChunkedArray
MERGED = "merged_location"
SHOWN = 20
"""At most so many merged locations are described one by one."""
MAX_TEXT = 500
"""Longer text from an export is cut in the table."""


class Problems:
    """The problems found so far."""

    def __init__(self) -> None:
        self._single: dict[str, tuple[list[str], list[str]]] = {}
        self._tables: list[pa.Table] = []
        self._counts: Counter[str] = Counter()

    def add(self, reason: str, subject: str, detail: str) -> None:
        """List a problem of one record. ``subject`` names the record, ``detail`` says what was found."""
        subjects, details = self._single.setdefault(reason, ([], []))
        subjects.append(to_text(subject[:MAX_TEXT]))
        details.append(to_text(detail[:MAX_TEXT]))
        self._counts[reason] += 1

    def add_many(self, reason: str, subjects: Texts, details: Texts) -> None:
        """List the same problem of many records, at once for speed and memory."""
        if len(subjects):
            self._tables.append(_table(reason, subjects, details))
            self._counts[reason] += len(subjects)

    def dropped(self) -> dict[str, int]:
        """Reason → number of records that were dropped."""
        return {reason: n for reason, n in self._counts.items() if reason in DROPPED}

    def notes(self) -> dict[str, int]:
        """Reason → number of records that are odd and were kept."""
        return {reason: n for reason, n in self._counts.items() if reason not in DROPPED}

    def summary(self) -> str:
        """All reasons with their numbers, the most frequent first, for a message."""
        return ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in self._counts.most_common())

    def table(self) -> pa.Table:
        """One row for each problem: problem, subject, detail."""
        single = [_table(reason, *texts) for reason, texts in self._single.items()]
        return pa.concat_tables([EXPORT_PROBLEMS.schema().empty_table(), *single, *self._tables])


def describe_locations(source: str, export: Artifact, store: Store) -> list[str]:
    """A line for each thing to know of a source's locations: which names were merged, and what has no location."""
    table = store.arrow_table(export, EXPORT_PROBLEMS)
    merged = table.filter(pc.equal(table["problem"], MERGED))
    lines = [f"{source}: {name} {detail}" for name, detail in zip(merged["subject"].to_pylist(), merged["detail"].to_pylist(), strict=True)]
    if len(lines) > SHOWN:
        lines = [*lines[:SHOWN], f"{source}: {len(merged):,} names of locations were merged in all"]
    texts = {
        "placeholder_location": "images have a placeholder, such as unknown or NA, in place of a location; their location is unknown",
        "deployment_without_location": "deployments have no locationID, locationName or coordinates; the location of their images is unknown",
        "coordinates_too_coarse_to_merge": "deployments have coordinates too coarse to merge locations by; they keep the names that they have",
    }
    return lines + [f"{source}: {n:,} {text}" for reason, text in texts.items() if (n := export.counts.notes.get(reason, 0))]


def _table(reason: str, subjects: Texts, details: Texts) -> pa.Table:
    return pa.table({"problem": [reason] * len(subjects), "subject": subjects, "detail": details}, schema=EXPORT_PROBLEMS.schema())

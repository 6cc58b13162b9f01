"""Read the plan's taxonomy table, which says to which taxa a label belongs.

Two formats are read: LILA's taxonomy mapping (CSV), and the categories of an MLModel document of Animl (JSON).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from animl_pipeline.config import LabelsConfig, TaxonomyConfig
from animl_pipeline.config.labels import Level
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import LabelsError, TaxonomyUnreachableError, redact_url
from animl_pipeline.core.location_names import tidy_name
from animl_pipeline.storage.read_remote_files import RemoteError, read_path_or_url

LEVELS: tuple[str, ...] = get_args(Level)
"""From the widest to the narrowest."""
LINNAEAN = ("class", "order", "family", "genus", "species")
"""The levels of a taxonomy text in an MLModel document, as SpeciesNet writes it, with or without an id before and a common name after."""

Lineage = dict[str, str]
"""Level → taxon, in lower case."""
Row = tuple[str, str, Lineage]
"""Data set ("" for none), label, lineage."""


class Taxonomy(NamedTuple):
    """A taxonomy table.

    Attributes:
        lineages: data set → label → lineages, all in lower case. The data set is "" where the table names none.
        digest: sha256 of the table.
        datasets: source → its data set of the table, by the plan.
    """

    lineages: dict[str, dict[str, list[Lineage]]]
    digest: str
    datasets: dict[str, str]

    def labels(self, source: str) -> dict[str, list[Lineage]]:
        """Label → its lineages for a source: several where data sets differ about a label."""
        chosen = self.datasets.get(source)
        found: dict[str, list[Lineage]] = {}
        for dataset, labels in self.lineages.items():
            if chosen is None or dataset == chosen.casefold():
                for label, lineages in labels.items():
                    known = found.setdefault(label, [])
                    known += [lineage for lineage in lineages if lineage not in known]
        return found


def read_taxonomy(config: LabelsConfig, settings: Settings) -> Taxonomy:
    """The taxonomy that a plan names; an empty one if it names none.

    Raises:
        TaxonomyUnreachableError: the table's host does not answer.
        LabelsError: the table does not exist, has another format, or lacks a data set that the plan names.
    """
    if config.taxonomy is None:
        return Taxonomy({}, "", {})
    table = config.taxonomy.table
    where = f"labels.taxonomy.table {redact_url(table)}"
    try:
        data = read_path_or_url(table, settings)
        text = data.decode("utf-8-sig")
    except RemoteError as e:
        kind = TaxonomyUnreachableError if e.retryable else LabelsError
        raise kind(f"{where}: expected a taxonomy, found none: {e}; correct labels.taxonomy.table in the plan", code="no_taxonomy") from e
    except UnicodeDecodeError as e:
        raise LabelsError(f"{where}: expected UTF-8 text, found other bytes; use LILA's CSV or an MLModel document, not compressed") from e
    rows = _read_mlmodels(text, where) if text.lstrip()[:1] in {"{", "["} else _read_lila(text, where)
    lineages: dict[str, dict[str, list[Lineage]]] = {}
    for dataset, label, lineage in rows:
        known = lineages.setdefault(dataset.casefold(), {}).setdefault(tidy_name(label).casefold(), [])
        if lineage not in known:
            known.append(lineage)
    _check_datasets(config.taxonomy, lineages, where)
    return Taxonomy(lineages, hashlib.sha256(data).hexdigest(), config.taxonomy.datasets)


def _check_datasets(config: TaxonomyConfig, lineages: dict[str, Any], where: str) -> None:
    for source, dataset in config.datasets.items():
        if dataset.casefold() not in lineages:
            known = ", ".join(sorted(lineages)[:12]) or "none"
            raise LabelsError(f"{where} has no data set {dataset!r} (labels.taxonomy.datasets.{source}); it has: {known}", code="unknown_dataset")


def _read_lila(text: str, where: str) -> Iterator[Row]:
    """Rows of LILA's taxonomy mapping: the column ``query`` is the label in a data set, and each level has a column."""
    try:
        yield from _lila_rows(csv.DictReader(io.StringIO(text, newline=""), strict=True), where)
    except csv.Error as e:  # such as a quotation mark that is never closed
        raise LabelsError(f"{where} is not a readable CSV file ({e}); download it again", code="not_csv") from e


def _lila_rows(table: csv.DictReader[str], where: str) -> Iterator[Row]:
    columns = set(table.fieldnames or ())
    if "query" not in columns or not columns & set(LEVELS):
        found = ", ".join(sorted(map(str, columns)))[:200] or "none"
        raise LabelsError(
            f"{where}: expected LILA's taxonomy mapping with the columns query, {', '.join(LINNAEAN)}, found {found}", code="unknown_columns"
        )
    for row in table:
        lineage = {level: taxon for level in LEVELS if (taxon := (row.get(level) or "").strip().casefold())}
        if row["query"] and lineage:
            yield row.get("dataset_name") or "", row["query"].strip(), lineage


def _read_mlmodels(text: str, where: str) -> Iterator[Row]:
    """The categories of one MLModel document or of a list of documents; categories without a taxonomy are skipped."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise LabelsError(f"{where} is not JSON ({e}); use LILA's CSV or an MLModel document", code="not_json") from e
    documents = content if isinstance(content, list) else [content]
    categories = [c for d in documents if isinstance(d, dict) and isinstance(d.get("categories"), list) for c in d["categories"]]
    if not categories:
        raise LabelsError(f"{where}: expected an MLModel document with categories, found none", code="no_categories")
    for category in categories:
        lineage = parse_lineage(category.get("taxonomy")) if isinstance(category, dict) else {}
        if lineage:
            yield "", str(category.get("name") or ""), lineage


def parse_lineage(taxonomy: Any) -> Lineage:
    """The levels of "class;order;family;genus;species", perhaps with an id before and a common name after."""
    parts = [p.strip().casefold() for p in taxonomy.split(";")] if isinstance(taxonomy, str) else []
    if len(parts) == len(LINNAEAN) + 2:
        parts = parts[1:-1]
    if len(parts) != len(LINNAEAN):
        return {}
    lineage = {level: taxon for level, taxon in zip(LINNAEAN, parts, strict=True) if taxon}
    if "species" in lineage and "genus" in lineage and " " not in lineage["species"]:
        lineage["species"] = f"{lineage['genus']} {lineage['species']}"  # as plans and LILA write a species
    return lineage

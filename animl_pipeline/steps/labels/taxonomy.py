"""Which name belongs to which taxa: LILA's taxonomy mapping, or the categories of an MLModel document of Animl."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args
from unicodedata import normalize

from animl_pipeline.config import LabelsConfig, TaxonomyConfig
from animl_pipeline.config.labels import Level
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import LabelsError, redact_url
from animl_pipeline.storage.remote_files import RemoteError, read_path_or_url

LEVELS: tuple[str, ...] = get_args(Level)
"""From the widest to the narrowest."""
LINNAEAN = ("class", "order", "family", "genus", "species")
"""The levels of a taxonomy text in an MLModel document, as SpeciesNet writes them, with or without an id before and a common name after."""

Lineage = dict[str, str]
"""Level → taxon, in lower case."""


class Taxonomy(NamedTuple):
    """Lineages by data set ("" where the table knows none) and name in lower case, and the digest of the table."""

    lineages: dict[str, dict[str, list[Lineage]]]
    digest: str
    datasets: dict[str, str]

    def names(self, source: str) -> dict[str, list[Lineage]]:
        """A source's names with their lineages: one, or several where data sets differ about a name."""
        chosen = self.datasets.get(source)
        found: dict[str, list[Lineage]] = {}
        for dataset, names in self.lineages.items():
            if chosen is None or dataset == chosen.casefold():
                for name, lineages in names.items():
                    known = found.setdefault(name, [])
                    known += [lineage for lineage in lineages if lineage not in known]
        return found


NOTHING = Taxonomy({}, "", {})


def read_taxonomy(spec: LabelsConfig, settings: Settings) -> Taxonomy:
    """The taxonomy that a plan names; an empty one where it names none.

    Raises:
        LabelsError: the table is not there, is neither of the two, or lacks a data set that the plan names.
    """
    plan = spec.taxonomy
    if plan is None:
        return NOTHING
    where = f"labels.taxonomy.table {redact_url(plan.table)}"
    try:
        data = read_path_or_url(plan.table, settings)
        text = data.decode("utf-8-sig")
    except RemoteError as e:
        raise LabelsError(f"{where}: expected a taxonomy, found none: {e}; mend labels.taxonomy.table in the plan") from e
    except UnicodeDecodeError as e:
        raise LabelsError(f"{where}: expected text (UTF-8), found other bytes; name LILA's CSV or an MLModel document, unpacked") from e
    rows = _of_documents(text, where) if text.lstrip()[:1] in {"{", "["} else _of_lila(text, where)
    lineages: dict[str, dict[str, list[Lineage]]] = {}
    for dataset, name, lineage in rows:
        known = lineages.setdefault(dataset.casefold(), {}).setdefault(normalize("NFC", name).casefold(), [])
        if lineage not in known:
            known.append(lineage)
    _check_datasets(plan, lineages, where)
    return Taxonomy(lineages, hashlib.sha256(data).hexdigest(), plan.datasets)


def _check_datasets(plan: TaxonomyConfig, lineages: dict[str, Any], where: str) -> None:
    for source, dataset in plan.datasets.items():
        if dataset.casefold() not in lineages:
            known = ", ".join(sorted(lineages)[:12]) or "none"
            raise LabelsError(f"{where} has no data set {dataset!r} (labels.taxonomy.datasets.{source}); it has: {known}")


Row = tuple[str, str, Lineage]
"""Data set, name, and the name's lineage."""


def _of_lila(text: str, where: str) -> Iterator[Row]:
    """Rows of LILA's taxonomy mapping: a name as `dataset_name` has it is a `query`, and each level a column."""
    try:
        yield from _lila_rows(csv.DictReader(io.StringIO(text, newline=""), strict=True), where)
    except csv.Error as e:  # such as a quotation mark that is never closed, which would swallow the rest
        raise LabelsError(f"{where} is no CSV that can be read ({e}); fetch it again") from e


def _lila_rows(table: csv.DictReader[str], where: str) -> Iterator[Row]:
    columns = set(table.fieldnames or ())
    if "query" not in columns or not columns & set(LEVELS):
        raise LabelsError(
            f"{where}: expected LILA's taxonomy mapping with the columns query, {', '.join(LINNAEAN)}, "
            f"found {', '.join(sorted(map(str, columns)))[:200] or 'none'}"
        )
    for row in table:
        lineage = {level: taxon for level in LEVELS if (taxon := (row.get(level) or "").strip().casefold())}
        if row["query"] and lineage:
            yield row.get("dataset_name") or "", row["query"].strip(), lineage


def _of_documents(text: str, where: str) -> Iterator[Row]:
    """Categories of one MLModel document or of a list of them; those without a taxonomy are no rows."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise LabelsError(f"{where} is not JSON ({e}); name LILA's CSV or an MLModel document") from e
    documents = found if isinstance(found, list) else [found]
    categories = [c for d in documents if isinstance(d, dict) and isinstance(d.get("categories"), list) for c in d["categories"]]
    if not categories:
        raise LabelsError(f"{where}: expected an MLModel document with categories, found none")
    for category in categories:
        lineage = _lineage(category.get("taxonomy")) if isinstance(category, dict) else {}
        if lineage:
            yield "", str(category.get("name") or ""), lineage


def _lineage(taxonomy: Any) -> Lineage:
    """The levels of "class;order;family;genus;species", perhaps with an id before and a common name after."""
    parts = [p.strip().casefold() for p in taxonomy.split(";")] if isinstance(taxonomy, str) else []
    if len(parts) == len(LINNAEAN) + 2:
        parts = parts[1:-1]
    if len(parts) != len(LINNAEAN):
        return {}
    lineage = {level: taxon for level, taxon in zip(LINNAEAN, parts, strict=True) if taxon}
    if "species" in lineage and "genus" in lineage and " " not in lineage["species"]:
        lineage["species"] = f"{lineage['genus']} {lineage['species']}"  # as the plan and LILA write a species
    return lineage

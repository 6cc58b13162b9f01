"""The taxon of each class by the plan's taxonomy table, as Animl's MLModel document writes it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from animl_pipeline.config import LabelsConfig, TaxonConfig
from animl_pipeline.config.labels import ALL_SOURCES, ClassConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.steps.labels.read_taxonomy import LEVELS, LINNAEAN, Lineage, Taxonomy, parse_lineage, read_taxonomy

log = logging.getLogger(__name__)


def class_taxa(config: LabelsConfig, sources: Sequence[str], settings: Settings) -> dict[str, str]:
    """Class id → "class;order;family;genus;species" of the narrowest taxon that holds all of its labels and taxa; the narrower parts are empty.

    The plan's parents follow, each with the narrowest taxon that holds all of its children. A class is left out if the table lacks one of its
    labels, because its taxon may be wider, or if it has no common taxon.

    Raises:
        TaxonomyUnreachableError: the table's host does not answer.
        LabelsError: the table cannot be read.
    """
    taxonomy = read_taxonomy(config, settings)
    found = {}
    members = {class_id: (class_id,) for class_id in config.classes} | config.parents
    for class_id, children in members.items() if config.taxonomy else ():
        of_children = [_lineages(config.classes[c], sources, taxonomy) for c in children]
        lineages, missing = ([item for part in parts for item in part] for parts in zip(*of_children, strict=True))
        if missing:
            log.info("the class %s gets no taxonomy, because the table lacks its labels %s", class_id, ", ".join(missing))
        elif text := _write(_common(lineages)):
            found[class_id] = text
    return found


def _lineages(rule: ClassConfig, sources: Sequence[str], taxonomy: Taxonomy) -> tuple[list[Lineage], list[str]]:
    """The lineages of a class's labels and taxa; and its labels and taxa that the table lacks."""
    lineages, missing = [], []
    for source, labels in rule.from_.items():
        named = {source} if source != ALL_SOURCES else set(sources)
        tables = [taxonomy.labels(name) for name in sorted(named)]
        for label in labels:
            own = parse_lineage(label)
            known = [own] if own else [lineage for table in tables for lineage in table.get(label.casefold(), ())]
            lineages += known
            missing += [] if known else [label]
    everything = [lineage for table in taxonomy.lineages.values() for of_label in table.values() for lineage in of_label]
    for taxon in rule.taxa:
        members = [_up_to(lineage, taxon) for lineage in everything if lineage.get(taxon.level) == taxon.name.casefold()]
        lineages += members
        missing += [] if members else [taxon.name]
    return lineages, missing


def _up_to(lineage: Lineage, taxon: TaxonConfig) -> Lineage:
    """The levels of a lineage down to the taxon's."""
    wider = LEVELS[: LEVELS.index(taxon.level) + 1]
    return {level: name for level, name in lineage.items() if level in wider}


def _common(lineages: Iterable[Lineage]) -> list[str]:
    """The names of ``LINNAEAN`` levels, from the widest down, as far as all lineages have the same."""
    names: list[str] = []
    lineages = list(lineages)
    for level in LINNAEAN:
        found = {lineage.get(level, "") for lineage in lineages}
        if len(found) != 1 or found == {""}:
            break
        names += found
    return names


def _write(names: list[str]) -> str:
    """The names in Animl's form, where a species is without its genus; "" for no names."""
    if len(names) == len(LINNAEAN):
        names = [*names[:-1], names[-1].removeprefix(f"{names[-2]} ")]
    return ";".join([*names, *[""] * (len(LINNAEAN) - len(names))]) if names else ""

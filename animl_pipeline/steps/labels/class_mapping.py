"""What each category name of a source means: a class, nothing on purpose, or no animal.

A name that the plan spells out counts before its taxa; of several taxa the narrowest counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from animl_pipeline.config import LabelsConfig, TaxonConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import LabelsError
from animl_pipeline.steps.labels.taxonomy import LEVELS, Lineage, Taxonomy, read_taxonomy

EMPTY, EXCLUDED = "empty", "excluded"
"""Meanings that are no class, also reasons for which an object is left out."""


class Meaning(NamedTuple):
    """What the names of one source mean, in lower case, and the conflicts that were settled by order."""

    classes: dict[str, str]
    others: dict[str, str]
    conflicts: tuple[str, ...]


def meaning_of(spec: LabelsConfig, source: str, taxonomy: Taxonomy) -> Meaning:
    """What the names of a source mean by a specification.

    Raises:
        LabelsError: a name has two meanings by its taxa, and the plan's word is that this is an error.
    """
    spelt: dict[str, tuple[bool, str]] = {name: (True, class_id) for name, class_id in spec.class_of(source).items()}
    for names, meaning in ((spec.empty, EMPTY), (spec.exclude, EXCLUDED)):
        for name in names:
            spelt.setdefault(name.casefold(), (False, meaning))
    conflicts = list(spec.conflicting())
    for name, lineages in taxonomy.names(source).items():
        if name not in spelt:
            found, conflict = _by_taxa(name, lineages, spec)
            conflicts += [conflict] if conflict else []
            if found is not None:
                spelt[name] = found
    if conflicts and spec.conflicts == "error":
        raise LabelsError(
            f"source {source!r}: {conflicts[0]}; spell the name out in one class or in labels.exclude, "
            "or say `conflicts: warn` to let the first count"
        )
    return Meaning(
        {name: m for name, (is_class, m) in spelt.items() if is_class},
        {name: m for name, (is_class, m) in spelt.items() if not is_class},
        tuple(conflicts),
    )


def wanted_names(spec: LabelsConfig, source: str, settings: Settings) -> tuple[str, ...]:
    """The category names of a source whose pictures are needed, case-folded and sorted.

    Raises:
        LabelsError: the plan's taxonomy cannot be read, or a name has two meanings by it.
    """
    return tuple(sorted(meaning_of(spec, source, read_taxonomy(spec, settings)).classes))


def _by_taxa(name: str, lineages: Iterable[Lineage], spec: LabelsConfig) -> tuple[tuple[bool, str] | None, str]:
    """What a name means by its taxa, if anything; and what is contradictory about that, in words."""
    found: list[tuple[bool, str] | None] = []
    for lineage in lineages:
        claims = [(depth, True, c) for c, rule in spec.classes.items() if name not in _folded(rule.exclude) and (depth := _claim(lineage, c, spec))]
        claims += [(depth, False, EXCLUDED)] if (depth := _depth(lineage, spec.exclude_taxa)) else []
        narrowest = [claim[1:] for claim in claims if claim[0] == max(claims)[0]]
        if len(narrowest) > 1:
            meanings = " and ".join(f"'classes.{m}'" if is_class else "'exclude_taxa'" for is_class, m in narrowest[:2])
            return narrowest[0], f"the name {name!r} is by its {LEVELS[max(claims)[0] - 1]} in {meanings}"
        found.append(narrowest[0] if narrowest else None)
    if any(f != found[0] for f in found):
        settled = next(f for f in found if f is not None)
        return (
            settled,
            f"the name {name!r} has several lineages in the taxonomy, with different meanings; say in labels.taxonomy.datasets which counts",
        )
    return found[0], ""


def _claim(lineage: Lineage, class_id: str, spec: LabelsConfig) -> int:
    rule = spec.classes[class_id]
    depth = _depth(lineage, rule.taxa)
    return depth if depth > _depth(lineage, rule.exclude_taxa) else 0


def _depth(lineage: Lineage, taxa: Iterable[TaxonConfig]) -> int:
    """How narrow the narrowest of some taxa is that a lineage belongs to; 0 where it belongs to none."""
    return max((LEVELS.index(t.level) + 1 for t in taxa if lineage.get(t.level) == t.name.casefold()), default=0)


def _folded(names: Iterable[str]) -> set[str]:
    return {name.casefold() for name in names}

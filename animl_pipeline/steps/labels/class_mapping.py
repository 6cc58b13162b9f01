"""Map each label of a source to a class, to "empty" or "excluded", or to nothing.

A label that the plan writes out counts before its taxa. Of several taxa, the narrowest counts. The same for names of another model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from animl_pipeline.config import LabelsConfig, TaxonConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.category_names import label_forms, role
from animl_pipeline.core.errors import LabelsError
from animl_pipeline.core.sample_limit_and_false_box_types import WantedSample
from animl_pipeline.steps.labels.read_taxonomy import LEVELS, Lineage, Taxonomy, parse_lineage, read_taxonomy

EMPTY, EXCLUDED = "empty", "excluded"
"""Meanings that are not a class. They are also the reasons for which an annotation is left out."""
NO_ANIMAL = ""
"""The meaning of a name that is no animal of the plan, and that is not missing from it: a person, an empty image, an excluded label."""


class Meaning(NamedTuple):
    """What a label means: a class id, or else ``EMPTY`` or ``EXCLUDED``."""

    is_class: bool
    name: str


class ClassMapping(NamedTuple):
    """What the labels of one source mean. Labels are in lower case.

    Attributes:
        classes: label → class id.
        others: label → ``EMPTY`` or ``EXCLUDED``.
        conflicts: a line for each label with two meanings, of which the first counts.
    """

    classes: dict[str, str]
    others: dict[str, str]
    conflicts: tuple[str, ...]


def map_labels(config: LabelsConfig, source: str, taxonomy: Taxonomy) -> ClassMapping:
    """What the labels of a source mean.

    Raises:
        LabelsError: a label has two meanings, and the plan says ``on_conflict: error``.
    """
    meanings = {label: Meaning(True, class_id) for label, class_id in class_by_label(config, source).items()}
    for labels, meaning in ((config.empty, EMPTY), (config.exclude, EXCLUDED)):
        for label in labels:
            meanings.setdefault(label.casefold(), Meaning(False, meaning))
    conflicts = list(config.conflicts())
    for label, lineages in taxonomy.labels(source).items():
        if label not in meanings:
            found, conflict = meaning_by_taxa(label, lineages, config)
            conflicts += [conflict] if conflict else []
            if found is not None:
                meanings[label] = found
    if conflicts and config.on_conflict == "error":
        raise LabelsError(
            f"source {source!r}: {conflicts[0]}; write the label in one class or in labels.exclude, or set `on_conflict: warn` to use the first",
            code="conflict",
        )
    return ClassMapping(
        {label: m.name for label, m in meanings.items() if m.is_class},
        {label: m.name for label, m in meanings.items() if not m.is_class},
        tuple(conflicts),
    )


def order_of_classes(config: LabelsConfig) -> dict[str, list[str]]:
    """What the order of the classes adds to the key of a step that maps labels: a key's digest does not depend on the order of a mapping, but
    with ``on_conflict: warn`` a label of two classes means the first.
    """
    return {"class_order": list(config.classes)} if config.on_conflict == "warn" else {}


def class_by_label(config: LabelsConfig, source: str | None = None) -> dict[str, str]:
    """Label in lower case → class id, in a source (without one: in any), without taxa. The first class counts."""
    found: dict[str, str] = {}
    for class_id, rule in config.classes.items():
        for label in rule.labels(source):
            found.setdefault(label.casefold(), class_id)
    return found


def wanted_labels(config: LabelsConfig, source: str, settings: Settings) -> tuple[str, ...]:
    """The labels of a source that become a class, in lower case and sorted. Their images are needed.

    Raises:
        LabelsError: the plan's taxonomy cannot be read, or a label has two meanings by it.
    """
    return tuple(sorted(map_labels(config, source, read_taxonomy(config, settings)).classes))


def wanted_samples(config: LabelsConfig, source: str, settings: Settings) -> tuple[WantedSample, ...]:
    """The images of a source that the classes for false boxes and for other animals need. Raises as :func:`wanted_labels`."""
    if config.nothing is None and config.other_animal is None:
        return ()
    found = map_labels(config, source, read_taxonomy(config, settings))
    samples = []
    if nothing := config.nothing:
        empty = tuple(sorted(label for label, meaning in found.others.items() if meaning == EMPTY))
        samples.append(WantedSample(empty, nothing.max_images, nothing.max_per_location))
    if other := config.other_animal:
        named = {*found.classes, *found.others, *(label.casefold() for label in other.exclude)}
        samples.append(WantedSample(tuple(sorted(named)), other.max_images, other.max_per_location, others=True))
    return tuple(samples)


def meaning_by_taxa(label: str, lineages: Iterable[Lineage], config: LabelsConfig) -> tuple[Meaning | None, str]:
    """What a label means by its taxa, None for nothing; and a line about a conflict, "" for none."""
    found: list[Meaning | None] = []
    for lineage in lineages:
        claims = [
            (rank, Meaning(True, class_id))
            for class_id, rule in config.classes.items()
            if label not in {excluded.casefold() for excluded in rule.exclude}
            and (rank := _rank(lineage, rule.taxa)) > _rank(lineage, rule.exclude_taxa)
        ]
        if rank := _rank(lineage, config.exclude_taxa):
            claims.append((rank, Meaning(False, EXCLUDED)))
        narrowest = max((rank for rank, _ in claims), default=0)
        meanings = [meaning for rank, meaning in claims if rank == narrowest]
        if len(meanings) > 1:
            keys = " and ".join(f"'classes.{m.name}'" if m.is_class else "'exclude_taxa'" for m in meanings[:2])
            return meanings[0], f"the {LEVELS[narrowest - 1]} of the label {label!r} is in {keys}"
        found.append(meanings[0] if meanings else None)
    if any(meaning != found[0] for meaning in found):
        first = next(meaning for meaning in found if meaning is not None)
        return first, f"the label {label!r} has several lineages in the taxonomy, with different meanings; choose one in labels.taxonomy.datasets"
    return found[0], ""


def _rank(lineage: Lineage, taxa: Iterable[TaxonConfig]) -> int:
    """The rank of the narrowest of these taxa that a lineage belongs to, from 1 (kingdom); 0 for none."""
    return max((LEVELS.index(t.level) + 1 for t in taxa if lineage.get(t.level) == t.name.casefold()), default=0)


def map_names(names: Iterable[tuple[str, ...]], config: LabelsConfig, settings: Settings) -> dict[tuple[str, ...], str | None]:
    """The class that each name means; ``NO_ANIMAL`` for a name that is no animal or that the plan excludes; None for a name that the plan lacks.

    A name is looked up among the labels of the classes (of any source), the class ids, and the labels of the plan's taxonomy. A name in
    seven parts, as SpeciesNet writes it, is looked up as a whole, by its common name, and by its taxa.

    ``names``: each with the forms in which the model writes it, the best known first.
    """
    taxonomy = read_taxonomy(config, settings)
    lenient = config.model_copy(update={"on_conflict": "warn"})
    mapped = map_labels(lenient, "", taxonomy)
    classes = {c.casefold(): c for c in config.classes} | mapped.classes | class_by_label(config)

    def meaning(forms: tuple[str, ...]) -> str | None:
        labels = [label for form in forms for label in label_forms(form)]
        for label in labels:
            if label in classes:
                return classes[label]
        if any(label in mapped.others for label in labels) or any(role(form) for form in forms):
            return NO_ANIMAL
        lineages = [lineage for form in forms if (lineage := parse_lineage(form))]
        found = meaning_by_taxa(labels[0], lineages[:1], lenient)[0] if lineages and labels else None
        if found is None:
            return None
        return found.name if found.is_class else NO_ANIMAL

    return {forms: meaning(forms) for forms in set(names)}

"""What the class names of another model mean in the plan: SpeciesNet's, DeepFaune's, or those of an older model of the project."""

from __future__ import annotations

from collections.abc import Iterable

from animl_pipeline.config import LabelsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.non_animal_names import label_forms, role
from animl_pipeline.steps.labels.class_mapping import class_by_label, map_labels, meaning_by_taxa
from animl_pipeline.steps.labels.read_taxonomy import parse_lineage, read_taxonomy

NO_ANIMAL = ""
"""The meaning of a name that is no animal of the plan, and that is not missing from it: a person, an empty image, an excluded label."""


def map_names(names: Iterable[tuple[str, ...]], config: LabelsConfig, settings: Settings) -> dict[tuple[str, ...], str | None]:
    """The class that each name means; ``NO_ANIMAL`` for a name that is no animal or that the plan excludes; None for a name that the plan lacks.

    A name is looked up among the labels of the classes (of any source), the class ids, and the labels of the plan's taxonomy. A name in
    seven parts, as SpeciesNet writes it, is looked up as a whole, by its common name, and by its taxa.

    Args:
        names: each with the forms in which the model writes it, the best known first.
        config: the plan's labels.
        settings: where the taxonomy's table is.
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

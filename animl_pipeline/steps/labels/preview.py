"""Count what a plan's labels would be, from the exports alone, before any image is downloaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from animl_pipeline.config import LabelsConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.steps.labels.choose_annotations import REASONS, UNLISTED, choose_annotations
from animl_pipeline.steps.labels.class_counts import ClassCounts, count_classes, count_codes, find_too_few
from animl_pipeline.steps.labels.class_mapping import map_labels
from animl_pipeline.steps.labels.read_annotations import SourceArtifacts, annotations_of, read_annotations
from animl_pipeline.steps.labels.read_taxonomy import read_taxonomy
from animl_pipeline.storage.store import Store


class LabelsPreview(Record):
    """The classes as they would be, and the number of annotations, images and locations in all.

    Attributes:
        dropped: reason → number of annotations.
        unlisted: label that the plan does not name → number of annotations, the most frequent first.
        conflicts: a line for each label with two meanings.
        too_few: a line for each class with fewer annotations or locations than expected.
        sequence_ids_at_several_locations: how many there are; they count within a location.
    """

    classes: tuple[ClassCounts, ...]
    annotations: int
    images: int
    locations: int
    dropped: dict[str, int]
    unlisted: dict[str, int]
    conflicts: tuple[str, ...]
    too_few: tuple[str, ...]
    sequence_ids_at_several_locations: int


def preview_labels(
    sources: Sequence[SourceConfig],
    config: LabelsConfig,
    exports: Mapping[str, Artifact],
    over_limit: Mapping[str, Collection[str]],
    store: Store,
    settings: Settings,
) -> LabelsPreview:
    """What the labels would be if every image could be downloaded.

    ``exports``: source → its export step. ``over_limit``: source → ids of the images that the source's limits leave out.

    Raises:
        LabelsError: the plan's taxonomy cannot be read, or a label has two meanings by it.
    """
    taxonomy = read_taxonomy(config, settings)
    mappings = {s.name: map_labels(config, s.name, taxonomy) for s in sources}
    annotations = read_annotations([SourceArtifacts(s, exports[s.name]) for s in sources], store)
    choice = choose_annotations(annotations, config, mappings, annotations_of(annotations, over_limit), np.zeros(len(annotations.image), bool))
    counts, kept, location = count_classes(annotations, choice, config), choice.kept(), annotations.location()
    unlisted = annotations.label[choice.reason == REASONS.index(UNLISTED)]
    return LabelsPreview(
        classes=tuple(counts),
        annotations=int(kept.sum()),
        images=len(np.unique(annotations.image[kept])),
        locations=len(np.unique(location[kept & (location >= 0)])),
        dropped=count_codes(choice.reason[~kept], REASONS),
        unlisted=count_codes(unlisted, annotations.labels),
        conflicts=tuple(dict.fromkeys(line for m in mappings.values() for line in m.conflicts)),
        too_few=tuple(find_too_few(counts, count_codes(annotations.label, annotations.labels), config)),
        sequence_ids_at_several_locations=annotations.sequence_ids_at_several_locations,
    )

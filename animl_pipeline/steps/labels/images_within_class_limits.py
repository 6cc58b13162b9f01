"""Which images the limits of the plan's classes can use, so that only these are downloaded.

The limits are applied to the export alone, and then once more to what is left, with a fifth of each limit: the reserve for images that
cannot be downloaded. The order of annotations is that of the step labels, which depends on their ids and the seed. So the step labels
chooses as if all images had been downloaded, and a choice changes only where a new annotation comes earlier in this order.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from animl_pipeline.config import LabelsConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.sample_limit_and_false_box_types import ClassLimits
from animl_pipeline.steps.labels.choose_annotations import OVER_CLASS_LIMIT, REASONS, choose_annotations
from animl_pipeline.steps.labels.class_mapping import map_labels
from animl_pipeline.steps.labels.read_annotations import SourceArtifacts, annotations_of, read_annotations
from animl_pipeline.steps.labels.read_taxonomy import read_taxonomy
from animl_pipeline.storage.store import Store

RESERVE = 0.2
"""Of each limit, rounded up: so many more annotations have their images downloaded."""


def limits_of_classes(source: SourceConfig, export: Artifact, config: LabelsConfig, store: Store, settings: Settings) -> ClassLimits | None:
    """The limits of the plan's classes for one source; None if no class has one.

    Raises:
        LabelsError: the plan's taxonomy cannot be read, or a label has two meanings by it.
    """
    limits = _limits_before_download(source, config)
    if all(rule.max_count is None and rule.max_per_location is None for rule in limits.classes.values()):
        return None
    mapping = map_labels(config, source.name, read_taxonomy(config, settings))
    key = {
        "classes": {c: r.model_dump(include={"max_count", "max_per_location", "prioritize"}, mode="json") for c, r in limits.classes.items()},
        "labels": mapping.classes | mapping.others,
        "seed": config.seed,
        "reserve": RESERVE,
    }

    def left_out(over_source_limit: Collection[str]) -> frozenset[str]:
        annotations = read_annotations([SourceArtifacts(source, export)], store)
        over, taken = annotations_of(annotations, {source.name: over_source_limit}), np.zeros(len(annotations.image), bool)
        for round_limits in (limits, _reserve_of(limits)):
            choice = choose_annotations(annotations, round_limits, {source.name: mapping}, over, taken)
            taken |= choice.kept()
        unused = np.setdiff1d(annotations.image[choice.reason == REASONS.index(OVER_CLASS_LIMIT)], annotations.image[taken])
        return frozenset(annotations.images["image_id"].take(unused).to_pylist())

    return ClassLimits(key, left_out)


def _limits_before_download(source: SourceConfig, config: LabelsConfig) -> LabelsConfig:
    """The limits that one source's export is enough for.

    A location that several sources share may be crowded by another source. Then more of this source's annotations come under max_count
    than its own export says. So where locations may be shared, max_count does not count beside max_per_location.
    """
    classes = {}
    for class_id, rule in config.classes.items():
        per_location = rule.max_per_location or config.max_per_location
        max_count = None if per_location and source.location_namespace else rule.max_count
        classes[class_id] = rule.model_copy(update={"max_per_location": per_location, "max_count": max_count})
    return config.model_copy(update={"classes": classes})


def _reserve_of(limits: LabelsConfig) -> LabelsConfig:
    classes = {
        class_id: rule.model_copy(
            update={key: math.ceil(n * RESERVE) for key in ("max_count", "max_per_location") if (n := getattr(rule, key)) is not None}
        )
        for class_id, rule in limits.classes.items()
    }
    return limits.model_copy(update={"classes": classes})

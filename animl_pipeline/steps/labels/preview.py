"""What a plan's labels would be, counted from the exports alone: before any picture is fetched."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.records import Artifact, Record
from animl_pipeline.steps.labels.annotations import Bools, Objects, SourceTables, read_objects
from animl_pipeline.steps.labels.class_counts import ClassRow, class_rows, counted, on_too_few
from animl_pipeline.steps.labels.class_mapping import meaning_of
from animl_pipeline.steps.labels.exclusions import REASONS, chosen
from animl_pipeline.steps.labels.taxonomy import read_taxonomy
from animl_pipeline.storage.step_cache import Store

UNLISTED = REASONS.index("unlisted_name")


class Preview(Record):
    """The classes as they would be.

    ``dropped`` counts objects by reason, ``unlisted`` those whose name stands nowhere in the plan, by name, the most
    frequent first. ``conflicts`` and ``on_too_few`` are lines for a person.
    """

    classes: tuple[ClassRow, ...]
    objects: int
    images: int
    locations: int
    dropped: dict[str, int]
    unlisted: dict[str, int]
    conflicts: tuple[str, ...]
    on_too_few: tuple[str, ...]


def previewed(plan: Plan, exports: Mapping[str, Artifact], left_out: Mapping[str, Collection[str]], store: Store, settings: Settings) -> Preview:
    """What the labels of a plan would be if every picture arrived that its sources' limits allow.

    Args:
        plan: whose specification counts.
        exports: the export step of each source, by its name.
        left_out: the ids of each source's images that its limits leave out.
        store: where the exports lie.
        settings: where the plan's taxonomy lies, if it names one.

    Raises:
        LabelsError: the plan's taxonomy cannot be read, or a name has two meanings by it.
    """
    spec, taxonomy = plan.labels, read_taxonomy(plan.labels, settings)
    meanings = {s.name: meaning_of(spec, s.name, taxonomy) for s in plan.sources}
    objects = read_objects([SourceTables(s, exports[s.name]) for s in plan.sources], store)
    choice = chosen(objects, spec, meanings, _unusable(objects, left_out))
    rows, kept = class_rows(objects, choice, spec), choice.kept()
    location, _ = objects.location()
    return Preview(
        classes=tuple(rows),
        objects=int(kept.sum()),
        images=len(np.unique(objects.image[kept])),
        locations=len(np.unique(location[kept & (location >= 0)])),
        dropped=counted(choice.reason[~kept], REASONS),
        unlisted=counted(objects.name[choice.reason == UNLISTED], objects.names),
        conflicts=tuple(dict.fromkeys(c for m in meanings.values() for c in m.conflicts)),
        on_too_few=tuple(on_too_few(rows, counted(objects.name, objects.names), spec)),
    )


def _unusable(objects: Objects, left_out: Mapping[str, Collection[str]]) -> Bools:
    """The objects of images that a source's limits leave out."""
    unusable = np.zeros(len(objects.image), bool)
    for number, source in enumerate(objects.sources):
        ids = pa.array(sorted(left_out.get(source, ())), pa.string())
        if len(ids):
            unusable |= (objects.source == number) & pc.is_in(objects.images["image_id"], value_set=ids).to_numpy()[objects.image]
    return unusable

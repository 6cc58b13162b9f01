"""The step: every object's class, or why it has none, as tables and in MegaDetector's batch format."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from animl_pipeline.config import LabelsConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import LabelsError
from animl_pipeline.core.records import Artifact, Counts
from animl_pipeline.core.step import Step
from animl_pipeline.core.table_schemas import (
    DOWNLOADED_IMAGES,
    DROPPED_ANNOTATIONS,
    EXPORT_ANNOTATIONS,
    EXPORT_IMAGES,
    EXPORT_LOCATIONS,
    LABELS,
    MISSING_IMAGES,
)
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.labels.annotations import Ints, Objects, SourceTables, read_objects
from animl_pipeline.steps.labels.class_counts import check, class_rows, counted, on_too_few
from animl_pipeline.steps.labels.class_mapping import meaning_of
from animl_pipeline.steps.labels.exclusions import REASONS, Choice, chosen, without_image
from animl_pipeline.steps.labels.megadetector_writer import write_batch_file
from animl_pipeline.steps.labels.taxonomy import read_taxonomy
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace

log = logging.getLogger(__name__)

STEP = Step(
    "labels",
    version=1,
    sections=("labels", "sources"),
    reads=(EXPORT_IMAGES, EXPORT_ANNOTATIONS, EXPORT_LOCATIONS, DOWNLOADED_IMAGES, MISSING_IMAGES),
    writes=(LABELS, DROPPED_ANNOTATIONS),
    libraries=(),
)


BOX = ("ymin", "xmin", "ymax", "xmax")


class SourceSteps(NamedTuple):
    """One source and the two steps that read it."""

    plan: SourceConfig
    export: Artifact
    images: Artifact


def resolve_labels(sources: Sequence[SourceSteps], spec: LabelsConfig, store: Store, settings: Settings) -> Artifact:
    """One class for each object that the plan wants, over all sources.

    labels.parquet: an object a row, with ``label`` (class id), ``name`` (the export's own), the box as ``ymin, xmin, ymax,
    xmax`` relative to the picture (NaN where there is none), ``place`` and ``sequence`` with the source's name in front
    (empty text where unknown), and the picture's ``blob, bytes, width, height``. dropped.parquet: ``source, image_id,
    object_id, name, reason``. megadetector.json: the same in MegaDetector's batch format.

    Raises:
        LabelsError: no object is left, a class has fewer than the plan expects, the plan's taxonomy cannot be read, or a
            name has two meanings by it.
    """
    taxonomy = read_taxonomy(spec, settings)
    inputs = {f"{s.plan.name}.{part}": a for s in sources for part, a in (("export", s.export), ("images", s.images))}
    config = spec.model_dump(mode="json", by_alias=True, exclude={"equivalents"}) | {
        "unreviewed": {s.plan.name: s.plan.unreviewed for s in sources},
        "locations": {s.plan.name: [s.plan.namespace(), s.plan.merge_locations_within_m] for s in sources},
    }

    def build(space: Workspace) -> StepOutput:
        meanings = {s.plan.name: meaning_of(spec, s.plan.name, taxonomy) for s in sources}
        for conflict in dict.fromkeys(c for m in meanings.values() for c in m.conflicts):
            log.warning("%s; the first counts", conflict)
        objects = read_objects([SourceTables(s.plan, s.export, s.images) for s in sources], store)
        choice = chosen(objects, spec, meanings, without_image(objects))
        rows = class_rows(objects, choice, spec)
        names = counted(objects.name, objects.names)
        check(on_too_few(rows, names, spec), spec)
        if not choice.kept().any():
            why = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in counted(choice.reason, REASONS).items())
            raise LabelsError(
                f"no object of the exports has a class: {why}; see with `animl-pipeline plan preview` which names they hold, mend labels"
            )
        return _write(space, objects, choice, spec)

    digests = {"taxonomy": taxonomy.digest} if spec.taxonomy else None
    return store.make(STEP, inputs=inputs, digests=digests, config=config, build=build)


def _write(space: Workspace, objects: Objects, choice: Choice, spec: LabelsConfig) -> StepOutput:
    order = _order(objects)
    kept, dropped = (order[choice.kept()[order] == stays] for stays in (True, False))
    images = objects.images.take(pa.array(objects.image[kept]))
    classes = list(spec.classes)
    columns: dict[str, Any] = {c: images[c] for c in images.column_names if c in LABELS.names()}
    columns |= {c: pa.array(objects.boxes[kept, i]) for i, c in enumerate(BOX)}
    columns |= {
        "source": _words(objects.source[kept], objects.sources),
        "annotation_id": objects.annotation_id.take(pa.array(kept)),
        "class_id": _words(choice.class_id[kept], classes),
        "label": _words(objects.name[kept], objects.names),
    }
    labels = pa.table({c: columns[c] for c in LABELS.names()})
    write_table(space.out, LABELS, labels)
    write_table(space.out, DROPPED_ANNOTATIONS, _dropped(objects, choice, dropped))
    write_batch_file(space.out / "megadetector.json", labels, objects.confidence[kept], classes)
    noted = counted(choice.class_id[kept], tuple(classes))
    if whole := int(objects.whole_frame[kept].sum()):
        noted["whole_frame_box_taken_as_none"] = whole
    return StepOutput(Counts(kept=len(kept), dropped=counted(choice.reason[dropped], REASONS), noted=noted))


def _dropped(objects: Objects, choice: Choice, rows: Ints) -> pa.Table:
    return pa.table(
        {
            "source": _words(objects.source[rows], objects.sources),
            "image_id": objects.images["image_id"].take(pa.array(objects.image[rows])),
            "annotation_id": objects.annotation_id.take(pa.array(rows)),
            "label": _words(objects.name[rows], objects.names),
            "reason": _words(choice.reason[rows], REASONS),
        }
    )


def _order(objects: Objects) -> Ints:
    """The objects by source, image and object id."""
    source = np.zeros(objects.images.num_rows, np.int32)
    source[objects.image] = objects.source  # an image without objects is in no table, wherever it comes
    keys = pa.table({"source": source, "id": objects.images["image_id"]})
    by_image = pc.sort_indices(keys, [("source", "ascending"), ("id", "ascending")]).to_numpy()
    rank = np.empty(len(by_image), np.int64)
    rank[by_image] = np.arange(len(by_image))
    table = pa.table({"image": rank[objects.image], "id": objects.annotation_id})
    return np.asarray(pc.sort_indices(table, [("image", "ascending"), ("id", "ascending")]).to_numpy(), np.int64)


def _words(codes: Ints, words: Sequence[str]) -> pa.Array:
    return pa.array(list(words), pa.string()).take(pa.array(codes))

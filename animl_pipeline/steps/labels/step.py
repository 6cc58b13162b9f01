"""The step `labels`: give each annotation a class, or a reason why it has none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from animl_pipeline.config import LabelsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import LabelsError
from animl_pipeline.core.step_declaration import Step
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
from animl_pipeline.core.write_megadetector_results import ResultBoxes, write_results
from animl_pipeline.steps.labels.choose_annotations import REASONS, UNLISTED, Choice, add_empty_images, choose_annotations
from animl_pipeline.steps.labels.class_counts import count_classes, count_codes, find_too_few, report_too_few
from animl_pipeline.steps.labels.class_mapping import map_labels, order_of_classes
from animl_pipeline.steps.labels.read_annotations import Annotations, Ints, SourceArtifacts, read_annotations
from animl_pipeline.steps.labels.read_taxonomy import read_taxonomy
from animl_pipeline.storage.store import StepOutput, Store, Workspace

log = logging.getLogger(__name__)

STEP = Step(
    "labels",
    version=3,
    sections=("labels", "sources"),
    reads=(EXPORT_IMAGES, EXPORT_ANNOTATIONS, EXPORT_LOCATIONS, DOWNLOADED_IMAGES, MISSING_IMAGES),
    writes=(LABELS, DROPPED_ANNOTATIONS),
    libraries=(),
)

MAX_NAMES, MAX_NAME = 20, 60
"""Labels outside the plan that are named one by one, and the characters that are shown of one."""
SIDES = ("ymin", "xmin", "ymax", "xmax")


def resolve_labels(sources: Sequence[SourceArtifacts], config: LabelsConfig, store: Store, settings: Settings) -> Artifact:
    """Give each annotation of all sources its class.

    Writes the tables LABELS and DROPPED_ANNOTATIONS, and megadetector.json with the labels in MegaDetector's batch results format.

    Raises:
        LabelsError: no annotation has a class, a class has fewer annotations than the plan expects, the plan's taxonomy cannot be read, or a label
            has two meanings by it.
    """
    taxonomy = read_taxonomy(config, settings)
    inputs = {f"{s.source.name}.{part}": a for s in sources for part, a in (("export", s.export), ("images", s.images)) if a is not None}
    key = (
        config.model_dump(mode="json", by_alias=True, exclude={"equivalents", "parents"})
        | {
            "box_frame": {s.source.name: s.source.box_frame for s in sources},
            "unreviewed": {s.source.name: s.source.unreviewed for s in sources},
            "locations": {s.source.name: [s.source.namespace(), s.source.merge_locations_within_m] for s in sources},
        }
        | order_of_classes(config)
    )

    def build(space: Workspace) -> StepOutput:
        mappings = {s.source.name: map_labels(config, s.source.name, taxonomy) for s in sources}
        for conflict in dict.fromkeys(line for m in mappings.values() for line in m.conflicts):
            log.warning("%s; the first counts", conflict)
        annotations = read_annotations(sources, store)
        choice = choose_annotations(annotations, config, mappings, annotations.over_source_limit(), annotations.image_missing())
        all_labels = count_codes(annotations.label, annotations.labels)
        report_too_few(find_too_few(count_classes(annotations, choice, config), all_labels, config), config)
        if not choice.kept().any():
            reasons = count_codes(choice.reason, REASONS)
            why = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in reasons.items())
            raise LabelsError(
                f"no annotation of the exports has a class: {why}; `animl-pipeline plan preview` shows their labels; correct the plan's labels",
                code="no_labels",
                reasons=reasons,
            )
        if config.nothing is not None:
            annotations, choice = add_empty_images(annotations, choice, config.nothing, len(config.class_ids()) - 1)
        return _write(space.out, annotations, choice, list(config.class_ids()), config.other_animal_id)

    digests = {"taxonomy": taxonomy.digest} if config.taxonomy else None
    return store.make(STEP, inputs=inputs, digests=digests, config=key, build=build)


def _write(folder: Path, annotations: Annotations, choice: Choice, classes: list[str], other_animal: str | None) -> StepOutput:
    order = _sort(annotations)
    is_kept = choice.kept()[order]
    kept, dropped = order[is_kept], order[~is_kept]
    labels = _labels_table(annotations, choice, classes, kept)
    write_table(folder, LABELS, labels)
    write_table(folder, DROPPED_ANNOTATIONS, _dropped_table(annotations, choice, dropped))
    _write_megadetector_file(folder / "megadetector.json", annotations, choice, labels, kept, classes)
    notes = count_codes(choice.class_number[kept], tuple(classes))
    if whole_image := int(annotations.whole_image[kept].sum()):
        notes["whole_image_box_ignored"] = whole_image
    if repeated := annotations.sequence_ids_at_several_locations:
        notes["sequence_ids_at_several_locations"] = repeated
    notes |= {
        name: n for name, rows in (("boxes_turned", annotations.turned), ("frame_assumed", annotations.frame_assumed)) if (n := int(rows[kept].sum()))
    }
    notes |= _names_outside_plan(annotations, choice, classes.index(other_animal) if other_animal else None)
    return StepOutput(Counts(kept=len(kept), dropped=count_codes(choice.reason[dropped], REASONS), notes=notes, unit="annotations"))


def _names_outside_plan(annotations: Annotations, choice: Choice, other_animal: int | None) -> dict[str, int]:
    """Notes that name the labels which the plan does not list, also those that became other animals: a new species shows up here first."""
    outside = (choice.reason == REASONS.index(UNLISTED)) | (choice.class_number == other_animal)
    names = count_codes(annotations.label[outside], annotations.labels)
    shown = dict(list(names.items())[:MAX_NAMES])
    more = {f"and {len(names) - MAX_NAMES:,} other names": sum(names.values()) - sum(shown.values())} if len(names) > MAX_NAMES else {}
    return {f"{UNLISTED}: {_one_line(name)}": n for name, n in (shown | more).items()}


def _one_line(name: str) -> str:
    """A label of an export as a message may show it: printable, and not long."""
    line = "".join(c if c.isprintable() else "?" for c in name)
    return line if len(line) <= MAX_NAME else f"{line[: MAX_NAME - 1]}…"


def _labels_table(annotations: Annotations, choice: Choice, classes: list[str], rows: Ints) -> pa.Table:
    images = annotations.images.take(pa.array(annotations.image[rows]))
    columns = {name: images[name] for name in images.column_names} | {
        "source": _names(annotations.source[rows], annotations.sources),
        "annotation_id": annotations.annotation_id.take(pa.array(rows)),
        "class_id": _names(choice.class_number[rows], classes),
        "label": _names(annotations.label[rows], annotations.labels),
        **{side: pa.array(annotations.boxes[rows, i]) for i, side in enumerate(SIDES)},
    }
    return pa.table({name: columns[name] for name in LABELS.names()})


def _dropped_table(annotations: Annotations, choice: Choice, rows: Ints) -> pa.Table:
    return pa.table(
        {
            "source": _names(annotations.source[rows], annotations.sources),
            "image_id": annotations.images["image_id"].take(pa.array(annotations.image[rows])),
            "annotation_id": annotations.annotation_id.take(pa.array(rows)),
            "label": _names(annotations.label[rows], annotations.labels),
            "reason": _names(choice.reason[rows], REASONS),
            **{side: pa.array(np.where(annotations.reviewed[rows], annotations.boxes[rows, i], np.nan)) for i, side in enumerate(SIDES)},
        }
    )


def _write_megadetector_file(path: Path, annotations: Annotations, choice: Choice, labels: pa.Table, rows: Ints, classes: list[str]) -> None:
    """The labels in MegaDetector's format. A file name starts with its source; a box that a person drew has confidence 1."""
    files = pc.binary_join_element_wise(labels["source"], labels["file_name"], "/").combine_chunks().dictionary_encode()
    has_box = ~np.isnan(annotations.boxes[rows, 0])
    boxed = rows[has_box]
    boxes = ResultBoxes(
        image=files.indices.to_numpy()[has_box],
        category=pa.repeat("1", len(boxed)),
        confidence=np.round(np.nan_to_num(annotations.confidence[boxed], nan=1.0).clip(0, 1), 4),
        boxes=annotations.boxes[boxed],
        class_number=choice.class_number[boxed],
    )
    write_results(path, {"detector": "human review", "classifier": "human review"}, files.dictionary, boxes, classes=classes)


def _sort(annotations: Annotations) -> Ints:
    """The positions of the annotations, sorted by source, image id and annotation id."""
    source = np.zeros(annotations.images.num_rows, np.int32)
    source[annotations.image] = annotations.source  # an image without annotations is in no table, wherever it is sorted
    keys = pa.table({"source": source, "id": annotations.images["image_id"]})
    by_image = pc.sort_indices(keys, [("source", "ascending"), ("id", "ascending")]).to_numpy()
    rank = np.empty(len(by_image), np.int64)
    rank[by_image] = np.arange(len(by_image))
    table = pa.table({"image": rank[annotations.image], "id": annotations.annotation_id})
    return np.asarray(pc.sort_indices(table, [("image", "ascending"), ("id", "ascending")]).to_numpy(), np.int64)


def _names(codes: Ints, names: Sequence[str]) -> pa.Array:
    """The name of each code."""
    return pa.array(list(names), pa.string()).take(pa.array(codes))

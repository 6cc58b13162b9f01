"""Read the annotations of all sources as columns, with the images and locations that they belong to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.image_orientation import MISMATCH, SHOWN, SIDES_SWAPPED, UPRIGHT, Frames, find_frames, turn_to_stored
from animl_pipeline.core.location_names import merge_locations
from animl_pipeline.core.table_schemas import DOWNLOADED_IMAGES, EXPORT_ANNOTATIONS, EXPORT_IMAGES, EXPORT_LOCATIONS, MISSING_IMAGES
from animl_pipeline.storage.store import Store

WHOLE_IMAGE_SHARE = 0.95
"""A box that fills this share of both sides is what Animl leaves on an image that was once called empty: a label without a box."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Annotations(NamedTuple):
    """The annotations of all sources (n of them), and their images.

    Attributes:
        sources: names of the sources.
        images: a row for each image: ``image_id, file_name, image_file`` (which file it is), ``location`` (with its namespace), ``taken,
            sequence`` (see :func:`~animl_pipeline.steps.labels.read_annotations.sequence_keys`), ``blob, bytes, width, height, orientation``
            (null where the image was not downloaded), ``missing`` (bool, whether the download failed), ``over_limit`` and
            ``over_class_limit`` (bool, whether the source's limits, or those of the classes, left it out).
        labels: all different labels.
        image, source, label: int [n], each annotation's position in ``images``, ``sources`` and ``labels``.
        annotation_id: text [n].
        confidence: float [n], NaN where a person drew the box.
        boxes: float [n, 4], ``ymin, xmin, ymax, xmax``, relative, NaN where there is none.
        has_box: bool [n], whether the export gives a box.
        whole_image: bool [n], whether this box was the whole image, so that it does not count.
        turned: bool [n], whether this box was turned by the image's EXIF orientation.
        frame_assumed: bool [n], whether nothing says if it had to be turned.
        frame_mismatch: bool [n], whether the box refers to an image of another shape than the file.
        unreviewed: bool [n], whether the label is not reviewed and the plan drops such labels.
        reviewed: bool [n], whether a person reviewed the label.
        sequence_ids_at_several_locations: how many there are; they count within a location.
    """

    sources: tuple[str, ...]
    images: pa.Table
    labels: tuple[str, ...]
    image: Ints
    source: Ints
    label: Ints
    annotation_id: pa.ChunkedArray
    confidence: Floats
    boxes: Floats
    has_box: Bools
    whole_image: Bools
    turned: Bools
    frame_assumed: Bools
    frame_mismatch: Bools
    unreviewed: Bools
    reviewed: Bools
    sequence_ids_at_several_locations: int

    def location(self) -> Ints:
        """A number for the location of each annotation: int [n], -1 where it is unknown."""
        coded = self.images["location"].combine_chunks().dictionary_encode()
        codes = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        codes[codes == pc.index(coded.dictionary, "").as_py()] = -1
        return np.asarray(codes[self.image], np.int64)

    def image_file(self) -> Ints:
        """A number for the image file of each annotation: int [n]. Two records of an export may name the same file."""
        codes = self.images["image_file"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        return np.asarray(codes[self.image], np.int64)

    def over_source_limit(self) -> Bools:
        """The annotations whose image is left out by its source's limits: bool [n]."""
        return np.asarray(self.images["over_limit"].to_numpy()[self.image], bool)

    def over_class_limit(self) -> Bools:
        """The annotations whose image was not downloaded, because the limits of the classes have no use for it: bool [n]."""
        return np.asarray(self.images["over_class_limit"].to_numpy()[self.image], bool)

    def image_missing(self) -> Bools:
        """The annotations whose image could not be downloaded: bool [n]. Images that a limit left out count only if it is the source's."""
        missing = pc.or_(self.images["missing"], pc.is_null(self.images["blob"]))
        return np.asarray(missing.to_numpy()[self.image], bool) & ~self.over_class_limit()


def read_annotations(sources: Iterable[SourceArtifacts], store: Store) -> Annotations:
    """The annotations of all sources, sorted by the sources' names."""
    ordered = sorted(sources, key=lambda s: s.source.name)
    names = shared_locations(ordered, store)
    parts = [_read_source(i, s, store, names.get(s.source.name, {})) for i, s in enumerate(ordered)]
    labels = list(dict.fromkeys(label for part in parts for label in part.labels))
    code = {label: i for i, label in enumerate(labels)}
    starts = np.cumsum([0, *(len(part.images) for part in parts)])
    columns = ("source", "confidence", "boxes", "has_box", "whole_image", "turned", "frame_assumed", "frame_mismatch", "unreviewed", "reviewed")
    return Annotations(
        sources=tuple(s.source.name for s in ordered),
        images=pa.concat_tables([part.images for part in parts]),
        labels=tuple(labels),
        image=np.concatenate([part.image + start for part, start in zip(parts, starts, strict=False)]),
        label=np.concatenate([np.array([code[label] for label in part.labels], np.int64)[part.label] for part in parts]),
        annotation_id=pa.chunked_array([chunk for part in parts for chunk in part.annotation_id.chunks], pa.string()),
        sequence_ids_at_several_locations=sum(part.sequence_ids_at_several_locations for part in parts),
        **{c: np.concatenate([getattr(part, c) for part in parts]) for c in columns},
    )


def annotations_of(annotations: Annotations, image_ids: Mapping[str, Collection[str]]) -> Bools:
    """The annotations of these images (source → ids): bool [n]."""
    found = np.zeros(len(annotations.image), bool)
    for number, source in enumerate(annotations.sources):
        ids = pa.array(sorted(image_ids.get(source, ())), pa.string())
        if len(ids):
            found |= (annotations.source == number) & pc.is_in(annotations.images["image_id"], value_set=ids).to_numpy()[annotations.image]
    return found


def _read_source(number: int, artifacts: SourceArtifacts, store: Store, location_names: Mapping[str, str]) -> Annotations:
    rows = store.arrow_table(artifacts.export, EXPORT_ANNOTATIONS, read_dictionary=["label"])
    images, sizes, frames, repeated_sequences = _read_images(artifacts, store, location_names)
    image = pc.index_in(rows["image_id"], value_set=images["image_id"].combine_chunks()).to_numpy().astype(np.int64)
    labels = rows["label"].unify_dictionaries().combine_chunks()
    x, y, w, h = (rows[c].to_numpy() for c in "xywh")
    boxes, whole_image = _relative_boxes(np.stack([x, y, w, h]), sizes[image].T)
    turned = ~np.isnan(x) & (frames.code[image] == SHOWN)
    orientation = images["orientation"].fill_null(UPRIGHT).to_numpy()[image]
    boxes[turned] = turn_to_stored(boxes[turned], orientation[turned]).round(6)
    return Annotations(
        sources=(artifacts.source.name,),
        images=images,
        labels=tuple(labels.dictionary.to_pylist()),
        image=image,
        source=np.full(len(image), number),
        label=labels.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        annotation_id=rows["annotation_id"],
        confidence=rows["confidence"].to_numpy(),
        boxes=boxes,
        has_box=~np.isnan(x),
        whole_image=whole_image,
        turned=turned & ~whole_image,
        frame_assumed=~np.isnan(x) & ~whole_image & frames.assumed[image],
        frame_mismatch=~np.isnan(x) & (frames.code[image] == MISMATCH),
        unreviewed=~rows["reviewed"].to_numpy() & (artifacts.source.unreviewed == "drop"),
        reviewed=rows["reviewed"].to_numpy(),
        sequence_ids_at_several_locations=repeated_sequences,
    )


def _read_images(artifacts: SourceArtifacts, store: Store, location_names: Mapping[str, str]) -> tuple[pa.Table, Floats, Frames, int]:
    """The images of an export with their downloads; [n, 2] the width and height in pixels that their boxes refer to; [n] the boxes' frames;
    and how many sequence ids occur at several locations.

    Boxes are in pixels of the size that the export names; the downloaded image may be a smaller copy. Without a size in the export,
    the downloaded image's own size counts. NaN where neither is known.
    """
    columns = ["image_id", "file_name", "path", "location", "taken", "sequence", "width", "height"]
    exported = store.arrow_table(artifacts.export, EXPORT_IMAGES, columns)
    ids = exported["image_id"].combine_chunks()
    file_columns = ["blob", "bytes", "width", "height", "orientation"]
    downloaded = DOWNLOADED_IMAGES.schema().empty_table()
    missing = over_limit = over_class_limit = pa.array([], pa.string())
    if artifacts.images is not None:
        downloaded = store.arrow_table(artifacts.images, DOWNLOADED_IMAGES, ["image_id", *file_columns])
        failed = store.arrow_table(artifacts.images, MISSING_IMAGES, ["image_id", "reason"])
        missing = failed["image_id"].combine_chunks()
        over_limit, over_class_limit = (missing.filter(pc.equal(failed["reason"], r).combine_chunks()) for r in ("over_limit", "over_class_limit"))
    files = downloaded.take(pc.index_in(ids, value_set=downloaded["image_id"].combine_chunks()))
    named, stored = (np.stack([table[c].to_numpy() for c in ("width", "height")], axis=1).astype(float) for table in (exported, files))
    orientation = files["orientation"].fill_null(UPRIGHT).to_numpy()
    frames = find_frames(
        named,
        stored,
        orientation,
        artifacts.source.box_frame,
        turned_by_default=bool((named == 1).all(axis=1).any()) and artifacts.source.project() is None,
    )
    on_its_side = (frames.code == SHOWN) & (orientation >= SIDES_SWAPPED)
    sizes = np.where(named > 0, named, np.where(on_its_side[:, None], stored[:, ::-1], stored))
    locations = _renamed(exported["location"], location_names)
    sequences = sequence_keys(artifacts.source.name, locations, exported["sequence"].combine_chunks())
    images = pa.table(
        {
            "image_id": ids,
            "file_name": exported["file_name"],
            "image_file": pc.binary_join_element_wise(artifacts.source.images, exported["path"], "/"),
            "location": _with_prefix(locations, artifacts.source.namespace()),
            "taken": exported["taken"],
            "sequence": sequences.keys,
            **{c: files[c] for c in file_columns},
            "missing": pc.is_in(ids, value_set=missing),
            "over_limit": pc.is_in(ids, value_set=over_limit),
            "over_class_limit": pc.is_in(ids, value_set=over_class_limit),
        }
    )
    return images, sizes, frames, sequences.at_several_locations


def _renamed(column: pa.ChunkedArray, new_names: Mapping[str, str]) -> pa.Array:
    """The names, or their new names where they have one."""
    coded = column.combine_chunks().dictionary_encode()
    names = pa.array([new_names.get(name, name) for name in coded.dictionary.to_pylist()], pa.string())
    return names.take(coded.indices)


def _with_prefix(names: pa.Array, prefix: str) -> pa.Array:
    """``<prefix>/<name>`` for each name; empty text stays empty."""
    coded = names.dictionary_encode()
    texts = pa.array([f"{prefix}/{name}" if name else "" for name in coded.dictionary.to_pylist()], pa.string())
    return texts.take(coded.indices)


def _relative_boxes(xywh: Any, sizes: Any) -> tuple[Floats, Bools]:
    """Boxes in pixels → relative boxes, cut at the image's edges; and which of them are the whole image.

    Args:
        xywh: [4, n] left, top, width and height in pixels.
        sizes: [2, n] width and height of the image in pixels.

    Returns:
        [n, 4] ymin, xmin, ymax, xmax, NaN for boxes of the whole image, which do not say where the animal is; bool [n].
    """
    (x, y, w, h), (width, height) = xywh, sizes
    box = np.stack([y / height, x / width, (y + h) / height, (x + w) / width]).clip(0, 1).round(6)
    whole = (box[2] - box[0] >= WHOLE_IMAGE_SHARE) & (box[3] - box[1] >= WHOLE_IMAGE_SHARE)
    box[:, whole] = np.nan
    return box.T, whole


class SequenceKeys(NamedTuple):
    """The sequence of each image: text [n], empty where unknown; and how many sequence ids occur at several locations."""

    keys: pa.Array
    at_several_locations: int


def sequence_keys(source: str, locations: pa.Array, sequences: pa.Array) -> SequenceKeys:
    """``<source>/<location>/<sequence id>`` for each image, because many cameras number their sequences from 1.

    An image of unknown location belongs to its sequence id's only location; where the id has several, its location stays empty.

    ``locations``: text [n], empty where unknown. ``sequences``: text [n], the ids of the export, empty where unknown.
    """
    rows = pd.DataFrame({"location": locations.to_pandas(), "sequence": sequences.to_pandas()})
    pairs = rows[(rows["location"] != "") & (rows["sequence"] != "")].drop_duplicates()
    count = pairs["sequence"].value_counts()
    only = pairs[pairs["sequence"].map(count) == 1].set_index("sequence")["location"]
    unknown = rows["location"] == ""
    rows.loc[unknown, "location"] = rows.loc[unknown, "sequence"].map(only).fillna("")
    keys = (f"{source}/" + rows["location"] + "/" + rows["sequence"]).where(rows["sequence"] != "", "")
    return SequenceKeys(pa.array(keys, pa.string()), int((count > 1).sum()))


class SourceArtifacts(NamedTuple):
    """One source with the artifacts of its steps export and images. ``images`` is None before the images are downloaded."""

    source: SourceConfig
    export: Artifact
    images: Artifact | None = None


def shared_locations(sources: Sequence[SourceArtifacts], store: Store) -> dict[str, dict[str, str]]:
    """Source → the source's location name → the common name, for sources with a common ``location_namespace``.

    Two names are one location if they are equal, if an export merges them, or if their coordinates are within the largest of the
    sources' ``merge_locations_within_m``. The first source, by name, gives the common name.
    """
    namespaces: dict[str, list[SourceArtifacts]] = defaultdict(list)
    for artifacts in sorted(sources, key=lambda s: s.source.name):
        namespaces[artifacts.source.namespace()].append(artifacts)
    shared = (group for group in namespaces.values() if len(group) > 1)
    return {s.source.name: names for group in shared for names in [_common_names(group, store)] for s in group}


def _common_names(group: Sequence[SourceArtifacts], store: Store) -> dict[str, str]:
    rows = [row for artifacts in group for row in _known_locations(artifacts, store)]
    points = np.array([[lat, lon] for _, _, lat, lon in rows], float).reshape(-1, 2)
    limits = [s.source.merge_locations_within_m for s in group]
    within_m = max((m for m in limits if m is not None), default=None)
    names = [location for _, location, _, _ in rows] + [deployment for deployment, _, _, _ in rows]
    both = np.concatenate([np.full_like(points, np.nan), points])
    return merge_locations(names, both, within_m, [(deployment, location) for deployment, location, _, _ in rows])


def _known_locations(artifacts: SourceArtifacts, store: Store) -> list[tuple[str, str, float, float]]:
    """Rows of EXPORT_LOCATIONS; and a row without coordinates for each other location in the images."""
    rows: list[tuple[str, str, float, float]] = []
    if EXPORT_LOCATIONS.file in store.files(artifacts.export):
        table = store.arrow_table(artifacts.export, EXPORT_LOCATIONS)
        rows = [(r["deployment"], r["location"], r["lat"], r["lon"]) for r in table.to_pylist()]
    known = {location for _, location, _, _ in rows}
    in_images = pc.unique(store.arrow_table(artifacts.export, EXPORT_IMAGES, ["location"])["location"]).to_pylist()
    return rows + [(location, location, np.nan, np.nan) for location in sorted(filter(None, in_images)) if location not in known]

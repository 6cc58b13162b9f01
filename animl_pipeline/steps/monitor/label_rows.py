"""Rows of SERVICE_LABELS from images as Animl's API answers them, and their merge: later answers replace earlier ones, image by image."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from animl_pipeline.core.table_schemas import SERVICE_LABELS
from animl_pipeline.integrations.animl.names_of_ids import ProjectNames

DAY_HOURS = range(6, 18)
"""Hours that count as day. Animl does not say whether an image is infrared."""
TEXTS = [c.name for c in SERVICE_LABELS.columns if c.type == "string"]


def rows_of_images(images: Iterable[dict[str, Any]], source: str, names: ProjectNames, random_tag: str | None) -> pa.Table:
    """SERVICE_LABELS of some images.

    Args:
        images: with the fields of ``queries.LABELS``.
        source: name of the plan's source.
        names: of the project's labels, tags and deployments. A label that the project no longer has keeps its id as its name.
        random_tag: name of the tag of images that were drawn at random for review.
    """
    tags = {tag for tag, name in names.tags.items() if name == random_tag}
    rows: list[tuple[Any, ...]] = []
    for image in images:
        deployment = str(image.get("deploymentId") or "")
        location = names.deployments.get(deployment) or f"{image.get('cameraId')}-default"
        times = (image.get("dateTimeAdjusted"), image.get("dateAdded"), image.get("timezone"))
        about = (str(image["_id"]), location, *times, bool(image.get("reviewed")), bool(tags and tags & set(image.get("tags") or ())))
        objects = image.get("objects") or []
        if not any(o.get("labels") for o in objects):
            rows.append((*about, -1, False, 0, "", "", "", None, None, "", None))
        for number, o in enumerate(objects):
            rows += [(*about, number, bool(o.get("locked")), *_label(i, label, names)) for i, label in enumerate(o.get("labels") or [])]
    return _typed(rows, source)


def _label(number: int, label: dict[str, Any], names: ProjectNames) -> tuple[Any, ...]:
    decided = label.get("validation") or {}
    made = label.get("mlModel") if label.get("type") != "manual" else None
    name = names.labels.get(str(label["labelId"]), str(label["labelId"]))
    validated = {"True": "yes", "False": "no"}.get(str(decided.get("validated")), "")
    version = label.get("mlModelVersion")
    about = (number, name, str(made or ""), "" if version is None else str(version), label.get("conf"), label.get("labeledDate"))
    return (*about, validated, decided.get("validationDate"))


def _typed(rows: list[tuple[Any, ...]], source: str) -> pa.Table:
    columns = ["image_id", "location", "taken_s", "added_s", "zone", "reviewed", "tagged_random", "object", "locked", "number"]
    columns += ["label", "model", "version", "confidence", "labelled_s", "validated", "validated_s"]
    frame = pd.DataFrame(rows, columns=columns)
    taken = _times(frame["taken_s"])
    frame["night"] = _is_night(taken, frame["zone"])
    for name in ("taken_s", "added_s", "labelled_s", "validated_s"):
        frame[name] = _seconds(_times(frame[name]))
    frame = frame.assign(source=source, confidence=pd.to_numeric(frame["confidence"], errors="coerce"))
    return pa.Table.from_pandas(frame[SERVICE_LABELS.names()], SERVICE_LABELS.schema(), preserve_index=False)


def _times(texts: pd.Series) -> pd.Series:
    return pd.to_datetime(texts.astype(object), utc=True, format="ISO8601", errors="coerce")


def _seconds(times: pd.Series) -> NDArray[np.float64]:
    return np.where(times.isna(), np.nan, times.to_numpy(dtype="datetime64[ms]").astype(np.int64) / 1000)


def _is_night(taken: pd.Series, zones: pd.Series) -> NDArray[np.bool_]:
    """Whether each image was taken at night by its own clock; False where the time is unknown. A zone that is not known counts as UTC."""
    hours = taken.dt.hour.to_numpy(np.float64).copy()
    for zone, part in taken.groupby(zones.fillna("UTC").to_numpy()):
        try:
            hours[part.index] = part.dt.tz_convert(str(zone)).dt.hour
        except (KeyError, ValueError, TypeError):
            continue
    return np.asarray(~np.isnan(hours) & ~np.isin(hours, list(DAY_HOURS)))


def merge_rows(parts: Sequence[pa.Table]) -> pa.Table:
    """One table: of each image the rows of the last part that has it, sorted, so that equal rows give an equal table."""
    table = pa.concat_tables([p.append_column("part", pa.array(np.full(len(p), i, np.int64))) for i, p in enumerate(parts)]).unify_dictionaries()
    images = table["image_id"].combine_chunks()
    codes = (images if pa.types.is_dictionary(images.type) else images.dictionary_encode()).indices.to_numpy()
    part = table["part"].to_numpy()
    last = np.zeros(int(codes.max()) + 1 if len(codes) else 0, np.int64)
    np.maximum.at(last, codes, part)
    kept = table.drop_columns(["part"]).filter(pa.array(part == last[codes]))
    order = pc.sort_indices(_plain(kept.select(["image_id", "object", "number"])), [(c, "ascending") for c in ("image_id", "object", "number")])
    return kept.take(order)


def _plain(table: pa.Table) -> pa.Table:
    """The table without dictionaries, which pyarrow cannot sort."""
    return table.cast(pa.schema([(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in table.schema]))


def to_parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file: the same bytes for the same rows."""
    buffer = io.BytesIO()
    pq.write_table(table.cast(SERVICE_LABELS.schema()), buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(data: bytes) -> pa.Table:
    """A table that :func:`to_parquet` wrote. Its text is in dictionaries, so that a million labels need little memory."""
    return pq.read_table(io.BytesIO(data), read_dictionary=TEXTS).unify_dictionaries()

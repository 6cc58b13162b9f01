"""Write the tables of an export: images, annotations, problems, and the locations of its camera deployments.

Every problem is counted and listed. None ends the step as long as one annotation is left. Category ids differ from one export
to the next, even of the same project, so the tables hold labels only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.errors import ExportError, redact_url
from animl_pipeline.core.location_names import known_locations, merge_locations
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS, EXPORT_IMAGES, EXPORT_LOCATIONS, EXPORT_PROBLEMS
from animl_pipeline.core.tables import write_table
from animl_pipeline.integrations.animl import CameraDeployment
from animl_pipeline.integrations.animl.queries import iso_utc
from animl_pipeline.steps.export.annotations_table import AnnotationsTable, Categories
from animl_pipeline.steps.export.fetch_and_parse_coco import Batch
from animl_pipeline.steps.export.images_table import ImagesTable
from animl_pipeline.steps.export.problems import MERGED, SHOWN, Problems
from animl_pipeline.storage.store import StepOutput, Workspace

log = logging.getLogger(__name__)


class ExportBuild(NamedTuple):
    """An export of any format, ready for the step cache.

    ``config``: the values of the plan that change its tables.
    """

    digests: Mapping[str, str]
    config: Mapping[str, Any]
    build: Callable[[Workspace], StepOutput]


class Location(NamedTuple):
    """The location of a camera deployment.

    ``deployment`` is the name that the export uses. ``lat`` and ``lon`` are degrees, NaN where unknown.
    """

    deployment: str
    location: str
    lat: float
    lon: float


def merge_deployments(deployments: Sequence[CameraDeployment], within_m: float | None) -> list[Location]:
    """Each deployment's location, sorted by name.

    Deployments within ``within_m`` metres (great circle) of each other are one location, and so is a chain of them: a renamed
    deployment must not be a new location. A location has the name of its oldest deployment, so that it keeps its name when one
    is added. A name used at several sites counts as one location, because an export holds the name only. A placeholder is no name.
    """
    names = known_locations({d.deployment for d in deployments})
    named = [d.model_copy(update={"deployment": names[d.deployment]}) for d in deployments if names[d.deployment]]
    ordered = sorted(named, key=lambda d: (d.started is None, iso_utc(d.started) if d.started else "", d.deployment, d.camera, d.lat, d.lon))
    oldest = {d.deployment: d for d in reversed(ordered)}
    points = np.array([[d.lat, d.lon] for d in ordered], float).reshape(-1, 2)
    location = merge_locations([d.deployment for d in ordered], points, within_m)
    return sorted(Location(name, location[name], d.lat, d.lon) for name, d in oldest.items())


def write_tables(
    space: Workspace, batches: Iterable[Batch], source: SourceConfig, problems: Problems | None = None, locations: Sequence[Location] | None = None
) -> StepOutput:
    """Write the tables of one COCO for Camera Traps document.

    ``locations``: the locations of camera deployments; None for a source without coordinates, which gets no locations table. ``problems``:
    problems found before; they are counted and listed with the others.

    Raises:
        ExportError: ``nothing_left``: no annotation is usable.
    """
    images, annotations, categories = ImagesTable(source), AnnotationsTable(), Categories()
    parts = {"images": images.add, "annotations": annotations.add, "categories": categories.add}
    for part, records in batches:
        if part in parts:
            parts[part](records)
    problems = problems or Problems()
    image_table = images.table(problems)
    annotation_table, image_table = annotations.tables(image_table, images.ambiguous, categories.labels(problems), problems)
    if not annotations.labelled:
        found = problems.summary() or "no annotations at all"
        raise ExportError(
            f"{redact_url(source.export)}: none of {annotations.seen} annotations is usable: {found}; fix the export or choose another",
            code="nothing_left",
            problems=problems.dropped() | problems.notes(),
        )
    if locations is not None:
        _list_merged_locations(problems, locations, source)
        write_table(space.out, EXPORT_LOCATIONS, _locations_table(locations, image_table))
        if source.location_field == "location":
            image_table = _with_merged_locations(image_table, locations)
    write_table(space.out, EXPORT_IMAGES, image_table)
    write_table(space.out, EXPORT_ANNOTATIONS, annotation_table)
    write_table(space.out, EXPORT_PROBLEMS, problems.table())
    return StepOutput(Counts(kept=len(annotation_table), dropped=problems.dropped(), notes=problems.notes(), unit="annotations"))


def _list_merged_locations(problems: Problems, locations: Sequence[Location], source: SourceConfig) -> None:
    """Note each name that has become a name of another location, and log the locations that have several names."""
    if source.location_field != "location":
        return
    merged: dict[str, list[str]] = {}
    for deployment, location, *_ in locations:
        if deployment != location:
            merged.setdefault(location, []).append(deployment)
            problems.add(MERGED, deployment, f"is the location {location!r}: within {source.merge_locations_within_m:g} m")
    for location, others in list(merged.items())[:SHOWN]:
        log.info("%s: %s is one location with %s, by their coordinates", source.name, location, ", ".join(others))


def _locations_table(locations: Sequence[Location], images: pa.Table) -> pd.DataFrame:
    """The known locations, and those that images name and of which no coordinates are known, each as a location of its own."""
    unknown = set(pc.unique(images["location"]).to_pylist()) - {"", *(loc.deployment for loc in locations)}
    rows = sorted([*locations, *(Location(name, name, float("nan"), float("nan")) for name in unknown)])
    return pd.DataFrame(rows, columns=EXPORT_LOCATIONS.names()).astype({"deployment": str, "location": str, "lat": float, "lon": float})


def _with_merged_locations(images: pa.Table, locations: Sequence[Location]) -> pa.Table:
    """The images with the merged location in place of their deployment."""
    location_of = {loc.deployment: loc.location for loc in locations}
    coded = images["location"].combine_chunks().dictionary_encode()
    names = pa.array([location_of.get(name, name) for name in coded.dictionary.to_pylist()], pa.string())
    return images.set_column(images.schema.get_field_index("location"), "location", names.take(coded.indices))

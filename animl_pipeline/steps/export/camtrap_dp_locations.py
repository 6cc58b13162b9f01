"""Find the location of each deployment of a Camtrap DP: its locationID, else its locationName, else its coordinates.

Coordinates merge locations only where they are exact enough. Many packages round them to protect a species, and then cameras kilometres
apart have the same ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import MAXYEAR
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.capture_times import parse_times
from animl_pipeline.core.errors import ExportError
from animl_pipeline.core.location_names import known_locations
from animl_pipeline.integrations.animl import CameraDeployment
from animl_pipeline.steps.export.problems import Problems

METRES_PER_DEGREE = 111_195.0
"""Of latitude, on a sphere of 6,371 km."""
GPS_ERROR_M = 100.0
"""A larger coordinateUncertainty comes from rounding: a camera's GPS is off by 30 m (the specification's own default) or less."""
MIN_PRECISION_RATIO = 2.0
"""Coordinates are too coarse to merge by if their precision is more than so many times ``merge_locations_within_m``: 0.0001 degrees,
which are 11 m, still serve for 10 m."""


class DeploymentLocations(NamedTuple):
    """Where the deployments of a package are.

    Attributes:
        location_of: deployment → location, "" where it is unknown.
        placed: the deployments whose coordinates are exact enough to merge locations by, under the names of their locations.
    """

    location_of: dict[str, str]
    placed: list[CameraDeployment]


def locate_deployments(
    deployments: pd.DataFrame, stated_precision: float | None, source: SourceConfig, where: str, problems: Problems
) -> DeploymentLocations:
    """The location of each deployment.

    ``stated_precision``: the package's coordinatePrecision in degrees, if it states one.

    Raises:
        ExportError: ``no_location_field``: ``location_field`` is not a column of the deployments.
    """
    points = _coordinates(deployments)
    names = _location_names(deployments, points, source, where)
    location_of: dict[str, str] = {}
    for deployment, location in zip(deployments["deploymentID"], names, strict=True):
        if location_of.setdefault(deployment, location) != location:
            problems.add("duplicate_deployment", deployment, f"the first one is used, at {location_of[deployment]!r}")
        elif not location:
            problems.add("deployment_without_location", deployment, "expected locationID, locationName or coordinates, or set location_field")
    within_m = source.merge_locations_within_m
    if within_m is None:
        return DeploymentLocations(location_of, [])
    coarse = _coarser_than(within_m, deployments, points, stated_precision)
    shared = coarse & _at_coordinates_of_several(names, points)
    details = [f"{lat:g}, {lon:g}: not exact to {within_m:g} m, and several locations have them" for lat, lon in points[shared]]
    problems.add_many("coordinates_too_coarse_to_merge", deployments["deploymentID"][shared].tolist(), details)
    known = np.flatnonzero(~np.isnan(points[:, 0]) & ~coarse)
    return DeploymentLocations(location_of, _camera_deployments(deployments.iloc[known], points[known], location_of))


def _coordinates(deployments: pd.DataFrame) -> NDArray[np.float64]:
    """[n, 2] latitude and longitude in degrees, NaN where unknown. 0, 0 counts as unknown."""
    if not {"latitude", "longitude"} <= set(deployments.columns):
        return np.full((len(deployments), 2), np.nan)
    lat, lon = (pd.to_numeric(deployments[c], errors="coerce").to_numpy(float) for c in ("latitude", "longitude"))
    known = (abs(lat) <= 90) & (abs(lon) <= 180) & ((lat != 0) | (lon != 0))
    return np.where(known[:, None], np.stack([lat, lon], axis=1), np.nan)


def _location_names(deployments: pd.DataFrame, points: NDArray[np.float64], source: SourceConfig, where: str) -> list[str]:
    """The location of each row, "" where it is unknown.

    A deployment without a locationID has the locationID of the others with its locationName, or else with its coordinates, if they have
    one only.
    """
    if source.location_field != "location":
        if source.location_field not in deployments:
            columns, field = ", ".join(deployments.columns[:8]), source.location_field
            raise ExportError(
                f"{where}: location_field: expected a column of its deployments ({columns} …), found {field!r}", code="no_location_field"
            )
        return _tidy(deployments[source.location_field])
    ids = _tidy(deployments["locationID"]) if "locationID" in deployments else [""] * len(deployments)
    names = _tidy(deployments["locationName"]) if "locationName" in deployments else [""] * len(deployments)
    named = _filled(ids, names, names)
    at = ["" if np.isnan(lat) else f"{lat:.7f}, {lon:.7f}" for lat, lon in points]
    first_at = {place: deployment for place, deployment in zip(reversed(at), reversed(deployments["deploymentID"].tolist()), strict=True) if place}
    return _filled(named, at, [first_at.get(place, "") for place in at])


def _tidy(column: Iterable[str]) -> list[str]:
    texts = list(column)
    known = known_locations(set(texts))
    return [known[text] for text in texts]


def _filled(locations: list[str], keys: list[str], new: list[str]) -> list[str]:
    """The locations; where one is missing, the one location of the rows with the same key, or ``new`` if these rows have none."""
    found: dict[str, set[str]] = defaultdict(set)
    for location, key in zip(locations, keys, strict=True):
        if location and key:
            found[key].add(location)
    return [
        location or (next(iter(found[key])) if len(found[key]) == 1 else "" if found[key] else made)
        for location, key, made in zip(locations, keys, new, strict=True)
    ]


def _coarser_than(within_m: float, deployments: pd.DataFrame, points: NDArray[np.float64], stated_precision: float | None) -> NDArray[np.bool_]:
    """The rows whose coordinates are known, but not exactly enough to merge locations within so many metres.

    The precision is the one that the package states, or the one that its coordinates show: 1 degree where all are whole degrees, 0.1
    where all have one decimal. A single row may be coarser (coordinateUncertainty, in metres).
    """
    known = ~np.isnan(points[:, 0])
    if not known.any():
        return known
    rounded = [digits for digits in range(6) if np.allclose(points[known].round(digits), points[known], rtol=0, atol=1e-9)]
    shown = 10.0 ** -min(rounded) if rounded and known.sum() > 1 else 0.0
    if max(stated_precision or 0.0, shown) * METRES_PER_DEGREE > MIN_PRECISION_RATIO * within_m:
        return known
    uncertain = deployments["coordinateUncertainty"] if "coordinateUncertainty" in deployments else pd.Series("", index=deployments.index)
    return known & (pd.to_numeric(uncertain, errors="coerce").to_numpy(float) > max(GPS_ERROR_M, within_m))


def _at_coordinates_of_several(names: list[str], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The rows whose coordinates are those of several locations."""
    table = pd.DataFrame({"name": names, "lat": points[:, 0], "lon": points[:, 1]})
    return np.asarray(table.groupby(["lat", "lon"])["name"].transform("nunique") > 1, bool)


def _camera_deployments(rows: pd.DataFrame, points: NDArray[np.float64], location_of: dict[str, str]) -> list[CameraDeployment]:
    start = parse_times(rows["deploymentStart"]) if "deploymentStart" in rows else pd.Series(pd.NaT, index=rows.index)
    return [
        CameraDeployment(
            deployment=location_of[d], camera=d, started=t.to_pydatetime() if 1 <= t.year <= MAXYEAR else None, lat=float(y), lon=float(x)
        )
        for d, t, (y, x) in zip(rows["deploymentID"], start, points, strict=True)
        if location_of[d]
    ]

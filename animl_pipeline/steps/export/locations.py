"""Camera deployments that stand at one place, whatever they are called: a renamed deployment is no new place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.core.locations import merge_locations
from animl_pipeline.integrations.animl import CameraDeployment
from animl_pipeline.integrations.animl.queries import iso

COLUMNS = ("deployment", "location", "lat", "lon")


class Location(NamedTuple):
    """A deployment's name as exports have it, the place it is part of, and where its first deployment stood (degrees)."""

    deployment: str
    location: str
    lat: float
    lon: float


def merge_deployments(deployments: list[CameraDeployment], within_m: float | None) -> list[Location]:
    """Each location's place, by name: locations within ``within_m`` metres of each other are one, and so is a chain of them.

    Distances are great-circle (haversine). A place has the name of its oldest deployment, so that it keeps its name when a
    new one is added. A name that is used at several places counts as one: an export says the name only.
    """
    ordered = sorted(deployments, key=lambda d: (d.started is None, iso(d.started) if d.started else "", d.deployment, d.camera, d.lat, d.lon))
    first = {d.deployment: d for d in reversed(ordered)}
    points = np.array([[d.lat, d.lon] for d in ordered], float).reshape(-1, 2)
    location = merge_locations([d.deployment for d in ordered], points, within_m)
    return sorted(Location(name, location[name], d.lat, d.lon) for name, d in first.items())


def locations_table(locations: list[Location]) -> pd.DataFrame:
    """The locations as a table."""
    return pd.DataFrame(locations, columns=list(COLUMNS)).astype({"deployment": str, "location": str, "lat": float, "lon": float})

"""Where a project's cameras stood, as Animl's camera configurations say it."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from animl_pipeline.core.frozen_record import Record


class CameraDeployment(Record):
    """A camera at a location for a time. ``deployment`` is the name that exports use; coordinates are degrees."""

    deployment: str
    camera: str
    started: datetime | None
    lat: float
    lon: float


def parse_deployment(camera: str, raw: dict[str, Any] | None) -> CameraDeployment | None:
    """A deployment with a name and coordinates. 0, 0 counts as unknown. GeoJSON puts the longitude first."""
    if not raw or not raw.get("name"):
        return None
    coordinates = ((raw.get("location") or {}).get("geometry") or {}).get("coordinates") or []
    if len(coordinates) < 2 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in coordinates[:2]):
        return None
    lon, lat = float(coordinates[0]), float(coordinates[1])
    if (lat, lon) == (0, 0) or not (abs(lat) <= 90 and abs(lon) <= 180):
        return None
    name = f"{camera}-default" if raw["name"] == "default" else str(raw["name"])
    try:
        return CameraDeployment(deployment=name, camera=camera, started=raw.get("startDate"), lat=lat, lon=lon)
    except ValidationError:
        return CameraDeployment(deployment=name, camera=camera, started=None, lat=lat, lon=lon)

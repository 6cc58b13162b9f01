"""Build small Camtrap DPs (1.0.2) with media-based and event-based observations."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

from tests.conftest import jpeg

FIELDS = {
    "deployments": "deploymentID locationID locationName latitude longitude coordinateUncertainty deploymentStart deploymentEnd cameraID".split(),
    "media": "mediaID deploymentID captureMethod timestamp filePath filePublic fileName fileMediatype exifData favorite mediaComments".split(),
    "observations": (
        "observationID deploymentID mediaID eventID eventStart eventEnd observationLevel observationType cameraSetupType scientificName count "
        "lifeStage sex behavior individualID bboxX bboxY bboxWidth bboxHeight classificationMethod classifiedBy classificationTimestamp "
        "classificationProbability observationTags observationComments"
    ).split(),
}


class CamtrapPackage:
    """A package under construction, and its image files."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in FIELDS}
        self.image_files: dict[str, bytes] = {}
        self.description: dict[str, Any] = {
            "profile": "https://raw.githubusercontent.com/tdwg/camtrap-dp/1.0.2/camtrap-dp-profile.json",
            "name": "isle",
            "resources": [{"name": name, "path": f"{name}.csv", "profile": "tabular-data-resource", "encoding": "utf-8"} for name in FIELDS],
        }

    def deployment(self, name: str, lat: float | str = "", lon: float | str = "", started: str = "2026-01-01T00:00:00Z", **fields: Any) -> str:
        self.rows["deployments"].append({"deploymentID": name, "latitude": lat, "longitude": lon, "deploymentStart": started} | fields)
        return name

    def image(self, deployment: str, second: int = 0, **fields: Any) -> str:
        """Add an image taken at 12:00:<second> in a time zone east of UTC and return its id."""
        name = f"m{len(self.rows['media'])}"
        path = f"media/{name}.jpg"
        self.image_files[path] = jpeg(seed=len(self.rows["media"]))
        row = {"timestamp": f"2026-03-01T12:00:{second:02d}+02:00", "filePath": path, "fileName": f"{name}.JPG", "fileMediatype": "image/jpeg"}
        self.rows["media"].append({"mediaID": name, "deploymentID": deployment} | row | fields)
        return name

    def observation(self, deployment: str, taxon: str = "", media: str = "", box: tuple[Any, ...] = (), **fields: Any) -> str:
        """Add an observation of an image, or of an event if no image is named, and return its id."""
        name = f"o{len(self.rows['observations'])}"
        row = {
            "observationLevel": "media" if media else "event",
            "observationType": "animal",
            "classificationMethod": "human",
            "scientificName": taxon,
        }
        row |= dict(zip(("bboxX", "bboxY", "bboxWidth", "bboxHeight"), box, strict=False))
        self.rows["observations"].append({"observationID": name, "deploymentID": deployment, "mediaID": media} | row | fields)
        return name

    def event(self, deployment: str, taxon: str, seconds: tuple[int, int] = (0, 59), **fields: Any) -> str:
        """Add an observation of an event, its times in UTC, and return its id."""
        start, end = (f"2026-03-01T10:00:{s:02d}Z" for s in seconds)
        return self.observation(deployment, taxon, eventID=fields.pop("eventID", "e"), eventStart=start, eventEnd=end, **fields)

    def files(self) -> dict[str, bytes]:
        tables = {f"{name}.csv": _table(name, rows) for name, rows in self.rows.items()}
        return tables | {"datapackage.json": json.dumps(self.description).encode()}

    def write(self, folder: Path) -> None:
        for name, data in (self.files() | self.image_files).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def zipped(self, below: str = "") -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in self.files().items():
                archive.writestr(below + name, data)
        return buffer.getvalue()


def three_deployments() -> CamtrapPackage:
    """Two deployments within metres of each other, and one far away, without images."""
    package = CamtrapPackage()
    package.deployment("d1", 34.0, -119.7, "2026-01-01T00:00:00Z", locationID="gate")
    package.deployment("d2", 34.00002, -119.7, "2026-02-01T00:00:00Z", locationID="new gate")
    package.deployment("d3", 34.1, -119.7)
    return package


def _table(name: str, rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS[name], restval="")
    writer.writeheader()
    writer.writerows(rows)
    return ("\ufeff" + text.getvalue()).encode()  # 1.0's own example began with a byte order mark

"""A small Camtrap DP (1.0.2), as its example data set is laid out: media-based and event-based observations."""

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
    """A package under construction, and the pictures that it holds."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in FIELDS}
        self.images: dict[str, bytes] = {}
        self.description: dict[str, Any] = {
            "profile": "https://raw.githubusercontent.com/tdwg/camtrap-dp/1.0.2/camtrap-dp-profile.json",
            "name": "isle",
            "resources": [{"name": name, "path": f"{name}.csv", "profile": "tabular-data-resource", "encoding": "utf-8"} for name in FIELDS],
        }

    def deployment(self, name: str, lat: float | str = "", lon: float | str = "", started: str = "2026-01-01T00:00:00Z", **fields: Any) -> str:
        self.rows["deployments"].append({"deploymentID": name, "latitude": lat, "longitude": lon, "deploymentStart": started} | fields)
        return name

    def image(self, deployment: str, second: int = 0, **fields: Any) -> str:
        """Add a picture taken at 12:00:<second> in a zone east of UTC; its id comes back."""
        name = f"m{len(self.rows['media'])}"
        path = f"media/{name}.jpg"
        self.images[path] = jpeg(seed=len(self.rows["media"]))
        row = {"timestamp": f"2026-03-01T12:00:{second:02d}+02:00", "filePath": path, "fileName": f"{name}.JPG", "fileMediatype": "image/jpeg"}
        self.rows["media"].append({"mediaID": name, "deploymentID": deployment} | row | fields)
        return name

    def seen(self, deployment: str, taxon: str = "", media: str = "", box: tuple[Any, ...] = (), **fields: Any) -> str:
        """Add an observation of a picture, or of an event when no picture is named; its id comes back."""
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
        """Add an observation of an event, its times in UTC."""
        start, end = (f"2026-03-01T10:00:{s:02d}Z" for s in seconds)
        return self.seen(deployment, taxon, eventID=fields.pop("eventID", "e"), eventStart=start, eventEnd=end, **fields)

    def files(self) -> dict[str, bytes]:
        files = {f"{name}.csv": _table(name, rows) for name, rows in self.rows.items()}
        return files | {"datapackage.json": json.dumps(self.description).encode()}

    def write(self, folder: Path) -> None:
        for name, data in (self.files() | self.images).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def zipped(self, below: str = "") -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in self.files().items():
                archive.writestr(below + name, data)
        return buffer.getvalue()


def _table(name: str, rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS[name], restval="")
    writer.writeheader()
    writer.writerows(rows)
    return ("\ufeff" + text.getvalue()).encode()  # 1.0's own example began with a byte order mark

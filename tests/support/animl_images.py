"""Images, objects and labels as Animl's database holds them, for tests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

DAY = datetime(2026, 3, 1, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass
class AnimlLabel:
    """A label of an object: by a model (with its version and confidence), or by a person. ``validated``: None where that is not decided."""

    name: str
    model: str | None = None
    version: str | None = None
    conf: float | None = None
    validated: bool | None = None
    date: datetime | None = None  # of the validation
    labelled: datetime | None = None


@dataclass
class AnimlObject:
    """An object of an image, with one label as exports know it, or with all ``labels`` as ``images`` shows them."""

    id: str
    name: str = "fox"
    bbox: tuple[int, int, int, int] = (4, 4, 20, 20)  # left, top, width, height in pixels
    confidence: float | None = None
    validated: bool = True
    by: str = "reviewer"
    date: datetime | None = LONG_AGO
    labels: list[AnimlLabel] = field(default_factory=list)  # the one that was given last first, as Animl keeps them
    locked: bool | None = None  # None: as validated

    def all_labels(self) -> list[AnimlLabel]:
        return self.labels or [AnimlLabel(self.name, conf=self.confidence, validated=self.validated or None, date=self.date)]

    def is_locked(self) -> bool:
        return self.validated if self.locked is None else self.locked


@dataclass
class AnimlImage:
    """An image in Animl's database."""

    id: str
    project: str = "isle"
    camera: str = "cam1"
    deployment: str = "Cove"
    taken: datetime | None = DAY
    objects: list[AnimlObject] = field(default_factory=list)
    width: int = 64
    height: int = 48
    size_known: bool = True  # otherwise exports hold no size, and boxes of null
    added: datetime = LONG_AGO
    timezone: str = "UTC"
    tags: list[str] = field(default_factory=list)  # ids
    reopened: bool = False  # a label of a model came after the review

    @property
    def reviewed(self) -> bool:
        return not self.reopened and bool(self.objects) and all(t.is_locked() for t in self.objects)

    def validated_dates(self) -> list[datetime]:
        return [label.date for t in self.objects for label in t.all_labels() if label.date is not None and label.validated is not None]


def make_images(n: int, names: tuple[str, ...] = ("fox", "Rat"), start: datetime = DAY, step: timedelta = timedelta(hours=1)) -> list[AnimlImage]:
    """``n`` reviewed images, one an hour, with two labels at three cameras."""
    return [
        AnimlImage(
            id=f"isle:{i:032x}",
            camera=f"cam{i % 3}",
            deployment=("Cove", "Ridge", "Dune")[i % 3],
            taken=start + i * step,
            objects=[AnimlObject(id=f"{i:024x}", name=names[i % len(names)])],
        )
        for i in range(n)
    ]


def images_from_coco(coco: dict[str, Any], project: str = "isle") -> list[AnimlImage]:
    """The images of a COCO for Camera Traps export."""
    names = {c["id"]: c["name"] for c in coco["categories"]}
    objects: dict[str, list[AnimlObject]] = {}
    for a in coco["annotations"]:
        obj = AnimlObject(a["id"], names[a["category_id"]], tuple(a["bbox"]), a["confidence"], a["validated"], a["validated_by"])
        objects.setdefault(a["image_id"], []).append(obj)
    images = []
    for row in coco["images"]:
        camera = row["file_name"].split("/")[1]
        name = "default" if row["location"].endswith("-default") else row["location"]
        p = AnimlImage(row["id"], project, camera, name, datetime.fromisoformat(row["datetime"]), objects.get(row["id"], []))
        images.append(replace(p, width=row["width"], height=row["height"]))
    return images


def camera_config(name: str, *deployments: tuple[str, str | None, float | None, float | None]) -> dict[str, Any]:
    """A camera config; a deployment is (name, start date, latitude, longitude)."""
    found = []
    for i, (label, start, lat, lon) in enumerate(deployments):
        location = None if lat is None else {"_id": f"l{i}", "name": label, "geometry": {"type": "Point", "coordinates": [lon, lat]}}
        found.append({"_id": f"d{i}", "name": label, "timezone": "UTC", "startDate": start, "location": location})
    return {"_id": name, "deployments": found}

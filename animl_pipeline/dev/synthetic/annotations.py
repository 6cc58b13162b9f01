"""What the island's reviewers wrote down: an Animl-style COCO for Camera Traps export, true but for a few planted faults.

Every fault is one that real exports have, so that a run over the island shows what the checks say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from animl_pipeline.dev.synthetic.frames import FULL_HEIGHT, Frame, Seen
from animl_pipeline.dev.synthetic.island import LOCATIONS
from animl_pipeline.dev.synthetic.location import WIDTH

PROJECT = "drawn_island"
REVIEWERS = ("ana@island.example", "ben@island.example")
CATEGORIES = (
    "empty", "fox", "bird", "skunk", "rodent", "lizard", "island fox", "raven", "scrub-jay", "island spotted skunk",
    "deer mouse", "western fence lizard", "unidentifiable", "person", "vehicle", "cat", "pig", "rat",
)  # fmt: skip
"""Names by category id: 0 is empty, then all labels of the project, used or not."""
SYNONYMS: dict[str, tuple[str, ...]] = {
    "fox": ("fox", "fox", "island fox"), "bird": ("bird", "bird", "raven", "scrub-jay"), "skunk": ("skunk", "skunk", "island spotted skunk"),
    "rodent": ("rodent", "deer mouse"), "lizard": ("lizard", "lizard", "western fence lizard"),
}  # fmt: skip
DESCRIPTION = (
    "SYNTHETIC: a drawn island, no photographs. Pictures, animals, places and times are made up by animl-pipeline, "
    "and some records are wrong on purpose; for trying out the pipeline only."
)
BOXLESS, UNREVIEWED, UNIDENTIFIED = 12, 8, 4
"""How many images have a label without a box, how many objects nobody reviewed, how many nobody could name."""


class Sample(NamedTuple):
    """The export, and the picture files by their path below the folder of pictures."""

    export: dict[str, Any]
    files: dict[str, bytes]


class _Record(NamedTuple):
    """One image of the export with its objects."""

    frame: Frame
    image: dict[str, Any]
    objects: list[dict[str, Any]]


def write_down(frames: list[Frame], rng: np.random.Generator) -> Sample:
    """The export of all frames and their files, with the planted faults."""
    broken = next(i for i, frame in enumerate(frames) if len(frame.seen) == 1 and i > len(frames) // 3)
    # the camera's card broke off in the middle of this file: its id is of the bytes as they are
    frames = [frame._replace(jpeg=frame.jpeg[: len(frame.jpeg) // 2]) if i == broken else frame for i, frame in enumerate(frames)]
    records = [_record(frame, number, rng) for number, frame in enumerate(frames)]
    files = {record.image["file_name"]: record.frame.jpeg for record in records}
    chosen = _Chosen([r for i, r in enumerate(records) if i != broken], rng)
    _leave_out_boxes(chosen)
    _leave_unreviewed(chosen, rng)
    annotations = [a for record in records for a in record.objects]
    annotations += _plant_faults(chosen, files)
    return Sample(_export([r.image for r in records], annotations), files)


def _record(frame: Frame, number: int, rng: np.random.Generator) -> _Record:
    location = LOCATIONS[frame.visit.location]
    image_id = f"{PROJECT}:{hashlib.md5(frame.jpeg, usedforsecurity=False).hexdigest()}"  # Animl's own ids are md5
    image = {
        "id": image_id,
        "file_name": f"{PROJECT}/{location.camera}/{location.name}/{image_id.replace(':', '-')}.jpg",
        "original_file_name": f"IMAG{number + 1:04d}.JPG",
        "serving_bucket_key": f"original/{image_id}-original.jpg",
        "datetime": frame.taken.isoformat(timespec="milliseconds"),
        "location": location.name,
        "width": WIDTH,
        "height": FULL_HEIGHT,
    }
    reviewer = REVIEWERS[int(rng.integers(len(REVIEWERS)))]
    objects = [_object(image_id, i, seen, reviewer, rng) for i, seen in enumerate(frame.seen)]
    return _Record(frame, image, objects or [_empty(image_id, reviewer)])


def _object(image_id: str, number: int, seen: Seen, reviewer: str, rng: np.random.Generator) -> dict[str, Any]:
    names = SYNONYMS[seen.kind]
    by_machine = rng.uniform() < 0.6
    return {
        "id": _object_id(image_id, number),
        "image_id": image_id,
        "category_id": CATEGORIES.index(names[int(rng.integers(len(names)))]),
        "sequence_level_annotation": False,
        "bbox": list(seen.bbox),
        "confidence": round(float(rng.uniform(0.5, 0.98)), 4) if by_machine else None,
        "validated": True,
        "validated_by": reviewer,
    }


def _empty(image_id: str, reviewer: str) -> dict[str, Any]:
    """Animl's way to say that nobody is there: a box around everything, labelled empty."""
    return {
        "id": _object_id(image_id, 0), "image_id": image_id, "category_id": 0, "sequence_level_annotation": False,
        "bbox": [0, 0, WIDTH, FULL_HEIGHT], "confidence": None, "validated": True, "validated_by": reviewer,
    }  # fmt: skip


def _object_id(image_id: str, number: int) -> str:
    return hashlib.sha256(f"{image_id}/{number}".encode()).hexdigest()[:24]


class _Chosen:
    """Hands out images for faults by chance, each once, and none of one burst twice."""

    def __init__(self, records: list[_Record], rng: np.random.Generator) -> None:
        self._waiting = [records[i] for i in rng.permutation(len(records))]

    def take(self, fits: Callable[[_Record], bool]) -> _Record:
        """The next image with one animal that fits."""
        record: _Record = next(r for r in self._waiting if len(r.frame.seen) == 1 and fits(r))
        self._waiting = [r for r in self._waiting if r.frame.visit.number != record.frame.visit.number]
        return record


def _leave_out_boxes(chosen: _Chosen) -> None:
    """Some images say only who is in them; a detector has to find where. At most one of a place."""
    locations: set[int] = set()
    for i in range(BOXLESS):
        record = chosen.take(_large_at_another_location(("fox", "skunk", "bird")[i % 3], locations))
        locations.add(record.frame.visit.location)
        del record.objects[0]["bbox"]


def _large_at_another_location(kind: str, locations: set[int]) -> Callable[[_Record], bool]:
    """Whether an image shows one animal of a kind, more than 64 pixels wide and high, at a place that is not in ``places``."""
    return lambda r: r.frame.seen[0].kind == kind and min(r.frame.seen[0].bbox[2:]) > 64 and r.frame.visit.location not in locations


def _leave_unreviewed(chosen: _Chosen, rng: np.random.Generator) -> None:
    """Some objects were seen by a machine only, some by a person who could not tell."""
    for _ in range(UNREVIEWED):
        said = chosen.take(lambda _: True).objects[0]
        said |= {"validated": False, "validated_by": "Not Reviewed", "confidence": round(float(rng.uniform(0.3, 0.9)), 4)}
    for _ in range(UNIDENTIFIED):
        chosen.take(lambda _: True).objects[0]["category_id"] = CATEGORIES.index("unidentifiable")


def _plant_faults(chosen: _Chosen, files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Change records into wrong ones, and give the wrong ones that are added."""
    del files[chosen.take(lambda _: True).image["file_name"]]
    no_size = chosen.take(lambda _: True).image
    del no_size["width"], no_size["height"]
    chosen.take(lambda _: True).objects[0]["bbox"] = [0, 0, WIDTH, FULL_HEIGHT]
    _push_out(chosen.take(lambda r: r.frame.seen[0].bbox[0] + r.frame.seen[0].bbox[2] > WIDTH - 40).objects[0])
    here = chosen.take(lambda _: True).objects[0]

    def wrong(number: int, **changes: Any) -> dict[str, Any]:
        return here | {"id": _object_id(here["image_id"], number)} | changes

    return [
        wrong(1, bbox=[WIDTH + 20, 60, 80, 60]),
        wrong(2, bbox=[300, 240, 0, 40]),
        wrong(3, category_id=999),
        wrong(4, image_id=f"{PROJECT}:{'0' * 32}"),
        dict(here),
    ]


def _push_out(annotation: dict[str, Any]) -> None:
    """Let a box reach over the right edge, as a hand that slips draws it."""
    x, y, _, height = annotation["bbox"]
    annotation["bbox"] = [x, y, WIDTH + 25 - x, height]


def _export(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "info": {"version": "1.0", "description": DESCRIPTION, "year": 2025, "date_created": "2025-06-01T00:00:00.000Z"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CATEGORIES)],
    }

"""Small projects with faults from the field: images of grass with a coloured disc for the animal, and the labels or boxes that go with them.

Foxes are red and other animals are blue, so the colour of a crop shows whether its label is right; a green crop is grass.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from animl_pipeline.config import Plan, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.table_schemas import CROPS, DETECTION_FAILURES, SPLITS
from animl_pipeline.steps.crops import extract_crops
from animl_pipeline.steps.detections import detect_animals
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.labels import SourceArtifacts, resolve_labels, wanted_labels
from animl_pipeline.steps.splits import split_by_location
from animl_pipeline.storage.store import Store, open_store

WIDTH, HEIGHT, RADIUS = 96, 72, 14
RED, BLUE = (220, 30, 30), (30, 30, 230)
FOX, OWL, RABBIT = 1, 2, 3
CATEGORIES = {FOX: "fox", OWL: "owl", RABBIT: "rabbit", 0: "empty"}
MIDDLE = (40, 36)
Disc = tuple[tuple[int, int, int], int, int]
"""Colour, x and y of an animal."""


def draw(discs: Sequence[Disc], seed: int, orientation: int = 1) -> bytes:
    """A JPEG of grass with discs."""
    grass = np.random.default_rng(seed).integers(60, 110, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    grass[..., 1] += 40
    image = Image.fromarray(grass)
    for colour, x, y in discs:
        ImageDraw.Draw(image).ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=colour)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


def around(x: int, y: int) -> list[float]:
    """The box around a disc in pixels: x, y, width, height."""
    return [x - RADIUS, y - RADIUS, 2 * RADIUS, 2 * RADIUS]


def relative(box: Sequence[float], width: int = WIDTH, height: int = HEIGHT) -> list[float]:
    """A box in pixels as shares of an image."""
    return [box[0] / width, box[1] / height, box[2] / width, box[3] / height]


class Project:
    """A COCO export, its images and a results file under construction, all in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.categories: dict[int, str] = CATEGORIES

    def image(self, discs: Sequence[Disc], location: Any, *, orientation: int = 1, **fields: Any) -> Any:
        """Add an image, its file and a row of the results file with a box around each disc. Its id comes back."""
        n = len(self.images) + 1
        taken = f"2024-{1 + n // 28 % 12:02d}-{1 + n % 28:02d} 10:00:00"
        row = {"id": n, "file_name": f"p{n}.jpg", "location": location, "datetime": taken, "width": WIDTH, "height": HEIGHT} | fields
        self.images.append(row)
        self.put(f"pics/{row['file_name']}", draw(discs, n, orientation))
        boxes = [relative(around(x, y)) for _, x, y in discs]
        self.detect(row["file_name"], boxes)
        return row["id"]

    def detect(self, file: str, boxes: Sequence[Sequence[float]], **fields: Any) -> None:
        """Add a row of the results file; its boxes are relative and the first has the highest confidence."""
        found = [{"category": "1", "conf": 0.95 - 0.1 * i, "bbox": list(box)} for i, box in enumerate(boxes)]
        self.results.append({"file": file, "detections": found} | fields)

    def label(self, image: Any, category: int, box: Sequence[float] | None = None, **fields: Any) -> None:
        """Add an annotation."""
        row = {"id": len(self.annotations) + 1, "image_id": image, "category_id": category}
        self.annotations.append(row | ({"bbox": list(box)} if box is not None else {}) | fields)

    def put(self, name: str, data: bytes | str) -> None:
        """Write a file of the project."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())

    def coco(self, **changes: Any) -> Plan:
        """Write the export and the results file, and return the plan; ``changes`` replace its sections."""
        categories = [{"id": i, "name": name} for i, name in self.categories.items()]
        self.put("cct.json", json.dumps({"images": self.images, "annotations": self.annotations, "categories": categories}))
        return self.plan({"name": "s", "export": "cct.json", "images": "pics"}, **changes)

    def plan(self, source: dict[str, Any], **changes: Any) -> Plan:
        """Write the results file, and return the plan of one source."""
        self.put("md.json", json.dumps({"images": self.results, "detection_categories": {"1": "animal"}, "info": {"format_version": "1.3"}}))
        sections = {
            "model": "field",
            "sources": [source],
            "labels": {"classes": {"fox": ["fox"], "owl": ["owl"]}, "on_too_few": "warn"},
            "detections": {"source": "annotations"},
            "model_input": {"size": 32},
        }
        return check_plan(sections | changes)

    def camtrap_dp(self, deployments: list[dict[str, Any]], media: list[dict[str, Any]], observations: list[dict[str, Any]], **more: Any) -> Plan:
        """Write a Camtrap DP below dp/ and return its plan: foxes, and badgers as the other animal."""
        tables = {"deployments": deployments, "media": media, "observations": observations}
        for name, rows in tables.items():
            text = io.StringIO()
            writer = csv.DictWriter(text, list(dict.fromkeys(column for row in rows for column in row)), restval="")
            writer.writeheader()
            writer.writerows(rows)
            self.put(f"dp/{name}.csv", text.getvalue())
        profile = "https://raw.githubusercontent.com/tdwg/camtrap-dp/1.0.2/camtrap-dp-profile.json"
        resources = [{"name": name, "path": f"{name}.csv", "profile": "tabular-data-resource"} for name in tables]
        self.put("dp/datapackage.json", json.dumps({"name": "x", "profile": profile, "resources": resources, **more.pop("package", {})}))
        labels = {"classes": {"fox": ["vulpes vulpes"], "badger": ["meles meles"]}, "on_too_few": "warn"}
        return self.plan({"name": "s", "export": "dp"}, labels=labels, **more)


class Outcome(NamedTuple):
    """What the steps made of a project.

    Attributes:
        crops: (class, red, green or blue) → number of crops.
        locations: of the crops.
        dropped, notes: step → the counts of what it dropped, and its other counts.
        splits_of: location → the splits of its crops.
        failures: detector's reason → number of images.
    """

    crops: dict[tuple[str, str], int]
    locations: set[str]
    dropped: dict[str, dict[str, int]]
    notes: dict[str, dict[str, int]]
    splits_of: dict[str, set[str]]
    failures: dict[str, int]


def run_steps(plan: Plan, folder: Path) -> Outcome:
    """Run the steps from export to splits."""
    settings = Settings(store=str(folder / "store"), data=folder, cache=folder / "cache", workers=2, timeout_s=5)
    store = open_store(settings)
    sources = []
    for source in plan.sources:
        export = export_annotations(source, store, settings)
        images = download_images(source, export, wanted_labels(plan.labels, source.name, settings), store, settings)
        sources.append(SourceArtifacts(source, export, images))
    labels = resolve_labels(sources, plan.labels, store, settings)
    detections = detect_animals(labels, plan.detections, store, settings)
    crops = extract_crops(labels, detections, plan.crops, plan.model_input, store, settings)
    splits = split_by_location(crops, plan.splits, tuple(plan.labels.classes), store, plan.model)
    steps = {"export": sources[0].export, "labels": labels, "detections": detections, "crops": crops, "splits": splits}
    return _outcome(steps, store)


def _outcome(steps: dict[str, Artifact], store: Store) -> Outcome:
    crops = store.table(steps["crops"], CROPS)
    splits = crops.merge(store.table(steps["splits"], SPLITS), on="crop_id")
    return Outcome(
        crops=dict(Counter((class_id, _colour(store.blob(blob))) for class_id, blob in zip(crops["class_id"], crops["blob"], strict=True))),
        locations=set(crops["location"]),
        dropped={name: dict(step.counts.dropped) for name, step in steps.items()},
        notes={name: dict(step.counts.notes) for name, step in steps.items()},
        splits_of={str(location): set(rows["split"]) for location, rows in splits.groupby("location")},
        failures=dict(Counter(store.table(steps["detections"], DETECTION_FAILURES)["reason"])),
    )


def _colour(data: bytes) -> str:
    """The strongest colour of a crop's inner half."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"), float)
    quarter = len(pixels) // 4
    return ("red", "green", "blue")[int(pixels[quarter:-quarter, quarter:-quarter].mean((0, 1)).argmax())]

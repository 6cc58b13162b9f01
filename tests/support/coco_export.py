"""Small COCO for Camera Traps exports in Animl's shape."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.conftest import jpeg

CATEGORIES = [{"id": 0, "name": "empty"}, {"id": 1, "name": "fox"}, {"id": 2, "name": "Rat"}, {"id": 3, "name": "person"}]


class Export:
    """An export under construction, and the image files that it names."""

    def __init__(self, project: str = "isle") -> None:
        self.project = project
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.categories = CATEGORIES

    def image(self, location: str | None = "cove", seed: int | None = None, data: bytes | None = None, **fields: Any) -> str:
        """Add an image and return its id."""
        data = jpeg(seed=len(self.images) if seed is None else seed) if data is None else data
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        image_id = f"{self.project}:{md5}"
        row = {
            "id": image_id,
            "file_name": f"{self.project}/cam/{location}/{self.project}-{md5}.jpg",
            "serving_bucket_key": f"original/{image_id}-original.jpg",
            "datetime": f"2026-03-01T10:00:{len(self.images) % 60:02d}.000-08:00",
            "location": location,
            "width": 64,
            "height": 48,
        } | fields
        self.images.append(row)
        self.files[row["file_name"]] = data
        return image_id

    def annotation(self, image_id: str, category: int = 1, bbox: list[float] | None = None, **fields: Any) -> str:
        """Add an annotation and return its id."""
        annotation_id = f"o{len(self.annotations):04d}"
        row: dict[str, Any] = {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": category,
            "validated": True,
            "validated_by": "reviewer",
            "confidence": None,
        }
        if bbox is not None:
            row["bbox"] = bbox
        self.annotations.append(row | fields)
        return annotation_id

    def json(self) -> bytes:
        return json.dumps(
            {"images": self.images, "annotations": self.annotations, "categories": self.categories, "info": {"version": "1.0"}}
        ).encode()

    def write(self, folder: Path) -> None:
        """Write export.json, and the image files below images/."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "export.json").write_bytes(self.json())
        for name, data in self.files.items():
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

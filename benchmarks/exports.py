"""Write synthetic exports of any size, with the fields and file layouts of Animl's exports, for benchmarks.

python benchmarks/exports.py OUT --images 200000 --locations 500

The number of annotations per class follows a Zipf law, the number of images per location a log-normal one. Rare classes occur at
few locations. Images come in sequences of three with one location and class. An image of an animal has 1 + Poisson(0.3) boxes, an
empty one has a full-frame box. 92 % of the annotations are reviewed. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CLASSES = "rodent bird fox cat lizard skunk rat pig coyote bobcat deer raccoon opossum dog horse goat".split()
LOCATION_NAMES = ("Ridge", "Creek", "Dry Wash", "Cove", "Pasture", "Canyon", "Harbor", "Mesa", "Orchard", "Dune")
PROJECT = "bench_island"
WIDTH, HEIGHT = 2048, 1536
SEQUENCE_LENGTH = 3
STREAMED_ABOVE = 18_000
"""Animl streams larger exports record by record, and writes smaller ones as one indented document."""
EPOCH = np.datetime64("2021-01-01T00:00:00")


class Scene(NamedTuple):
    """For each image its location, class (0: empty) and time; for each annotation its image and box."""

    location: Any
    class_index: Any
    taken: Any
    image: Any
    boxes: Any
    reviewed: Any
    confidence: Any


def write_export(path: Path, images: int, locations: int = 500, classes: int = 8, seed: int = 0) -> int:
    """Write an export of so many images and return its number of annotations."""
    scene = _scene(images, locations, classes, np.random.default_rng([images, locations, classes, seed]))
    streamed = images > STREAMED_ABOVE
    comma, indent = (", ", "") if streamed else (",\n        ", "        ")
    with path.open("w", encoding="utf-8") as f:
        f.write('{"images": [' if streamed else '{\n    "images": [\n        ')
        _write_joined(f, _images(scene, locations, seed, indent), comma)
        f.write('], "annotations": [' if streamed else '\n    ],\n    "annotations": [\n        ')
        _write_joined(f, _annotations(scene, seed, indent), comma)
        names = ", ".join(f'{{"id": {i}, "name": "{n}"}}' for i, n in enumerate(["empty", *CLASSES[:classes]]))
        info = f'{{"version": "1.0", "description": "Image data exported from Animl project \'{PROJECT}\'", "year": 2026}}'
        f.write(f'], "categories": [{names}], "info":{info}}}' if streamed else f'\n    ],\n    "categories": [{names}],\n    "info": {info}\n}}\n')
    return len(scene.image)


def _scene(images: int, locations: int, classes: int, rng: np.random.Generator) -> Scene:
    zipf = 1 / np.arange(1, classes + 1) ** 1.3
    frequency = np.concatenate([[0.1], 0.9 * zipf / zipf.sum()])
    at = np.zeros((locations, classes + 1))
    at[:, 0] = 1
    for c in range(1, classes + 1):
        present = rng.random(locations) < 0.08 + 0.9 * (1 - (c - 1) / classes) ** 1.5
        present[rng.choice(locations, min(3, locations), replace=False)] = True
        at[:, c] = present * rng.gamma(0.7, 1.0, locations)
    rate = at * rng.lognormal(0, 1, locations)[:, None]
    rate = rate / rate.sum(0) * frequency
    sequences = -(-images // SEQUENCE_LENGTH)
    drawn = rng.choice(rate.size, sequences, p=(rate / rate.sum()).ravel())
    location, kind = (np.repeat(v, SEQUENCE_LENGTH)[:images] for v in np.divmod(drawn, classes + 1))
    taken = (
        np.repeat(np.cumsum(rng.integers(30, 4000, sequences)), SEQUENCE_LENGTH)[:images] + np.tile(np.arange(SEQUENCE_LENGTH), sequences)[:images]
    )
    number = np.where(kind == 0, 1, 1 + rng.poisson(0.3, images))
    image = np.repeat(np.arange(images), number)
    side = np.exp(rng.uniform(np.log(0.06), np.log(0.5), (len(image), 1))) * rng.uniform(0.8, 1.25, (len(image), 2))
    size = np.clip(side * [WIDTH, HEIGHT], 8, [WIDTH, HEIGHT]).round()
    corner = (rng.random((len(image), 2)) * ([WIDTH, HEIGHT] - size)).round()
    boxes = np.where(kind[image][:, None] == 0, [0, 0, WIDTH, HEIGHT], np.concatenate([corner, size], axis=1)).astype(int)
    reviewed = rng.random(len(image)) < 0.92
    confidence = np.where(reviewed & (rng.random(len(image)) < 0.4), np.nan, rng.beta(8, 2, len(image)))
    return Scene(location, kind, EPOCH + taken.astype("timedelta64[s]"), image, boxes, reviewed, confidence)


def _images(scene: Scene, locations: int, seed: int, indent: str) -> Iterator[str]:
    names = [f"{LOCATION_NAMES[p % len(LOCATION_NAMES)]} {p + 1:03d}" for p in range(locations)]
    folders = [name.lower().replace(" ", "_") for name in names]
    taken = np.datetime_as_string(scene.taken)
    fields = ("id", "file_name", "original_file_name", "serving_bucket_key", "datetime", "location")
    texts = (f'{indent}    "{field}": "%s",\n' for field in fields)
    form = "{\n" + "".join(texts) + f'{indent}    "width": {WIDTH},\n{indent}    "height": {HEIGHT}\n{indent}}}'
    for i, p in enumerate(scene.location.tolist()):
        md5 = _image_md5(seed, i)
        file = f"{PROJECT}/X{81_000_000 + p}/{folders[p]}/{PROJECT}-{md5}.jpg"
        yield form % (
            f"{PROJECT}:{md5}",
            file,
            f"RCNX{i % 10_000:04d}.JPG",
            f"original/{PROJECT}:{md5}-original.jpg",
            f"{taken[i]}.000-08:00",
            names[p],
        )


def _annotations(scene: Scene, seed: int, indent: str) -> Iterator[str]:
    rows = zip(
        scene.image.tolist(),
        scene.class_index[scene.image].tolist(),
        scene.boxes.tolist(),
        scene.reviewed.tolist(),
        scene.confidence.tolist(),
        strict=True,
    )
    box = ",".join([f"\n{indent}        %d"] * 4)
    fields = ('"id": "%s"', '"image_id": "%s"', '"category_id": %d', '"sequence_level_annotation": false', f'"bbox": [{box}\n{indent}    ]')
    fields += ('"confidence": %s', '"validated": %s', '"validated_by": "%s"')
    form = "{\n" + ",\n".join(f"{indent}    {field}" for field in fields) + f"\n{indent}}}"
    for i, (image, kind, box, reviewed, confidence) in enumerate(rows):
        annotation_id = hashlib.md5(b"%d/o%d" % (seed, i), usedforsecurity=False).hexdigest()[:24]
        confidence_text = "null" if math.isnan(confidence) else f"{confidence:.15f}"
        checked, by = ("true", f"reviewer{i % 5}@example.org") if reviewed else ("false", "Not Reviewed")
        yield form % (annotation_id, f"{PROJECT}:{_image_md5(seed, image)}", kind, *box, confidence_text, checked, by)


def _image_md5(seed: int, number: int) -> str:
    return hashlib.md5(b"%d/%d" % (seed, number), usedforsecurity=False).hexdigest()


def _write_joined(file: Any, rows: Iterator[str], comma: str) -> None:
    file.write(next(rows))
    for row in rows:
        file.write(comma + row)


def main() -> None:
    """Write an export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--locations", type=int, default=500)
    parser.add_argument("--classes", type=int, default=8, choices=range(1, len(CLASSES) + 1))
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    print(f"{a.out}: {a.images} images, {write_export(a.out, a.images, a.locations, a.classes, a.seed)} annotations")


if __name__ == "__main__":
    main()

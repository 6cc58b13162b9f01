"""Writes a small SYNTHETIC camera-trap data set for the demo and for tests: images, an export as Animl would give it, and a results file.

Five species, fourteen locations, about 480 images. Boxes and labels are true; a few records are wrong on purpose, each in a way
that real exports are, so that a run shows what the checks report. Detectors for photographs hardly find drawn animals, so the results
file stands for a detector: the true boxes, not quite exact and not all of them, and some false boxes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from animl_pipeline.core.progress import track
from animl_pipeline.storage.atomic_files import disk_errors, write_atomic

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

VERSION = 2
"""Raised when other files are written."""
SEED = 0
MARKER = "sample.json"
"""Written last: the version, and the size of every file."""
PROJECT = "synthetic_island"
LOCATIONS = (
    "Fennel Flat", "Raven Rocks", "Cistern Bend", "Oak Hollow", "West Bluff", "Driftwood Cove", "Burrow Bank", "Pig Fence",
    "Ironwood Saddle", "Sheep Trail", "Vernal Pool", "North Ridge", "Manzanita Gully", "SYNTH13-default",
)  # fmt: skip
"""The last one is named as Animl names a camera whose deployment has no name."""
CATEGORIES = (
    "empty", "fox", "bird", "skunk", "rodent", "lizard", "island fox", "raven", "scrub-jay", "island spotted skunk",
    "deer mouse", "western fence lizard", "unidentifiable", "person", "vehicle", "cat", "pig", "rat",
)  # fmt: skip
"""Names by category id: 0 is empty, then all labels of the project, used or not."""
NAMES = {
    "fox": ("fox", "fox", "island fox"), "bird": ("bird", "bird", "raven", "scrub-jay"), "skunk": ("skunk", "skunk", "island spotted skunk"),
    "rodent": ("rodent", "deer mouse"), "lizard": ("lizard", "lizard", "western fence lizard"),
}  # fmt: skip
VISITS = {"fox": 40, "rodent": 32, "bird": 30, "skunk": 24, "lizard": 24, "": 23}
"""Sequences of each species; "" is an empty sequence, triggered by the wind."""
FRAMES = 3
"""Images of a sequence, one second apart."""
WITHOUT_BOX, UNREVIEWED, UNIDENTIFIABLE = 12, 8, 4
"""How many images have a label without a box, how many annotations are not validated, how many are unidentifiable."""
DETECTED = {"fox": 0.99, "skunk": 0.97, "bird": 0.93, "rodent": 0.88, "lizard": 0.82}
"""Share of the animals of each species that have a box in the results file; a detector misses small animals more often."""
FALSE_BOXES = 0.08
"""Share of images with a false box in the results file."""
RESULTS_FILE = "megadetector.json"
README = """This data set is SYNTHETIC. animl-pipeline drew all images; animals, locations and times are made up. Some records are wrong
on purpose: a JPEG that is cut off, a missing file, boxes partly and wholly outside of the image, a box without area, a box around
the whole image, annotations that are not validated, an unknown category, an unknown image, a repeated id, an image without its size.

export.json         COCO for Camera Traps, as Animl exports it
images/             the images, under the file_name of the export
megadetector.json   boxes as a detector would find them, in MegaDetector's format; made from the true boxes, no detector ran
sample.json         version and size of every file; delete it and the next run draws everything again
"""


class Frame(NamedTuple):
    """One image of the data set, its record in the export, and its annotations."""

    sequence: int
    jpeg: bytes
    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    animals: int


def write_synthetic_dataset(folder: Path) -> bool:
    """Write the data set into ``folder``; whether anything had to be drawn comes back.

    The same Pillow and numpy give the same bytes. Where the folder already holds the whole data set of this
    version, nothing happens; after a run that was killed everything is drawn again.

    Raises:
        StoreError: the folder cannot be written.
    """
    if _is_complete(folder):
        log.info("synthetic data set: %s holds it already", folder)
        return False
    with disk_errors(folder / MARKER):
        (folder / MARKER).unlink(missing_ok=True)
    files = _draw()
    for name, data in files.items():
        write_atomic(folder / name, data)
    sizes = {name: len(data) for name, data in files.items()}
    write_atomic(folder / MARKER, json.dumps({"synthetic": True, "version": VERSION, "files": sizes}, indent=1).encode())
    log.info("synthetic data set: wrote %d files, %.1f MB, into %s", len(files), sum(sizes.values()) / 1e6, folder)
    return True


def _is_complete(folder: Path) -> bool:
    try:
        marker: dict[str, Any] = json.loads((folder / MARKER).read_bytes())
        return marker["version"] == VERSION and all((folder / name).stat().st_size == size for name, size in marker["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _draw() -> dict[str, bytes]:
    """All files: path below the folder → bytes."""
    import numpy as np

    rng = np.random.default_rng((SEED, 0))
    frames = _draw_frames(_plan_visits(rng))
    broken = next(i for i, frame in enumerate(frames) if frame.animals == 1 and i > len(frames) // 3)
    frames[broken] = _renamed(frames[broken]._replace(jpeg=frames[broken].jpeg[: len(frames[broken].jpeg) // 2]))
    results = json.dumps(_results_file(frames, np.random.default_rng((SEED, 3))), indent=1).encode()
    files = {frame.image["file_name"]: frame.jpeg for frame in frames}
    picked = _pick_frames([f for i, f in enumerate(frames) if i != broken], rng)
    _leave_out_boxes(picked)
    _leave_unreviewed(picked)
    wrong = _add_wrong_records(picked, files)
    annotations = [a for frame in frames for a in frame.annotations] + wrong
    export = {
        "info": {
            "version": "1.0",
            "description": "SYNTHETIC: drawn by animl-pipeline, no photographs; some records are wrong on purpose. Only for trying out the pipeline.",
            "year": 2025,
            "date_created": "2025-06-01T00:00:00.000Z",
        },
        "images": [frame.image for frame in frames],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CATEGORIES)],
    }
    text = json.dumps(export, indent=1).encode()
    texts = {"README.txt": README.encode(), "export.json": text, RESULTS_FILE: results}
    return texts | {f"images/{name}": data for name, data in files.items()}


def _plan_visits(rng: np.random.Generator) -> list[tuple[int, datetime, bool, tuple[str, ...]]]:
    """Location, time, whether at night, and species of every sequence, in the order of location and time."""
    from animl_pipeline.dev.synthetic_images import SPECIES

    visits = []
    for species, count in VISITS.items():
        homes = rng.permutation(len(LOCATIONS))[: 10 if species else len(LOCATIONS)]
        for i in range(count):
            night = bool(rng.uniform() < (SPECIES[species].at_night if species else 0.5))
            start = datetime(2025, 3, 1, 20 if night else 7, tzinfo=timezone(timedelta(hours=-8)))
            taken = start + timedelta(days=int(rng.integers(0, 90)), seconds=int(rng.integers(0, 9 * 3600 if night else 37_800)))
            pair = species and rng.uniform() < 0.08
            visits.append((int(homes[i % len(homes)]), taken, night, (species, species) if pair else (species,) if species else ()))
    return sorted(visits)


def _draw_frames(visits: list[tuple[int, datetime, bool, tuple[str, ...]]]) -> list[Frame]:
    import numpy as np

    from animl_pipeline.dev.synthetic_images import draw_animal, draw_scenes, encode_image, place_animal, step_forward

    scenes = [draw_scenes(np.random.default_rng((SEED, 1, n))) for n in range(len(LOCATIONS))]
    frames: list[Frame] = []
    with track("drawing the synthetic data set", len(visits) * FRAMES) as step:
        for number, (location, start, night, party) in enumerate(visits):
            rng = np.random.default_rng((SEED, 2, number))
            gain = float(rng.uniform(0.8, 1.2))
            animals = [place_animal(species, rng) for species in party]
            for i in range(FRAMES):
                canvas = scenes[location][night].pixels.copy()
                boxes = [(a.species, draw_animal(canvas, a, night)) for a in sorted(animals, key=lambda a: a.foot)]
                taken = start + timedelta(seconds=i)
                jpeg = encode_image(canvas, night, gain, LOCATIONS[location], taken, rng)
                frames.append(_frame(number, len(frames), jpeg, location, taken, [(s, b) for s, b in boxes if b is not None], rng))
                animals = [step_forward(a, rng) for a in animals]
            step(FRAMES)
    return frames


def _frame(
    sequence: int,
    number: int,
    jpeg: bytes,
    location: int,
    taken: datetime,
    animals: list[tuple[str, tuple[int, int, int, int]]],
    rng: np.random.Generator,
) -> Frame:
    """An image with its record and annotations; an empty image has a box around everything labelled empty, as in Animl."""
    from animl_pipeline.dev.synthetic_images import HEIGHT, WIDTH

    image = {
        "id": "", "file_name": "", "original_file_name": f"IMAG{number + 1:04d}.JPG", "serving_bucket_key": "",
        "datetime": taken.isoformat(timespec="milliseconds"), "location": LOCATIONS[location], "width": WIDTH, "height": HEIGHT,
    }  # fmt: skip
    boxed = [(CATEGORIES.index(str(rng.choice(NAMES[species]))), list(box)) for species, box in animals]
    annotations = [
        {
            "id": str(i), "image_id": "", "category_id": category, "sequence_level_annotation": False, "bbox": box,
            "confidence": round(float(rng.uniform(0.5, 0.98)), 4) if category and rng.uniform() < 0.6 else None,
            "validated": True, "validated_by": f"reviewer{int(rng.integers(2)) + 1}@island.example",
        }
        for i, (category, box) in enumerate(boxed or [(0, [0, 0, WIDTH, HEIGHT])])
    ]  # fmt: skip
    return _renamed(Frame(sequence, jpeg, image, annotations, len(animals)))


def _renamed(frame: Frame) -> Frame:
    """The frame with the ids that Animl gives: an image is named by the md5 of its bytes."""
    image_id = f"{PROJECT}:{hashlib.md5(frame.jpeg, usedforsecurity=False).hexdigest()}"
    location = frame.image["location"]
    camera = f"SYNTH{LOCATIONS.index(location) + 1:02d}"
    frame.image["id"] = image_id
    frame.image["file_name"] = f"{PROJECT}/{camera}/{location}/{image_id.replace(':', '-')}.jpg"
    frame.image["serving_bucket_key"] = f"original/{image_id}-original.jpg"
    for i, annotation in enumerate(frame.annotations):
        annotation |= {"id": _annotation_id(image_id, i), "image_id": image_id}
    return frame


def _results_file(frames: list[Frame], rng: np.random.Generator) -> dict[str, Any]:
    """What a detector might find, in MegaDetector's batch format."""
    return {
        "info": {"format_version": "1.4", "detector": "none: SYNTHETIC boxes, made from the true ones"},
        "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
        "images": [{"file": frame.image["file_name"], "detections": _detect(frame, rng)} for frame in frames],
    }


def _detect(frame: Frame, rng: np.random.Generator) -> list[dict[str, Any]]:
    import numpy as np

    from animl_pipeline.dev.synthetic_images import HEIGHT, WIDTH

    species = {name: kind for kind, names in NAMES.items() for name in names}
    found = []
    for annotation in frame.annotations:
        kind = species.get(CATEGORIES[annotation["category_id"]])
        if kind and rng.uniform() < DETECTED[kind]:
            x, y, w, h = annotation["bbox"]
            found.append((0.1 + 0.88 * rng.beta(5, 1.5), np.array([x, y, x + w, y + h]) + rng.uniform(-0.04, 0.04, 4) * [w, h, w, h]))
    if rng.uniform() < FALSE_BOXES:
        x, y, w, h = rng.uniform((0, 0, 20, 20), (WIDTH - 90, HEIGHT - 90, 90, 90))
        found.append((rng.uniform(0.1, 0.4), np.array([x, y, x + w, y + h])))
    detections = []
    for confidence, corners in found:
        left, top, right, bottom = (corners / [WIDTH, HEIGHT, WIDTH, HEIGHT]).clip(0, 1).round(4).tolist()
        detections.append({"category": "1", "conf": round(confidence, 3), "bbox": [left, top, right - left, bottom - top]})
    return detections


def _annotation_id(image_id: str, number: int) -> str:
    return hashlib.sha256(f"{image_id}/{number}".encode()).hexdigest()[:24]


def _pick_frames(frames: list[Frame], rng: np.random.Generator) -> list[Frame]:
    """Frames with one animal in random order, one of each sequence: where records are changed."""
    shuffled = [frames[i] for i in rng.permutation(len(frames)) if frames[i].animals == 1]
    return list({frame.sequence: frame for frame in shuffled}.values())


def _take(picked: list[Frame], fits: Any = None) -> Frame:
    """Take the first frame that fits out of the list."""
    frame = next(f for f in picked if fits is None or fits(f))
    picked.remove(frame)
    return frame


def _leave_out_boxes(picked: list[Frame]) -> None:
    """Some images only say which animal they show, so that a detector must find it: large animals, one a location."""
    used: set[str] = set()
    for i in range(WITHOUT_BOX):
        species = ("fox", "skunk", "bird")[i % 3]
        names = {CATEGORIES.index(name) for name in NAMES[species]}
        frame = _take(
            picked,
            lambda f, names=names: (
                f.annotations[0]["category_id"] in names and max(f.annotations[0]["bbox"][2:]) > 80 and f.image["location"] not in used
            ),
        )
        used.add(frame.image["location"])
        del frame.annotations[0]["bbox"]


def _leave_unreviewed(picked: list[Frame]) -> None:
    for _ in range(UNREVIEWED):
        _take(picked).annotations[0] |= {"validated": False, "validated_by": "Not Reviewed", "confidence": 0.7}
    for _ in range(UNIDENTIFIABLE):
        _take(picked).annotations[0]["category_id"] = CATEGORIES.index("unidentifiable")


def _add_wrong_records(picked: list[Frame], files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Make some records wrong; the wrong annotations to add come back."""
    from animl_pipeline.dev.synthetic_images import HEIGHT, WIDTH

    del files[_take(picked).image["file_name"]]
    no_size = _take(picked).image
    del no_size["width"], no_size["height"]
    _take(picked).annotations[0]["bbox"] = [0, 0, WIDTH, HEIGHT]
    partly_outside = _take(picked, lambda f: f.annotations[0]["bbox"][0] > WIDTH / 2).annotations[0]["bbox"]
    partly_outside[2] = WIDTH + 25 - partly_outside[0]
    right = _take(picked).annotations[0]
    changes: tuple[dict[str, Any], ...] = (
        {"bbox": [WIDTH + 20, 60, 80, 60]}, {"bbox": [300, 240, 0, 40]}, {"category_id": 999}, {"image_id": f"{PROJECT}:{'0' * 32}"},
    )  # fmt: skip
    return [right | {"id": _annotation_id(right["image_id"], i)} | change for i, change in enumerate(changes, start=1)] + [dict(right)]

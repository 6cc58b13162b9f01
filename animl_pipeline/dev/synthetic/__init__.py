"""The sample: a small SYNTHETIC island with five kinds of animals, drawn and never photographed, for the demo and for tests.

It comes as an Animl project would: a COCO for Camera Traps export (export.json) and the pictures that it names (images/).
Its boxes are true, and a few of its records are wrong on purpose.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from animl_pipeline.storage.object_store import disk, write_whole

VERSION = 1
"""Raised when the same seed draws other images."""


log = logging.getLogger(__name__)

MARKER = "sample.json"
"""Written last: names the version and the size of every file."""
README = """This island is SYNTHETIC. All pictures are drawn by animl-pipeline (animl_pipeline/sample), none is a photograph;
animals, places and times are made up. Boxes and labels are true, but for a few records that are wrong on purpose: a JPEG
that is cut off, a missing file, boxes partly and wholly outside of the picture, a box of no size, one around everything,
objects that nobody reviewed, an unknown category, an unknown image, a repeated id, an image without its size.

export.json   COCO for Camera Traps, as Animl exports it
images/       the pictures, under the file_name that the export gives them
sample.json   what was drawn, by which version; remove it and the next run draws everything again
"""


def draw_sample(folder: Path, seed: int = 0) -> bool:
    """Draw the island into ``folder``; whether anything had to be drawn comes back.

    The same seed gives the same bytes with the same Pillow and numpy. When the folder already holds this version whole,
    nothing happens; a try that was killed is drawn again.

    Raises:
        StoreError: the folder cannot be written.
    """
    version = hashlib.sha256(f"{VERSION}/{seed}".encode()).hexdigest()
    if _is_whole(folder, version):
        log.info("sample: %s holds the drawn island already", folder)
        return False
    with disk(folder / MARKER):
        (folder / MARKER).unlink(missing_ok=True)
    files = _draw(seed)
    for name, data in files.items():
        write_whole(folder / name, data)
    sizes = {name: len(data) for name, data in files.items()}
    write_whole(folder / MARKER, json.dumps({"synthetic": True, "version": version, "seed": seed, "files": sizes}, indent=1).encode())
    log.info("sample: drew %d files, %.1f MB, into %s", len(files), sum(sizes.values()) / 1e6, folder)
    return True


def _is_whole(folder: Path, version: str) -> bool:
    """Whether the marker is of this version and every file that it names is there with its size."""
    try:
        marker: dict[str, Any] = json.loads((folder / MARKER).read_bytes())
        return marker["version"] == version and all((folder / name).stat().st_size == size for name, size in marker["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _draw(seed: int) -> dict[str, bytes]:
    """All files of the sample: path below the folder → bytes."""
    from animl_pipeline.dev.synthetic.annotations import write_down

    written = write_down(_frames(seed), _chance(seed, 2))
    export = json.dumps(written.export, indent=1, ensure_ascii=False).encode()
    return {"README.txt": README.encode(), "export.json": export} | {f"images/{name}": data for name, data in written.files.items()}


def _frames(seed: int) -> list[Any]:
    """All pictures, place by place."""
    from animl_pipeline.core.progress import track
    from animl_pipeline.dev.synthetic.frames import Frame, draw_burst, make_grain
    from animl_pipeline.dev.synthetic.island import FRAMES, LOCATIONS, plan_visits
    from animl_pipeline.dev.synthetic.scenery import paint_location

    visits, grain = plan_visits(_chance(seed, 0)), make_grain(_chance(seed, 1))
    frames: list[Frame] = []
    with track("drawing the sample island", len(visits) * FRAMES) as step:
        for number, location in enumerate(LOCATIONS):
            day, night = paint_location(location, _chance(seed, 3, number))
            for visit in (v for v in visits if v.location == number):
                frames += draw_burst(visit, night if visit.night else day, grain, _chance(seed, 4, visit.number))
                step(FRAMES)
    return frames


def _chance(*path: int) -> Any:
    """A random generator of its own for each thing that is drawn, so that one does not move another."""
    import numpy as np

    return np.random.default_rng(path)

"""Find the exports in a folder that is given instead of them."""

from __future__ import annotations

import re
from pathlib import Path

from animl_pipeline.config.settings import Settings

HEAD_BYTES = 1 << 16
MAX_DEPTH = 2
"""Folders below the given one in which exports are looked for."""
_COCO_IMAGE = re.compile(rb'"file_name"\s*:')
"""A key of COCO for Camera Traps' images; those of MegaDetector's results have "file" instead."""


def find_exports_inside(export: str, settings: Settings) -> list[str]:
    """The files of COCO for Camera Traps in a local folder, such as <folder>/*/cct.json; else the export itself.

    A folder with a folder of images for each class and a Camtrap DP have none, so they come back unchanged.

    Args:
        export: as a person gives it: a path, an address, or animl://<project>.
        settings: say where relative paths start.
    """
    if "://" in export:
        return [export]
    given = Path(export) if Path(export).is_dir() else settings.data_path(export)
    if not given.is_dir() or (given / "datapackage.json").exists():
        return [export]
    patterns = ["/".join(["*"] * depth + ["*.json"]) for depth in range(MAX_DEPTH + 1)]
    found = sorted(str(file) for pattern in patterns for file in given.glob(pattern) if _is_coco(file))
    return found or [export]


def _is_coco(file: Path) -> bool:
    try:
        with file.open("rb") as f:
            head = f.read(HEAD_BYTES)
    except OSError:
        return False
    return head.lstrip()[:1] == b"{" and _COCO_IMAGE.search(head) is not None

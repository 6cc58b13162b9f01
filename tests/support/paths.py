"""Folders that tests read from."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""

DATA = Path(os.environ.get("ANIML_TEST_DATA") or ROOT.parent / "shared" / "data")
"""Real camera-trap images as COCO for Camera Traps; tests that need them skip where the folder is missing."""

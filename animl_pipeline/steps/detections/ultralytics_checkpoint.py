"""A checkpoint that ``ultralytics.YOLO`` loads, opened without its habits.

A checkpoint is a pickle. Without a sha256 in the plan only ultralytics' own classes are let through; with it, all is loaded.
ultralytics also likes to talk to its makers, to install packages and to patch pillow: none of that happens here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from animl_pipeline.config.settings import Settings, set_library_defaults
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.steps.detections.detector import ANIMAL, PERSON, VEHICLE

NAMES = {"animal": ANIMAL, "animals": ANIMAL, "person": PERSON, "people": PERSON, "human": PERSON, "vehicle": VEHICLE, "vehicles": VEHICLE}
"""A checkpoint's class name, folded, and its MegaDetector category."""


def categories_of(names: Mapping[int, str], file: str) -> dict[int, str]:
    """A network's classes that MegaDetector knows: index → category.

    Raises:
        DetectionsError: there is no animal among them.
    """
    known = {index: NAMES[name.casefold()] for index, name in names.items() if name.casefold() in NAMES}
    if ANIMAL not in known.values():
        listed = ", ".join(list(names.values())[:5]) + (", …" if len(names) > 5 else "")
        raise DetectionsError(
            f"{file} does not find animals: expected a class named animal, found {listed}; set detections.detector to a MegaDetector"
        )
    return known


def open_checkpoint(path: Path, *, verified: bool, settings: Settings) -> Any:
    """The model in a .pt file, as ultralytics' own object.

    Args:
        path: the file.
        verified: the plan names the file's sha256, so that all that it holds may be unpickled.
        settings: where ultralytics may keep its own settings.

    Raises:
        DetectionsError: it is no checkpoint, or not of a detector.
    """
    model = _load(path, verified, settings)
    if getattr(model, "task", None) != "detect":
        raise DetectionsError(f"{path.name} is a network for the task {getattr(model, 'task', None)!r}; detections.detector must be one for 'detect'")
    return model


def _load(path: Path, verified: bool, settings: Settings) -> Any:
    yolo, tasks = import_ultralytics(settings)
    if not verified and not hasattr(tasks, "SAFE_LOAD"):
        raise DetectionsError(
            "this version of ultralytics cannot load a checkpoint safely; update it, or set detections.sha256 to the checkpoint's sha256"
        )
    tasks.SAFE_LOAD = not verified
    try:
        return yolo(str(path), verbose=False)
    except Exception as e:  # a pickle of who knows what may raise anything
        raise DetectionsError(_refusal(path, e, verified)) from e


def _refusal(path: Path, error: Exception, verified: bool) -> str:
    reason = str(error).splitlines()[0].encode("ascii", "ignore").decode().strip() if str(error) else type(error).__name__
    if not verified and "outside the supported" in reason and zipfile.is_zipfile(path):  # else ultralytics says so of any bytes
        return f"{path.name} holds more than ultralytics' own classes; if you trust it, set detections.sha256 to its sha256"
    return (
        f"{path.name} is no checkpoint that ultralytics loads ({reason.removeprefix('ERROR').strip()}); set detections.detector to a whole .pt file"
    )


def import_ultralytics(settings: Settings) -> tuple[Any, Any]:
    """``ultralytics.YOLO`` and its loading module, with its habits switched off before they start."""
    home = settings.cache.expanduser() / "ultralytics"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DetectionsError(f"{home} cannot be made ({e.strerror}); make room there or set ANIML_CACHE to another folder") from e
    set_library_defaults(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false", YOLO_CONFIG_DIR=str(home))
    opened = Image.open
    from ultralytics.models.yolo.model import YOLO
    from ultralytics.nn import tasks
    from ultralytics.utils import events, patches

    # its own Image.open installs a package at the first picture that does not decode
    Image.open = patches._image_open if opened is patches.image_open else opened
    events.events.enabled = False
    return YOLO, tasks

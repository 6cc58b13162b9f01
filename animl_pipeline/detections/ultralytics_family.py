"""Checkpoints that ``ultralytics.YOLO`` loads: MegaDetector v6, v1000 (larch, sorrel, cedar), and whatever names its classes as they do.

A checkpoint is a pickle. Without a sha256 in the plan only ultralytics' own classes are let through; with it, all is loaded.
ultralytics also likes to talk to its makers, to install packages and to patch pillow: none of that happens here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from animl_pipeline.detections.detector import ANIMAL, PERSON, VEHICLE, Found, Prepared, scaled_size, tidy
from animl_pipeline.errors import DetectionsError
from animl_pipeline.settings import Settings, tell_libraries

RECIPE = "ultralytics/1"
"""Moves on when the same picture and weights would give other boxes."""

NAMES = {"animal": ANIMAL, "animals": ANIMAL, "person": PERSON, "people": PERSON, "human": PERSON, "vehicle": VEHICLE, "vehicles": VEHICLE}
"""A checkpoint's class name, folded, and its MegaDetector category."""

MAX_OVERLAP = 0.45
"""Intersection over union above which the less certain of two boxes goes, as MegaDetector's own tools have it."""


class Ultralytics:
    """A network in memory, on the GPU where there is one."""

    def __init__(self, model: Any, categories: Mapping[int, str], image_size: int, confidence: float) -> None:
        self._model, self._categories = model, categories
        self._size, self._confidence = image_size, confidence

    @classmethod
    def load(cls, path: Path, image_size: int, confidence: float, *, verified: bool, settings: Settings) -> Ultralytics:
        """The detector from a checkpoint.

        Args:
            path: a .pt file.
            image_size: longer side of what the network sees.
            confidence: objects below are not given.
            verified: the plan names the file's sha256, so that all that it holds may be unpickled.
            settings: where ultralytics may keep its own settings.

        Raises:
            DetectionsError: it is no checkpoint, not of a detector, or of one that does not find animals.
        """
        if path.suffix != ".pt":
            raise DetectionsError(f"detections.detector: expected a .pt checkpoint that ultralytics loads or megadetector-lite, found {path.name}")
        model = _load(path, verified, settings)
        if getattr(model, "task", None) != "detect":
            raise DetectionsError(
                f"{path.name} is a network for the task {getattr(model, 'task', None)!r}; detections.detector must be one for 'detect'"
            )
        return cls(model, _categories(model.names, path), image_size, confidence)

    def preprocess(self, picture: Image.Image) -> Prepared:
        import cv2

        # ultralytics would scale with the same call, but then whole pictures wait in memory; it takes BGR
        width, height = scaled_size(picture.width, picture.height, self._size)
        pixels = cv2.resize(np.asarray(picture)[..., ::-1], (width, height), interpolation=cv2.INTER_LINEAR)
        return Prepared(np.ascontiguousarray(pixels, np.uint8), width, height)

    def predict(self, prepared: Prepared) -> list[Found]:
        (answer,) = self._model.predict(
            [prepared.pixels], imgsz=self._size, conf=self._confidence, iou=MAX_OVERLAP, device=_device(), save=False, verbose=False
        )
        rows = zip(answer.boxes.cls.tolist(), answer.boxes.conf.tolist(), answer.boxes.xyxyn.tolist(), strict=True)
        return tidy(
            Found(self._categories[int(name)], confidence, top, left, bottom, right)
            for name, confidence, (left, top, right, bottom) in rows
            if int(name) in self._categories
        )


def _categories(names: Mapping[int, str], path: Path) -> dict[int, str]:
    known = {index: NAMES[name.casefold()] for index, name in names.items() if name.casefold() in NAMES}
    if ANIMAL not in known.values():
        listed = ", ".join(list(names.values())[:5]) + (", …" if len(names) > 5 else "")
        raise DetectionsError(
            f"{path.name} does not find animals: expected a class named animal, found {listed}; set detections.detector to a MegaDetector"
        )
    return known


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
    tell_libraries(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false", YOLO_CONFIG_DIR=str(home))
    opened = Image.open
    from ultralytics.models.yolo.model import YOLO
    from ultralytics.nn import tasks
    from ultralytics.utils import events, patches

    # its own Image.open installs a package at the first picture that does not decode
    Image.open = patches._image_open if opened is patches.image_open else opened
    events.events.enabled = False
    return YOLO, tasks


def _device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"

"""MegaDetector Lite: a YOLOX-tiny with the one class animal, whose weights come with a PyPI wheel.

The input is as zamba, which ships the weights, gives it: RGB 0-255 as float, resized to fit and padded with black at the
right and below. Bilinear rather than zamba's bicubic resizing, since it found a few more animals in real pictures.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from animl_pipeline.detections.detector import ANIMAL, Found, Prepared, scaled_size, tidy
from animl_pipeline.errors import DetectionsError

RECIPE = "yolox-lite/1"
"""Moves on when the same picture and weights would give other boxes."""

DEPTH, WIDTH, CLASSES = 0.33, 0.375, 1
MAX_OVERLAP = 0.45
"""Intersection over union above which the less certain of two boxes goes."""


class YoloxLite:
    """The network in memory, on the GPU where there is one."""

    def __init__(self, network: Any, device: str, image_size: int, confidence: float) -> None:
        self._network, self._device = network, device
        self._size, self._confidence = image_size, confidence

    @classmethod
    def load(cls, path: Path, image_size: int, confidence: float) -> YoloxLite:
        """The detector from a checkpoint.

        Raises:
            DetectionsError: it is no checkpoint of this network.
        """
        import torch
        from yolox.models import YoloPafpn, YoloxHead, YoloxModule

        network = YoloxModule(YoloPafpn(DEPTH, WIDTH), YoloxHead(CLASSES, WIDTH))
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as e:
            raise DetectionsError(f"{path.name} is no checkpoint of MegaDetector Lite ({str(e).splitlines()[0]}); set detections.detector") from e
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(network.eval().to(device), device, image_size, confidence)

    def preprocess(self, picture: Image.Image) -> Prepared:
        width, height = scaled_size(picture.width, picture.height, self._size)
        pixels = np.zeros((self._size, self._size, 3), np.uint8)
        pixels[:height, :width] = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        return Prepared(pixels, width, height)

    def predict(self, prepared: Prepared) -> list[Found]:
        import torch
        from yolox.utils.boxes import postprocess

        inputs = torch.from_numpy(prepared.pixels.transpose(2, 0, 1)[None].astype(np.float32)).to(self._device)
        with torch.inference_mode():
            (rows,) = postprocess(self._network(inputs), CLASSES, self._confidence, MAX_OVERLAP)
        if rows is None:
            return []
        w, h = prepared.width, prepared.height
        return tidy(
            Found(ANIMAL, objectness * certainty, top / h, left / w, bottom / h, right / w)
            for left, top, right, bottom, objectness, certainty, _ in rows.cpu().tolist()
        )

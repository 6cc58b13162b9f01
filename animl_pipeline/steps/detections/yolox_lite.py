"""MegaDetector Lite: a YOLOX-tiny with the one class animal, whose weights come with a PyPI wheel.

The input is as zamba, which ships the weights, gives it: RGB 0-255 as float, resized to fit and padded with black at the
right and below to a square. Bilinear rather than zamba's bicubic resizing, since it found a few more animals in real
pictures. The padding stays whole: a shorter rectangle would save a quarter of the time and move one box in five.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.steps.detections.detector import ANIMAL, Detection, Prepared, in_image, scaled_size, tidy
from animl_pipeline.steps.detections.inference_backend import Loaded, Network, load_network
from animl_pipeline.steps.detections.nms import suppress

RECIPE = "yolox-lite/2"
"""Moves on when the same picture and weights would give other boxes."""

DEPTH, WIDTH, CLASSES = 0.33, 0.375, 1
MAX_OVERLAP = 0.45
"""Intersection over union above which the less certain of two boxes goes."""


class YoloxLite:
    """The network in memory."""

    categories = frozenset({ANIMAL})

    def __init__(self, loaded: Loaded, image_size: int, confidence: float) -> None:
        self._forward, self.alone = loaded.forward, loaded.alone
        self._size, self._confidence = image_size, confidence

    @classmethod
    def load(cls, path: Path, sha256: str, image_size: int, confidence: float, settings: Settings) -> YoloxLite:
        """The detector from a checkpoint.

        Raises:
            DetectionsError: it is no checkpoint of this network.
        """
        return cls(load_network([sha256, RECIPE, image_size], lambda: build_network(path, image_size), settings), image_size, confidence)

    def preprocess(self, data: bytes) -> Prepared:
        image = open_image(data)
        width, height = scaled_size(image.width, image.height, self._size)
        pixels = np.zeros((self._size, self._size, 3), np.uint8)
        pixels[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        return Prepared(pixels, 0, 0, width, height)

    def predict(self, prepared: Sequence[Prepared]) -> list[list[Detection]]:
        (rows,) = self._forward(np.stack([p.pixels for p in prepared]))
        return [self._found(r, p) for r, p in zip(rows, prepared, strict=True)]

    def _found(self, rows: Any, prepared: Prepared) -> list[Detection]:
        """Objects from rows of centre x, centre y, width, height, objectness, certainty."""
        scores = rows[:, 4] * rows[:, 5]
        certain = scores >= self._confidence
        centres, sizes, scores = rows[certain, :2], rows[certain, 2:4], scores[certain]
        boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
        kept = suppress(boxes, scores, np.zeros(len(boxes), np.intp), MAX_OVERLAP)
        return tidy(Detection(ANIMAL, float(scores[i]), *in_image(boxes[i].tolist(), prepared)) for i in kept)


def build_network(path: Path, image_size: int) -> Network:
    """The network in torch, which takes pictures of one size and gives rows of places, sizes and certainties.

    Raises:
        DetectionsError: the file is no checkpoint of it.
    """
    import torch
    from torch import nn
    from yolox.models import YoloPafpn, YoloxHead, YoloxModule

    class FromPixels(nn.Module):
        locations: torch.Tensor
        steps: torch.Tensor

        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network
            network.head.decode_in_inference = False
            locations, steps = zip(*(_grid(image_size // stride, stride) for stride in network.head.strides), strict=True)
            self.register_buffer("locations", torch.from_numpy(np.concatenate(locations)))
            self.register_buffer("steps", torch.from_numpy(np.concatenate(steps)))

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
            # half precision has steps of half a pixel at a picture's far end: a GPU's answers are placed in single precision
            raw = self.network(pixels.permute(0, 3, 1, 2).float()).float()
            centres, sizes = (raw[..., :2] + self.locations) * self.steps, torch.exp(raw[..., 2:4]) * self.steps
            return (torch.cat([centres, sizes, raw[..., 4:]], dim=-1),)

    network = YoloxModule(YoloPafpn(DEPTH, WIDTH), YoloxHead(CLASSES, WIDTH))
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as e:
        raise DetectionsError(f"{path.name} is no checkpoint of MegaDetector Lite ({str(e).splitlines()[0]}); set detections.detector") from e
    return Network(FromPixels(network.eval()), {}, image_size, image_size)


def _grid(cells: int, stride: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Column and row of every place of one level, [cells², 2], and its stride, [cells², 1]."""
    y, x = np.mgrid[0:cells, 0:cells].reshape(2, -1)
    return np.stack([x, y], axis=1).astype(np.float32), np.full((cells * cells, 1), stride, np.float32)

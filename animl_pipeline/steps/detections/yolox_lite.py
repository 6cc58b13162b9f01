"""MegaDetector Lite: a YOLOX-tiny with one class, animal. Its weights come with a PyPI wheel.

The input is the one of zamba, which ships the weights: RGB 0-255 as float, resized to fit and padded with black at the right and bottom to
a square. Resizing is bilinear, not bicubic as in zamba, because it found a few more animals in real images. The padding is never cut: a
smaller rectangle would save a quarter of the time but move one box in five.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from animl_pipeline.config.detections_and_crops import DetectorView
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.detections.box_overlap import non_maximum_suppression
from animl_pipeline.steps.detections.detector import Detection, NetworkInput, clean_detections, scaled_size, to_image_box
from animl_pipeline.steps.detections.inference_backend import LoadedNetwork, Network, load_network

VERSION = 2
"""Raised when the same image and weights give other boxes."""
LIBRARIES = ("pillow", "torch", "onnxruntime")
DEPTH, WIDTH, CLASSES = 0.33, 0.375, 1
MAX_IOU = 0.45
BRIGHTER = (255 * (np.arange(256) / 255) ** 0.6).round().astype(np.uint8)
"""Gamma correction by which dark images become brighter."""


class YoloxLite:
    """MegaDetector Lite, loaded."""

    categories = frozenset({ANIMAL})

    def __init__(self, network: LoadedNetwork, image_size: int, confidence: float, views: Sequence[DetectorView] = ()) -> None:
        self._forward, self.batched = network.forward, network.batched
        self._size, self._confidence, self._views = image_size, confidence, tuple(views)

    @classmethod
    def load(cls, path: Path, sha256: str, image_size: int, confidence: float, settings: Settings, views: Sequence[DetectorView] = ()) -> YoloxLite:
        """Load the detector from a checkpoint. It also looks at these other views of each image, and puts the boxes of all together.

        Raises:
            DetectionsError: the file is not a checkpoint of this network.
        """
        identity = ["yolox-lite", VERSION, sha256, image_size]
        return cls(load_network(identity, lambda: build_network(path, image_size), settings), image_size, confidence, views)

    def preprocess(self, data: bytes) -> NetworkInput:
        image = open_image(data)
        width, height = scaled_size(image.width, image.height, self._size)
        pixels = np.zeros((self._size, self._size, 3), np.uint8)
        pixels[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        return NetworkInput(pixels, 0, 0, width, height)

    def predict(self, inputs: Sequence[NetworkInput]) -> list[list[Detection]]:
        seen = [[i, *(MAKE_VIEW[view](i) for view in self._views)] for i in inputs]
        (outputs,) = self._forward(np.stack([i.pixels for of_image in seen for i in of_image]))
        rows, found = iter(outputs), []
        for of_image in seen:
            detections = [self._detections(next(rows), view) for view in of_image]
            found.append(self._merge(detections) if self._views else detections[0])
        return found

    def _merge(self, detections: list[list[Detection]]) -> list[Detection]:
        """The detections of all views of an image without those that another one covers. Mirrored ones are turned back."""
        together = [
            d._replace(xmin=1 - d.xmax, xmax=1 - d.xmin) if view == "mirror" else d
            for view, of_view in zip(("", *self._views), detections, strict=True)
            for d in of_view
        ]
        boxes, scores = np.array([d[2:] for d in together], np.float32).reshape(-1, 4), np.array([d.confidence for d in together], np.float32)
        kept = non_maximum_suppression(boxes, scores, np.zeros(len(boxes), np.intp), MAX_IOU)
        return clean_detections(together[i] for i in kept)

    def _detections(self, rows: NDArray[np.float32], network_input: NetworkInput) -> list[Detection]:
        """Detections from rows of centre x, centre y, width, height, objectness, class probability."""
        scores = rows[:, 4] * rows[:, 5]
        above = scores >= self._confidence
        centres, sizes, scores = rows[above, :2], rows[above, 2:4], scores[above]
        boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
        kept = non_maximum_suppression(boxes, scores, np.zeros(len(boxes), np.intp), MAX_IOU)
        return clean_detections(Detection(ANIMAL, float(scores[i]), *to_image_box(boxes[i].tolist(), network_input)) for i in kept)


def _mirror(seen: NetworkInput) -> NetworkInput:
    pixels = np.zeros_like(seen.pixels)
    pixels[: seen.height, : seen.width] = seen.pixels[: seen.height, : seen.width][:, ::-1]
    return seen._replace(pixels=pixels)


def _brighten(seen: NetworkInput) -> NetworkInput:
    return seen._replace(pixels=BRIGHTER[seen.pixels])


def _shrink(seen: NetworkInput) -> NetworkInput:
    """The image at half its size in the middle of the frame: what fills the frame then has something around it."""
    pixels, (width, height) = np.zeros_like(seen.pixels), (max(1, seen.width // 2), max(1, seen.height // 2))
    left, top = (pixels.shape[1] - width) // 2, (pixels.shape[0] - height) // 2
    small = Image.fromarray(seen.pixels[: seen.height, : seen.width]).resize((width, height), Image.Resampling.BILINEAR)
    pixels[top : top + height, left : left + width] = np.asarray(small)
    return NetworkInput(pixels, left, top, width, height)


MAKE_VIEW: dict[DetectorView, Callable[[NetworkInput], NetworkInput]] = {"mirror": _mirror, "gamma": _brighten, "half_size": _shrink}
"""``detections.views`` → how another view is made of an image that begins in the upper left corner."""


def build_network(path: Path, image_size: int) -> Network:
    """Build the network in torch, for images of one size. Its rows are centres, sizes and probabilities, in pixels.

    Raises:
        DetectionsError: the file is not a checkpoint of this network.
    """
    import torch
    from torch import nn
    from yolox.models import YoloPafpn, YoloxHead, YoloxModule

    class FromPixels(nn.Module):
        cells: torch.Tensor
        strides: torch.Tensor

        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network
            network.head.decode_in_inference = False
            cells, strides = zip(*(_grid(image_size // stride, stride) for stride in network.head.strides), strict=True)
            self.register_buffer("cells", torch.from_numpy(np.concatenate(cells)))
            self.register_buffer("strides", torch.from_numpy(np.concatenate(strides)))

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
            # Boxes are computed in single precision: half precision has steps of half a pixel at the far edge of an image.
            raw = self.network(pixels.permute(0, 3, 1, 2).float()).float()
            centres, sizes = (raw[..., :2] + self.cells) * self.strides, torch.exp(raw[..., 2:4]) * self.strides
            return (torch.cat([centres, sizes, raw[..., 4:]], dim=-1),)

    network = YoloxModule(YoloPafpn(DEPTH, WIDTH), YoloxHead(CLASSES, WIDTH))
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as e:
        raise DetectionsError(
            f"{path.name} is not a checkpoint of MegaDetector Lite ({str(e).splitlines()[0]}); set detections.detector", code="not_a_checkpoint"
        ) from e
    return Network(FromPixels(network.eval()), {}, image_size, image_size)


def _grid(cells: int, stride: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Column and row of every cell of one level, [cells², 2], and its stride, [cells², 1]."""
    y, x = np.mgrid[0:cells, 0:cells].reshape(2, -1)
    return np.stack([x, y], axis=1).astype(np.float32), np.full((cells * cells, 1), stride, np.float32)

"""Networks from ultralytics checkpoints: MegaDetector v6, v1000 (larch, sorrel, cedar), and whatever names its classes as they do.

Of a network with ultralytics' usual head (YOLOv8 to v12, v10's without suppression too) only the convolutions run in the
network; boxes are read out of them here, of certain places only. Others, such as RT-DETR, are asked through ultralytics.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.steps.detections.detector import Detection, Detector, Prepared, in_image, letterboxed, scaled_size, tidy
from animl_pipeline.steps.detections.inference_backend import Arrays, Loaded, Network, device_here, faults_of, load_network, no_room
from animl_pipeline.steps.detections.nms import suppress
from animl_pipeline.steps.detections.ultralytics_checkpoint import categories_of, open_checkpoint

RECIPE = "ultralytics/3"
"""Moves on when the same picture and weights would give other boxes."""

MAX_OVERLAP = 0.45
"""Intersection over union above which the less certain of two boxes goes, as MegaDetector's own tools have it."""

MOST = 300
"""Objects in one picture at most, as in ultralytics."""

PLAIN_HEADS = {"Detect", "v10Detect"}


class _OtherHeadError(Exception):
    """The network ends in a head that is not read here; the model comes along."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def check_name(name: str) -> None:
    """See that a file's name is a checkpoint's.

    Raises:
        DetectionsError: it is not.
    """
    if PurePosixPath(name).suffix != ".pt":
        raise DetectionsError(f"detections.detector: expected a .pt checkpoint that ultralytics loads or megadetector-lite, found {name}")


def load_ultralytics(path: Path, sha256: str, image_size: int, confidence: float, *, verified: bool, settings: Settings) -> Detector:
    """The detector from a checkpoint.

    Args:
        path: a .pt file.
        sha256: of the file.
        image_size: longer side of what the network sees.
        confidence: objects below are not given.
        verified: the plan names the file's sha256, so that all that it holds may be unpickled.
        settings: where the cache is, in which ultralytics may keep its own settings.

    Raises:
        DetectionsError: it is no checkpoint, not of a detector, or of one that does not find animals.
    """
    check_name(path.name)
    make = partial(_network, path, image_size, verified, settings)
    try:
        return Ultralytics(load_network([sha256, RECIPE], make, settings), path.name, image_size, confidence)
    except _OtherHeadError as other:
        return AskedUltralytics(other.model, path.name, image_size, confidence)


class Ultralytics:
    """A network whose head is read here."""

    def __init__(self, loaded: Loaded, file: str, image_size: int, confidence: float) -> None:
        self._forward, self._facts, self.alone = loaded.forward, loaded.facts, loaded.alone
        self._known = categories_of(dict(enumerate(loaded.facts["names"])), file)
        self.categories = frozenset(self._known.values())
        self._size, self._confidence = image_size, confidence

    def preprocess(self, data: bytes) -> Prepared:
        return letterboxed(open_image(data), self._size)

    def predict(self, prepared: Sequence[Prepared]) -> list[list[Detection]]:
        answers: dict[int, list[Detection]] = {}
        for shape in {p.pixels.shape for p in prepared}:
            alike = [i for i, p in enumerate(prepared) if p.pixels.shape == shape]
            outputs = self._forward(np.stack([prepared[i].pixels for i in alike]))
            answers |= {i: self._found([o[n] for o in outputs], prepared[i]) for n, i in enumerate(alike)}
        return [answers[i] for i in range(len(prepared))]

    def _found(self, outputs: Arrays, prepared: Prepared) -> list[Detection]:
        sides, logits = outputs
        height, width = prepared.pixels.shape[:2]
        anchors, classes, scores = _certain(logits, self._confidence, best_only=self._facts["suppress"])
        boxes = _boxes(sides[:, anchors], anchors, height, width, self._facts["strides"])
        kept = suppress(boxes, scores, classes, MAX_OVERLAP, MOST) if self._facts["suppress"] else np.argsort(-scores)[:MOST]
        return tidy(
            Detection(self._known[int(classes[i])], float(scores[i]), *in_image(boxes[i].tolist(), prepared))
            for i in kept
            if int(classes[i]) in self._known
        )


def _certain(logits: NDArray[np.float32], confidence: float, *, best_only: bool) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Places, classes and probabilities above ``confidence``, of logits [classes, places]."""
    floor = np.log(confidence / (1 - confidence))
    if best_only:
        anchors = np.flatnonzero(logits.max(axis=0) > floor)
        classes = logits[:, anchors].argmax(axis=0)
    else:
        classes, anchors = np.nonzero(logits > floor)
    return anchors, classes, 1 / (1 + np.exp(-logits[classes, anchors]))


def _boxes(sides: NDArray[np.float32], anchors: NDArray[np.intp], height: int, width: int, strides: Sequence[int]) -> NDArray[np.float32]:
    """Boxes [n, 4] (left, top, right, bottom in pixels) from a head's distances to the four sides, [4 * bins, n].

    Each distance is the mean of a distribution over 0 … bins - 1 strides (generalised focal loss, arXiv:2006.04388).
    """
    bins = len(sides) // 4
    spread = sides.reshape(4, bins, -1)
    if bins > 1:
        weights = np.exp(spread - spread.max(axis=1, keepdims=True))
        spread = (weights * np.arange(bins, dtype=np.float32)[:, None]).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    left, top, right, bottom = spread[:, 0]
    x, y, stride = (column[anchors] for column in _grid(height, width, tuple(strides)))
    return np.stack([x - left, y - top, x + right, y + bottom], axis=1) * stride[:, None]


@lru_cache(maxsize=16)
def _grid(height: int, width: int, strides: tuple[int, ...]) -> tuple[NDArray[np.float32], ...]:
    """Centre x and y in strides, and the stride, of every place of every level."""
    levels = []
    for stride in strides:
        y, x = np.mgrid[0 : height // stride, 0 : width // stride].reshape(2, -1) + 0.5
        levels.append(np.stack([x, y, np.full_like(x, stride)]))
    return tuple(np.concatenate(levels, axis=1).astype(np.float32))


def _network(path: Path, image_size: int, verified: bool, settings: Settings) -> Network:
    model = open_checkpoint(path, verified=verified, settings=settings)
    names = dict(model.names)
    categories_of(names, path.name)
    network = model.model.float().fuse(verbose=False).eval()
    head = network.model[-1]
    if type(head).__name__ not in PLAIN_HEADS:
        raise _OtherHeadError(model)
    facts = {
        "names": [names[i] for i in range(len(names))],
        "strides": [int(s) for s in head.stride],
        "suppress": not getattr(head, "end2end", False),
    }
    width, height = scaled_size(4, 3, image_size)
    return Network(_raw(network), facts, height - height % 32, width - width % 32, any_size=True)


def _raw(network: Any) -> Any:
    """The network on pixels, ending with its head's convolutions: distances [n, 4 * bins, places] and logits [n, classes, places]."""
    import torch
    from torch import nn

    class Head(nn.Module):
        def __init__(self, head: Any) -> None:
            super().__init__()
            last = getattr(head, "end2end", False)
            self.sides, self.classes = (head.one2one_cv2, head.one2one_cv3) if last else (head.cv2, head.cv3)
            self.f, self.i = head.f, head.i  # where ultralytics' own forward looks for its inputs

        def forward(self, levels: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            sides = [layer(level).flatten(2) for layer, level in zip(self.sides, levels, strict=True)]
            classes = [layer(level).flatten(2) for layer, level in zip(self.classes, levels, strict=True)]
            return torch.cat(sides, 2), torch.cat(classes, 2)

    class FromPixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            network.model[-1] = Head(network.model[-1])
            self.network = network
            self.full = 255.0
            # its bias, fused, is not of the pixels; in a GPU's half precision weights so small would lose digits
            if isinstance(getattr(network.model[0], "conv", None), nn.Conv2d) and device_here() == "cpu":
                network.model[0].conv.weight.data /= 255
                self.full = 1.0

        def forward(self, pixels: torch.Tensor) -> Any:
            inputs = pixels.permute(0, 3, 1, 2).float()
            return self.network(inputs if self.full == 1.0 else inputs / self.full)

    return FromPixels().requires_grad_(False)


class AskedUltralytics:
    """A network that ultralytics' own ``predict`` asks, a picture at a time."""

    alone = False

    def __init__(self, model: Any, file: str, image_size: int, confidence: float) -> None:
        self._model, self._known = model, categories_of(model.names, file)
        self.categories = frozenset(self._known.values())
        self._size, self._confidence = image_size, confidence

    def preprocess(self, data: bytes) -> Prepared:
        import cv2

        # ultralytics would scale with the same call, but then whole pictures wait in memory; it takes BGR
        image = open_image(data)
        width, height = scaled_size(image.width, image.height, self._size)
        pixels = cv2.resize(np.asarray(image)[..., ::-1], (width, height), interpolation=cv2.INTER_LINEAR)
        return Prepared(np.ascontiguousarray(pixels, np.uint8), 0, 0, width, height)

    def predict(self, prepared: Sequence[Prepared]) -> list[list[Detection]]:
        return [self._found(p) for p in prepared]

    def _found(self, prepared: Prepared) -> list[Detection]:
        import torch

        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        try:
            with faults_of(device):
                (answer,) = self._model.predict(
                    [prepared.pixels], imgsz=self._size, conf=self._confidence, iou=MAX_OVERLAP, device=device, save=False, verbose=False
                )
        except MemoryError as e:
            raise no_room(device, prepared.pixels, e) from e
        rows = zip(answer.boxes.cls.tolist(), answer.boxes.conf.tolist(), answer.boxes.xyxyn.tolist(), strict=True)
        return tidy(
            Detection(self._known[int(name)], confidence, top, left, bottom, right)
            for name, confidence, (left, top, right, bottom) in rows
            if int(name) in self._known
        )

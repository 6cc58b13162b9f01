"""Detectors from ultralytics checkpoints: MegaDetector v6, MDv1000 larch, sorrel and cedar, and others with MegaDetector's class names.

If the network ends in ultralytics' usual head (YOLOv8 to v12, and v10 without NMS), only its convolutions run in the network. The boxes are
decoded here, and only for the anchors whose score is high enough. Other networks, such as RT-DETR, run through ultralytics' ``predict``.

A checkpoint is a pickle. Unless the plan names its sha256, only ultralytics' own classes may be unpickled from it. By default ultralytics also
sends telemetry, installs packages and patches Pillow; all of that is switched off here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from animl_pipeline.config.settings import Settings, set_library_defaults
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.detections.box_overlap import non_maximum_suppression
from animl_pipeline.steps.detections.detector import (
    CATEGORY_OF_NAME,
    STRIDE,
    Detection,
    Detector,
    NetworkInput,
    clean_detections,
    scaled_size,
    to_image_box,
)
from animl_pipeline.steps.detections.inference_backend import Arrays, LoadedNetwork, Network, find_device, load_network, torch_errors

VERSION = 3
"""Raised when the same image and weights give other boxes."""
LIBRARIES = ("pillow", "torch", "onnxruntime", "ultralytics", "opencv-python")
MAX_IOU = 0.45
"""Overlap from which non-maximum suppression drops a box, as in MegaDetector's own tools."""
MAX_BOXES = 300
"""Most objects in one image, as in ultralytics."""
PLAIN_HEADS = {"Detect", "v10Detect"}
PADDING_GREY = 114
"""Grey level of the padding that ultralytics trains with."""


class _OtherHeadError(Exception):
    """The network's head cannot be decoded here. ``model`` is the loaded ultralytics model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def load_ultralytics(path: Path, sha256: str, image_size: int, confidence: float, *, verified: bool, settings: Settings) -> Detector:
    """Load the detector from a .pt file. ``verified``: the plan names its sha256, so that everything in it may be unpickled.

    Raises:
        DetectionsError: the file is not a checkpoint, or its network is not a detector or does not detect animals.
    """
    build = partial(_build_network, path, image_size, verified, settings)
    try:
        return UltralyticsDetector(load_network(["ultralytics", VERSION, sha256], build, settings), path.name, image_size, confidence)
    except _OtherHeadError as other:
        return UltralyticsPredictDetector(other.model, path.name, image_size, confidence)


class UltralyticsDetector:
    """A network whose head is decoded here."""

    def __init__(self, network: LoadedNetwork, file: str, image_size: int, confidence: float) -> None:
        self._forward, self._metadata, self.batched = network.forward, network.metadata, network.batched
        self._category = categories_of(dict(enumerate(network.metadata["names"])), file)
        self.categories = frozenset(self._category.values())
        self._size, self._confidence = image_size, confidence

    def preprocess(self, data: bytes) -> NetworkInput:
        return letterbox(open_image(data), self._size)

    def predict(self, inputs: Sequence[NetworkInput]) -> list[list[Detection]]:
        results: dict[int, list[Detection]] = {}
        for shape in {i.pixels.shape for i in inputs}:
            same_shape = [n for n, i in enumerate(inputs) if i.pixels.shape == shape]
            outputs = self._forward(np.stack([inputs[n].pixels for n in same_shape]))
            results |= {n: self._decode([output[k] for output in outputs], inputs[n]) for k, n in enumerate(same_shape)}
        return [results[n] for n in range(len(inputs))]

    def _decode(self, outputs: Arrays, network_input: NetworkInput) -> list[Detection]:
        distances, logits = outputs
        height, width = network_input.pixels.shape[:2]
        anchors, classes, scores = _select_anchors(logits, self._confidence, best_class_only=self._metadata["nms"])
        boxes = _decode_boxes(distances[:, anchors], anchors, height, width, self._metadata["strides"])
        nms = self._metadata["nms"]
        kept = non_maximum_suppression(boxes, scores, classes, MAX_IOU, MAX_BOXES) if nms else np.argsort(-scores)[:MAX_BOXES]
        return clean_detections(
            Detection(self._category[int(classes[i])], float(scores[i]), *to_image_box(boxes[i].tolist(), network_input))
            for i in kept
            if int(classes[i]) in self._category
        )


class UltralyticsPredictDetector:
    """A network that runs through ultralytics' own ``predict``, one image at a time."""

    batched = True

    def __init__(self, model: Any, file: str, image_size: int, confidence: float) -> None:
        self._model, self._category = model, categories_of(model.names, file)
        self.categories = frozenset(self._category.values())
        self._size, self._confidence = image_size, confidence

    def preprocess(self, data: bytes) -> NetworkInput:
        import cv2

        # ultralytics would scale in the same way, but until then full-size images would fill the memory. It takes BGR.
        image = open_image(data)
        width, height = scaled_size(image.width, image.height, self._size)
        pixels = cv2.resize(np.asarray(image)[..., ::-1], (width, height), interpolation=cv2.INTER_LINEAR)
        return NetworkInput(np.ascontiguousarray(pixels, np.uint8), 0, 0, width, height)

    def predict(self, inputs: Sequence[NetworkInput]) -> list[list[Detection]]:
        return [self._predict(i) for i in inputs]

    def _predict(self, network_input: NetworkInput) -> list[Detection]:
        import torch

        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        with torch_errors(device):
            (result,) = self._model.predict(
                [network_input.pixels], imgsz=self._size, conf=self._confidence, iou=MAX_IOU, device=device, save=False, verbose=False
            )
        rows = zip(result.boxes.cls.tolist(), result.boxes.conf.tolist(), result.boxes.xyxyn.tolist(), strict=True)
        return clean_detections(
            Detection(self._category[int(index)], confidence, top, left, bottom, right)
            for index, confidence, (left, top, right, bottom) in rows
            if int(index) in self._category
        )


# -- pixels ------------------------------------------------------------------------------------------------------------


def letterbox(image: Image.Image, side: int) -> NetworkInput:
    """Scale the image's longer side to ``side`` and pad both sides to a multiple of 32 pixels, as ultralytics does."""
    import cv2

    width, height = scaled_size(image.width, image.height, side)
    scaled = cv2.resize(_pixels_without_copy(image), (width, height), interpolation=cv2.INTER_LINEAR)
    more_x, more_y = -width % STRIDE, -height % STRIDE
    left, top = round(more_x / 2 - 0.1), round(more_y / 2 - 0.1)
    pixels = cv2.cvtColor(scaled, cv2.COLOR_RGBA2RGB) if scaled.shape[2] == 4 else scaled
    if more_x or more_y:
        grey = (PADDING_GREY, PADDING_GREY, PADDING_GREY)
        pixels = cv2.copyMakeBorder(pixels, top, more_y - top, left, more_x - left, cv2.BORDER_CONSTANT, value=grey)
    return NetworkInput(np.asarray(pixels, np.uint8), left, top, width, height)


def _pixels_without_copy(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an RGB image, uint8 [height, width, 3 or 4], without a copy if possible. A copy takes longer than decoding."""
    import pyarrow as pa

    try:
        flat = pa.array(image).flatten().to_numpy(zero_copy_only=True)
    except (ValueError, AttributeError, TypeError, pa.ArrowException):  # Pillow keeps large images in several blocks
        return np.asarray(image)
    return np.asarray(flat.reshape(image.height, image.width, -1), np.uint8)


# -- decoding of the head ----------------------------------------------------------------------------------------------


def _select_anchors(
    logits: NDArray[np.float32], confidence: float, *, best_class_only: bool
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Anchors, classes and probabilities above ``confidence``, from logits [classes, anchors]."""
    min_logit = np.log(confidence / (1 - confidence))
    if best_class_only:
        anchors = np.flatnonzero(logits.max(axis=0) > min_logit)
        classes = logits[:, anchors].argmax(axis=0)
    else:
        classes, anchors = np.nonzero(logits > min_logit)
    return anchors, classes, 1 / (1 + np.exp(-logits[classes, anchors]))


def _decode_boxes(distances: NDArray[np.float32], anchors: NDArray[np.intp], height: int, width: int, strides: Sequence[int]) -> NDArray[np.float32]:
    """Boxes [n, 4] (left, top, right, bottom in pixels) from the head's distances to the four sides, [4 * bins, n].

    Each distance is the mean of a distribution over 0 … bins - 1 strides (generalised focal loss, arXiv:2006.04388).
    """
    bins = len(distances) // 4
    sides = distances.reshape(4, bins, -1)
    if bins > 1:
        weights = np.exp(sides - sides.max(axis=1, keepdims=True))
        sides = (weights * np.arange(bins, dtype=np.float32)[:, None]).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    left, top, right, bottom = sides[:, 0]
    x, y, stride = (column[anchors] for column in _anchor_grid(height, width, tuple(strides)))
    return np.stack([x - left, y - top, x + right, y + bottom], axis=1) * stride[:, None]


@lru_cache(maxsize=16)
def _anchor_grid(height: int, width: int, strides: tuple[int, ...]) -> tuple[NDArray[np.float32], ...]:
    """Centre x and y in strides, and the stride, of every anchor of every level."""
    levels = []
    for stride in strides:
        y, x = np.mgrid[0 : height // stride, 0 : width // stride].reshape(2, -1) + 0.5
        levels.append(np.stack([x, y, np.full_like(x, stride)]))
    return tuple(np.concatenate(levels, axis=1).astype(np.float32))


# -- the network in torch ----------------------------------------------------------------------------------------------


def _build_network(path: Path, image_size: int, verified: bool, settings: Settings) -> Network:
    model = open_checkpoint(path, verified=verified, settings=settings)
    names = dict(model.names)
    categories_of(names, path.name)
    network = model.model.float().fuse(verbose=False).eval()
    head = network.model[-1]
    if type(head).__name__ not in PLAIN_HEADS:
        raise _OtherHeadError(model)
    metadata = {"names": [names[i] for i in range(len(names))], "strides": [int(s) for s in head.stride], "nms": not getattr(head, "end2end", False)}
    width, height = scaled_size(4, 3, image_size)
    return Network(_without_decoding(network), metadata, height - height % STRIDE, width - width % STRIDE, any_size=True)


def _without_decoding(network: Any) -> Any:
    """The network on uint8 pixels, up to its head's convolutions: distances [n, 4 * bins, anchors] and logits [n, classes, anchors]."""
    import torch
    from torch import nn

    class Head(nn.Module):
        def __init__(self, head: Any) -> None:
            super().__init__()
            end2end = getattr(head, "end2end", False)
            self.distances, self.classes = (head.one2one_cv2, head.one2one_cv3) if end2end else (head.cv2, head.cv3)
            self.f, self.i = head.f, head.i  # ultralytics' own forward reads these attributes

        def forward(self, levels: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            distances = [layer(level).flatten(2) for layer, level in zip(self.distances, levels, strict=True)]
            classes = [layer(level).flatten(2) for layer, level in zip(self.classes, levels, strict=True)]
            return torch.cat(distances, 2), torch.cat(classes, 2)

    class FromPixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            network.model[-1] = Head(network.model[-1])
            self.network = network
            self.divisor = 255.0
            # On a CPU the division by 255 is part of the first convolution's weights (its bias does not depend on the pixels). In a GPU's
            # half precision such small weights would lose digits.
            if isinstance(getattr(network.model[0], "conv", None), nn.Conv2d) and find_device() == "cpu":
                network.model[0].conv.weight.data /= 255
                self.divisor = 1.0

        def forward(self, pixels: torch.Tensor) -> Any:
            inputs = pixels.permute(0, 3, 1, 2).float()
            return self.network(inputs if self.divisor == 1.0 else inputs / self.divisor)

    return FromPixels().requires_grad_(False)


# -- the checkpoint ----------------------------------------------------------------------------------------------------


def categories_of(names: Mapping[int, str], file: str) -> dict[int, str]:
    """Class index → MegaDetector's category, for the classes that MegaDetector has.

    Raises:
        DetectionsError: no class is an animal.
    """
    categories = {index: CATEGORY_OF_NAME[name.casefold()] for index, name in names.items() if name.casefold() in CATEGORY_OF_NAME}
    if ANIMAL not in categories.values():
        listed = ", ".join(list(names.values())[:5]) + (", …" if len(names) > 5 else "")
        raise DetectionsError(
            f"{file} does not detect animals: expected a class named animal, found {listed}; set detections.detector to a MegaDetector",
            code="no_animal_class",
        )
    return categories


def open_checkpoint(path: Path, *, verified: bool, settings: Settings) -> Any:
    """Load a .pt file as an ``ultralytics.YOLO``. ``verified``: the plan names its sha256, so that everything in it may be unpickled.

    Raises:
        DetectionsError: the file is not a checkpoint, is not safe, or is not a detector.
    """
    yolo, tasks = import_ultralytics(settings)
    if not verified and not hasattr(tasks, "SAFE_LOAD"):
        raise DetectionsError(
            "this version of ultralytics cannot load a checkpoint safely; update it, or set detections.sha256 to the checkpoint's sha256",
            code="unsafe_checkpoint",
        )
    tasks.SAFE_LOAD = not verified
    try:
        model = yolo(str(path), verbose=False)
    except Exception as e:  # a pickle may raise anything
        raise _refuse(path, e, verified) from e
    task = getattr(model, "task", None)
    if task != "detect":
        raise DetectionsError(f"detections.detector: expected a network for the task 'detect', found {path.name} for {task!r}", code="not_a_detector")
    return model


def _refuse(path: Path, error: Exception, verified: bool) -> DetectionsError:
    reason = str(error).splitlines()[0].encode("ascii", "ignore").decode().strip() if str(error) else type(error).__name__
    if not verified and "outside the supported" in reason and zipfile.is_zipfile(path):  # ultralytics says the same of bytes that are no zip file
        return DetectionsError(
            f"{path.name} contains more than ultralytics' own classes; if you trust it, set detections.sha256 to its sha256", code="unsafe_checkpoint"
        )
    return DetectionsError(
        f"{path.name} is not a checkpoint that ultralytics loads ({reason.removeprefix('ERROR').strip()}); set detections.detector to a complete "
        ".pt file",
        code="not_a_checkpoint",
    )


def import_ultralytics(settings: Settings) -> tuple[Any, Any]:
    """``ultralytics.YOLO`` and its loading module, imported without their side effects."""
    home = settings.cache.expanduser() / "ultralytics"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DetectionsError(f"cannot create the folder {home} ({e.strerror}); free disk space or set ANIML_CACHE to another folder") from e
    set_library_defaults(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false", YOLO_CONFIG_DIR=str(home))
    original_open = Image.open
    from ultralytics.models.yolo.model import YOLO
    from ultralytics.nn import tasks
    from ultralytics.utils import events, patches

    # ultralytics' Image.open installs a package at the first image that does not decode
    Image.open = patches._image_open if original_open is patches.image_open else original_open
    events.events.enabled = False
    return YOLO, tasks

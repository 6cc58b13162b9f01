"""A picture scaled and padded as the YOLO networks of ultralytics and YOLOv5 were trained and are asked: centred, on grey."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from animl_pipeline.detections.detector import STRIDE, Prepared, scaled_size

GREY = 114


def letterboxed(picture: Image.Image, side: int) -> Prepared:
    """The picture on the smallest rectangle of whole strides: its longer side is ``side``, bilinear without smoothing, as theirs is."""
    import cv2

    width, height = scaled_size(picture.width, picture.height, side)
    scaled = cv2.resize(_pixels(picture), (width, height), interpolation=cv2.INTER_LINEAR)
    more_x, more_y = -width % STRIDE, -height % STRIDE
    left, top = round(more_x / 2 - 0.1), round(more_y / 2 - 0.1)
    pixels = cv2.cvtColor(scaled, cv2.COLOR_RGBA2RGB) if scaled.shape[2] == 4 else scaled
    if more_x or more_y:
        pixels = cv2.copyMakeBorder(pixels, top, more_y - top, left, more_x - left, cv2.BORDER_CONSTANT, value=(GREY, GREY, GREY))
    return Prepared(np.asarray(pixels, np.uint8), left, top, width, height)


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an RGB picture, uint8 [height, width, 3 or 4], where it can be without a copy of them, which takes longer than decoding."""
    import pyarrow as pa

    try:
        flat = pa.array(picture).flatten().to_numpy(zero_copy_only=True)
    except (ValueError, AttributeError, TypeError, pa.ArrowException):  # pillow keeps large pictures in several blocks
        return np.asarray(picture)
    return np.asarray(flat.reshape(picture.height, picture.width, -1), np.uint8)

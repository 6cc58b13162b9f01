"""EXIF orientation: read it, work out which frame a box is in, and turn boxes to the image as it is stored.

The pipeline's boxes and pixels are in the frame *stored*: the pixels as the file holds them. A viewer or detector that obeys the EXIF
orientation works in the frame *shown*. Of the field's tools, SpeciesNet turns by all eight orientations, MegaDetector by the three
rotations 3, 6 and 8; Animl, zamba and this pipeline's own detectors do not turn.
"""

from __future__ import annotations

import io
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from animl_pipeline.core.box_type import Frame
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.image_structure import check_structure, identify_format

FRAME_MISMATCH = "frame_mismatch"
"""The reason for boxes that refer to an image of another shape than the file."""
UPRIGHT = 1
ROTATIONS = (3, 6, 8)
"""Orientations without a mirror image. Cameras write no others."""
ORIENTATION_TAG = 274
SIDES_SWAPPED = 5
"""From this orientation on, the image as shown has the stored width as its height."""
SHAPE_TOLERANCE = 0.02
"""Share by which the ratios of two copies' sides may differ."""
STORED, SHOWN, MISMATCH = 0, 1, 2

# Orientation → whether stored x is shown y, and whether stored x and stored y count from the other end.
_TURNS = np.array([[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 0], [1, 0, 1], [1, 1, 1], [1, 1, 0]], bool)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def read_orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, PNG or WebP, 1 to 8; 1 for an image without one and for bytes that cannot be read.

    Pillow turns a TIFF when it reads it, so its pixels need no turn.
    """
    kind = identify_format(data)
    if kind not in {"JPEG", "PNG", "WEBP"}:
        return UPRIGHT
    try:
        check_structure(kind, data)
        if kind == "WEBP":
            from PIL import WebPImagePlugin  # noqa: F401 - the import registers the format
        exif = Image.Exif()
        exif.load(Image.open(io.BytesIO(data), formats=(kind,)).info.get("exif") or b"")
        orientation = exif.get(ORIENTATION_TAG, UPRIGHT)
    except (ImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error):
        return UPRIGHT
    return orientation if isinstance(orientation, int) and UPRIGHT <= orientation < len(_TURNS) else UPRIGHT


def turn_to_stored(boxes: Floats, orientation: Ints) -> Floats:
    """Boxes in the frame shown → the same boxes in the frame stored.

    ``boxes``: [n, 4] ymin, xmin, ymax, xmax, relative. ``orientation``: [n] EXIF orientation of each box's image.
    """
    swap, flip_x, flip_y = _TURNS[orientation].T
    y, x = boxes[:, 0::2], boxes[:, 1::2]
    x, y = np.where(swap[:, None], y, x), np.where(swap[:, None], x, y)
    x = np.where(flip_x[:, None], 1 - x[:, ::-1], x)
    y = np.where(flip_y[:, None], 1 - y[:, ::-1], y)
    return np.stack([y[:, 0], x[:, 0], y[:, 1], x[:, 1]], axis=1)


class Frames(NamedTuple):
    """The frame of the boxes of each image.

    Attributes:
        code: int [n], ``STORED``, ``SHOWN``, or ``MISMATCH`` where the boxes refer to an image of another shape.
        assumed: bool [n], whether the image has an EXIF orientation and nothing says which frame its boxes are in.
    """

    code: NDArray[np.int8]
    assumed: NDArray[np.bool_]


def find_frames(named: Any, stored: Any, orientation: Ints, frame: Frame, turned_by_default: bool) -> Frames:
    """Work out the frame of each image's boxes.

    The sides decide where they can: an image on its side as shown and upright as stored has other sides. They cannot for a square image, for
    one turned by 180 degrees, and without a size beside the boxes. Then the other images decide if all of them that can agree; else
    ``turned_by_default`` does, for the rotations that every tool that turns knows.

    Args:
        named: [n, 2] width and height that the boxes refer to; 0 or NaN where the export or results file names none, 1 for relative boxes.
        stored: [n, 2] width and height of the file; 0 or NaN where unknown.
        orientation: [n] EXIF orientation of the file.
        frame: the plan's answer for what the sides do not decide; auto: as above.
        turned_by_default: whether the tool that made the boxes turns images.
    """
    named, stored = (np.nan_to_num(np.asarray(sizes, float).reshape(-1, 2)) for sizes in (named, stored))
    known = (named > 1).all(axis=1) & (stored > 0).all(axis=1)
    shown = np.where((orientation >= SIDES_SWAPPED)[:, None], stored[:, ::-1], stored)
    fits_stored, fits_shown = known & _same_shape(named, stored), known & _same_shape(named, shown)
    unanimous = False
    if frame == "auto":
        votes_stored, votes_shown = (fits_stored & ~fits_shown).any(), (fits_shown & ~fits_stored).any()
        unanimous = bool(votes_stored) != bool(votes_shown)
        turned = orientation != UPRIGHT if unanimous else np.isin(orientation, ROTATIONS)
        turned &= bool(votes_shown) if unanimous else turned_by_default
    else:
        turned = (orientation != UPRIGHT) & (frame == "shown")
    undecided = ~known | (fits_stored & fits_shown)
    code = np.select([undecided & turned, undecided, fits_stored, fits_shown], [SHOWN, STORED, STORED, SHOWN], MISMATCH).astype(np.int8)
    return Frames(code, undecided & (orientation != UPRIGHT) & (frame == "auto" and not unanimous))


def _same_shape(size: Floats, other: Floats) -> NDArray[np.bool_]:
    """Whether two sizes [n, 2] have the same ratio of sides, but for the rounding of the smaller one to whole pixels."""
    (w, h), (other_w, other_h) = size.T, other.T
    rounding = np.maximum(w + h, other_w + other_h)
    same: NDArray[np.bool_] = np.abs(w * other_h - other_w * h) <= np.maximum(rounding, SHAPE_TOLERANCE * w * other_h)
    return same

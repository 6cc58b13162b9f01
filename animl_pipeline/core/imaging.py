"""THE view of an animal: box → square → resize → normalise. Training, evaluation and the endpoint all look through it.

The recipe is the one that Animl's endpoints are used to: the box in whole pixels, a square of its longer side shifted to
stay inside the picture and black where it cannot, resized bicubic, normalised. No EXIF rotation, since neither Animl's
boxes nor its detectors know of any. pillow and numpy only, since this also runs inside the endpoint.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.records import Box, ModelInput

VERSION = 1
"""Raised when a box gives other pixels: crops are then cut anew, models trained anew."""
MAX_PIXELS = 100_000_000
"""Pictures with more pixels are refused before they are decoded (camera traps stay below 50 million)."""
USUAL_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM")
RARE_FORMATS = ("TIFF", "WEBP")
"""All that is opened (MPO, the cameras' double JPEG, is among JPEG). Pillow knows some forty more, and one of them starts
another program; a picture from anywhere does not get to choose among these."""


class ImageHeader(NamedTuple):
    """A picture's size in pixels, and how many bytes a pixel ``open_picture`` takes at most (measured, format by format).

    Pillow keeps RGB in 4 bytes; another mode is held beside its RGB for a moment, a progressive JPEG has coefficients as well.
    """

    width: int
    height: int
    bytes_per_pixel: int


class Square(NamedTuple):
    """A square in whole pixels; it may reach past the picture where the picture is smaller than it."""

    left: int
    top: int
    side: int


def open_image(data: bytes) -> Image.Image:
    """Decode a picture wholly, as RGB, its pixels as stored.

    Raises:
        PictureError: no picture, a broken or cut-off one, or one of more than ``MAX_PIXELS``.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # a switch of the whole process, which some detector packages turn on at import
    with _faults_of_images():
        image = _begin(data)
        image.load()
    return _as_rgb(image)


def read_header(data: bytes) -> ImageHeader:
    """What a picture's header says; nothing is decoded.

    Raises:
        PictureError: no picture, or one of more than ``MAX_PIXELS``.
    """
    with _faults_of_images():
        image = _begin(data)
    plain = image.mode == "RGB" and image.format in {"JPEG", "MPO", "PNG"}
    bytes_per_pixel = 4 if plain else 16 if image.format == "WEBP" else 12
    return ImageHeader(*image.size, bytes_per_pixel + (8 if image.info.get("progressive") else 0))


@contextmanager
def _faults_of_images() -> Iterator[None]:
    """What pillow raises over bytes that are no picture, as PictureError."""
    try:
        yield
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError, IndexError) as e:
        raise ImageError(f"not a picture that decodes: {_reason(e)}") from e


def _begin(data: bytes) -> Image.Image:
    """The picture, of which only the header was read."""
    # What pillow thinks of a file's palette or camera notes, and of its size (our own limit is below). Set for the whole
    # process, since catch_warnings is not safe in threads.
    warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")
    image = _opened(data)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"a picture of {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded")
    return image


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=USUAL_FORMATS)
    except UnidentifiedImageError:
        from PIL import TiffImagePlugin, WebPImagePlugin  # noqa: F401 - importing makes the formats known

        return Image.open(io.BytesIO(data), formats=RARE_FORMATS)


def square_around(box: Box, width: int, height: int, margin: float = 0.0) -> Square:
    """The square that a model sees around ``box`` in a picture of ``width`` x ``height`` pixels.

    Its side is the box's longer side in whole pixels (at least 1), widened by ``margin`` of itself on every side. It is
    centred on the box, then shifted to lie inside the picture; where the picture is too small it reaches past it evenly.
    """
    left, right = int(box.xmin * width), int(box.xmax * width)
    top, bottom = int(box.ymin * height), int(box.ymax * height)
    side = max(right - left, bottom - top, 1)
    side += 2 * round(side * margin)
    return Square(_shift(left + right, side, width), _shift(top + bottom, side, height), side)


def extract_crop(image: Image.Image, box: Box, model_input: ModelInput) -> Image.Image:
    """The view of ``box`` as an RGB picture of ``view.size`` x ``view.size`` pixels, black outside of the picture.

    Raises:
        PictureError: the square has more than ``MAX_PIXELS``: the picture is a thin strip.
    """
    left, top, side = square_around(box, image.width, image.height, model_input.margin)
    if side * side > MAX_PIXELS:
        raise ImageError(f"a square of {side} x {side} pixels around a box of a strip of {image.width} x {image.height}; at most {MAX_PIXELS:,}")
    square = image.crop((left, top, left + side, top + side))
    return square.resize((model_input.size, model_input.size), Image.Resampling.BICUBIC)


def normalise(views: list[Image.Image], model_input: ModelInput) -> NDArray[np.float32]:
    """Cut-out views as the model's input: float32 [n, 3, size, size], RGB, (value / 255 - mean) / std."""
    pixels = np.stack([np.asarray(v, dtype=np.uint8) for v in views])
    return normalise_array(pixels, model_input)


def normalise_array(pixels: NDArray[np.uint8], model_input: ModelInput) -> NDArray[np.float32]:
    """uint8 [n, size, size, 3] RGB → float32 [n, 3, size, size], (value / 255 - mean) / std."""
    mean, std = np.asarray(model_input.mean, np.float32), np.asarray(model_input.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _shift(twice_centre: int, side: int, length: int) -> int:
    """Where a side centred on ``twice_centre / 2`` begins, shifted to stay inside 0..length where it fits."""
    if side >= length:
        return (length - side) // 2
    return min(max((twice_centre - side) // 2, 0), length - side)


def _as_rgb(image: Image.Image) -> Image.Image:
    """RGB from any mode; 16-bit grey keeps its upper byte, which a plain conversion would clip to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    """What pillow said, in a few words and without memory addresses."""
    if isinstance(error, UnidentifiedImageError):
        return "no known picture format"
    return str(error).split("<")[0].strip() or type(error).__name__


STEP_BYTES = 128_000_000
"""Bytes for the pictures that a step decodes: ten of three megapixels side by side; one of a hundred megapixels has them alone."""


class DecodeBudget:
    """Bytes for decoded pictures: ordinary ones pass side by side, large ones wait for each other, in turn."""

    def __init__(self, size: int = STEP_BYTES) -> None:
        self.size = size
        self._free = size
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Hold ``size`` bytes, once they are free; all of them where that is more than there are."""
        size = min(size, self.size)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()

    @contextmanager
    def reserve_for(self, data: bytes) -> Iterator[None]:
        """Hold what decoding these bytes takes.

        Raises:
            PictureError: no picture, or one of more than ``MAX_PIXELS``.
        """
        with self.reserve(decoded_bytes(read_header(data))):
            yield


def decoded_bytes(header: ImageHeader, square: int = 0) -> int:
    """Memory that a picture takes while it is decoded, or with a square of that side cut out of it, whichever is more."""
    pixels = header.width * header.height
    return max(pixels * header.bytes_per_pixel, 4 * (pixels + min(square * square, MAX_PIXELS)))

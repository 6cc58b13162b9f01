"""Decode images, and make the classifier's input from a box: square → crop → resize → normalise.

Training, evaluation and the endpoint all use these functions, so a model always sees the same pixels. The recipe is the one of
Animl's own endpoints: the box in whole pixels, a square as large as its longer side, shifted to stay inside the image and black
where it cannot, resized (bicubic) and normalised. EXIF rotation is ignored, because Animl's boxes and its detectors ignore it.

:class:`DecodeBudget` limits the memory of images that are decoded at the same time. Only Pillow and numpy are needed, because this
also runs inside the endpoint.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from animl_pipeline.core.boxes import Box
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.model_card import ModelInput

VERSION = 1
"""Raised when a box gives other pixels. Crops are then extracted again and models trained again."""
MAX_PIXELS = 100_000_000
"""Images with more pixels are refused before they are decoded. Camera traps stay below 50 million."""
USUAL_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM")
RARE_FORMATS = ("TIFF", "WEBP")
"""Pillow knows about forty more formats, and one of them starts another program. An image from an unknown source must not be able
to choose one of these. MPO, the double JPEG of some cameras, counts as JPEG."""


# -- decoding ----------------------------------------------------------------------------------------------------------


class ImageHeader(NamedTuple):
    """Width and height of an image in pixels, and the most bytes per pixel that :func:`open_image` needs (measured for each format).

    Pillow keeps RGB in 4 bytes per pixel. It keeps another mode beside its RGB for a moment. A progressive JPEG has coefficients too.
    """

    width: int
    height: int
    bytes_per_pixel: int


def open_image(data: bytes) -> Image.Image:
    """Decode an image completely, as RGB, with the pixels as stored.

    Raises:
        ImageError: the bytes are not an image, are damaged or truncated, or have more than ``MAX_PIXELS`` pixels.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # a switch of the whole process, which some detector packages turn on when imported
    with _convert_errors():
        image = _open_lazily(data)
        image.load()
    return _to_rgb(image)


def read_header(data: bytes) -> ImageHeader:
    """Read an image's header, without decoding its pixels.

    Raises:
        ImageError: the bytes are not an image, or it has more than ``MAX_PIXELS`` pixels.
    """
    with _convert_errors():
        image = _open_lazily(data)
    plain = image.mode == "RGB" and image.format in {"JPEG", "MPO", "PNG"}
    bytes_per_pixel = 4 if plain else 16 if image.format == "WEBP" else 12
    return ImageHeader(*image.size, bytes_per_pixel + (8 if image.info.get("progressive") else 0))


# -- the model input ---------------------------------------------------------------------------------------------------


class Square(NamedTuple):
    """A square in whole pixels. It reaches beyond an image that is smaller than it."""

    left: int
    top: int
    side: int


def square_around(box: Box, width: int, height: int, margin: float = 0.0) -> Square:
    """The square around ``box`` that the model sees, in an image of ``width`` x ``height`` pixels.

    Its side is the longer side of the box in whole pixels (at least 1), widened by ``margin`` of itself on every side. It is
    centred on the box and then shifted to stay inside the image. If the image is too small, it reaches beyond both edges equally.
    """
    left, right = int(box.xmin * width), int(box.xmax * width)
    top, bottom = int(box.ymin * height), int(box.ymax * height)
    side = max(right - left, bottom - top, 1)
    side += 2 * round(side * margin)
    return Square(_shift_inside(left + right, side, width), _shift_inside(top + bottom, side, height), side)


def extract_crop(image: Image.Image, box: Box, model_input: ModelInput) -> Image.Image:
    """The crop of ``box``: an RGB image of ``model_input.size`` x ``model_input.size`` pixels, black outside of the image.

    Raises:
        ImageError: the square has more than ``MAX_PIXELS`` pixels, because the image is a long thin strip.
    """
    left, top, side = square_around(box, image.width, image.height, model_input.margin)
    if side * side > MAX_PIXELS:
        raise ImageError(
            f"expected a crop of at most {MAX_PIXELS:,} pixels, found a square of {side} x {side} in an image of {image.width} x {image.height}"
        )
    square = image.crop((left, top, left + side, top + side))
    return square.resize((model_input.size, model_input.size), Image.Resampling.BICUBIC)


def normalise(crops: list[Image.Image], model_input: ModelInput) -> NDArray[np.float32]:
    """Crops as the model's input: float32 [n, 3, size, size], RGB, (value / 255 - mean) / std."""
    pixels = np.stack([np.asarray(crop, dtype=np.uint8) for crop in crops])
    return normalise_array(pixels, model_input)


def normalise_array(pixels: NDArray[np.uint8], model_input: ModelInput) -> NDArray[np.float32]:
    """uint8 [n, size, size, 3] RGB → float32 [n, 3, size, size], (value / 255 - mean) / std."""
    mean, std = np.asarray(model_input.mean, np.float32), np.asarray(model_input.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


# -- helpers -----------------------------------------------------------------------------------------------------------


@contextmanager
def _convert_errors() -> Iterator[None]:
    """Raise ImageError for everything that Pillow raises on bytes that it cannot decode."""
    try:
        yield
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError, IndexError) as e:
        code = "unknown_format" if isinstance(e, UnidentifiedImageError) else "damaged"
        raise ImageError(f"the image does not decode: {_describe(e)}", code) from e


def _open_lazily(data: bytes) -> Image.Image:
    """The image, of which only the header was read."""
    # Pillow warns about odd palettes, camera metadata and sizes (our own limit is below). The filter is set for the whole process,
    # because warnings.catch_warnings is not safe in threads.
    warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=USUAL_FORMATS)
    except UnidentifiedImageError:
        from PIL import TiffImagePlugin, WebPImagePlugin  # noqa: F401 - the import registers the formats

        image = Image.open(io.BytesIO(data), formats=RARE_FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"expected an image of at most {MAX_PIXELS:,} pixels, found {width} x {height}", code="too_many_pixels")
    return image


def _shift_inside(twice_centre: int, side: int, length: int) -> int:
    """Start of a side that is centred on ``twice_centre / 2``, shifted to stay inside 0..length if it fits."""
    if side >= length:
        return (length - side) // 2
    return min(max((twice_centre - side) // 2, 0), length - side)


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB from any mode. 16-bit grey keeps its upper byte, because Pillow's own conversion would clip it to white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _describe(error: Exception) -> str:
    """Pillow's message in a few words, without memory addresses."""
    if isinstance(error, UnidentifiedImageError):
        return "unknown image format"
    return str(error).split("<")[0].strip() or type(error).__name__

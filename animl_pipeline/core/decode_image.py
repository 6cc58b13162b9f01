"""Decode an image file: formats, size limits, colour conversion, clear errors. The pixels stay as stored; EXIF is ignored."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from animl_pipeline.core.errors import ImageError

MAX_PIXELS = 100_000_000
"""Images with more pixels are refused before they are decoded. Camera traps stay below 50 million."""


USUAL_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM")


RARE_FORMATS = ("TIFF", "WEBP")
"""Pillow knows about forty more formats, and one of them starts another program. An image from an unknown source must not be able
to choose one of these. MPO, the double JPEG of some cameras, counts as JPEG."""


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

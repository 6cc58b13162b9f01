"""Decode an image file: formats, limits, colour conversion, clear errors. The pixels stay as stored; EXIF is ignored."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.image_structure import ALL_FORMATS, PNG_SIGNATURE, check_structure, identify_format

MAX_PIXELS = 100_000_000
"""Images with more pixels are refused before they are decoded. Camera traps stay below 50 million."""
MAX_SIDE = 65_535
"""Images with a longer side are refused, too. A JPEG cannot have one. Pillow needs up to 16 bytes for each row besides its pixels."""
MAX_PNG_TEXT = 8_000_000
"""Bytes of all texts of a PNG together, decompressed."""
SLOW_DECODERS = frozenset({"bmp_rle", "ppm", "ppm_plain"})
"""Decoders that Pillow has in Python: run-length BMP, and PPM as text or with a maximum other than 255 and 65,535."""
MAX_SLOW_PIXELS = 2_000_000
"""Pixels of an image that needs one of them ..."""
MAX_SLOW_BYTES = 1_000_000
"""... and the bytes of its file. They take seconds for these, and the time for some grows with the square of the bytes."""
STEP_BYTES = 128_000_000
"""Default size of a :class:`DecodeBudget`: ten images of 3 megapixels at a time. An image of 100 megapixels is decoded alone."""
ROW_BYTES = 16
"""Pillow's pointer to a row of pixels, in an image and in the same image of another mode."""


class ImageHeader(NamedTuple):
    """Width and height of an image in pixels, and the most bytes per pixel that :func:`open_image` needs (measured for each format).

    Pillow keeps RGB in 4 bytes per pixel. It keeps another mode beside its RGB for a moment. A JPEG of several scans has coefficients
    too. ``scans`` says how often its decoder passes over the pixels.
    """

    width: int
    height: int
    bytes_per_pixel: int
    scans: int = 1


def open_image(data: bytes, formats: Sequence[str] = ALL_FORMATS) -> Image.Image:
    """Decode an image completely, as RGB, with the pixels as stored.

    ``formats``: the formats that are tried, from ``ALL_FORMATS``. Where images from unknown sources arrive, pass only those that you need.

    Raises:
        ImageError: the bytes are not an image of these formats, are damaged or truncated, or exceed a limit on size or structure.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # a switch of the whole process, which some detector packages turn on when imported
    with _convert_errors():
        image, _ = _open_lazily(data, formats)
        image.load()
    return _to_rgb(image)


def read_header(data: bytes, formats: Sequence[str] = ALL_FORMATS) -> ImageHeader:
    """Read an image's header, without decoding its pixels. :func:`header_bytes` says how much memory this takes.

    Raises:
        ImageError: the bytes are not an image of these formats, or exceed a limit on size or structure.
    """
    with _convert_errors():
        image, scans = _open_lazily(data, formats)
    plain = image.mode == "RGB" and image.format in {"JPEG", "MPO", "PNG"}
    bytes_per_pixel = 4 if plain else 16 if image.format == "WEBP" or image.mode == "I" else 12
    return ImageHeader(*image.size, bytes_per_pixel + (8 if scans > 1 else 0), scans)


def header_bytes(data: bytes) -> int:
    """Memory in bytes that reading the header takes at most: copies of metadata, and what the limits on structure allow."""
    return 2 * len(data) + MAX_PNG_TEXT + (0 if data.startswith((b"\xff\xd8\xff", PNG_SIGNATURE)) else 32_000_000)


@contextmanager
def _convert_errors() -> Iterator[None]:
    """Raise ImageError for everything that Pillow raises on bytes that it cannot decode."""
    try:
        yield
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError, IndexError) as e:
        code = "unknown_format" if isinstance(e, UnidentifiedImageError) else "damaged"
        raise ImageError(f"the image does not decode: {_describe(e)}", code) from e


def _open_lazily(data: bytes, formats: Sequence[str]) -> tuple[Image.Image, int]:
    """The image, of which only the header was read, and the number of its scans."""
    # Pillow warns about odd palettes, camera metadata and sizes (our own limit is below). The filter is set for the whole process,
    # because warnings.catch_warnings is not safe in threads.
    warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")
    PngImagePlugin.MAX_TEXT_MEMORY = MAX_PNG_TEXT
    kind = identify_format(data)
    if not kind:
        raise UnidentifiedImageError
    if kind not in formats:
        raise ImageError(f"expected an image in the format {' or '.join(formats)}, found {kind}", code="format_not_allowed", format=kind)
    if kind in {"TIFF", "WEBP"}:
        from PIL import TiffImagePlugin, WebPImagePlugin  # noqa: F401 - the import registers the formats
    scans = check_structure(kind, data)
    image: Image.Image = Image.open(io.BytesIO(data), formats=(kind,))
    _check_size(image, len(data))
    return image, scans


def _check_size(image: Image.Image, file_bytes: int) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"expected an image of at most {MAX_PIXELS:,} pixels, found {width} x {height}", code="too_many_pixels")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"expected an image with sides of at most {MAX_SIDE:,} pixels, found {width} x {height}", code="side_too_long")
    decoder = image.tile[0][0] if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    if decoder in SLOW_DECODERS and (width * height > MAX_SLOW_PIXELS or file_bytes > MAX_SLOW_BYTES):
        raise ImageError(
            f"expected a {image.format} with run lengths, plain text or an odd maximum to have at most {MAX_SLOW_PIXELS:,} pixels "
            f"and {MAX_SLOW_BYTES:,} bytes, found {width} x {height} and {file_bytes:,} bytes; save it as PNG",
            code="too_complex",
        )


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


def decoded_bytes(header: ImageHeader, square: int = 0) -> int:
    """Memory in bytes to decode an image, and then to crop a square with a side of ``square`` pixels from it."""
    pixels = header.width * header.height
    rows = ROW_BYTES * max(header.height, square)
    return rows + max(pixels * header.bytes_per_pixel, 4 * (pixels + min(square * square, MAX_PIXELS)))


class DecodeBudget:
    """A limit in bytes for images that several threads decode at the same time. Large images wait for each other."""

    def __init__(self, size: int = STEP_BYTES) -> None:
        self.size = size
        self._free = size
        self._queue = threading.Lock()  # so that small images cannot overtake a large one for ever
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Wait until ``size`` bytes are free and hold them. A larger size than the limit holds the whole limit."""
        size = min(size, self.size)
        with self._queue, self._changed:
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
        """Wait until the memory to decode these bytes is free, and hold it.

        Raises:
            ImageError: as :meth:`read_header`.
        """
        with self.reserve(decoded_bytes(self.read_header(data))):
            yield

    def read_header(self, data: bytes, formats: Sequence[str] = ALL_FORMATS) -> ImageHeader:
        """The header of an image. While it is read, the memory for this is held; first, the thread waits for that.

        Raises:
            ImageError: the bytes are not an image of these formats, or exceed a limit on size or structure.
        """
        with self.reserve(header_bytes(data)):
            return read_header(data, formats)

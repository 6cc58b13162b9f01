"""Bounds the memory of images that are decoded at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from animl_pipeline.core.decode_image import MAX_PIXELS, ImageHeader, header_bytes, read_header
from animl_pipeline.core.image_structure import ALL_FORMATS

STEP_BYTES = 128_000_000
"""Default size of a :class:`DecodeBudget`: ten images of 3 megapixels at a time. An image of 100 megapixels is decoded alone."""


ROW_BYTES = 16
"""Pillow's pointer to a row of pixels, in an image and in the same image of another mode."""


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

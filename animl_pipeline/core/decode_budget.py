"""How many pictures are decoded at a time: as many as a number of bytes allows, since one takes 10 to 400 MB.

Stdlib and pixels only, since this also runs inside the endpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from animl_pipeline.core.imaging import MAX_PIXELS, Header, read_header

OF_A_STEP = 128_000_000
"""Bytes for the pictures that a step decodes: ten of three megapixels side by side; one of a hundred megapixels has them alone."""


class DecodeBudget:
    """Bytes for decoded pictures: ordinary ones pass side by side, large ones wait for each other, in turn."""

    def __init__(self, size: int = OF_A_STEP) -> None:
        self.size = size
        self._free = size
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
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
    def decoding(self, data: bytes) -> Iterator[None]:
        """Hold what decoding these bytes takes.

        Raises:
            PictureError: no picture, or one of more than ``MAX_PIXELS``.
        """
        with self.holding(bytes_of(read_header(data))):
            yield


def bytes_of(header: Header, square: int = 0) -> int:
    """Memory that a picture takes while it is decoded, or with a square of that side cut out of it, whichever is more."""
    pixels = header.width * header.height
    return max(pixels * header.bytes_a_pixel, 4 * (pixels + min(square * square, MAX_PIXELS)))

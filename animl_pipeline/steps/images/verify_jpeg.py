"""Whether a picture decodes, found out for a fraction of what decoding costs.

A JPEG's markers are walked: its segments up to each scan, the scan's bytes up to the next marker, and the end marker, which
a picture cut off anywhere lacks. Its headers are opened and its tables tried on an empty picture. Whatever is odd, and
every other format, is decoded wholly, and the decoder has the last word. So a picture is never refused that decodes. The
other way round, what a decoder would complain of in the middle of a scan is not seen here; it is when the picture is cut.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from animl_pipeline.core.imaging import DecodeBudget, open_image

SOI, EOI, SOS, DHT, DQT, DRI = 0xD8, 0xD9, 0xDA, 0xC4, 0xDB, 0xDD
FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended, progressive: what cameras write and libjpeg reads."""
ODD = frozenset({0x01, *range(0xC3, 0xD9)}) - {DHT, 0xCC}
"""Markers that have no place between the segments of such a picture."""
MOST_PIXELS = 80_000_000
"""Larger pictures are looked at wholly, against the limit that holds for all."""

_memory = DecodeBudget()
"""Many pictures may travel at a time, few are decoded at a time."""


class _Frame(NamedTuple):
    """What a JPEG's segments say: its size, and all that a decoder needs before the first scan."""

    width: int
    height: int
    tables: bytes


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of a picture that decodes, as stored.

    Raises:
        PictureError: it does not decode; as :func:`animl_pipeline.core.imaging.open_picture`.
    """
    frame = _walk(data) if data[:2] == bytes((0xFF, SOI)) else None
    if frame is not None and frame.width * frame.height <= MOST_PIXELS and _tables_decode(frame.tables) and _opens(data, frame):
        return frame.width, frame.height
    with _memory.reserve_for(data):
        return open_image(data).size


def _walk(data: bytes) -> _Frame | None:
    """The frame of a JPEG that is whole from its first to its end marker; None where anything is odd."""
    at, size, tables, scans = 2, None, bytearray(), 0
    markers = None
    while data[at : at + 1] == b"\xff" and at + 2 <= len(data):
        marker = data[at + 1]
        if marker == EOI:
            return _Frame(*size, bytes(tables)) if size and scans else None
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if marker in ODD or marker < 0xC0 or marker == 0xFF or length < 2 or end > len(data):
            return None
        segment = data[at:end]
        if marker in FRAMES:
            if size or length < 11 or segment[4] != 8 or segment[9] not in {1, 3}:
                return None
            size = (int.from_bytes(segment[7:9], "big"), int.from_bytes(segment[5:7], "big"))
            segment = segment[:5] + b"\x00\x10\x00\x10" + segment[9:]  # the same tables, tried on 16 x 16 pixels
        if not scans and marker in {DHT, DQT, DRI, SOS, *FRAMES}:
            tables += segment
        if marker == SOS:
            scans += 1
            markers = _markers(data, end) if markers is None else markers[markers >= end]
            if not len(markers):
                return None
            end = int(markers[0])
        at = end
    return None


def _markers(data: bytes, start: int) -> NDArray[np.intp]:
    """Where markers other than restarts stand in the entropy-coded bytes from ``start`` on (0xFF 0x00 is no marker but a 0xFF)."""
    codes = np.frombuffer(data, np.uint8)
    escapes = codes[start:-1] == 0xFF
    at = np.flatnonzero(np.logical_and(escapes, codes[start + 1 :], out=escapes)) + start
    follows = codes[at + 1]
    found: NDArray[np.intp] = at[(follows != 0xFF) & ((follows < 0xD0) | (follows > 0xD7))]
    return found


@lru_cache(maxsize=1024)
def _tables_decode(tables: bytes) -> bool:
    """Whether a decoder takes these tables; most pictures of a camera have the same."""
    try:
        Image.open(io.BytesIO(b"\xff\xd8" + tables + b"\x00" * 64 + b"\xff\xd9")).load()
    except Exception:  # noqa: BLE001 - whatever a decoder raises, the whole picture will be decoded to hear it
        return False
    return True


def _opens(data: bytes, frame: _Frame) -> bool:
    """Whether the picture's own headers can be read, and say the same size."""
    try:
        return Image.open(io.BytesIO(data)).size == (frame.width, frame.height)
    except Exception:  # noqa: BLE001 - as above
        return False

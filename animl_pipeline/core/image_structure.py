"""The format of an image file, and limits on its structure, checked on its bytes before Pillow reads them.

Pillow bounds neither the time nor the memory of reading a header. A JPEG with 590,000 EXIF segments takes it a minute, and a TIFF
with 1.4 million tiles takes 450 MB, both in files of 6 MB. Each check here walks over the parts of the file without their content.
A file that it cannot follow is damaged; Pillow refuses it with a reason of its own.
"""

from __future__ import annotations

import re
import struct

from animl_pipeline.core.errors import ImageError

DEFAULT_FORMATS = ("JPEG", "PNG")
"""What cameras write and Animl sends. MPO, the double JPEG of some cameras, counts as JPEG."""
OTHER_FORMATS = ("BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Formats of tools, which a plan or an endpoint may allow. Pillow knows about forty more, and one of them starts another program. An
image from an unknown source must not be able to choose one of these."""
ALL_FORMATS = DEFAULT_FORMATS + OTHER_FORMATS

MAX_JPEG_SEGMENTS = 4_096
"""Segments of a JPEG. Photographs have about twenty, and a large colour profile or thermal image a few hundred."""
MAX_EXIF_SEGMENTS = 8
"""EXIF segments of a JPEG, each with at most 64 KB. Cameras write one; Pillow joins several and makes objects of their numbers."""
MAX_JPEG_SCANS = 100
"""Passes of a progressive JPEG over all pixels. Encoders write about ten."""
MAX_JPEG_JUNK = 65_536
"""Bytes before a marker of a JPEG that belong to no segment."""
MAX_PNG_CHUNKS = 1_000
"""Chunks of a PNG besides its pixels. Files have about ten."""
MAX_PNG_DATA_CHUNKS = 65_536
"""Chunks of a PNG with its pixels: 512 MB in chunks of the usual 8 KB."""
MAX_TIFF_VALUES = 100_000
"""Values of one tag of a TIFF. The longest list has one number for each strip or tile."""
MAX_TIFF_TAGS = 1_000
MAX_GIF_BLOCKS = 10_000
"""Extensions of a GIF before its first image."""
MAX_GIF_PARTS = 100_000
"""Parts of one block of a GIF, each with at most 255 bytes."""

MAX_WEBP_PIXELS = 100_000_000
"""Pixels of a WebP's canvas, for which Pillow reserves memory when it reads the header."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(re.escape(PNG_SIGNATURE)),
    "BMP": re.compile(rb"BM"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "PPM": re.compile(rb"P[0-6fy]"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0\*"),  # "+" is BigTIFF; Pillow does not read a big-endian one
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
}
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")
_END_OF_SCAN = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JPEG_WITHOUT_LENGTH = frozenset({0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
"""Markers after which Pillow goes on with the next byte."""


def identify_format(data: bytes) -> str:
    """The name that Pillow gives to the format of these bytes, by their beginning; "" if it is none of the known seven."""
    return next((name for name, signature in _SIGNATURES.items() if signature.match(data)), "")


def check_structure(kind: str, data: bytes) -> int:
    """Check the structure of a file of the format ``kind``. Returns how often a decoder passes over the pixels: 1, or a JPEG's scans.

    Raises:
        ImageError: the file has more parts than the limits of this module; its code is ``too_complex``.
    """
    if kind == "JPEG":
        return _count_jpeg_scans(data)
    check = {"PNG": _check_png, "GIF": _check_gif, "TIFF": _check_tiff, "WEBP": _check_webp}.get(kind)
    if check is not None:
        check(data)
    return 1


def _count_jpeg_scans(data: bytes) -> int:
    """The scans of the first image in a JPEG, at least 2 where its decoder keeps coefficients until it has read all of them.

    The pixels of an image that has one scan are not searched.
    """
    position, components, exif, scans, several = 2, 0, 0, 0, False
    for _ in range(MAX_JPEG_SEGMENTS):
        found = (_END_OF_SCAN if scans else _JPEG_MARKER).search(data, position)
        if found is None:
            break
        if not scans and found.start() - position > MAX_JPEG_JUNK:
            raise _too_complex("JPEG", "bytes between two segments", MAX_JPEG_JUNK)
        marker, position = found[1][0], found.end()
        if marker == _END_OF_IMAGE and scans:
            break
        if marker in _JPEG_WITHOUT_LENGTH:
            continue
        segment = data[position : position + 10]
        if marker in _JPEG_FRAMES and len(segment) > 7:
            components, several = segment[7], marker in _JPEG_PROGRESSIVE
        elif marker == _START_OF_SCAN:
            scans, several = scans + 1, several or segment[2:3] != bytes([components])
            if not several:
                return 1
        elif marker == _APP1:
            exif += segment[2:8] == b"Exif\0\0"
        if exif > MAX_EXIF_SEGMENTS:
            raise _too_complex("JPEG", "EXIF segments", MAX_EXIF_SEGMENTS)
        if scans > MAX_JPEG_SCANS:
            raise _too_complex("JPEG", "scans", MAX_JPEG_SCANS)
        position += max(int.from_bytes(segment[:2], "big"), 2)
    else:
        raise _too_complex("JPEG", "segments", MAX_JPEG_SEGMENTS)
    return max(scans, 2 if several else 1)


def _check_png(data: bytes) -> None:
    position, pixels, other = len(PNG_SIGNATURE), 0, 0
    while position + 8 <= len(data):
        is_pixels = data[position + 4 : position + 8] == b"IDAT"
        pixels, other = pixels + is_pixels, other + (not is_pixels)
        if other > MAX_PNG_CHUNKS:
            raise _too_complex("PNG", "chunks besides its pixels", MAX_PNG_CHUNKS)
        if pixels > MAX_PNG_DATA_CHUNKS:
            raise _too_complex("PNG", "chunks of pixels", MAX_PNG_DATA_CHUNKS)
        position += 12 + int.from_bytes(data[position : position + 4], "big")


def _check_gif(data: bytes) -> None:
    """Walk over the blocks of a GIF until its first image."""
    if len(data) < 13:
        return
    position = 13 + _gif_palette(data[10])
    for _ in range(MAX_GIF_BLOCKS):
        if data[position : position + 1] != b"!":
            return
        position += 2
        for _ in range(MAX_GIF_PARTS):
            if position >= len(data) or data[position] == 0:
                break
            position += 1 + data[position]
        else:
            raise _too_complex("GIF", "parts of one block", MAX_GIF_PARTS)
        position += 1
    raise _too_complex("GIF", "blocks", MAX_GIF_BLOCKS)


def _gif_palette(flags: int) -> int:
    """Bytes of the palette that a GIF's flags announce."""
    return 3 * (2 << (flags & 7)) if flags & 0x80 else 0


def _check_tiff(data: bytes) -> None:
    """Check the tags of the first image in a TIFF or BigTIFF."""
    order, big = ("<" if data.startswith(b"II") else ">"), data[2:3] == b"+"
    start, number, entry, count = ("Q", "Q", 20, "Q") if big else ("I", "H", 12, "I")
    try:
        (position,) = struct.unpack_from(order + start, data, 8 if big else 4)
        (tags,) = struct.unpack_from(order + number, data, position)
        if tags > MAX_TIFF_TAGS:
            raise _too_complex("TIFF", "tags", MAX_TIFF_TAGS)
        first = position + struct.calcsize(order + number)
        for at in range(first, first + tags * entry, entry):
            _, kind, values = struct.unpack_from(f"{order}HH{count}", data, at)
            if values > MAX_TIFF_VALUES and kind not in {1, 2, 7}:  # bytes, text and undefined are kept as they are
                raise _too_complex("TIFF", "values of one tag", MAX_TIFF_VALUES)
    except struct.error:
        return


def _check_webp(data: bytes) -> None:
    """Check the canvas that the header of a WebP announces."""
    kind, size = data[12:16], (0, 0)
    if kind == b"VP8X":
        size = (int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        size = ((bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1)
    elif kind == b"VP8 ":
        size = (int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF)
    if size[0] * size[1] > MAX_WEBP_PIXELS:
        raise _too_complex("WebP", "pixels in its canvas", MAX_WEBP_PIXELS)


def _too_complex(kind: str, what: str, limit: int) -> ImageError:
    return ImageError(f"expected a {kind} with at most {limit:,} {what}, found more; save the image again", code="too_complex", limit=limit)

"""Files that take a decoder much memory or time are refused by their bytes, and unusual valid files still open."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from animl_pipeline.core.decode_image import MAX_SIDE, DecodeBudget, ImageHeader, decoded_bytes, header_bytes, open_image, read_header
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.image_structure import ALL_FORMATS, DEFAULT_FORMATS, check_structure, identify_format
from tests.support import hostile_images as hostile

REFUSED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a high strip": ("side_too_long", lambda: hostile.png(1, 99_999_999, b"")),
    "a wide strip": ("side_too_long", lambda: hostile.png(99_999_999, 1, b"")),
    "a strip one pixel too long": ("side_too_long", lambda: hostile.png(MAX_SIDE + 1, 1, b"")),
    "EXIF segments": ("too_complex", lambda: hostile.jpeg_with_segments(0xE1, hostile.EXIF, 65)),
    "EXIF segments after an end of the image": (
        "too_complex",
        lambda: b"\xff\xd8\xff\xd9" + hostile.jpeg_with_segments(0xE1, hostile.EXIF, 65)[2:],
    ),
    "EXIF segments in a segment without a length": (
        "too_complex",
        lambda: b"\xff\xd8\xff\xf0\xff\xff" + hostile.jpeg_with_segments(0xE1, hostile.EXIF, 65)[2:],
    ),
    "comments in a JPEG": ("too_complex", lambda: hostile.jpeg_with_segments(0xFE, b"", 5_000)),
    "junk in a JPEG": ("too_complex", hostile.HOSTILE["jpeg after junk"]),
    "scans": ("too_complex", lambda: hostile.jpeg_with_scans(64, 64, 200)),
    "chunks in a PNG": ("too_complex", lambda: hostile.png_with_chunks(hostile.png_chunk(b"abCd"), 1_001)),
    "chunks of pixels in a PNG": ("too_complex", lambda: hostile.png_with_chunks(hostile.png_chunk(b"IDAT"), 70_000)),
    "compressed texts": ("damaged", hostile.HOSTILE["png of compressed texts"]),
    "comments in a PPM": ("too_complex", hostile.HOSTILE["ppm of comments"]),
    "a plain PPM of many pixels": ("too_complex", lambda: b"P1\n3000 3000\n"),
    "ends of lines in a BMP": ("side_too_long", hostile.HOSTILE["bmp of ends of lines"]),
    "many ends of lines in a BMP": ("too_complex", hostile.HOSTILE["bmp of many ends of lines"]),
    "extensions of a GIF": ("too_complex", lambda: hostile.gif_with_blocks(b"!\1\0", 10_001)),
    "parts of one extension of a GIF": ("too_complex", lambda: hostile.gif_with_blocks(b"!\1" + b"\1a" * 100_001 + b"\0", 1)),
    "tiles": ("too_complex", hostile.HOSTILE["tiff of tiles"]),
    "tiles, big-endian": ("too_complex", lambda: hostile.tiff_of_tiles(150_000, ">")),
    "tiles of a BigTIFF": ("too_complex", lambda: hostile.tiff_of_tiles(150_000, big=True)),
    "a canvas": ("too_complex", hostile.HOSTILE["webp with a large canvas"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_with_too_many_parts_is_refused_with_little_memory(what: str) -> None:
    code, make = REFUSED[what]
    data = make()
    assert identify_format(data) in ALL_FORMATS
    tracemalloc.start()
    try:
        with pytest.raises(ImageError) as refused:
            read_header(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.code == code
    assert peak <= header_bytes(data)
    with pytest.raises(ImageError):
        open_image(data)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hostile.jpeg_with_segments(0xE1, hostile.EXIF, 2),
        lambda: hostile.jpeg_with_segments(0xE1, b"FLIR\0" + bytes(60_000), 300),
        lambda: hostile.jpeg_with_segments(0xE2, b"\xff\xda" * 30_000, 5),
        lambda: hostile.encoded("JPEG") + bytes(range(256)) * 20_000,
        lambda: hostile.jpeg_with_scans(64, 48, 20),
        lambda: hostile.png_with_chunks(hostile.png_chunk(b"tEXt", b"k\0v"), 500),
        lambda: hostile.gif_with_blocks(b"!\xfe\1a\0", 1_000),
        lambda: hostile.tiff_of_tiles(10_000),
        lambda: hostile.flat_png(1, MAX_SIDE),
    ],
    ids=["two EXIF", "thermal", "markers in a profile", "appended video", "scans", "texts", "comments", "tiles", "the longest strip"],
)
def test_an_unusual_valid_file_opens(make: Callable[[], bytes]) -> None:
    assert open_image(make()).mode == "RGB"


def test_only_the_formats_that_are_asked_for_open() -> None:
    for kind in ("JPEG", "PNG", "MPO"):
        assert open_image(hostile.encoded(kind), DEFAULT_FORMATS).size == (64, 48)
    for kind in ("TIFF", "WEBP", "GIF", "BMP", "PPM"):
        with pytest.raises(ImageError) as refused:
            read_header(hostile.encoded(kind), DEFAULT_FORMATS)
        assert (refused.value.code, refused.value.details) == ("format_not_allowed", {"format": kind})
        assert open_image(hostile.encoded(kind), (kind,)).size == (64, 48)


def test_the_memory_of_rows_and_of_a_jpeg_in_several_scans_counts() -> None:
    assert decoded_bytes(ImageHeader(1, 60_000, 12)) >= 60_000 * (12 + 16)
    assert read_header(hostile.jpeg_in_separate_scans(64, 48)).bytes_per_pixel == 12
    progressive = read_header(hostile.jpeg_with_scans(64, 48, 20))
    assert (progressive.bytes_per_pixel, progressive.scans > 20) == (12, True)
    assert read_header(hostile.encoded("JPEG")).scans == 1


def test_a_header_is_read_within_the_budget() -> None:
    budget = DecodeBudget(1)
    assert budget.read_header(hostile.encoded("PNG")) == read_header(hostile.encoded("PNG"))
    with pytest.raises(ImageError):
        budget.read_header(hostile.tiff_of_tiles(150_000))
    with budget.reserve_for(hostile.encoded("TIFF")):
        pass


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP"]), st.integers(0, 10_000), st.binary(min_size=1, max_size=12), st.booleans())
def test_damage_anywhere_never_raises_another_error(kind: str, at: int, noise: bytes, cut: bool) -> None:
    data = hostile.encoded(kind)
    at %= len(data)
    damaged = data[:at] + noise + (b"" if cut else data[at + len(noise) :])
    found = structure_or_error(kind, damaged)
    assert found.code == "too_complex" if isinstance(found, ImageError) else found >= 1


def structure_or_error(kind: str, data: bytes) -> int | ImageError:
    """What ``check_structure`` returns or its ImageError. Any other exception fails the test."""
    try:
        return check_structure(kind, data)
    except ImageError as e:
        return e


def test_an_image_of_every_mode_gives_the_same_pixels_as_pillow_alone() -> None:
    data = hostile.encoded("JPEG", progressive=True)
    assert open_image(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()

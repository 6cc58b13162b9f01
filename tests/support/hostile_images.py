"""Small files that take a decoder much memory or much time. Each is below 6 MB, the largest request of an endpoint."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable

from PIL import Image

FILE_BYTES = 5_900_000
CHUNK = 1 << 20


def encoded(kind: str, width: int = 64, height: int = 48, mode: str = "RGB", **options: object) -> bytes:
    """A valid file of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (120, 90, 30)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def compressed_zeros(size: int) -> bytes:
    """``size`` zeros as a zlib stream, about a thousandth of that."""
    packer = zlib.compressobj(9)
    whole, rest = divmod(size, CHUNK)
    return b"".join([*(packer.compress(bytes(CHUNK)) for _ in range(whole)), packer.compress(bytes(rest)), packer.flush()])


def png(width: int, height: int, pixels: bytes, bits: int = 8, colour: int = 2, before: bytes = b"") -> bytes:
    """A PNG with this header, the chunks ``before`` its pixels, and the compressed ``pixels``."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND")


def png_chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def flat_png(width: int, height: int, bits: int = 8, colour: int = 2, bytes_per_pixel: int = 3) -> bytes:
    """A valid black PNG of any size."""
    return png(width, height, compressed_zeros(height * (1 + width * bytes_per_pixel)), bits, colour)


def png_with_chunks(chunk: bytes, count: int) -> bytes:
    """A valid PNG with ``count`` equal chunks before its pixels."""
    return png(64, 64, compressed_zeros(64 * (1 + 64 * 3)), before=chunk * count)


def jpeg_with_segments(marker: int, content: bytes, count: int) -> bytes:
    """A valid JPEG with ``count`` equal segments at its beginning."""
    plain = encoded("JPEG")
    return plain[:2] + (struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content) * count + plain[2:]


def jpeg_with_scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated ``count`` times."""
    valid = encoded("JPEG", width, height, progressive=True, quality=5)
    last = valid.rindex(b"\xff\xda")
    return valid[:last] + valid[last:-2] * count + valid[-2:]


def jpeg_in_separate_scans(width: int, height: int) -> bytes:
    """The header of a JPEG that is not progressive, but whose first scan has one of its three components."""
    valid = bytearray(encoded("JPEG", width, height, quality=5))
    scan = valid.index(b"\xff\xda")
    return bytes(valid[:scan]) + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(valid[scan + 14 :])


def ppm_of_comments(count: int = FILE_BYTES // 2) -> bytes:
    """A PPM in text whose pixels are ``count`` comments."""
    return b"P3\n900 900\n255\n" + b"#\n" * count


def run_length_bmp(width: int, height: int, pixels: bytes) -> bytes:
    """A BMP in run lengths of 8 bits per pixel."""
    palette = bytes(4 * 256)
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def gif_with_blocks(block: bytes, count: int) -> bytes:
    """A GIF with ``count`` equal blocks before its image."""
    plain = encoded("GIF", mode="P")
    start = 13 + (3 * (2 << (plain[10] & 7)) if plain[10] & 0x80 else 0)
    return plain[:start] + block * count + plain[start:]


def tiff_of_tiles(count: int, order: str = "<", big: bool = False) -> bytes:
    """A TIFF (``big``: BigTIFF) of tiles of one pixel, all at the same place of the file."""
    side = int(count**0.5)
    entry, number = ("HHQQ", "Q") if big else ("HHII", "H")
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 277: 1, 322: 1, 323: 1}
    start = 16 if big else 8
    content = start + struct.calcsize(order + number) + (len(tags) + 1) * struct.calcsize(order + entry) + (8 if big else 4)
    magic = struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16) if big else (42, 8)))
    directory = struct.pack(order + number, len(tags) + 1)
    directory += b"".join(struct.pack(order + entry, tag, 4, 1, value) for tag, value in tags.items())
    directory += struct.pack(order + entry, 324, 4, count, content) + bytes(8 if big else 4)
    return (b"II" if order == "<" else b"MM") + magic + directory + struct.pack(f"{order}I", 8) * count


def webp_header(width: int, height: int) -> bytes:
    """The beginning of a WebP with a canvas of this size."""
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return b"RIFF" + struct.pack("<I", len(body)) + body


EXIF = b"Exif\0\0" + b"A" * 10
HOSTILE: dict[str, Callable[[], bytes]] = {
    "jpeg of exif segments": lambda: jpeg_with_segments(0xE1, EXIF, FILE_BYTES // 20),
    "jpeg of comments": lambda: jpeg_with_segments(0xFE, b"", FILE_BYTES // 4),
    "jpeg after junk": lambda: b"\xff\xd8\xff\xe0\x00\x04aa" + b"j" * FILE_BYTES + encoded("JPEG")[2:],
    "jpeg of many scans": lambda: jpeg_with_scans(8000, 8000, 500),
    "jpeg of as many scans as allowed": lambda: jpeg_with_scans(8000, 8000, 80),
    "jpeg of 100 megapixels": lambda: encoded("JPEG", 9999, 9999, quality=5),
    "jpeg of 100 megapixels, progressive": lambda: encoded("JPEG", 9999, 9999, quality=5, progressive=True),
    "png strip, high": lambda: flat_png(1, 99_999_999),
    "png strip, wide": lambda: flat_png(99_999_999, 1),
    "png strip as long as allowed": lambda: flat_png(1, 65_535),
    "png of 100 megapixels": lambda: flat_png(9999, 9999),
    "png of 100 megapixels, 16-bit rgba": lambda: flat_png(9999, 9999, 16, 6, 8),
    "png of chunks": lambda: png_with_chunks(png_chunk(b"abCd"), FILE_BYTES // 12),
    "png of texts": lambda: png_with_chunks(png_chunk(b"tEXt", b"k\0v"), FILE_BYTES // 15),
    "png of compressed texts": lambda: png_with_chunks(png_chunk(b"zTXt", b"k\0\0" + compressed_zeros(1_000_000)), 60),
    "png with a profile of 900 MB": lambda: png_with_chunks(png_chunk(b"iCCP", b"k\0\0" + compressed_zeros(900_000_000)), 1),
    "ppm of comments": ppm_of_comments,
    "bmp of ends of lines": lambda: run_length_bmp(99_999_999, 1, b"\1\0\0\0\0\1"),
    "bmp of many ends of lines": lambda: run_length_bmp(10_000, 10_000, b"\1\1\0\0" * (FILE_BYTES // 4 - 400)),
    "gif of extensions": lambda: gif_with_blocks(b"!\1\0", FILE_BYTES // 3 - 400),
    "tiff of tiles": lambda: tiff_of_tiles(1_440_000),
    "tiff in one strip": lambda: encoded("TIFF", 9999, 9999, "L", compression="tiff_adobe_deflate"),
    "webp with a large canvas": lambda: webp_header(16_384, 16_384),
    "webp of 81 megapixels": lambda: encoded("WEBP", 9000, 9000, lossless=True, method=0),
}
"""Each kind of attack by name."""


def hostile_files(names: Iterable[str] = HOSTILE) -> dict[str, bytes]:
    """The files of these names. All of them take about half a minute and 60 MB."""
    return {name: HOSTILE[name]() for name in names}

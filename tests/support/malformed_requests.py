"""Random malformed requests for the endpoint program. The same number always gives the same request.

Each kind damages one layer: HTTP itself, the content type, JSON, multipart, base64, boxes, an image's header or its bytes.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import functools
import http.client
import io
import json
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image, features

ODD_NUMBERS = (0, 1, -1, 0.5, 1e-300, 1e308, -1e308, 10**400, 2**63, float("nan"), float("inf"), True, None, "0.5", [], {}, 1.0005, 1.002)
ODD_TYPES = (
    "", "application/json", "application/json; charset=utf-16", "APPLICATION/JSON", "text/plain", "text/csv", "image/jpeg", "image/png", "image/",
    "*/*", "application/octet-stream", "application/x-www-form-urlencoded", "multipart/form-data", "multipart/form-data; boundary=",
    "multipart/form-data; boundary=xyz",
    'multipart/form-data; boundary="x y z"', "multipart/mixed; boundary=xyz", "a" * 2000, "/", ";", "application/json\x80",
)  # fmt: skip
ODD_TEXT = (
    "",
    " ",
    "\x00",
    "{",
    "[",
    "]}",
    "null",
    "%%%",
    "é" * 9,
    "\ud800",
    "9" * 5000,
    "[" * 3000,
    '{"a":' * 3000,
    "../../etc/passwd",
    "\N{PILE OF POO}",
)


class Malformed(NamedTuple):
    """One request: ``content_type`` None sends none."""

    content_type: str | None
    body: bytes


def malformed(number: int) -> Malformed:
    """The malformed request with this number. A few are valid, because the damage did not matter."""
    draw = random.Random(number)  # noqa: S311 - reproducible, not secret
    return draw.choice(_KINDS)(draw)


def send_malformed(address: str, numbers: Iterable[int], threads: int = 4) -> collections.Counter[int]:
    """Send the requests with these numbers over kept connections, every 50th as broken HTTP. The counts of the statuses come back.

    Status 0 counts broken HTTP without an answer: the program rightly closes the connection.
    """
    host, port = address.removeprefix("http://").split(":")
    with ThreadPoolExecutor(threads) as pool:
        all_numbers = list(numbers)
        counts = pool.map(lambda some: _send(host, int(port), some), [all_numbers[i::threads] for i in range(threads)])
        return functools.reduce(lambda a, b: a + b, counts, collections.Counter[int]())


def _send(host: str, port: int, numbers: list[int]) -> collections.Counter[int]:
    counts: collections.Counter[int] = collections.Counter()
    connection = http.client.HTTPConnection(host, port, timeout=60)
    for number in numbers:
        if number % 50 == 7:
            counts[_broken_http(host, port, random.Random(number))] += 1  # noqa: S311 - reproducible, not secret
            continue
        request = malformed(number)
        try:
            counts[_post(connection, request)] += 1
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):  # the kept connection had timed out
            connection.close()
            counts[_post(connection, request)] += 1
    connection.close()
    return counts


def _post(connection: http.client.HTTPConnection, request: Malformed) -> int:
    headers = {} if request.content_type is None else {"Content-Type": request.content_type.encode("latin-1", "replace")}
    connection.request("POST", "/invocations", request.body, headers)  # type: ignore[arg-type]  # http.client takes bytes as header values too
    response = connection.getresponse()
    response.read()
    return response.status


def _broken_http(host: str, port: int, draw: random.Random) -> int:
    """Send bytes that are not HTTP or half a request, then close; the status, or 0 if there was no answer."""
    sent = draw.choice([
        draw.randbytes(draw.randrange(1, 3000)),
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nabc",
        b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nabc",
        b"POST /invocations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nabc",
        b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n" + b"x" * draw.randrange(0, 400_000),
        b"GET /ping HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n",
    ])  # fmt: skip
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=30) as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        answer = raw.makefile("rb").readline().split()
        return int(answer[1]) if len(answer) > 1 and answer[1].isdigit() else 0
    return 0


@functools.cache
def images() -> tuple[bytes, ...]:
    """Small images of many formats and modes."""
    colours = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 20)
    kinds = [
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("I;16", "PNG"),
    ]
    kinds += [("RGB", "GIF"), ("RGB", "BMP"), ("RGB", "TIFF"), ("RGB", "PPM"), ("RGB", "ICO"), ("RGB", "PCX"), ("RGB", "TGA")]
    kinds += [("RGB", "WEBP")] if features.check("webp") else []
    made = []
    for mode, kind in kinds:
        buffer = io.BytesIO()
        colours.convert("I" if mode == "I;16" else mode).convert(mode).save(buffer, kind)
        made.append(buffer.getvalue())
    buffer = io.BytesIO()
    colours.convert("RGB").save(buffer, "JPEG", progressive=True)
    return (*made, buffer.getvalue())


def png_with_size(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG with this size in its header, and only a little data."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(bytes(2000))
    chunks = [struct.pack(">I", 13) + header, struct.pack(">I", len(data)) + b"IDAT" + data]
    return b"\x89PNG\r\n\x1a\n" + b"".join(c + struct.pack(">I", zlib.crc32(c[4:])) for c in chunks)


def _damaged_image(draw: random.Random) -> bytes:
    """An image with changed, removed, repeated or foreign bytes, or with any size in its header."""
    if draw.random() < 0.1:
        sides = (0, 1, 2, 255, 9_999, 10_001, 65_535, 2**31 - 1)
        return png_with_size(draw.choice(sides), draw.choice(sides), draw.choice((1, 8, 16)), draw.choice((0, 2, 3, 4, 6)))
    data = bytearray(draw.choice(images()))
    for _ in range(draw.choice((1, 1, 2, 20))):
        where, much = draw.randrange(len(data)), draw.randrange(1, 40)
        way = draw.randrange(4)
        if way == 0:
            data[where] = draw.randrange(256)
        elif way == 1:
            del data[where : where + draw.choice((1, much, len(data)))]
        elif way == 2:
            data[where:where] = draw.randbytes(much)
        else:
            data[where : where + much] = draw.choice(images())[where : where + much]
        if not data:
            return b"\xff"
    return bytes(data)


def _image_alone(draw: random.Random) -> Malformed:
    return Malformed(draw.choice(("image/jpeg", "image/png", "application/octet-stream", None)), _damaged_image(draw))


def _image_in_json(draw: random.Random) -> Malformed:
    body = {"image": base64.b64encode(_damaged_image(draw)).decode()} | draw.choice(({}, {"bbox": [0, 0, 1, 1]}, {"bbox": "[0.1,0.1,0.9,0.9]"}))
    return Malformed(draw.choice(("application/json", None)), json.dumps(body).encode())


def _odd_boxes(draw: random.Random) -> Malformed:
    """A valid image, mostly with invalid boxes."""

    def box() -> object:
        if draw.random() < 0.2:
            return draw.choice((*ODD_NUMBERS, *ODD_TEXT))
        numbers = [draw.choice((draw.random(), draw.choice(ODD_NUMBERS))) for _ in range(draw.choice((0, 3, 4, 4, 4, 5)))]
        return draw.choice((numbers, str(numbers)))

    boxes: dict[str, object] = draw.choice(({"bbox": box()}, {"bboxes": [box() for _ in range(draw.randrange(4))]}, {"bboxes": box(), "bbox": box()}))
    if draw.random() < 0.02:
        boxes = {"bboxes": [[0, 0, 1, 1]] * draw.randrange(90, 3000)}
    image = base64.b64encode(draw.choice(images())).decode()
    return Malformed(draw.choice(("application/json", None)), json.dumps({"image": image} | boxes).encode())


def _odd_json(draw: random.Random) -> Malformed:
    def value(depth: int) -> object:
        if depth and draw.random() < 0.5:
            keys = ("image", "bbox", "bboxes", draw.choice(ODD_TEXT))
            return {draw.choice(keys): value(depth - 1) for _ in range(3)} if draw.random() < 0.5 else [value(depth - 1) for _ in range(3)]
        return draw.choice((*ODD_NUMBERS, *ODD_TEXT))

    text = json.dumps(value(3)).encode()
    cut = text[: draw.randrange(len(text))] if draw.random() < 0.4 else text
    return Malformed(draw.choice(ODD_TYPES), draw.choice((cut, draw.choice(ODD_TEXT).encode(errors="surrogatepass"))))


def _odd_base64(draw: random.Random) -> Malformed:
    text = bytearray(base64.b64encode(draw.choice(images())))
    for _ in range(draw.choice((1, 5))):
        where = draw.randrange(len(text))
        text[where : where + draw.choice((0, 1, 100))] = draw.choice((b"=", b"==", b"\n", b"%", b"-_", "é".encode(), b'"', b"\\", b"\x00"))
    return Malformed("application/json", b'{"image": "' + bytes(text) + b'", "bbox": [0, 0, 1, 1]}')


def _odd_multipart(draw: random.Random) -> Malformed:
    names = ("image", "bbox", "bboxes", "data", "", 'a"b', "é")
    contents = (draw.choice(images()), _damaged_image(draw), b"[0,0,1,1]", b"{}", b"", base64.b64encode(draw.choice(images())))
    parts = [
        b'--xyz\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (draw.choice(names).encode(), draw.choice(contents))
        for _ in range(draw.choice((0, 1, 2, 3, 200)))
    ]
    body = bytearray(b"".join(parts) + b"--xyz--\r\n")
    if draw.random() < 0.6:
        where = draw.randrange(len(body))
        body[where : where + draw.choice((1, 30, len(body)))] = draw.randbytes(draw.choice((0, 1, 30)))
    return Malformed(
        draw.choice(("multipart/form-data; boundary=xyz", "multipart/form-data; boundary=xy", 'multipart/form-data; boundary="xyz"')), bytes(body)
    )


def _noise(draw: random.Random) -> Malformed:
    return Malformed(draw.choice(ODD_TYPES), draw.randbytes(draw.choice((0, 1, 10, 1000, 100_000))))


def _too_large(draw: random.Random) -> Malformed:
    """A body around the limit of 6 MB, but only in a tenth of the cases."""
    if draw.random() < 0.9:
        return _noise(draw)
    return Malformed(
        draw.choice(("application/json", "image/jpeg")), draw.choice((b"{", b"\xff\xd8", b'{"image": "')) + b"A" * draw.choice((5_900_000, 6_000_001))
    )


_KINDS: tuple[Callable[[random.Random], Malformed], ...] = (
    _image_alone, _image_alone, _image_in_json, _image_in_json, _odd_boxes, _odd_boxes, _odd_json, _odd_base64, _odd_multipart,
    _odd_multipart, _noise, _too_large,
)  # fmt: skip

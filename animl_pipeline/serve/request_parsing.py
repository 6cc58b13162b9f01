"""Parse the body of a request: the bytes of an image, and its boxes, in every form in which Animl and its tools send them.

========================================  ==================================================================
Content-Type                              body
========================================  ==================================================================
none, octet-stream, form-urlencoded       JSON if it begins with "{", else an image (clients that set no type)
application/json, text/plain              ``{"image": "<base64>", "bbox": [ymin, xmin, ymax, xmax]}``; bbox also as text "[…]"
multipart/form-data                       the JSON as the body itself or as a part; or parts named image and bbox
image/…                                   an image; the box is the whole image
========================================  ==================================================================

``bboxes``, a list of boxes instead of ``bbox``, asks about several boxes of one image.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from animl_pipeline.core.box_type import WHOLE_IMAGE, Box
from animl_pipeline.serve.http_errors import RequestError

UNSPECIFIC_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded"})
JSON_TYPES = frozenset({"application/json", "text/json", "text/plain"})
OVERHANG = 1.0
"""A box may reach beyond the image by this many of its sides, and is cut off there: detectors and people draw such boxes. Pixels reach farther."""
MAX_BOXES = 100
"""Boxes of one request. Each takes one forward pass, and SageMaker waits 60 s for the answer."""
MAX_JSON_TOKENS = 5_000
"""Brackets, colons and commas in a JSON body. A real request has a few hundred; each may become an object in memory."""
MAX_PARTS = 16
EXPECTED = 'expected {"image": "<base64>", "bbox": [ymin, xmin, ymax, xmax]}'
WHITESPACE = b" \t\r\n\v\f"


class ClassifyRequest(NamedTuple):
    """The bytes of an image and the boxes to classify. ``is_list``: the answer is a list."""

    image: bytes
    boxes: tuple[Box, ...] = (WHOLE_IMAGE,)
    is_list: bool = False


def parse_request(content_type: str, body: bytes) -> ClassifyRequest:
    """Parse a request's body.

    Raises:
        RequestError: 400 for a wrong body, 415 for an unknown Content-Type.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if not body or body.isspace():
        raise RequestError(400, f"the body is empty; {EXPECTED}, or the bytes of an image")
    if media_type in JSON_TYPES:
        return _parse_json_body(body)
    if media_type in UNSPECIFIC_TYPES:
        return _parse_json_body(body) if _looks_like_json(body) else ClassifyRequest(body)
    if media_type == "multipart/form-data":
        return _parse_json_body(body) if _looks_like_json(body) else _parse_parts(content_type, body)
    if media_type.startswith("image/"):
        return ClassifyRequest(body)
    raise RequestError(415, f"unknown Content-Type {media_type[:80]!r}; send application/json, multipart/form-data or image/…")


def parse_box(value: Any) -> Box:
    """A box from a list of four numbers, or from the list as text, cut at the image's edges. None and "" mean the whole image.

    Raises:
        RequestError: 400, it does not have four numbers, is empty, or lies outside the image.
    """
    if value is None or value == "":
        return WHOLE_IMAGE
    numbers = _parse_json(value.encode(errors="replace"), "bbox") if isinstance(value, str) else value
    if not isinstance(numbers, list) or len(numbers) != 4 or not all(_is_number(n) for n in numbers):
        raise RequestError(400, f"bbox: expected four numbers [ymin, xmin, ymax, xmax], relative to the image; found {_shorten(value)}")
    ymin, xmin, ymax, xmax = map(float, numbers)
    if not (ymin < ymax and xmin < xmax):
        raise RequestError(400, f"bbox: expected ymin < ymax and xmin < xmax; found {_shorten(numbers)}")
    near = all(-OVERHANG <= n <= 1 + OVERHANG for n in numbers)
    if not near or ymin >= 1 or xmin >= 1 or ymax <= 0 or xmax <= 0:
        raise RequestError(400, f"bbox: lies outside the image, whose sides go from 0 to 1; found {_shorten(numbers)}")
    return Box.of([min(max(n, 0.0), 1.0) for n in (ymin, xmin, ymax, xmax)])


def _parse_boxes(fields: dict[str, Any]) -> tuple[tuple[Box, ...], bool]:
    """The boxes of a request's fields, and whether they came as ``bboxes``."""
    if fields.get("bboxes") is None:
        return (parse_box(fields.get("bbox")),), False
    if fields.get("bbox") is not None:
        raise RequestError(400, "found both bbox and bboxes; expected one of them")
    value = fields["bboxes"]
    boxes = _parse_json(value.encode(errors="replace"), "bboxes") if isinstance(value, str) else value
    if not isinstance(boxes, list) or not 1 <= len(boxes) <= MAX_BOXES:
        found = f"{len(boxes):,} boxes" if isinstance(boxes, list) else _shorten(value)
        raise RequestError(400, f"bboxes: expected a list of 1 to {MAX_BOXES} boxes [ymin, xmin, ymax, xmax]; found {found}")
    if not all(isinstance(box, list) for box in boxes):
        raise RequestError(400, f"bboxes: expected each to be a list [ymin, xmin, ymax, xmax]; found {_shorten(boxes)}")
    return tuple(parse_box(box) for box in boxes), True


def _parse_json_body(body: bytes) -> ClassifyRequest:
    if sum(body.count(token) for token in (b"[", b"{", b",", b":")) > MAX_JSON_TOKENS:
        raise RequestError(400, f"the JSON body has more than {MAX_JSON_TOKENS:,} brackets, colons and commas; {EXPECTED}")
    fields = _parse_json(body, "the body")
    if not isinstance(fields, dict):
        raise RequestError(400, f"the body is JSON but not an object; {EXPECTED}")
    image = fields.get("image")
    if not isinstance(image, str) or not image:
        raise RequestError(400, f"no image in the body; {EXPECTED}")
    return ClassifyRequest(_decode_base64(image), *_parse_boxes(fields))


def _parse_parts(content_type: str, body: bytes) -> ClassifyRequest:
    """Parts named image and bbox (or bboxes). A single part of any other name is the JSON or the image."""
    parts = _read_parts(content_type, body)
    image = parts.get("image") or (next(iter(parts.values())) if len(parts) == 1 else None)
    if not image:
        raise RequestError(400, f"multipart: expected a part named image, found {', '.join(sorted(parts))[:80] or 'none'}")
    if _looks_like_json(image):
        return _parse_json_body(image)
    boxes: dict[str, Any] = {name: parts[name].decode(errors="replace") for name in ("bbox", "bboxes") if name in parts}
    return ClassifyRequest(_decode_base64(image.decode("ascii")) if image.isascii() else image, *_parse_boxes(boxes))


class _InMemoryParser(MultiPartParser):
    """starlette's parser without temporary files, because the root file system may be read-only."""

    spool_max_size = 1 << 40


def _read_parts(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts of a multipart body by name; the first one if a name occurs twice."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    # starlette decodes parts without a file name as text; latin-1 keeps every byte of an image
    headers = Headers({"content-type": f"{content_type}; charset=latin-1"})
    try:
        parser = _InMemoryParser(headers, stream(), max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=len(body))
        form = asyncio.run(parser.parse())
    except MultiPartException as e:
        raise RequestError(400, f"multipart/form-data: {e.message[:120]} Expected parts named image and bbox") from e
    parts: dict[str, bytes] = {}
    for name, value in form.multi_items():
        parts.setdefault(name, value.file.read() if isinstance(value, UploadFile) else value.encode("latin-1", "replace"))
    return parts


def _parse_json(text: bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:  # RecursionError: thousands of nested brackets
        raise RequestError(400, f"{what} is not JSON: {str(e)[:120]}; {EXPECTED}") from e


def _decode_base64(image: str) -> bytes:
    try:
        return base64.b64decode(image.encode("ascii").translate(None, WHITESPACE), validate=True)
    except (binascii.Error, ValueError) as e:
        raise RequestError(400, f"image is not base64: {str(e)[:120]}") from e


def _looks_like_json(body: bytes) -> bool:
    """Whether the first character is a brace, with which no image format begins."""
    return body[:64].lstrip().startswith(b"{")


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def _shorten(value: Any) -> str:
    """The beginning of a value, as text that an answer in UTF-8 can hold: JSON may bring half a surrogate pair."""
    text = value.encode(errors="backslashreplace").decode() if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"

"""A request's body → the bytes of a picture and its boxes. Speaks every way in which Animl and its tools ask.

========================================  ==================================================================
Content-Type                              body
========================================  ==================================================================
none, octet-stream, form-urlencoded       what clients set who set nothing: JSON when it begins with "{", else a picture
application/json, text/plain              ``{"image": "<base64>", "bbox": [ymin, xmin, ymax, xmax]}``; bbox also as text "[…]"
multipart/form-data                       the JSON as the body itself, or as a part; or parts named image and bbox
image/…                                   a picture; the box is the whole of it
========================================  ==================================================================

``bboxes``, a list of boxes in the place of ``bbox``, asks about several boxes of one picture.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any, NamedTuple

from pydantic import ValidationError

from animl_pipeline.core.records import WHOLE_IMAGE, Box
from animl_pipeline.serve.errors import Refusal

UNSAID = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded"})
JSON_TYPES = frozenset({"application/json", "text/json", "text/plain"})
SLACK = 1e-3
"""How far a box may reach past the picture: sums of rounded numbers do; it is cut back to the picture."""
MAX_BOXES = 100
"""Of one request: each takes one forward pass, and SageMaker waits 60 s for the answer."""
MAX_MARKS = 5_000
"""Brackets, colons and commas of a JSON body: a question needs a few hundred at most, and each may become an object in memory."""
EXPECTED = 'expected {"image": "<base64>", "bbox": [ymin, xmin, ymax, xmax]}'
BLANKS = b" \t\r\n\v\f"


class Question(NamedTuple):
    """The bytes of a picture and the boxes that are asked about; ``several`` when the answer is to be a list."""

    image: bytes
    boxes: tuple[Box, ...] = (WHOLE_IMAGE,)
    several: bool = False


def read_question(content_type: str, body: bytes) -> Question:
    """The question in a request's body.

    Raises:
        Refusal: 400 when the body does not hold what it should, 415 when its type is not one of the above.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if not body or body.isspace():
        raise Refusal(400, f"an empty body; {EXPECTED}, or the bytes of a picture")
    if kind in JSON_TYPES:
        return _from_json(body)
    if kind in UNSAID:
        return _from_json(body) if _looks_like_json(body) else Question(body)
    if kind == "multipart/form-data":
        return _from_json(body) if _looks_like_json(body) else _from_parts(content_type, body)
    if kind.startswith("image/"):
        return Question(body)
    raise Refusal(415, f"Content-Type {kind[:80]!r} is not known; send application/json, multipart/form-data or image/…")


def read_box(value: Any) -> Box:
    """A box from a list of four numbers or its text; nothing (None or "") is the whole picture.

    Raises:
        Refusal: 400, it is not four numbers, is empty, or lies outside of the picture.
    """
    if value is None or value == "":
        return WHOLE_IMAGE
    numbers = _parse(value.encode(errors="replace"), "bbox") if isinstance(value, str) else value
    if not isinstance(numbers, list) or len(numbers) != 4 or not all(_is_number(n) for n in numbers):
        raise Refusal(400, f"bbox: expected four numbers [ymin, xmin, ymax, xmax], relative to the picture; found {_short(value)}")
    if not all(-SLACK <= n <= 1 + SLACK for n in numbers):
        raise Refusal(400, f"bbox: reaches out of the picture, whose sides go from 0 to 1; found {_short(numbers)}")
    try:
        return Box.of([min(max(float(n), 0.0), 1.0) for n in numbers])
    except ValidationError as e:
        raise Refusal(400, f"bbox: expected ymin < ymax and xmin < xmax; found {_short(numbers)}") from e


def _read_boxes(asked: dict[str, Any]) -> tuple[tuple[Box, ...], bool]:
    """The boxes of a question's fields, and whether they came as ``bboxes``."""
    if asked.get("bboxes") is None:
        return (read_box(asked.get("bbox")),), False
    if asked.get("bbox") is not None:
        raise Refusal(400, "both bbox and bboxes in the request; expected one of them")
    value = asked["bboxes"]
    boxes = _parse(value.encode(errors="replace"), "bboxes") if isinstance(value, str) else value
    if not isinstance(boxes, list) or not 1 <= len(boxes) <= MAX_BOXES:
        found = f"{len(boxes):,} boxes" if isinstance(boxes, list) else _short(value)
        raise Refusal(400, f"bboxes: expected a list of 1 to {MAX_BOXES} boxes [ymin, xmin, ymax, xmax]; found {found}")
    if not all(isinstance(box, list) for box in boxes):
        raise Refusal(400, f"bboxes: expected each to be a list [ymin, xmin, ymax, xmax]; found {_short(boxes)}")
    return tuple(read_box(box) for box in boxes), True


def _from_json(body: bytes) -> Question:
    if sum(body.count(mark) for mark in (b"[", b"{", b",", b":")) > MAX_MARKS:
        raise Refusal(400, f"the body is JSON of more than {MAX_MARKS:,} brackets, colons and commas, which no question has; {EXPECTED}")
    asked = _parse(body, "the body")
    if not isinstance(asked, dict):
        raise Refusal(400, f"the body is JSON but not an object; {EXPECTED}")
    image = asked.get("image")
    if not isinstance(image, str) or not image:
        raise Refusal(400, f"no image in the body; {EXPECTED}")
    return Question(_decode(image), *_read_boxes(asked))


def _from_parts(content_type: str, body: bytes) -> Question:
    """Parts named image and bbox (or bboxes); a single part of any other name is taken for the JSON or the picture."""
    from animl_pipeline.serve.multipart import parts_of

    parts = parts_of(content_type, body)
    image = parts.get("image") or (next(iter(parts.values())) if len(parts) == 1 else None)
    if not image:
        raise Refusal(400, f"multipart: expected a part named image, found {', '.join(sorted(parts))[:80] or 'none'}")
    if _looks_like_json(image):
        return _from_json(image)
    texts: dict[str, Any] = {name: parts[name].decode(errors="replace") for name in ("bbox", "bboxes") if name in parts}
    return Question(_decode(image.decode("ascii")) if image.isascii() else image, *_read_boxes(texts))


def _parse(text: bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:  # RecursionError: brackets nested by the thousand
        raise Refusal(400, f"{what} is not JSON: {str(e)[:120]}; {EXPECTED}") from e


def _decode(image: str) -> bytes:
    try:
        return base64.b64decode(image.encode("ascii").translate(None, BLANKS), validate=True)
    except (binascii.Error, ValueError) as e:
        raise Refusal(400, f"image is not base64: {str(e)[:120]}") from e


def _looks_like_json(body: bytes) -> bool:
    """No picture format begins with a brace."""
    return body[:64].lstrip().startswith(b"{")


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def _short(value: Any) -> str:
    """The beginning of a value as text."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"

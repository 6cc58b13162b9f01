"""A request's body → the bytes of a picture and a box. Speaks every way in which Animl and its tools ask.

========================================  ==================================================================
Content-Type                              body
========================================  ==================================================================
none, octet-stream, form-urlencoded       what clients set who set nothing: JSON when it begins with "{", else a picture
application/json, text/plain              ``{"image": "<base64>", "bbox": [ymin, xmin, ymax, xmax]}``; bbox also as text "[…]"
multipart/form-data                       the JSON as the body itself, or as a part; or parts named image and bbox
image/…                                   a picture; the box is the whole of it
========================================  ==================================================================
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any, NamedTuple

from pydantic import ValidationError

from animl_pipeline.records import WHOLE_PICTURE, Box
from animl_pipeline.serve.refusal import Refusal

UNSAID = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded"})
JSON_TYPES = frozenset({"application/json", "text/json", "text/plain"})
SLACK = 1e-3
"""How far a box may reach past the picture: sums of rounded numbers do; it is cut back to the picture."""
EXPECTED = 'expected {"image": "<base64>", "bbox": [ymin, xmin, ymax, xmax]}'


class Question(NamedTuple):
    """The bytes of a picture and the box that is asked about."""

    picture: bytes
    box: Box


def read_question(content_type: str, body: bytes) -> Question:
    """The question in a request's body.

    Raises:
        Refusal: 400 when the body does not hold what it should, 415 when its type is not one of the above.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if not body.strip():
        raise Refusal(400, f"an empty body; {EXPECTED}, or the bytes of a picture")
    if kind in JSON_TYPES:
        return _from_json(body)
    if kind in UNSAID:
        return _from_json(body) if _looks_like_json(body) else Question(body, WHOLE_PICTURE)
    if kind == "multipart/form-data":
        return _from_json(body) if _looks_like_json(body) else _from_parts(_parts(content_type, body))
    if kind.startswith("image/"):
        return Question(body, WHOLE_PICTURE)
    raise Refusal(415, f"Content-Type {kind[:80]!r} is not known; send application/json, multipart/form-data or image/…")


def read_box(value: Any) -> Box:
    """A box from a list of four numbers or its text; nothing (None or "") is the whole picture.

    Raises:
        Refusal: 400, it is not four numbers, is empty, or lies outside of the picture.
    """
    if value is None or value == "":
        return WHOLE_PICTURE
    numbers = _parse(value.encode(errors="replace"), "bbox") if isinstance(value, str) else value
    if not isinstance(numbers, list) or len(numbers) != 4 or not all(_is_number(n) for n in numbers):
        raise Refusal(400, f"bbox: expected four numbers [ymin, xmin, ymax, xmax], relative to the picture; found {str(value)[:80]}")
    if not all(-SLACK <= n <= 1 + SLACK for n in numbers):
        raise Refusal(400, f"bbox: reaches out of the picture, whose sides go from 0 to 1; found {numbers}")
    try:
        return Box.of([min(max(float(n), 0.0), 1.0) for n in numbers])
    except ValidationError as e:
        raise Refusal(400, f"bbox: expected ymin < ymax and xmin < xmax; found {numbers}") from e


def _from_json(body: bytes) -> Question:
    asked = _parse(body, "the body")
    if not isinstance(asked, dict):
        raise Refusal(400, f"the body is JSON but not an object; {EXPECTED}")
    image = asked.get("image")
    if not isinstance(image, str) or not image:
        raise Refusal(400, f"no image in the body; {EXPECTED}")
    return Question(_decode(image), read_box(asked.get("bbox")))


def _from_parts(parts: dict[str, bytes]) -> Question:
    """Parts named image and bbox; a single part of any other name is taken for the JSON or the picture."""
    image = parts.get("image") or (next(iter(parts.values())) if len(parts) == 1 else None)
    if not image:
        raise Refusal(400, f"multipart: expected a part named image, found {', '.join(sorted(parts))[:80] or 'none'}")
    if _looks_like_json(image):
        return _from_json(image)
    box = read_box(parts["bbox"].decode(errors="replace")) if "bbox" in parts else WHOLE_PICTURE
    return Question(_decode(image.decode("ascii")) if image.isascii() else image, box)


def _parts(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts of a multipart/form-data body by name, kept in memory (the root file system may be read-only)."""
    from python_multipart import MultipartParser
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise Refusal(400, "multipart/form-data without a boundary in its Content-Type")
    gathered = _Gathered()
    try:
        parser = MultipartParser(boundary, gathered.callbacks())  # type: ignore[arg-type]  # its TypedDict wants each literal key
        parser.write(body)
        parser.finalize()
    except FormParserError as e:
        raise Refusal(400, f"multipart/form-data that does not parse: {str(e)[:120]}") from e
    return gathered.parts


class _Gathered:
    """What a multipart parser found."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}
        self._header, self._value, self._name, self._data = bytearray(), bytearray(), "", bytearray()

    def callbacks(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}

    def on_part_begin(self) -> None:
        self._name, self._data = "", bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        from python_multipart.multipart import parse_options_header

        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._name = options.get(b"name", b"").decode(errors="replace")
        self._header, self._value = bytearray(), bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def on_part_end(self) -> None:
        self.parts.setdefault(self._name, bytes(self._data))


def _parse(text: bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:  # RecursionError: brackets nested by the thousand
        raise Refusal(400, f"{what} is not JSON: {str(e)[:120]}; {EXPECTED}") from e


def _decode(image: str) -> bytes:
    try:
        return base64.b64decode("".join(image.split()).encode("ascii"), validate=True)
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

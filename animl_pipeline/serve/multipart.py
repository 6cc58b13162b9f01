"""The parts of a multipart/form-data body, kept in memory: the root file system may be read-only."""

from __future__ import annotations

from typing import Any

from animl_pipeline.serve.errors import Refusal

MAX_PARTS = 16


def parts_of(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts by name; of several with one name, the first.

    Raises:
        Refusal: 400, no boundary, more than ``MAX_PARTS`` parts, or not multipart/form-data.
    """
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
        self._begun = 0
        self._header, self._value, self._name, self._data = bytearray(), bytearray(), "", bytearray()

    def callbacks(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}

    def on_part_begin(self) -> None:
        self._begun += 1
        if self._begun > MAX_PARTS:
            raise Refusal(400, f"multipart/form-data of more than {MAX_PARTS} parts; expected parts named image and bbox")
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

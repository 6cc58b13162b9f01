"""The records of a JSON document, batch by batch: a file of any size takes the memory of a window.

Most records are cut out by a guess that proves itself. A window is cut at the last ``}, {`` in it, and what stands before
is parsed between brackets of our own: that succeeds only if the text holds whole records and nothing else, so a cut inside
a text or a nested list is noticed. Where the guess fails (at the end of a list; at NaN, which only the patient parser
reads) records are parsed one by one.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

WINDOW = 1 << 21
LONGEST = 1 << 28
"""No single record, and no value beside the lists, may have more bytes than these."""
_BLANK = b" \t\n\r"
_BLANKS = re.compile(r"[ \t\n\r]*")
_NEAR = 16
"""A fault so near to the end of what was read, blanks aside, may be no fault: the rest is not read yet."""
_decode = json.JSONDecoder().raw_decode


def batches(file: BinaryIO, window: int = WINDOW) -> Iterator[tuple[str, list[Any]]]:
    """The lists of the object that ``file`` holds, in its order: (key, some records) until all are given.

    An empty list gives one empty batch. What is no list is read over, and so is a document that is no object. ``window`` is
    how many bytes are looked at together.

    Raises:
        ValueError: it is not JSON, goes on after its end, or says a key twice.
    """
    text = _Text(_as_utf8(file), window)
    if text.peek() != b"{":
        text.value()
        return text.end()
    text.take(b"{")
    seen: set[str] = set()
    while text.peek() != b"}" or seen:
        key = text.value()
        if not isinstance(key, str) or key in seen:
            raise ValueError(f"the key {key!r} twice" if isinstance(key, str) else f"expected a key, found {key!r}")
        seen.add(key)
        text.take(b":")
        if text.peek() == b"[":
            yield from ((key, rows) for rows in text.rows())
        else:
            text.value()
        if text.peek() == b"}":
            break
        text.take(b",")
    text.take(b"}")
    return text.end()


def _as_utf8(file: BinaryIO) -> BinaryIO:
    """The same text in UTF-8 without a byte order mark."""
    encoding = json.detect_encoding(file.read(4))
    file.seek(3 if encoding == "utf-8-sig" else 0)
    return file if encoding.startswith("utf-8") else io.BytesIO(file.read().decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass"))


class _Text:
    """JSON under way: a window of a file, and where in it the next value begins."""

    def __init__(self, file: BinaryIO, window: int) -> None:
        self._file = file
        self._window = window
        self._data = b""
        self._at = 0
        self._before = 0
        self._why = ("it ends early", 0)

    def _more(self) -> bool:
        """Read on; false at the end of the file. What is held doubles, so that a long value is not read again and again."""
        new = self._file.read(max(self._window, len(self._data) - self._at))
        self._before += self._at
        self._data = self._data[self._at :] + new
        self._at = 0
        return bool(new)

    def peek(self) -> bytes:
        """The next character that is no blank; nothing at the end of the file."""
        while True:
            while self._data[self._at : self._at + 1] in (b" ", b"\n", b"\t", b"\r"):
                self._at += 1
            if self._at < len(self._data) or not self._more():
                return self._data[self._at : self._at + 1]

    def take(self, wanted: bytes) -> None:
        """Go past the next character, which must be the wanted one."""
        if self.peek() != wanted:
            raise self._fault(f"expected {wanted.decode()!r}", 0)
        self._at += 1

    def end(self) -> None:
        """There must be nothing more."""
        if self.peek():
            raise self._fault("more after the end", 0)

    def value(self) -> Any:
        """The next value, whatever it is."""
        self.peek()
        while True:
            text = self._decoded()
            found = self._parsed(text, 0)
            if found is None or len(text) - found[1] < _NEAR:  # a number may go on
                if self._more():
                    continue
                if found is None:
                    raise self._fault(*self._why)
            self._go_past(text[: found[1]])
            return found[0]

    def rows(self) -> Iterator[list[Any]]:
        """The records of the list that begins here."""
        self.take(b"[")
        if self.peek() == b"]":
            yield []
            return self.take(b"]")
        while True:
            rows = self._guessed()
            if rows is None:
                rows, ended = self._one_by_one()
                yield rows
                if ended:
                    return None
            else:
                yield rows

    def _guessed(self) -> list[Any] | None:
        """The window's records up to its last seam, if that is one."""
        if len(self._data) - self._at < self._window:
            self._more()
        window = self._data[self._at : self._at + self._window]
        seam = _last_seam(window)
        if seam is None:
            return None
        end, start = seam
        try:
            rows: list[Any] = orjson.loads(b"[" + window[:end] + b"]")
        except orjson.JSONDecodeError:
            return None
        if any(type(row.get("id")) is float for row in rows if type(row) is dict):  # an integer of more than 64 bits, perhaps
            return None
        self._at += start
        return rows

    def _one_by_one(self) -> tuple[list[Any], bool]:
        """Records parsed singly as far as the window goes, and whether their list has ended."""
        while True:
            text, rows = self._decoded(), []
            at = _past_blanks(text, 0)
            while (found := self._parsed(text, at)) is not None:
                row, end = found
                mark = _past_blanks(text, end)
                if text[mark : mark + 1] not in {",", "]"}:
                    self._why = ("expected ',' or ']'", mark)
                    if len(text) - mark < _NEAR:  # a number may go on
                        break
                    raise self._fault(*self._why)
                rows.append(row)
                if text[mark] == "]":
                    self._go_past(text[: mark + 1])
                    return rows, True
                at = _past_blanks(text, mark + 1)
            if rows:
                self._go_past(text[:at])
                return rows, False
            if not self._more():
                raise self._fault(*self._why)

    def _parsed(self, text: str, at: int) -> tuple[Any, int] | None:
        """The value at a place and where it ends; None where more must be read to tell."""
        try:
            return _decode(text, at)
        except json.JSONDecodeError as e:
            cut_off = len(text[e.pos :].rstrip()) < _NEAR or e.msg.startswith("Unterminated string")
            if not cut_off or len(text) > LONGEST:
                raise self._fault(e.msg, e.pos) from e
            self._why = (e.msg, e.pos)
            return None
        except RecursionError as e:
            raise self._fault("nested too deep", at) from e

    def _decoded(self) -> str:
        """The window as text, without a character that is cut in two by its end."""
        data = self._data[self._at :]
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as e:
            if len(data) - e.start < 4:  # of the longest character
                return data[: e.start].decode("utf-8", "surrogatepass")
            raise self._fault(f"no UTF-8: {e.reason}", e.start) from e

    def _go_past(self, text: str) -> None:
        self._at += len(text.encode("utf-8", "surrogatepass"))

    def _fault(self, what: str, at: int) -> ValueError:
        return ValueError(f"{what} at byte {self._before + self._at + at:,}")


def _past_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _last_seam(window: bytes) -> tuple[int, int] | None:
    """Where the last ``}, {`` lies: the end of the record before and the begin of the one after."""
    start = len(window)
    for _ in range(64):
        start = window.rfind(b"{", 0, start)
        if start <= 0:
            return None
        before = window[max(0, start - 256) : start]
        record = before.rstrip(_BLANK)
        if record.endswith(b",") and (record := record[:-1].rstrip(_BLANK)).endswith(b"}"):
            return start - len(before) + len(record), start
    return None

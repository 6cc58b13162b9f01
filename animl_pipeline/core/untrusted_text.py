"""Text from plans and exports (names, ids, descriptions) in files that people open: never a formula in a table, never markup in Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"(^|[;\t\r\n])(?=\s*[=+\-@＝＋－＠]|[\t\r\n])")
"""Where a formula begins for spreadsheets (OWASP, CSV injection): in a cell, and after what some of them take for the end of a cell."""
_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{1,20})?([eE][+-]?\d{1,3})?")
_MARKUP = re.compile(r"[\\`*_{}\[\]|~$]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV that no spreadsheet takes for formulas: text that begins like one gets an apostrophe before it."""
    safe = table.rename(columns=escape_formula).map(escape_formula)
    safe.to_csv(path, index=False, float_format="%.4f", lineterminator="\n")


def escape_formula(value: Any) -> Any:
    """Text that begins like a formula, with an apostrophe before it. Plain numbers and everything else come back unchanged."""
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return _FORMULA.sub(r"\1'", value)


def escape_markdown(text: str) -> str:
    """Text on one line that Markdown shows as it is: no link, image, HTML, table cell, heading or list begins in it."""
    line = " ".join(str(text).split())
    for character, entity in _ENTITIES.items():
        line = line.replace(character, entity)
    line = _MARKUP.sub(r"\\\g<0>", line)
    return re.sub(r"^(?=[#+=-])|^(\d+)(?=[.)])", r"\1\\", line)

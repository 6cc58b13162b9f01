"""What all reports share: HTML in one style for screens, phones and paper, numbers as people read them, links to images in Animl.

A page is one file. It has no scripts and asks no other host for anything.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from animl_pipeline.core.evaluation_results import Interval

if TYPE_CHECKING:
    from jinja2 import Environment


STYLE = Path(__file__).with_name("report_formats.css")
CONTENT_SECURITY_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
"""What a browser may do with a page: show its own style and the images inside it, and send its forms to the server that it came from."""


@cache
def page_environment(folder: Path) -> Environment:
    """Jinja's environment for the templates of a folder. All values are escaped; ``{{ style }}`` is the style sheet.

    Filters: score, percent, count (with a noun), interval, change, number.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals["style"] = Markup(STYLE.read_text(encoding="utf-8"))  # noqa: S704 - our own file
    environment.filters.update(
        score=format_score, percent=format_percent, count=format_count, interval=format_range, change="{:+.2f}".format, number="{:,}".format
    )
    return environment


def format_score(value: float) -> str:
    """A probability or score with two decimals. Values just below 1 and above 0 are not rounded to 1.00 and 0.00."""
    if 0.995 <= value < 1:
        return ">0.99"
    if 0 < value < 0.005:
        return "<0.01"
    return f"{value:.2f}"


def format_range(interval: Interval | None, sign: bool = False) -> str:
    """``0.60–0.70``, or with a sign ``-0.10 to +0.05``; "" for None."""
    if interval is None:
        return ""
    return " to ".join(f"{v:+.2f}" for v in interval) if sign else "–".join(f"{v:.2f}" for v in interval)


def format_count(n: int, noun: str) -> str:
    """``1 location``, ``1,200 locations``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def format_percent(share: float) -> str:
    """A share in per cent without decimals, never rounded up to 100 or down to 0."""
    if 0.995 <= share < 1:
        return "over 99 %"
    if 0 < share < 0.005:
        return "under 1 %"
    return f"{share * 100:.0f} %"


def image_link(pattern: str, image_id: str) -> str:
    """The address of an Animl image, whose id is ``<project>:<md5>``; "" for other images or without a pattern."""
    if not pattern or not re.fullmatch(r"[A-Za-z0-9_-]+:[0-9a-f]{32}", image_id):
        return ""
    return pattern.replace("{project}", quote(image_id.split(":", maxsplit=1)[0])).replace("{image}", quote(image_id, safe=""))

"""Links to images in Animl."""

from __future__ import annotations

import re
from urllib.parse import quote


def image_link(pattern: str, image_id: str) -> str:
    """The address of an Animl image, whose id is ``<project>:<md5>``; "" for other images or without a pattern."""
    if not pattern or not re.fullmatch(r"[A-Za-z0-9_-]+:[0-9a-f]{32}", image_id):
        return ""
    return pattern.replace("{project}", quote(image_id.split(":", maxsplit=1)[0])).replace("{image}", quote(image_id, safe=""))

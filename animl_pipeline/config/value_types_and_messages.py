"""Types of plan values that several sections use."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Annotated, Any

from pydantic import Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""At most 40 small letters, digits and hyphens."""
PathOrUrl = Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^[^\x00-\x1f]+$")]
"""A path or an address: one line of text."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=10**9)]


def shorten(value: Any) -> str:
    """A value as a message shows it, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def did_you_mean(found: Any, known: Collection[str]) -> str:
    """The end of a message: the known value that is nearest to the found one; "" if none is near."""
    if isinstance(found, int | float) and not isinstance(found, bool) and known and all(k.lstrip("-").isdecimal() for k in known):
        return f"; the nearest is {min(known, key=lambda k: abs(int(k) - found))}"
    if not isinstance(found, str):
        return ""
    by_folded = {k.casefold(): k for k in known}
    near = difflib.get_close_matches(found.casefold(), by_folded, n=1, cutoff=0.6)
    return f"; the nearest is {by_folded[near[0]]!r}" if near else ""


def explain_unknown_classes(named: Collection[str], classes: Sequence[str]) -> str:
    """Which of the named classes are none of the plan's, each with the nearest one; "" if all are."""
    unknown = [f"{name!r} is not a class of labels.classes{did_you_mean(name, classes)}" for name in sorted(set(named) - set(classes))]
    return f"{'; '.join(unknown)} (there are: {', '.join(classes)})" if unknown else ""


def join_or(texts: Sequence[str]) -> str:
    """``a, b or c``."""
    return f"{', '.join(texts[:-1])} or {texts[-1]}" if len(texts) > 1 else "".join(texts)

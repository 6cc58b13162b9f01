"""What names in exports mean to a person: no animal, people, vehicles, unknown; and which are spellings of one name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

ROLES: dict[str, frozenset[str]] = {
    "empty": frozenset({"empty", "blank", "nothing", "nothinghere", "no animal", "none", "misfire", "false trigger", "background", "no detection"}),
    "people": frozenset(
        {"human", "person", "people", "homo sapiens", "hiker", "hunter", "cyclist", "researcher", "ranger", "staff", "child", "man", "woman", "hand"}
    ),
    "vehicle": frozenset({"vehicle", "car", "truck", "bus", "motorcycle", "motorbike", "bicycle", "bike", "boat", "quad", "atv", "tractor", "train"}),
    "unknown": frozenset(
        "unknown unidentified unidentifiable unclassified unclassifiable undetermined unclear unsure other ignore blurred problem animal group "
        "bad corrupt test setup start end ref misc various".split()
    ),
}  # fmt: skip
"""Names that are no kind of animal."""
UNKNOWN_FIRST = ("unknown ", "unidentified ", "unidentifiable ", "undetermined ", "other ", "possible ")
IRREGULAR = {
    "mice": "mouse",
    "geese": "goose",
    "wolves": "wolf",
    "calves": "calf",
    "oxen": "ox",
    "people": "person",
    "children": "child",
    "men": "man",
}
RARE = 0.2
"""A spelling with at most this share of another's objects may be a slip of it."""


def key(name: str) -> str:
    """What spellings of one name have in common: case, separators, a plural, British and American grey do not count."""
    words = re.sub(r"[^\w]+", " ", name.casefold().replace("_", " ")).split()
    words = ["gray" if word == "grey" else word for word in words]
    return " ".join([*words[:-1], _singular(words[-1])]) if words else name.casefold()


def _singular(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("xes", "ses", "shes", "ches")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def role(name: str) -> str:
    """``empty``, ``people``, ``vehicle`` or ``unknown``; empty text for the name of an animal."""
    plain = key(name)
    return _roles().get(plain, "unknown" if plain.startswith(UNKNOWN_FIRST) else "")


@cache
def _roles() -> dict[str, str]:
    return {key(name): r for r, names in ROLES.items() for name in names}


def spellings(objects: Mapping[str, int]) -> list[list[str]]:
    """Names that are spellings of one name together, the most frequent first; so are the groups.

    Args:
        objects: how many objects each name has.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(objects, key=lambda n: (-objects[n], n)):
        plain = key(name)
        slip_of = next((k for k, others in groups.items() if k != plain and is_slip(plain, k) and objects[name] <= RARE * objects[others[0]]), None)
        groups.setdefault(plain if plain in groups or slip_of is None else slip_of, []).append(name)
    return sorted(groups.values(), key=lambda names: (-sum(objects[n] for n in names), names[0]))


def is_slip(name: str, of: str) -> bool:
    """Whether two names differ by one slip of the pen (a letter more, less, wrong, or two swapped) in one long word."""
    mine, others = name.split(), of.split()
    if len(mine) != len(others):
        return False
    differing = [(a, b) for a, b in zip(mine, others, strict=True) if a != b]
    return len(differing) == 1 and min(map(len, differing[0])) >= 5 and max(map(len, differing[0])) >= 6 and _one_edit(*differing[0])


def _one_edit(a: str, b: str) -> bool:
    if len(a) > len(b):
        a, b = b, a
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    if len(a) == len(b):
        return a[at + 1 :] == b[at + 1 :] or (a[at + 2 :] == b[at + 2 :] and a[at : at + 2] == b[at : at + 2][::-1])
    return len(b) - len(a) == 1 and a[at:] == b[at + 1 :]

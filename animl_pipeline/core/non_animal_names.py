"""Category names that are not animals: people, vehicles, empty images, unknown. The only definition of these lists."""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

Role = Literal["", "people", "vehicle", "empty", "unknown"]
"""What a name means; empty text for the name of an animal."""

NAMES: dict[Role, frozenset[str]] = {
    "people": frozenset(
        {
            *"person human people man woman child hiker hunter cyclist visitor ranger staff researcher tourist pedestrian hand".split(),
            "homo sapiens",
            "human being",
        }
    ),
    "vehicle": frozenset("vehicle car truck van bus boat motorcycle motorbike bicycle bike quad atv tractor snowmobile train".split()),
    "empty": frozenset(
        {
            *"empty blank nothing nothinghere none misfire background".split(),
            "no animal",
            "no detection",
            "false trigger",
            "nothing here",
        }
    ),
    "unknown": frozenset(
        "unknown unidentified unidentifiable unclassified unclassifiable undetermined unclear unsure other ignore blurred problem animal group "
        "bad corrupt test setup start end ref misc various".split()
    ),
}
"""Role → names in the singular, as :func:`normalise_name` writes them."""
UNKNOWN_PREFIXES = ("unknown ", "unidentified ", "unidentifiable ", "undetermined ", "other ", "possible ")
IRREGULAR = {
    "mice": "mouse",
    "geese": "goose",
    "wolves": "wolf",
    "calves": "calf",
    "oxen": "ox",
    "people": "person",
    "children": "child",
    "men": "man",
    "women": "woman",
}


def normalise_name(name: object) -> str:
    """A category name in one spelling: lower case, words separated by spaces, the singular, "gray" for "grey"."""
    words = re.sub(r"[^\w]+", " ", str(name).casefold().replace("_", " ")).split()
    words = ["gray" if word == "grey" else word for word in words]
    return " ".join([*words[:-1], _singular(words[-1])]) if words else str(name).casefold()


@cache
def role(name: object) -> Role:
    """What a category name means."""
    word = normalise_name(name)
    return _roles().get(word, "unknown" if word.startswith(UNKNOWN_PREFIXES) else "")


def is_person(name: object) -> bool:
    """Whether a category name means a person."""
    return role(name) == "people"


def is_vehicle(name: object) -> bool:
    """Whether a category name means a vehicle."""
    return role(name) == "vehicle"


@cache
def _roles() -> dict[str, Role]:
    return {normalise_name(name): role for role, names in NAMES.items() for name in names}


def _singular(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("xes", "ses", "shes", "ches")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word

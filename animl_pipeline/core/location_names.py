"""Names of locations: one spelling for each, and the placeholders that stand for an unknown location. The only definition of that list."""

from __future__ import annotations

import re
from collections.abc import Collection
from unicodedata import normalize

PLACEHOLDERS = frozenset(
    {
        *"nan nat none null nil na no unknown unk undefined unspecified undetermined unidentified unavailable missing false true tbd tba".split(),
        *("n a", "not available", "not applicable", "not recorded", "not known", "to be determined", "no data", "no value", "no name"),
    }
)
"""What tools and people write where a location is missing, without case and punctuation; alone or with a word of GENERIC."""
GENERIC = frozenset("location locality place site station camera deployment".split())
MISSING_NUMBERS = re.compile(r"-(1|9+)(\.0*)?")
"""-1, -9, -99, -999, -9999: how numeric columns write a missing value."""
SPREADSHEET_ERRORS = frozenset({"#ref!", "#value!", "#name?", "#null!", "#div/0!", "#num!"})
ZERO, ONE = re.compile(r"0+(\.0*)?"), re.compile(r"0*1(\.0*)?")


def tidy_name(name: str) -> str:
    """A name in Unicode's form NFC, with single spaces (of any kind) between its words and none around it."""
    return " ".join(normalize("NFC", name).replace("\u200b", "").replace("\ufeff", "").split())


def is_placeholder(name: str) -> bool:
    """Whether a name says nothing about where the camera was, such as "", "nan", "N/A", "unknown site", "-" or "-1"."""
    text = tidy_name(name).casefold()
    words = re.sub(r"[\W_]+", " ", text).split()
    if not words or MISSING_NUMBERS.fullmatch(text) or text in SPREADSHEET_ERRORS:
        return True
    return " ".join(words) in PLACEHOLDERS or " ".join(word for word in words if word not in GENERIC) in PLACEHOLDERS


def known_locations(names: Collection[str]) -> dict[str, str]:
    """Each of one source's location names → its location, "" where the name is a placeholder.

    Names that differ only in their spaces or in Unicode's form are one location. 0 is a placeholder, unless the source also has a
    location 1: then it numbers its locations from 0.
    """
    tidy = {name: tidy_name(name) for name in names}
    from_zero = any(ONE.fullmatch(location) for location in tidy.values())
    return {name: "" if is_placeholder(location) or (ZERO.fullmatch(location) and not from_zero) else location for name, location in tidy.items()}

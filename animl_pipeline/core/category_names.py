"""Category names that are not animals: people, vehicles, empty images, unknown. The only definition of these lists.

The lists hold what people type and what the field's tools write: MegaDetector, SpeciesNet, Wildlife Insights, Timelapse, zamba,
Camtrap DP (observationType) and DeepFaune, which writes French, Italian and German, too.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Literal, NamedTuple

Role = Literal["", "people", "vehicle", "empty", "unknown"]
"""What a name means; empty text for the name of an animal."""

NAMES: dict[Role, frozenset[str]] = {
    "people": frozenset(
        {
            *"person human people man woman child hiker hunter cyclist visitor ranger staff researcher tourist pedestrian hand".split(),
            "human being",
            *("camera trapper", "human camera trapper", "human maintenance crew", "maintenance crew", "horseback rider", "setup pickup"),
            *"humain umano mensch".split(),
        }
    ),
    "vehicle": frozenset(
        "vehicle car truck van bus boat motorcycle motorbike bicycle bike quad atv tractor snowmobile train vehicule veicolo fahrzeug".split()
    ),
    "empty": frozenset(
        {
            *"empty blank nothing nothinghere none misfire background".split(),
            "no animal",
            "no detection",
            *("false trigger", "false positive", "false detection", "false alarm"),
            "nothing here",
            *("time lapse", "timelapse"),
            *"vide vuoto leer".split(),
        }
    ),
    "unknown": frozenset(
        {
            *"unknown unidentified unidentifiable unclassified unclassifiable undetermined undefined unclear unsure other ignore blurred".split(),
            *"problem animal group bad corrupt corrupted dark missing test setup start end ref misc various".split(),
            *("no cv result", "calibration photo"),
            *"nan na null nil unk unspecified".split(),  # as tables write a missing value
            *("n a", "not available", "not applicable", "not known", "not identified", "no data", "no value"),
            *"indefini indefinito undefiniert".split(),
        }
    ),
}
"""Role → names in the singular, without accents, as :func:`normalise_name` writes them. Images named "setup pickup" show who set up the camera."""
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
PEOPLE_GENUS = "homo"
RANKS = ("class", "order", "family", "genus", "species")
_LATIN_ENDING = re.compile(r"(us|um|is|os|a|i|ae|ens|ans|yx|ops|tes|les|yon|odon)$")
_RANK_WORD = re.compile(r" (species|sp|spp|ssp|subspecies|genus|family|order|class)$")


class ParsedName(NamedTuple):
    """A category name and its taxon.

    Attributes:
        name: what the category is called: "red fox".
        taxon: the names of its ``RANKS`` in lower case, "" where one is not given; empty for a name without a taxonomy.
    """

    name: str
    taxon: tuple[str, ...]


@cache
def parse_name(name: object) -> ParsedName:
    """Take a name apart if it has SpeciesNet's seven parts, ``uuid;class;order;family;genus;species;common name``.

    The uuid, or the uuid and the common name, may be absent. The common name is the name. Without it, the narrowest rank is, and a species
    has its genus in front of it.
    """
    parts = [part.strip() for part in str(name).split(";")]
    if not len(RANKS) <= len(parts) <= len(RANKS) + 2:
        return ParsedName(str(name), ())
    parts = parts[1:] if len(parts) == len(RANKS) + 2 else parts
    ranks, common = parts[: len(RANKS)], parts[len(RANKS) :]
    narrowest = next((i for i in reversed(range(len(ranks))) if ranks[i]), -1)
    scientific = " ".join(part for part in ranks[-2:] if part) if narrowest == len(RANKS) - 1 else ranks[narrowest]
    return ParsedName("".join(common) or scientific, tuple(map(str.casefold, ranks)) if any(ranks) else ())


def label_forms(label: str) -> tuple[str, ...]:
    """The forms in which a plan may write a label, in lower case: the whole label, and the name in its parts."""
    return tuple(form for form in dict.fromkeys((label.casefold(), parse_name(label).name.casefold())) if form)


def is_taxon(name: str) -> bool:
    """Whether a name may be a scientific one: it has a taxonomy, ends in a rank, looks like "Genus species", or ends as Latin does.

    Names of related taxa often differ by one letter, such as Bos taurus and Bos gaurus.
    """
    parsed = parse_name(name)
    words = re.sub(r"[^\w]+|_", " ", parsed.name).strip()
    latin_form = re.fullmatch(r"[A-Z][a-z]+( [a-z]+){1,2}", words) is not None
    latin_words = all(_LATIN_ENDING.search(word) for word in words.casefold().split())
    return bool(parsed.taxon or _RANK_WORD.search(words.casefold()) or latin_form or latin_words)


def normalise_name(name: object) -> str:
    """A category name in one spelling: lower case, words separated by spaces, the singular, "gray" for "grey".

    Of a name with a taxonomy, this is the spelling of the name alone.
    """
    name = parse_name(name).name
    words = re.sub(r"[^\w]+", " ", str(name).casefold().replace("_", " ")).split()
    words = ["gray" if word == "grey" else word for word in words]
    return " ".join([*words[:-1], _singular(words[-1])]) if words else str(name).casefold()


@cache
def role(name: object) -> Role:
    """What a category name means."""
    word = "".join(c for c in unicodedata.normalize("NFKD", normalise_name(name)) if not unicodedata.combining(c))
    genus = parse_name(name).taxon[3:4]
    if word.split()[:1] == [PEOPLE_GENUS] or genus == (PEOPLE_GENUS,):
        return "people"
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

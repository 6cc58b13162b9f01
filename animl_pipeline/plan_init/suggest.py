"""Which names could be classes, which are left out, and what looks wrong: a suggestion for a person to look over."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from animl_pipeline.core.category_names import plain as key
from animl_pipeline.core.category_names import role
from animl_pipeline.core.errors import ExportError
from animl_pipeline.plan_init.category_names import is_slip, spellings
from animl_pipeline.plan_init.survey import Category, Survey

MOST_CLASSES = 40
LONGEST_ID = 60
CROWDED = 0.6
"""A place with more than this share of a class's objects may teach its background instead of the animal."""


class Suggested(NamedTuple):
    """One kind of animal: a class, or too few of it to be one. ``names`` are its spellings, the most frequent first."""

    id: str
    names: tuple[str, ...]
    objects: int
    images: int
    boxes: int
    locations: Counter[str]
    dates: str


class Draft(NamedTuple):
    """What is suggested. ``asides`` are names that are no animals, by role; ``wrong`` is what looks wrong, a line each."""

    classes: tuple[Suggested, ...]
    few: tuple[Suggested, ...]
    asides: dict[str, tuple[str, ...]]
    wrong: tuple[str, ...]


def drafted(surveys: Sequence[Survey], min_objects: int, min_locations: int) -> Draft:
    """Classes for the names that have at least ``min_objects`` at ``min_locations`` places, in all exports together.

    Where fewer than two have, the two most frequent names are taken, and what looks wrong says so.

    Raises:
        ExportError: the exports hold fewer than two kinds of animals.
    """
    merged = _merged(c for s in surveys for c in s.categories)
    asides = _asides(merged)
    kinds = _kinds({n: c for n, c in merged.items() if not role(n)})
    if len(kinds) < 2:
        held = ", ".join(f"{c.name} {c.objects:,}" for c in sorted(merged.values(), key=lambda c: -c.objects)[:12]) or "no label at all"
        raise ExportError(f"expected at least two kinds of animals to tell apart, found {len(kinds)} (names: {held}); give another export as well")
    enough = [k for k in kinds if k.objects >= min_objects and len(k.locations) >= min_locations]
    classes = (enough if len(enough) >= 2 else kinds[:2])[:MOST_CLASSES]
    wrong = [
        *_about_classes(classes, min_objects, min_locations),
        *_about_locations(kinds, classes, min_objects, min_locations),
        *_about_names(kinds),
        *_about_sources(surveys),
    ]
    if len(enough) > MOST_CLASSES:
        wrong.append(
            f"{len(enough)} names have enough to be classes; the {MOST_CLASSES} with most objects are suggested, the others stand below them"
        )
    return Draft(tuple(classes), tuple(k for k in kinds if k not in classes), asides, tuple(wrong))


def _merged(categories: Iterable[Category]) -> dict[str, Category]:
    """Names of all exports, compared without case, as a plan does."""
    merged: dict[str, Category] = {}
    for c in categories:
        folded = c.name.casefold()
        known = merged.get(folded)
        if known is None:
            merged[folded] = c
            continue
        days = sorted(d for d in (known.first, known.last, c.first, c.last) if d)
        merged[folded] = Category(
            name=max(known, c, key=lambda x: x.objects).name,
            objects=known.objects + c.objects,
            images=known.images + c.images,
            boxes=known.boxes + c.boxes,
            locations=known.locations + c.locations,
            first=days[0] if days else "",
            last=days[-1] if days else "",
        )
    return merged


def _asides(merged: dict[str, Category]) -> dict[str, tuple[str, ...]]:
    """Names that are no animals, by role, the most frequent first."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, category in sorted(merged.items(), key=lambda item: -item[1].objects):
        if role(name):
            found[role(name)].append(category.name)
    return {r: tuple(names) for r, names in found.items()}


def _kinds(merged: dict[str, Category]) -> list[Suggested]:
    """The kinds of animals, spellings together, the most frequent first."""
    kinds: list[Suggested] = []
    for names in spellings({n: c.objects for n, c in merged.items()}):
        parts = [merged[n] for n in names]
        days = sorted(d for p in parts for d in (p.first, p.last) if d)
        kinds.append(
            Suggested(
                id=_class_id(merged[names[0]].name, {k.id for k in kinds}),
                names=tuple(p.name for p in parts),
                objects=sum(p.objects for p in parts),
                images=sum(p.images for p in parts),
                boxes=sum(p.boxes for p in parts),
                locations=sum((p.locations for p in parts), Counter[str]()),
                dates=f"{days[0]} to {days[-1]}" if days else "no dates",
            )
        )
    return kinds


def _class_id(name: str, taken: set[str]) -> str:
    """A class id that MongoDB, YAML and people can bear, made of a name; another one where it is taken."""
    plain = re.sub(r"[^\w ()/,'-]+", " ", unicodedata.normalize("NFC", name).replace("_", " "))
    plain = " ".join(plain.split())[:LONGEST_ID].strip() or "class"
    return plain if plain not in taken else next(f"{plain} {i}" for i in range(2, len(taken) + 3) if f"{plain} {i}" not in taken)


def _about_sources(surveys: Sequence[Survey]) -> Iterable[str]:
    for s in surveys:
        name = s.source.name
        for problem, n in sorted(s.problems.items(), key=lambda item: -item[1]):
            yield f"{name}: {n:,} {problem.replace('_', ' ')} (each is listed in the export step's problems.parquet)"
        if s.unreviewed and s.unreviewed == s.objects:
            yield (
                f"{name}: no person validated any of its {_some(s.objects, 'label')}, so nothing of it is learnt as the plan stands; "
                "`unreviewed: keep` would learn from a machine's own answers"
            )
        elif s.unreviewed:
            share = f"{s.unreviewed:,} of {s.objects:,} labels ({_percent(s.unreviewed, s.objects)})"
            yield f"{name}: {share} were validated by no person; they are left out unless its `unreviewed` says keep"
        if not s.locations:
            yield f"{name}: no picture says where it was taken, so none can be in an honest split; set location_field or layout if something does"
        elif s.unplaced:
            share = f"{s.unplaced:,} of {s.images:,} pictures ({_percent(s.unplaced, s.images)})"
            yield f"{name}: {share} do not say where they were taken; they are left out (splits.unknown_location)"
        if s.odd_dates:
            yield f"{name}: {_some(s.odd_dates, 'picture')} dated before 2000 or after today: a camera's clock was wrong"
    undated = [f"{s.source.name} ({_of(s.undated, s.images)})" for s in surveys if s.undated]
    if undated:
        yield f"pictures without a date, whose bursts are known by sequence ids only: {', '.join(undated)}"
    boxless = [s.source.name for s in surveys if s.objects and not s.boxes]
    if boxless:
        yield f"no label has a box, so MegaDetector looks for the animals: {', '.join(boxless)}"
    yield from _shared_locations(surveys)
    yield from _alike_locations(surveys)
    locations = frozenset[str]().union(*(s.locations for s in surveys))
    if 0 < len(locations) < 3:
        yield f"{_some(len(locations), 'known location')} in all; train, val and test need one each at least"


def _shared_locations(surveys: Sequence[Survey]) -> Iterable[str]:
    """Places of one name in sources that keep theirs apart."""
    where: dict[str, list[str]] = defaultdict(list)
    for space in sorted({s.source.namespace() for s in surveys}):
        for location in {p.removeprefix(f"{space}/") for s in surveys if s.source.namespace() == space for p in s.locations}:
            where[location].append(space)
    both = {location: spaces for location, spaces in where.items() if len(spaces) > 1}
    if both:
        location, spaces = min(both.items())
        yield (
            f"{_some(len(both), 'place name')} in several sources (such as {location!r} in {' and '.join(spaces)}); "
            "where the same cameras are meant, give these sources the same `places`"
        )


def _alike_locations(surveys: Sequence[Survey]) -> Iterable[str]:
    """Places whose names differ by case or blanks alone: one camera under two names would be on two sides of the split."""
    alike: dict[str, set[str]] = defaultdict(set)
    for location in frozenset[str]().union(*(s.locations for s in surveys)):
        alike[" ".join(unicodedata.normalize("NFC", location).casefold().split()).replace("/ ", "/")].add(location)
    pairs = sorted(sorted(names) for names in alike.values() if len(names) > 1)
    if pairs:
        yield (
            f"{_some(len(pairs), 'place')} under names that differ by case or blanks alone (such as {pairs[0][0]!r} and {pairs[0][1]!r}); "
            "where one camera is meant, give it one name in the export: it would be trained on and tested on"
        )


def _about_names(kinds: Sequence[Suggested]) -> Iterable[str]:
    for kind in kinds:
        if len(kind.names) > 1:
            sure = len({key(n) for n in kind.names}) == 1
            yield f"{', '.join(map(repr, kind.names))} were taken as spellings of one name{'' if sure else ', perhaps wrongly'}"
    for i, kind in enumerate(kinds):
        for other in kinds[i + 1 :]:
            if is_slip(key(kind.names[0]), key(other.names[0])):
                yield f"{kind.names[0]!r} and {other.names[0]!r} are spelled nearly alike: two kinds, or a slip?"


def _about_classes(classes: Sequence[Suggested], min_objects: int, min_locations: int) -> Iterable[str]:
    few = [c for c in classes if c.objects < min_objects or len(c.locations) < min_locations]
    if few:
        told = ", ".join(f"{c.id} ({_some(c.objects, 'object')} at {_some(len(c.locations), 'place')})" for c in few)
        yield f"fewer than two names have {_some(min_objects, 'object')} at {_some(min_locations, 'place')}; suggested all the same: {told}"
    crowded = [(c, *c.locations.most_common(1)[0]) for c in classes if c not in few and c.locations]
    crowded = [(c, location, n) for c, location, n in crowded if n > CROWDED * c.objects]
    if crowded:
        told = ", ".join(f"{c.id} ({_percent(n, c.objects)} at {location})" for c, location, n in crowded)
        yield f"most objects at one place, whose background they may teach (max_per_location sets a limit): {told}"


def _about_locations(kinds: Sequence[Suggested], classes: Sequence[Suggested], min_objects: int, min_locations: int) -> Iterable[str]:
    """Names that lack nothing but places."""
    lacking = [k for k in kinds if k not in classes and k.objects >= min_objects and len(k.locations) < min_locations]
    if lacking:
        told = ", ".join(f"{k.id} ({k.objects:,} at {len(k.locations)})" for k in lacking[:MOST_CLASSES])
        yield f"enough objects, but at fewer than {_some(min_locations, 'known location')} to learn from and be tested at: {told}"


def _of(n: int, whole: int) -> str:
    return f"all {whole:,}" if n == whole else f"{n:,} of {whole:,}"


def _some(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _percent(n: int, of: int) -> str:
    return f"{100 * n / of:.0f} %"

"""Suggest classes from the labels of exports, and warn about what looks wrong in them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from animl_pipeline.config import GateConfig
from animl_pipeline.core.category_names import is_taxon, normalise_name, parse_name, role
from animl_pipeline.core.errors import ExportError
from animl_pipeline.plan_init.expected_test_set import LEAST_ANNOTATIONS, LEAST_LOCATIONS, ClassSize, drafted_splits, forecast_need_more_data
from animl_pipeline.plan_init.survey import LabelCounts, Survey

MAX_CLASSES = 40
MAX_ID_LENGTH = 60
SHOWN = 12
"""A warning names at most this many classes."""
MAX_SHARE_OF_LOCATION = 0.6
"""If one location has a larger share of a class, the model may learn its background instead of the animal."""
MAX_TYPO_SHARE = 0.2
"""A label may be a typing error of another if it has at most this share of the other's annotations."""


class SuggestedClass(NamedTuple):
    """One kind of animal: a class, or one with too few annotations. ``labels`` are its spellings, the most frequent first."""

    id: str
    labels: tuple[str, ...]
    annotations: int
    images: int
    boxes: int
    locations: Counter[str]
    dates: str


class SuggestedPlan(NamedTuple):
    """The suggestion: classes, kinds of animals with too few annotations or locations, labels of no animal by role, warnings (a line each)."""

    classes: tuple[SuggestedClass, ...]
    too_few: tuple[SuggestedClass, ...]
    no_animals: dict[str, tuple[str, ...]]
    warnings: tuple[str, ...]


def suggest_plan(surveys: Sequence[Survey], min_annotations: int, min_locations: int) -> SuggestedPlan:
    """Suggest a class for each kind of animal with enough annotations and locations in all exports together.

    If fewer than two kinds have enough, those are suggested that have enough for a first look, or else the two most frequent ones, with a
    warning.

    Raises:
        ExportError: the exports have fewer than two kinds of animals.
    """
    merged = _merge_labels(c for s in surveys for c in s.labels)
    no_animals: dict[str, list[str]] = defaultdict(list)
    for label, counts in sorted(merged.items(), key=lambda item: -item[1].annotations):
        if role(label):
            no_animals[role(label)].append(counts.label)
    kinds = _group_kinds({label: c for label, c in merged.items() if not role(label)})
    if len(kinds) < 2:
        labels = ", ".join(f"{c.label} {c.annotations:,}" for c in sorted(merged.values(), key=lambda c: -c.annotations)[:12]) or "none"
        raise ExportError(
            f"a classifier needs at least two kinds of animals, found {len(kinds)} (labels: {labels}); give another export as well",
            code="too_few_kinds", kinds=len(kinds),
        )  # fmt: skip
    enough = _with_at_least(kinds, min_annotations, min_locations)
    for_a_first_look = _with_at_least(kinds, min(min_annotations, LEAST_ANNOTATIONS), min(min_locations, LEAST_LOCATIONS))
    classes = next((found for found in (enough, for_a_first_look) if len(found) >= 2), kinds[:2])[:MAX_CLASSES]
    sizes = [ClassSize(c.id, c.annotations, len(c.locations)) for c in classes]
    forecast = forecast_need_more_data(sizes, GateConfig(), drafted_splits(c.annotations for c in classes))
    warnings = [
        *([forecast] if forecast else []),
        *_warn_about_classes(classes, min_annotations, min_locations),
        *_warn_about_few_locations(kinds, classes, min_annotations, min_locations),
        *_warn_about_spellings(kinds),
        *_warn_about_sources(surveys),
    ]
    if len(enough) > MAX_CLASSES:
        warnings.append(
            f"{len(enough)} labels have enough annotations; the {MAX_CLASSES} most frequent are suggested, the others are listed below them"
        )
    too_few = tuple(k for k in kinds if k not in classes)
    return SuggestedPlan(tuple(classes), too_few, {r: tuple(labels) for r, labels in no_animals.items()}, tuple(warnings))


def _with_at_least(kinds: Sequence[SuggestedClass], annotations: int, locations: int) -> list[SuggestedClass]:
    return [k for k in kinds if k.annotations >= annotations and len(k.locations) >= locations]


def _merge_labels(labels: Iterable[LabelCounts]) -> dict[str, LabelCounts]:
    """The labels of all exports, compared without case, as a plan compares them."""
    merged: dict[str, LabelCounts] = {}
    for c in labels:
        known = merged.setdefault(c.label.casefold(), c)
        if known is c:
            continue
        first, last = _first_and_last([known, c])
        merged[c.label.casefold()] = LabelCounts(
            label=max(known, c, key=lambda x: x.annotations).label,
            annotations=known.annotations + c.annotations,
            images=known.images + c.images,
            boxes=known.boxes + c.boxes,
            locations=known.locations + c.locations,
            first=first,
            last=last,
        )
    return merged


def _group_kinds(merged: dict[str, LabelCounts]) -> list[SuggestedClass]:
    """The kinds of animals, each with all its spellings, the most frequent first."""
    kinds: list[SuggestedClass] = []
    for labels in group_spellings({label: c.annotations for label, c in merged.items()}):
        counts = [merged[label] for label in labels]
        first, last = _first_and_last(counts)
        kinds.append(
            SuggestedClass(
                id=_class_id(counts[0].label, {k.id for k in kinds}),
                labels=tuple(c.label for c in counts),
                annotations=sum(c.annotations for c in counts),
                images=sum(c.images for c in counts),
                boxes=sum(c.boxes for c in counts),
                locations=sum((c.locations for c in counts), Counter[str]()),
                dates=f"{first} to {last}" if first else "no dates",
            )
        )
    return kinds


def _first_and_last(counts: Sequence[LabelCounts]) -> tuple[str, str]:
    days = sorted(day for c in counts for day in (c.first, c.last) if day)
    return (days[0], days[-1]) if days else ("", "")


def _class_id(label: str, taken: set[str]) -> str:
    """A class id made of the name in a label, which is valid in MongoDB and YAML and not taken yet."""
    allowed = re.sub(r"[^\w ()/,'-]+", " ", unicodedata.normalize("NFC", parse_name(label).name).replace("_", " "))
    class_id = " ".join(allowed.split())[:MAX_ID_LENGTH].strip() or "class"
    class_id = f"class {class_id}" if re.fullmatch("[0-9]+", class_id) else class_id  # Animl takes no id that is a whole number
    return class_id if class_id not in taken else next(f"{class_id} {i}" for i in range(2, len(taken) + 3) if f"{class_id} {i}" not in taken)


# -- warnings --------------------------------------------------------------------------------------------------------------------


def _warn_about_sources(surveys: Sequence[Survey]) -> Iterable[str]:
    for s in surveys:
        name = s.source.name
        for problem, n in sorted(s.problems.items(), key=lambda item: -item[1]):
            yield f"{name}: {n:,} {problem.replace('_', ' ')} (problems.parquet of the export step lists them)"
        if s.unreviewed and s.unreviewed == s.annotations:
            yield f"{name}: no person validated its {_count(s.annotations, 'label')}, so none is used (`unreviewed: keep` would use them)"
        elif s.unreviewed:
            share = f"{s.unreviewed:,} of {s.annotations:,} labels ({_percent(s.unreviewed, s.annotations)})"
            yield f"{name}: no person validated {share}; they are not used unless `unreviewed` is keep"
        if not s.locations:
            yield f"{name}: no image has a location, so the images cannot be split by location; set location_field or layout"
        elif s.without_location:
            share = f"{s.without_location:,} of {s.images:,} images ({_percent(s.without_location, s.images)})"
            yield f"{name}: {share} have no location; they are not used (splits.unknown_location)"
        if s.wrong_dates:
            yield f"{name}: {_count(s.wrong_dates, 'image')} dated before 2000 or after today, so a camera's clock was wrong"
    undated = [f"{s.source.name} ({s.without_date:,} of {s.images:,})" for s in surveys if s.without_date]
    if undated:
        yield f"images without a date are in one sequence only if the export says so: {', '.join(undated)}"
    boxless = [s.source.name for s in surveys if s.annotations and not s.boxes]
    if boxless:
        yield f"no label has a box, so MegaDetector has to find the animals: {', '.join(boxless)}"
    yield from _warn_about_same_locations(surveys)
    locations = frozenset[str]().union(*(s.locations for s in surveys))
    if 0 < len(locations) < 3:
        yield f"{_count(len(locations), 'known location')} in all; train, val and test need at least one each"


def _warn_about_same_locations(surveys: Sequence[Survey]) -> Iterable[str]:
    """Locations that may be the same camera: one name in several sources, or names that differ by case or spaces only."""
    sources: dict[str, set[str]] = defaultdict(set)
    similar: dict[str, set[str]] = defaultdict(set)
    for s in surveys:
        for location in s.locations:
            sources[location.removeprefix(f"{s.source.namespace()}/")].add(s.source.namespace())
            similar[" ".join(unicodedata.normalize("NFC", location).casefold().split()).replace("/ ", "/")].add(location)
    shared = {location: sorted(names) for location, names in sources.items() if len(names) > 1}
    if shared:
        location, names = min(shared.items())
        yield (
            f"{_count(len(shared), 'location name')} in several sources (such as {location!r} in {' and '.join(names)}); "
            "if these are the same cameras, give the sources the same `location_namespace`"
        )
    pairs = sorted(sorted(names) for names in similar.values() if len(names) > 1)
    if pairs:
        yield (
            f"{_count(len(pairs), 'location')} with names that differ by case or spaces only (such as {pairs[0][0]!r} and {pairs[0][1]!r}); "
            "if this is one camera, give it one name in the export: otherwise it can be in train and in test"
        )


def _warn_about_spellings(kinds: Sequence[SuggestedClass]) -> Iterable[str]:
    for kind in kinds:
        if len(kind.labels) > 1:
            same_name = len({normalise_name(label) for label in kind.labels}) == 1
            yield f"{', '.join(map(repr, kind.labels))} are taken as spellings of one name{'' if same_name else '; this may be wrong'}"
    for i, kind in enumerate(kinds):
        for other in kinds[i + 1 :]:
            if is_likely_typo(normalise_name(kind.labels[0]), normalise_name(other.labels[0])):
                yield f"{kind.labels[0]!r} and {other.labels[0]!r} have nearly the same spelling: two kinds of animals, or a typing error?"


def _warn_about_classes(classes: Sequence[SuggestedClass], min_annotations: int, min_locations: int) -> Iterable[str]:
    few = [c for c in classes if c.annotations < min_annotations or len(c.locations) < min_locations]
    if few:
        shown = ", ".join(c.id for c in few[:SHOWN])
        shown += f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
        enough = f"{_count(min_annotations, 'annotation')} at {_count(min_locations, 'location')}"
        yield f"fewer than two labels have {enough}; suggested all the same: {shown}"
    largest = [(c, *c.locations.most_common(1)[0]) for c in classes if c not in few and c.locations]
    uneven = [f"{c.id} ({_percent(n, c.annotations)} at {location})" for c, location, n in largest if n > MAX_SHARE_OF_LOCATION * c.annotations]
    if uneven:
        yield f"most annotations are at one location, so the model may learn its background (max_per_location sets a limit): {', '.join(uneven)}"


def _warn_about_few_locations(
    kinds: Sequence[SuggestedClass], classes: Sequence[SuggestedClass], min_annotations: int, min_locations: int
) -> Iterable[str]:
    few = [k for k in kinds if k not in classes and k.annotations >= min_annotations and len(k.locations) < min_locations]
    if few:
        shown = ", ".join(f"{k.id} ({k.annotations:,} at {len(k.locations)})" for k in few[:MAX_CLASSES])
        yield f"enough annotations, but at fewer than {_count(min_locations, 'known location')}: {shown}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _percent(n: int, of: int) -> str:
    return f"{100 * n / of:.0f} %"


def group_spellings(counts: Mapping[str, int]) -> list[list[str]]:
    """Groups of labels that are spellings of one name, most annotations first, in groups and among them.

    Names that may be scientific ones are never taken for typing errors, and labels of different taxa are never in one group.

    ``counts``: label → number of annotations.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for label in sorted(counts, key=lambda n: (-counts[n], n)):
        key = normalise_name(label), parse_name(label).taxon
        if key not in groups:
            typo_of = (k for k, labels in groups.items() if _is_rare_typo(label, labels[0], counts))
            key = next(typo_of, key)
        groups.setdefault(key, []).append(label)
    return sorted(groups.values(), key=lambda labels: (-sum(counts[n] for n in labels), labels[0]))


def is_likely_typo(name: str, other: str) -> bool:
    """Whether two names differ in one long word only, by one letter added, missing or wrong, or by two swapped letters."""
    words, other_words = name.split(), other.split()
    if len(words) != len(other_words):
        return False
    different = [(a, b) for a, b in zip(words, other_words, strict=True) if a != b]
    return len(different) == 1 and min(map(len, different[0])) >= 5 and max(map(len, different[0])) >= 6 and _one_edit(*different[0])


def _is_rare_typo(label: str, other: str, counts: Mapping[str, int]) -> bool:
    """Whether a label is probably a typing error of the more frequent other one."""
    if is_taxon(label) or is_taxon(other) or counts[label] > MAX_TYPO_SHARE * counts[other]:
        return False
    return is_likely_typo(normalise_name(label), normalise_name(other))


def _one_edit(a: str, b: str) -> bool:
    """Whether one edit turns one word into the other."""
    if len(a) > len(b):
        a, b = b, a
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    if len(a) == len(b):
        return a[at + 1 :] == b[at + 1 :] or (a[at + 2 :] == b[at + 2 :] and a[at : at + 2] == b[at : at + 2][::-1])
    return len(b) - len(a) == 1 and a[at:] == b[at + 1 :]

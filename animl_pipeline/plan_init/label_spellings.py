"""Find labels that are spellings of one name: case, separators, plural, or a typing error."""

from __future__ import annotations

from collections.abc import Mapping

from animl_pipeline.core.non_animal_names import is_taxon, normalise_name, parse_name

MAX_TYPO_SHARE = 0.2
"""A label may be a typing error of another if it has at most this share of the other's annotations."""


def group_spellings(counts: Mapping[str, int]) -> list[list[str]]:
    """Groups of labels that are spellings of one name, most annotations first, in groups and among them.

    Names that may be scientific ones are never taken for typing errors, and labels of different taxa are never in one group.

    Args:
        counts: label → number of annotations.
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

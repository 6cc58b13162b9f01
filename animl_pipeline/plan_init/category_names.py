"""What names in exports mean to a person: no animal, people, vehicles, unknown; and which are spellings of one name."""

from __future__ import annotations

from collections.abc import Mapping

from animl_pipeline.core.category_names import plain

RARE = 0.2
"""A spelling with at most this share of another's objects may be a slip of it."""


def spellings(objects: Mapping[str, int]) -> list[list[str]]:
    """Names that are spellings of one name together, the most frequent first; so are the groups.

    Args:
        objects: how many objects each name has.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(objects, key=lambda n: (-objects[n], n)):
        word = plain(name)
        slip_of = next((k for k, others in groups.items() if k != word and is_slip(word, k) and objects[name] <= RARE * objects[others[0]]), None)
        groups.setdefault(word if word in groups or slip_of is None else slip_of, []).append(name)
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

"""What the needed steps were made from is needed, too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from animl_pipeline.retention.roots import Root
from animl_pipeline.retention.standing import Id, Step

CHAMPION = ("evaluation", "champion")
"""An evaluation's input that is another model's package: read as it is, so what it was made from is not needed for that."""
RELEASED = ("model", "released")
"""A training's input that is another model's weights, by the content of their file: read as they are, too."""
BESIDE = "compared with, or trained on from, by a model that stays"


def needed(steps: Mapping[Id, Step], roots: Sequence[Root]) -> dict[Id, str]:
    """Each step that is needed, and why: by the first root that leads to it.

    Manifests name their inputs by digest, so every step of that digest counts.

    Args:
        steps: all that lie in the store.
        roots: the steps that somebody needs, the weightiest reason first; those that the store lacks lead nowhere.
    """
    of_digest: dict[str, list[Id]] = defaultdict(list)
    of_file: dict[str, list[Id]] = defaultdict(list)
    for step in steps.values():
        of_digest[step.digest].append(step.id)
        for sha256 in step.made:
            of_file[sha256].append(step.id)
    found: dict[Id, str] = {}
    beside: list[Id] = []
    todo = [root for root in reversed(roots) if root.id in steps]
    while todo:
        at = todo.pop()
        if at.id in found:
            continue
        found[at.id] = at.why
        for name, digest in steps[at.id].inputs.items():
            if (at.id.step, name) == CHAMPION:
                beside += of_digest[digest]
            elif (at.id.step, name) == RELEASED:
                beside += of_file[digest]
            else:
                todo += [Root(i, at.why) for i in of_digest[digest]]
    return found | {i: BESIDE for i in beside if i not in found}

"""Folds of whole locations, for cross-validation: every model is judged at locations that it did not learn from."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.errors import TrainingError

Ints = NDArray[np.int64]
NEVER_HELD_OUT = -1
"""The fold of crops that all folds' models learn from."""


def assign_folds(rows: pd.DataFrame, train_only: Collection[str], folds: int, seed: int) -> Ints:
    """The fold of each crop, from 0; ``NEVER_HELD_OUT`` for crops that no fold leaves out.

    Locations that share an image, a copy of one, or a sequence are in one fold. Classes are spread over the folds as evenly as the
    locations allow. Never left out are crops of ``train_only`` locations and of unknown ones, and where all crops of a class would be
    in one fold, its largest location: the fold's model could not learn the class.

    Args:
        rows: location, image, phash, source, sequence and class_id of each crop.
        train_only: the plan's splits.train_only.
        folds: number of folds; fewer where there are fewer locations.
        seed: of the assignment.

    Raises:
        TrainingError: ``too_few_locations``: there are fewer than two (groups of) locations, or every crop must stay in training.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    group = group_locations(rows)
    fold = np.full(len(rows), NEVER_HELD_OUT, np.int64)
    free = np.flatnonzero((rows["location"] != "").to_numpy() & ~np.isin(group, group[rows["location"].isin(list(train_only)).to_numpy()]))
    classes = rows["class_id"].to_numpy()[free]
    most = int(np.unique(classes, return_counts=True)[1].max(initial=0))  # scikit-learn takes no more folds than a class has crops
    count = min(folds, len(np.unique(group[free])), most)
    if count < 2:
        raise _too_few_locations(f"at least 2 known locations in train and val for folds, found {count}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class may have fewer crops than there are folds
        parts = StratifiedGroupKFold(count, shuffle=True, random_state=seed % 2**32).split(free, classes, group[free])
        for number, (_, held_out) in enumerate(parts):
            fold[free[held_out]] = number
    _keep_every_class_learnable(rows["class_id"].to_numpy(), group, fold)
    if (fold == NEVER_HELD_OUT).all():
        raise _too_few_locations("classes at 2 or more locations in train and val for folds, found each at one only")
    return fold


def _too_few_locations(expected_and_found: str) -> TrainingError:
    advice = "set it to validation, or label images of more locations"
    return TrainingError(f"train.select: expected {expected_and_found}; {advice}", code="too_few_locations")


def group_locations(rows: pd.DataFrame) -> Ints:
    """A number for each crop: the same for crops of one location, and of locations that share an image, a copy of one, or a sequence."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    location = pd.factorize(rows["location"])[0]
    known = (rows["location"] != "").to_numpy()
    links = [rows["image"], rows["phash"], (rows["source"] + "\0" + rows["sequence"]).where(rows["sequence"] != "", "")]
    one, other = [], []
    nodes = int(location.max(initial=-1)) + 1
    for link in links:
        linked = known & (link != "").to_numpy()
        number = pd.factorize(link[linked])[0]
        one.append(location[linked])
        other.append(nodes + number)
        nodes += int(number.max(initial=-1)) + 1
    edges = np.concatenate(one), np.concatenate(other)
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(nodes, nodes))
    return np.asarray(connected_components(graph, directed=False)[1][location], np.int64)


def _keep_every_class_learnable(classes: NDArray[np.object_], group: Ints, fold: Ints) -> None:
    """Change ``fold``: where all crops of a class are in one fold, its largest group of locations is never left out."""
    for class_id in sorted(set(classes)):
        of_class = classes == class_id
        if fold[of_class].min() != NEVER_HELD_OUT and len(set(fold[of_class])) == 1:
            largest = np.bincount(group[of_class]).argmax()
            fold[group == largest] = NEVER_HELD_OUT

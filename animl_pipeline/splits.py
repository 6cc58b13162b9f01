"""Train, val and test by place: no place, burst or picture on two sides.

Places that share a burst or a picture are one group; groups are shared out by a search for the split whose shares of
examples, of places and of classes come nearest to what the plan asks, and that has every class in train.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.errors import SplitsError
from animl_pipeline.plan import SplitsPlan
from animl_pipeline.records import Artifact, Counts
from animl_pipeline.store import Made, Store, Workspace, write_table

SIDES = ("train", "val", "test")
LACKS = np.array([1000.0, 20.0, 100.0])
"""What it costs that a class has no example in train, val, test; far above any score of shares, so it is avoided first."""

Counted = NDArray[np.float64]


class Wanted(NamedTuple):
    """What a search works on."""

    counts: Counted  # [groups, classes] examples
    places: Counted  # [groups, classes] places that hold the class
    shares: Counted  # [3] wanted shares of train, val, test
    needs: NDArray[np.bool_]  # [3, classes] which class can be had on which side


def split_by_location(crops: Artifact, spec: SplitsPlan, classes: tuple[str, ...], store: Store) -> Artifact:
    """Which crop is in train, val or test.

    splits.parquet: ``crop_id, split``. places.parquet: ``place, split, crops``. leakage.json: how many places, bursts and
    pictures lie on two sides: all zero.

    Args:
        crops: the crops step.
        spec: shares, seed, and what becomes of pictures whose place is unknown.
        classes: class ids; each must be in train, val and test wherever it has places enough.
        store: where crops lie and the split goes.

    Raises:
        SplitsError: too few places for three sides, or a side would have no example.
    """
    config = spec.model_dump(mode="json") | {"classes": list(classes)}
    return store.make(
        "splits",
        room="splits",
        inputs={"crops": crops},
        config=config,
        build=lambda space: _write(space, store.table(crops, "crops.parquet"), spec, classes),
    )


def _write(space: Workspace, crops: pd.DataFrame, spec: SplitsPlan, classes: tuple[str, ...]) -> Made:
    known = crops[crops["place"] != ""].copy()
    known["group"] = groups_of(known)
    known["split"] = known["group"].map(_sides_of_groups(known, spec, classes))
    used = known
    unknown = crops[crops["place"] == ""]
    if spec.unknown_place == "train":
        used = pd.concat([known, unknown.assign(split="train")[~unknown["picture"].isin(known["picture"])]])
    leakage = leaks(used)
    if any(leakage.values()):
        raise SplitsError(f"places, bursts or pictures lie on two sides: {leakage}; this is a fault of the splitter, please report it")
    used = used.sort_values("crop_id")
    write_table(space.out / "splits.parquet", used[["crop_id", "split"]])
    places = used[used["place"] != ""].groupby(["place", "split"], as_index=False).size().rename(columns={"size": "crops"})
    write_table(space.out / "places.parquet", places)
    (space.out / "leakage.json").write_text(json.dumps(leakage, indent=1) + "\n", encoding="utf-8")
    dropped = {"unknown_place": len(crops) - len(used)} if len(crops) > len(used) else {}
    noted = {side: int((used["split"] == side).sum()) for side in SIDES} | _absent(used, classes)
    return Made(Counts(kept=len(used), dropped=dropped, noted=noted, unit="crops"))


def groups_of(crops: pd.DataFrame) -> NDArray[np.int64]:
    """A number for each crop: the same for crops of one place, and of places that share a burst or a picture."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    place, places = pd.factorize(crops["place"], sort=True)
    edges = [(place, place)]
    for column in ("sequence", "picture"):
        tied = crops[column].to_numpy() != ""
        first = pd.Series(place[tied]).groupby(crops[column].to_numpy()[tied]).transform("first").to_numpy()
        edges.append((place[tied], first))
    rows, columns = (np.concatenate([e[i] for e in edges]) for i in (0, 1))
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(places), len(places)))
    _, component = connected_components(graph, directed=False)
    return np.asarray(component, np.int64)[place]


def leaks(used: pd.DataFrame) -> dict[str, int]:
    """How many places, bursts and pictures lie on more than one side."""
    return {
        what: int((used[used[column] != ""].groupby(column)["split"].nunique() > 1).sum())
        for what, column in {"places": "place", "sequences": "sequence", "pictures": "picture"}.items()
    }


def _sides_of_groups(known: pd.DataFrame, spec: SplitsPlan, classes: tuple[str, ...]) -> dict[int, str]:
    groups = sorted(known["group"].unique())
    if len(groups) < len(SIDES):
        raise SplitsError(
            f"train, val and test need at least 3 places that share no burst, found {len(groups)} among {len(known)} crops of known place; "
            "add sources with more places, or check sources.place_field in the plan"
        )
    wanted = _wanted(known, groups, spec, classes)
    best = search(wanted, spec.tries, np.random.default_rng(spec.seed))
    return {g: SIDES[s] for g, s in zip(groups, best, strict=True)}


def _wanted(known: pd.DataFrame, groups: list[int], spec: SplitsPlan, classes: tuple[str, ...]) -> Wanted:
    counts = pd.crosstab(known["group"], known["label"]).reindex(index=groups, columns=list(classes), fill_value=0).to_numpy(float)
    pairs = known[["group", "place", "label"]].drop_duplicates()
    places = pd.crosstab(pairs["group"], pairs["label"]).reindex(index=groups, columns=list(classes), fill_value=0).to_numpy(float)
    held_by = (counts > 0).sum(axis=0)
    # with one group a class can only be trained on; with two it is tested too; with three it is on every side
    needs = np.stack([held_by >= 1, held_by >= 3, held_by >= 2])
    return Wanted(counts, places, np.array([1 - spec.val - spec.test, spec.val, spec.test]), needs)


def search(wanted: Wanted, tries: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The best split found: the best of ``tries`` random ones, then moved and swapped group by group while that helps.

    Returns:
        int64 [groups]: 0 train, 1 val, 2 test.
    """
    n = len(wanted.counts)
    draws = [rng.choice(3, size=n, p=wanted.shares) for _ in range(tries)]
    draws = [d for d in draws if len(np.unique(d)) == 3] or [np.arange(n) % 3]
    best = min(draws, key=lambda d: score(d, wanted))
    return _climb(best.astype(np.int64), wanted, rng)


def _climb(sides: NDArray[np.int64], wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
    """Move single groups, then swap pairs, as long as the score falls."""
    now = score(sides, wanted)
    better = True
    while better:
        better = False
        for g in rng.permutation(len(sides)):
            for side in range(3):
                trial = sides.copy()
                trial[g] = side
                if len(np.unique(trial)) == 3 and (s := score(trial, wanted)) < now - 1e-12:
                    sides, now, better = trial, s, True
        for a, b in rng.integers(0, len(sides), (4 * len(sides), 2)):
            trial = sides.copy()
            trial[[a, b]] = trial[[b, a]]
            if (s := score(trial, wanted)) < now - 1e-12:
                sides, now, better = trial, s, True
    return sides


def score(sides: NDArray[np.int64], wanted: Wanted) -> float:
    """How far a split is from the wanted shares; lower is better.

    The score of the field (animl-ml's splitter): over classes, 2 × (share of the class's examples on a side - wanted)² +
    (share of its places - wanted)² + for val and test 2 × (the class's share of the side - of all)²; and ``LACKS`` for each
    class that a side could have and has not.
    """
    counts, places, shares, needs = wanted
    one_hot = np.eye(3)[sides]
    on_side, places_on = one_hot.T @ counts, one_hot.T @ places
    total, total_places = np.maximum(counts.sum(0), 1), np.maximum(places.sum(0), 1)
    examples = 2 * ((on_side / total - shares[:, None]) ** 2).sum()
    locations = ((places_on / total_places - shares[:, None]) ** 2).sum()
    mix = on_side[1:] / np.maximum(on_side[1:].sum(1, keepdims=True), 1) - total / counts.sum()
    lacking = (LACKS[:, None] * (needs & (on_side == 0))).sum()
    return float(examples + locations + 2 * (mix**2).sum() + lacking)


def _absent(used: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, int]:
    """Notes for classes that a side has not: too few places."""
    present = {side: set(used.loc[used["split"] == side, "label"]) for side in SIDES}
    return {f"no_{c}_in_{side}": 1 for side in SIDES for c in classes if c not in present[side]}

"""Train, val and test by place: no place, burst or picture on two sides, and the test set frozen.

Places that share a burst or a picture are one group; groups are shared out by a search for the split whose shares of
examples, of places and of classes come nearest to what the plan asks, and that has every class in train.

The test set is frozen: the store keeps a register for each model of the places and pictures that were tested on, and of the
places that were learnt from. A later split of grown data puts every group with something once tested into test, and no group
once learnt from; only new places are shared out afresh. So scores of successive models compare on the same ground.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.errors import SplitsError, StoreError
from animl_pipeline.plan import SplitsPlan
from animl_pipeline.records import Artifact, Counts
from animl_pipeline.store import Made, Store, Workspace, digest_of, write_table

SIDES = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
LACKS = np.array([1000.0, 20.0, 100.0])
"""What it costs that a class has no example in train, val, test; far above any score of shares, so it is avoided first."""

Counted = NDArray[np.float64]


class Past(NamedTuple):
    """What earlier runs did with places and pictures that are here again."""

    tested: frozenset[str] = frozenset()
    learnt: frozenset[str] = frozenset()


class Wanted(NamedTuple):
    """What a search works on."""

    counts: Counted  # [groups, classes] examples
    places: Counted  # [groups, classes] places that hold the class
    shares: Counted  # [3] wanted shares of train, val, test
    needs: NDArray[np.bool_]  # [3, classes] which class can be had on which side
    allowed: NDArray[np.bool_]  # [groups, 3] the sides on which a group may be


def split_by_location(crops: Artifact, spec: SplitsPlan, classes: tuple[str, ...], store: Store, lineage: str) -> Artifact:
    """Which crop is in train, val or test.

    splits.parquet: ``crop_id, split``. places.parquet: ``place, split, crops``. leakage.json: how many places, bursts and
    pictures lie on two sides, and how many once tested ones are trained on: all zero.

    Args:
        crops: the crops step.
        spec: shares, seed, places with a side of their own, and what becomes of pictures whose place is unknown.
        classes: class ids; each must be in train, val and test wherever it has places enough.
        store: where crops lie and the split goes, and where the register of tested places is.
        lineage: whose register: the model's name.

    Raises:
        SplitsError: too few places for three sides, a side would have no example, or the plan asks to train on what was
            once tested on.
        StoreError: the register is damaged or not what this version wrote.
    """
    table = store.table(crops, "crops.parquet")
    config = spec.model_dump(mode="json") | {"classes": list(classes)}
    run = digest_of([crops.digest, config])[:16]
    register = f"splits/{lineage}"
    past = _past(store.recall(register, precious=True), run, table)
    artifact = store.make(
        "splits",
        room="splits",
        inputs={"crops": crops},
        config=config | {"past": digest_of([sorted(past.tested), sorted(past.learnt)])},
        build=lambda space: _write(space, table, spec, classes, past),
    )
    _register(store, register, run, table.merge(store.table(artifact, "splits.parquet"), on="crop_id"))
    return artifact


def _past(register: dict[str, dict[str, str]], run: str, crops: pd.DataFrame) -> Past:
    """What other runs did with these places and pictures; a run's own entries do not change its key."""
    here = set(crops["place"]) | set(crops["picture"])
    strange = [name for name, entry in register.items() if set(entry) != {"as", "run"}]
    if strange:  # to go on without would thaw the test set
        raise StoreError(
            f"the register of tested places has no entry of this version for {strange[0]!r}; restore memory/splits in the store from a copy"
        )
    entries = {name: entry["as"] for name, entry in register.items() if entry["run"] != run and name in here}
    return Past(*(frozenset(n for n, use in entries.items() if use == wanted) for wanted in ("tested", "learnt")))


def _register(store: Store, register: str, run: str, used: pd.DataFrame) -> None:
    """Remember what is tested on and learnt from now, for all later splits; what is known already stays as it is."""
    test, learnt = used[used["split"] == SIDES[TEST]], used[used["split"] != SIDES[TEST]]
    uses = dict.fromkeys(learnt["place"], "learnt") | dict.fromkeys([*test["place"], *test["picture"]], "tested")
    known = store.recall(register, precious=True)
    store.remember(register, {name: {"as": use, "run": run} for name, use in uses.items() if name and name not in known})


def _write(space: Workspace, crops: pd.DataFrame, spec: SplitsPlan, classes: tuple[str, ...], past: Past) -> Made:
    known = crops[crops["place"] != ""].copy()
    known["group"] = groups_of(known)
    known["split"] = known["group"].map(_sides_of_groups(known, spec, classes, past))
    used = known
    unknown = crops[crops["place"] == ""]
    if spec.unknown_place == "train":
        apart = ~unknown["picture"].isin(known["picture"]) & ~unknown["picture"].isin(list(past.tested))
        used = pd.concat([known, unknown.assign(split=SIDES[TRAIN])[apart]])
    leakage = leaks(used, past.tested)
    if any(leakage.values()):
        raise SplitsError(f"places, bursts or pictures lie on two sides: {leakage}; this is a fault of the splitter, please report it")
    used = used.sort_values("crop_id")
    write_table(space.out / "splits.parquet", used[["crop_id", "split"]])
    places = used[used["place"] != ""].groupby(["place", "split"], as_index=False).size().rename(columns={"size": "crops"})
    write_table(space.out / "places.parquet", places)
    (space.out / "leakage.json").write_text(json.dumps(leakage, indent=1) + "\n", encoding="utf-8")
    dropped = {"unknown_place": len(crops) - len(used)} if len(crops) > len(used) else {}
    noted = {side: int((used["split"] == side).sum()) for side in SIDES} | _absent(used, classes)
    if frozen := len(set(places["place"]) & past.tested):
        noted["places_frozen_in_test"] = frozen
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


def leaks(used: pd.DataFrame, tested: Collection[str] = ()) -> dict[str, int]:
    """How many places, bursts and pictures lie on more than one side, and how many once tested ones not in test."""
    two_sided = {
        what: int((used[used[column] != ""].groupby(column)["split"].nunique() > 1).sum())
        for what, column in {"places": "place", "sequences": "sequence", "pictures": "picture"}.items()
    }
    learnt = used[used["split"] != SIDES[TEST]]
    return two_sided | {"once_tested": len((set(learnt["place"]) | set(learnt["picture"])) & set(tested))}


def _sides_of_groups(known: pd.DataFrame, spec: SplitsPlan, classes: tuple[str, ...], past: Past) -> dict[int, str]:
    groups = sorted(known["group"].unique())
    if len(groups) < len(SIDES):
        raise SplitsError(
            f"train, val and test need at least 3 places that share no burst, found {len(groups)} among {len(known)} crops of known place; "
            "add sources with more places, or check sources.place_field in the plan"
        )
    best = search(_wanted(known, groups, spec, classes, past), spec.tries, np.random.default_rng(spec.seed))
    return {g: SIDES[s] for g, s in zip(groups, best, strict=True)}


def _wanted(known: pd.DataFrame, groups: list[int], spec: SplitsPlan, classes: tuple[str, ...], past: Past) -> Wanted:
    counts = pd.crosstab(known["group"], known["label"]).reindex(index=groups, columns=list(classes), fill_value=0).to_numpy(float)
    pairs = known[["group", "place", "label"]].drop_duplicates()
    places = pd.crosstab(pairs["group"], pairs["label"]).reindex(index=groups, columns=list(classes), fill_value=0).to_numpy(float)
    held_by = (counts > 0).sum(axis=0)
    # with one group a class can only be trained on; with two it is tested too; with three it is on every side
    needs = np.stack([held_by >= 1, held_by >= 3, held_by >= 2])
    shares = np.array([1 - spec.val - spec.test, spec.val, spec.test])
    return Wanted(counts, places, shares, needs, _allowed(known, groups, spec, past))


def _allowed(known: pd.DataFrame, groups: list[int], spec: SplitsPlan, past: Past) -> NDArray[np.bool_]:
    """[groups, 3]: only test for what was once tested or is named so, not test for what was learnt from, else any side."""

    def holding(column: str, names: Collection[str]) -> set[int]:
        return set(known.loc[known[column].isin(list(names)), "group"])

    in_test = holding("place", {*spec.test_only, *past.tested}) | holding("picture", past.tested)
    train_only = known[known["place"].isin(spec.train_only)]
    refused = sorted(train_only.loc[train_only["group"].isin(in_test), "place"].unique())
    if refused:
        raise SplitsError(
            f"splits.train_only names {refused[0]!r}, which was tested on before or shares a burst or picture with a test place; "
            "what was once tested on is never trained on: take it out of splits.train_only"
        )
    in_train, learnt = set(train_only["group"]), holding("place", past.learnt)
    rows = {"test": (False, False, True), "train": (True, False, False), "learnt": (True, True, False), "new": (True, True, True)}
    kinds = ["test" if g in in_test else "train" if g in in_train else "learnt" if g in learnt else "new" for g in groups]
    return np.array([rows[kind] for kind in kinds])


def search(wanted: Wanted, tries: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The best split found: the best of ``tries`` random ones, then moved and swapped group by group while that helps.

    Returns:
        int64 [groups]: 0 train, 1 val, 2 test.

    Raises:
        SplitsError: what is allowed leaves a side without any group.
    """
    weights = wanted.allowed * wanted.shares
    drawn = (rng.random((tries, len(weights), 1)) > (weights.cumsum(1) / weights.sum(1, keepdims=True))[None]).sum(2)
    whole = [d for d in [*drawn, _dealt(wanted.allowed)] if len(np.unique(d)) == len(SIDES)]
    if not whole:
        raise SplitsError(
            "the places that must be in test or in train leave no place for another side; add sources with new places, "
            "or shorten splits.test_only and splits.train_only"
        )
    return _climb(min(whole, key=lambda d: score(d, wanted)).astype(np.int64), wanted, rng)


def _dealt(allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Sides dealt out so that each has a group if that is possible: those with the least choice first, the emptiest side first."""
    sides = np.zeros(len(allowed), np.int64)
    taken = [0, 0, 0]
    for g in np.argsort(allowed.sum(1), kind="stable"):
        sides[g] = min(np.flatnonzero(allowed[g]), key=lambda s: taken[s])
        taken[sides[g]] += 1
    return sides


def _climb(sides: NDArray[np.int64], wanted: Wanted, rng: np.random.Generator) -> NDArray[np.int64]:
    """Move single groups and swap pairs, as long as the score falls."""
    now, better = score(sides, wanted), True
    everyone = np.arange(len(sides))
    while better:
        better = False
        moves = [([g], [side]) for g in rng.permutation(everyone) for side in np.flatnonzero(wanted.allowed[g])]
        swaps = [([a, b], None) for a, b in rng.choice(everyone, (4 * len(sides), 2))]
        for groups, new in [*moves, *swaps]:
            trial = sides.copy()
            trial[groups] = trial[groups[::-1]] if new is None else new
            fits = wanted.allowed[groups, trial[groups]].all() and len(np.unique(trial)) == len(SIDES)
            if fits and (s := score(trial, wanted)) < now - 1e-12:
                sides, now, better = trial, s, True
    return sides


def score(sides: NDArray[np.int64], wanted: Wanted) -> float:
    """How far a split is from the wanted shares; lower is better.

    The score of the field (animl-ml's splitter): over classes, 2 × (share of the class's examples on a side - wanted)² +
    (share of its places - wanted)² + for val and test 2 × (the class's share of the side - of all)²; and ``LACKS`` for each
    class that a side could have and has not.
    """
    counts, places, shares, needs, _ = wanted
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

"""Our search for splits by location, compared with 10,000 random splits on the same counts: scores and CPU seconds.

The peer restates the random method of animl-ml's splitter (tnc-ca-geo/animl-ml, classification/utils/
create_classification_dataset.py, ``create_splits_random``; MegaDetector's has the same): 10,000 times it permutes the locations,
cuts the list at the wanted shares ± 3 %, scores with pandas, and keeps the best. Both are scored by a third, plain
implementation of that score (``score``). Counts are random (Zipf classes, log-normal locations, rare classes at few
locations), or come from a table with the columns location and class_id: ``--csv FILE``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from measure import conclude, measured, show
from numpy.typing import NDArray

VAL, TEST = 0.2, 0.1
PERMUTATIONS = 10_000
CLASSES = ("rodent", "bird", "fox", "cat", "lizard", "skunk", "rat", "pig", "coyote")
Counts = NDArray[np.float64]


def random_counts(images: int, locations: int, seed: int) -> Counts:
    """[locations, classes] examples: classes by a Zipf law of exponent 1.3, log-normal locations, rare classes at few locations."""
    rng = np.random.default_rng(seed)
    n = len(CLASSES)
    here = rng.random((locations, n)) < 0.9 * (1 - np.arange(n) / n) ** 1.5 + 0.08
    for c in range(n):
        here[rng.choice(locations, 3, replace=False), c] = True
    rate = rng.lognormal(0, 1, (locations, 1)) * rng.gamma(0.7, 1, (locations, n)) * here
    rate = rate / rate.sum(0) * np.arange(1, n + 1) ** -1.3
    counts = rng.multinomial(images // 3, (rate / rate.sum()).ravel()).reshape(locations, n) * 3.0  # sequences of three
    return np.asarray(counts[counts.sum(1) > 0])


def score(counts: Counts, splits: NDArray[np.int64]) -> float:
    """The score of animl-ml's splitter: for each split and class, how far examples and locations are from the wanted shares."""
    total = 0.0
    for split, wanted in enumerate((1 - VAL - TEST, VAL, TEST)):
        part = counts[splits == split]
        for c in range(counts.shape[1]):
            total += 2 * (part[:, c].sum() / counts[:, c].sum() - wanted) ** 2
            total += ((part[:, c] > 0).sum() / (counts[:, c] > 0).sum() - wanted) ** 2
            if split > 0:
                total += 2 * (part[:, c].sum() / part.sum() - counts[:, c].sum() / counts.sum()) ** 2
    return float(total)


def permuted(counts: Counts) -> NDArray[np.int64]:
    """The best of 10,000 random splits, as animl-ml's splitter finds it."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(counts)
    of_class, locations_of_class = table.sum(), (table > 0).sum()
    mix = of_class / of_class.sum()
    lowest, best = np.inf, {}
    for _ in range(PERMUTATIONS):
        train = int(len(table) * (1 - VAL - TEST + rng.uniform(-0.03, 0.03)))
        val = int(len(table) * (VAL + rng.uniform(-0.03, 0.03)))
        order = table.index[rng.permutation(len(table))]
        splits = {0: order[:train], 1: order[train : train + val], 2: order[train + val :]}
        now = 0.0
        for split, wanted in enumerate((1 - VAL - TEST, VAL, TEST)):
            part = table.loc[splits[split]]
            if split > 0:
                now += 2 * ((part.sum() / part.sum().sum() - mix) ** 2).sum()
            now += 2 * ((part.sum() / of_class - wanted) ** 2).sum()
            now += (((part > 0).sum() / locations_of_class - wanted) ** 2).sum()
        if now < lowest:
            lowest, best = now, splits
    found = np.zeros(len(table), np.int64)
    for split, locations in best.items():
        found[locations] = split
    return found


def optimised(counts: Counts) -> NDArray[np.int64]:
    """Our splits, with the plan's defaults and these shares."""
    from animl_pipeline.config import SplitsConfig
    from animl_pipeline.steps.splits.constraints import SplittableCrops, make_problem
    from animl_pipeline.steps.splits.optimise import search

    location, class_id = (np.repeat(index, counts[counts > 0].astype(int)) for index in np.nonzero(counts))
    names = tuple(str(p) for p in range(len(counts)))
    crops = SplittableCrops(location, location, class_id, np.ones((3, len(location)), bool), names, np.zeros(len(counts), np.int64))
    config = SplitsConfig(val=VAL, test=TEST)
    problem = make_problem(crops, config, tuple(str(c) for c in range(counts.shape[1])))
    return search(problem, config.max_rounds, np.random.default_rng(config.seed))


METHODS = {"ours": optimised, "permuted": permuted}


def _one(way: str, file: Path) -> None:
    counts = np.load(file)
    splits = METHODS[way](counts) if way in METHODS else np.zeros(0)
    print(json.dumps(score(counts, splits) if way in METHODS else None))


def _compare(name: str, counts: Counts, folder: Path) -> tuple[list[object], float, float]:
    """A row of the table, our score divided by the peer's, and the peer's CPU seconds divided by ours."""
    file = folder / "counts.npy"
    np.save(file, counts)
    ours, peer, nothing = (measured(Path(__file__), "--one", way, str(file)) for way in ("ours", "permuted", "nothing"))
    own, its = ours.cpu_s - nothing.cpu_s, peer.cpu_s - nothing.cpu_s  # without the start of Python and numpy, which both need
    ratio, faster = ours.said / peer.said, its / own
    return [name, peer.said, ours.said, ratio, its, own, faster], ratio, faster


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="a table with the columns location and class_id, one row for each example")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "COUNTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        _one(arguments.one[0], Path(arguments.one[1]))
        return
    if arguments.csv:
        rows = pd.read_csv(arguments.csv)
        every = {arguments.csv.stem: pd.crosstab(rows["location"], rows["class_id"]).to_numpy(float)}
    else:
        every = {f"{locations}, draw {seed}": random_counts(26_000, locations, seed) for locations in (75, 500) for seed in (1, 2)}
    with TemporaryDirectory() as folder:
        found = [_compare(name, counts, Path(folder)) for name, counts in every.items()]
    columns = ["locations", "peer", "ours", "ratio", "peer CPU s", "ours CPU s", "faster"]
    show(
        f"Score of the split (lower is better) and CPU seconds; peer: best of {PERMUTATIONS:,} permutations; val {VAL}, test {TEST}",
        columns,
        [row for row, _, _ in found],
    )
    worst, slowest = max(ratio for _, ratio, _ in found), min(faster for _, _, faster in found)
    conclude(
        "splits",
        figure=f"score {worst:.2f} times the peer's at most, {slowest:.0f} times faster at least",
        aim="score at most 0.7 times, at least 15 times faster",
        met=worst <= 0.7 and slowest >= 15,
    )


if __name__ == "__main__":
    sys.exit(_main())

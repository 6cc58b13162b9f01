"""How many labels `review-next` needs, beside random ones, for the same macro F1: a replay on real images.

python benchmarks/review_next.py --data FOLDER

Some locations (about a third of each class's bursts) are the test. The others are a pool whose labels are hidden. The first labels are random;
then each strategy asks for a batch, a linear head on frozen networks learns from all labels so far, and is scored on the test locations. Bursts
have the same weight in the score. The classes are once coarse ones and once species. "Random" takes one image of each random burst, as
`review-next` does for its random part. "Random images" takes any image that has no label yet; long bursts then take most labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from measure import conclude, show
from numpy.typing import NDArray
from real_crops import RealCrops, load_real_crops
from strangers import REGULARISATION, choose_classes

from animl_pipeline.config.settings import load_settings
from animl_pipeline.inference.embedding_reference import fit_reference
from animl_pipeline.review.choose_images import Candidates, core_set, draw_random, informative, margins, squared_distances
from animl_pipeline.steps.training.linear_head import fit_heads
from animl_pipeline.storage.store import open_store

ROOT = Path(__file__).parents[1]
AIM = 0.6
TEST_SHARE = 0.3
TARGET = 100
"""The macro F1 that random reaches with so many labels is the aim of the other strategies."""
RANDOM, RANDOM_IMAGES, SHIPPED = "random", "random images", "review-next"
RARE = "core-set, rare classes"
STRATEGIES = (RANDOM_IMAGES, RANDOM, "margin", RARE, SHIPPED)
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Replay:
    """One seed: test locations, and a pool whose labels are hidden."""

    def __init__(self, real: RealCrops, targets: Ints, seed: int) -> None:
        self.real, self.targets, self.seed = real, targets, seed
        self.burst = pd.factorize(real.rows["burst"])[0].astype(np.int64)
        self.everything = np.concatenate(real.blocks, axis=1)
        self.test = _test_places(real.rows, targets, self.burst, seed)
        self.reference = fit_reference(self.everything[~self.test], targets[~self.test])  # only its principal components are used
        self.components = self.reference.components(self.everything)
        self.weight = 1 / np.bincount(self.burst)[self.burst]

    def curve(self, strategy: str, batch: int) -> list[tuple[int, float]]:
        """Numbers of labels and the macro F1 with each, until the pool has no burst without a label for another batch."""
        pool = np.flatnonzero(~self.test)
        labelled = np.zeros(len(self.targets), bool)
        labelled[pool[draw_random(self.burst[pool], batch, self.seed)]] = True
        most = len(np.unique(self.burst[pool])) // batch * batch
        found = []
        while True:
            probability = self._learn(labelled)
            found.append((int(labelled.sum()), self._score(probability)))
            if found[-1][0] >= most:
                return found
            free = ~labelled[pool] if strategy == RANDOM_IMAGES else ~np.isin(self.burst[pool], self.burst[labelled])
            labelled[pool[free][self._ask(strategy, pool[free], labelled, probability, batch)]] = True

    def _learn(self, labelled: Bools) -> NDArray[np.float64]:
        """Probabilities of all crops by a head that learnt from the labelled ones."""
        (head,) = fit_heads(self.real.blocks, self.targets, int(self.targets.max()) + 1, labelled, [REGULARISATION])
        logits = head.logits(self.everything.astype(np.float64))
        spread = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(spread / spread.sum(axis=1, keepdims=True))

    def _score(self, probability: NDArray[np.float64]) -> float:
        from sklearn.metrics import f1_score

        truth, said = self.targets[self.test], probability[self.test].argmax(axis=1)
        return float(f1_score(truth, said, labels=np.unique(truth), average="macro", sample_weight=self.weight[self.test], zero_division=0.0))

    def _ask(self, strategy: str, crops: Ints, labelled: Bools, probability: NDArray[np.float64], batch: int) -> Ints:
        """Positions in ``crops`` that the strategy wants labels of."""
        seed = 1000 * self.seed + int(labelled.sum())
        if strategy == RANDOM_IMAGES:
            return np.random.default_rng(seed).permutation(len(crops))[:batch]
        if strategy == RANDOM:
            return draw_random(self.burst[crops], batch, seed)
        one = draw_random(self.burst[crops], len(crops), seed)  # an image of each burst, as review-next looks at them
        crops = crops[one]
        if strategy == "margin":
            return one[np.argsort(margins(probability[crops]), kind="stable")[:batch]]
        reference = self.reference._replace(points=self.components[labelled], class_number=self.targets[labelled])
        if strategy == RARE:
            rarity = (probability[crops] / (np.bincount(self.targets[labelled], minlength=probability.shape[1]) + 1)).sum(axis=1)
            distance = squared_distances(self.components[crops], reference.points)
            return one[core_set(self.components[crops], distance, rarity, self.burst[crops], batch)]
        where = self.burst[crops].astype(object)
        animals = Candidates(crops, self.burst[crops], where, probability[crops], self.components[crops], np.zeros(len(crops)))
        return one[informative(animals, reference, batch)]


def _test_places(rows: pd.DataFrame, targets: Ints, burst: Ints, seed: int) -> Bools:
    """The crops of random places (of a place with a third of all crops, random bursts) with ``TEST_SHARE`` of each class's bursts."""
    size = rows["place"].map(rows["place"].value_counts())
    unit = pd.factorize(rows["place"].where(size < len(rows) / 3, rows["burst"]))[0]
    random, test = np.random.default_rng(seed), np.zeros(len(rows), bool)
    for number in random.permutation(int(targets.max()) + 1):
        of_class = targets == number
        wanted = max(1, round(TEST_SHARE * len(np.unique(burst[of_class]))))
        for place in random.permutation(np.unique(unit[of_class])):
            remains = of_class & ~test & (unit != place)
            if len(np.unique(burst[of_class & test])) < wanted and remains.any():
                test |= unit == place
    return test


def labels_needed(curve: pd.Series, aim: float) -> float:
    """How many labels a mean curve (index: labels) needs for a macro F1, between its points; infinite if it never gets there."""
    best = curve.cummax()
    if best.iloc[-1] < aim:
        return float("inf")
    after = int(np.argmax(best.to_numpy() >= aim))
    if after == 0:
        return float(best.index[0])
    (low, high), (before, now) = best.iloc[after - 1 : after + 1], best.index[after - 1 : after + 1]
    return float(before + (now - before) * (aim - low) / (high - low))


def plot(curves: dict[str, pd.DataFrame], path: Path) -> None:
    """Macro F1 by number of labels: the mean of the seeds, and their range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (level, table) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for strategy in STRATEGIES:
            found = table[table["strategy"] == strategy].groupby("labels")["f1"].agg(["mean", "min", "max"])
            style = {"linewidth": 2.4} if strategy == SHIPPED else {"linewidth": 1.2, "linestyle": "--" if strategy.startswith(RANDOM) else "-"}
            (line,) = axes.plot(found.index, found["mean"], label=strategy, **style)
            if strategy in {SHIPPED, RANDOM}:
                axes.fill_between(found.index, found["min"], found["max"], color=line.get_color(), alpha=0.12)
        axes.set(title=f"{level} classes", xlabel="labels", ylabel="macro F1 at test locations", xticks=range(20, 141, 20))
        axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Replay all strategies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the real images (default: ANIML_DATA)")
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "real-crops", help="store for crops and embeddings (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=20, help="labels between two trainings (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="write the curves as SVG")
    given = parser.parse_args()
    settings = load_settings()
    settings = settings.model_copy(update={"store": str(given.store), "data": given.data or settings.data})
    real, curves, ratios = load_real_crops(open_store(settings), settings), {}, {}
    for level in ("coarse", "species"):
        chosen, targets, _ = choose_classes(real, level)
        points = [(s, k, n, f1) for k in range(given.seeds) for s in STRATEGIES for n, f1 in Replay(chosen, targets, k).curve(s, given.batch)]
        table = curves[level] = pd.DataFrame(points, columns=["strategy", "seed", "labels", "f1"])
        # seeds have pools of different sizes: the curves end where the first one does
        table = table[table["labels"] <= table.groupby("seed")["labels"].max().min()]
        mean = table.pivot_table(index="labels", columns="strategy", values="f1")[list(STRATEGIES)]
        show(
            f"macro F1, {level} classes, mean of {given.seeds} seeds",
            ("labels", *STRATEGIES),
            [[n, *row] for n, row in zip(mean.index, mean.to_numpy().tolist(), strict=True)],
        )
        curves[level] = table
        aim = float(mean[RANDOM].loc[:TARGET].max())
        needed = {s: labels_needed(mean[s], aim) for s in STRATEGIES}
        ratios[level] = {s: n / needed[RANDOM] for s, n in needed.items()}
        show(
            f"labels needed for a macro F1 of {aim:.2f}",
            ("strategy", "labels", "share of random's"),
            [[s, n, ratios[level][s]] for s, n in needed.items()],
        )
    if given.plot:
        plot(curves, given.plot)
    shares = {level: found[SHIPPED] for level, found in ratios.items()}
    shown = ", ".join(f"{share:.2f} ({level} classes)" for level, share in shares.items())
    conclude("review_next", figure=f"share of random's labels for the same macro F1: {shown}", aim=f"at most {AIM}", met=max(shares.values()) <= AIM)


if __name__ == "__main__":
    main()

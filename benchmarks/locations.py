"""How many camera locations a model needs: scores of the default recipe that learnt from a part of the locations.

The protocol is that of the benchmark recipes: the known locations are divided into five folds, and each fold is the test set once. The head
learns from a share of the other locations (--shares), chosen at random --subsets times; at least one location of each class stays. Crops of all
draws and subsets are pooled; intervals are by bootstrap over the test locations. Results are kept in --store.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from measure import conclude, show
from recipes import AFTER, FOLDS, WAYS, Bools, Data, NotFinishedError, add_options, embed, figures, head_probabilities, read_data, split_by_fold

from animl_pipeline.config import TrainingConfig
from animl_pipeline.core.errors import TrainingError
from animl_pipeline.inference.bootstrap_intervals import mean_over_present_classes, percentile_interval
from animl_pipeline.steps.training.location_folds import group_locations

TRIES = 20
"""How often locations are drawn for a fold: with one location for each class there are no folds to choose the regularisation by."""


def thin_out(rows: pd.DataFrame, learnt: Bools, share: float, seed: list[int]) -> Bools:
    """The crops of a share of the locations: of each class one location, and random ones."""
    group = group_locations(rows)
    order = np.random.default_rng(seed).permutation(np.unique(group[learnt]))
    of_class = [group[learnt & (rows["class_id"] == c).to_numpy()] for c in sorted(set(rows.loc[learnt, "class_id"]))]
    first = [next(g for g in order if g in groups) for groups in of_class]
    order = np.array(list(dict.fromkeys([*first, *order])))
    return learnt & np.isin(group, order[: max(len(set(first)), round(share * len(order)))])


def answers_of_fold(data: Data, share: float, subset: int, draw: int, fold: int) -> pd.DataFrame:
    """The default's answers for a fold's test crops, learnt from a share of the other locations, and what it learnt from (columns)."""
    train, splits = TrainingConfig.model_validate(WAYS[AFTER]), split_by_fold(data, draw, fold)

    def compute() -> pd.DataFrame:
        test = (data.split(splits) == "test").to_numpy()
        blocks = embed(data, train.networks)
        for attempt in range(TRIES):
            learnt = thin_out(data.rows, ~test, share, [draw, fold, subset, attempt])
            try:
                found = head_probabilities(data.rows, blocks, data.classes, learnt, draw)
            except TrainingError:  # each class at one location: no folds
                continue
            known = data.rows[learnt]
            by_class = known.groupby("class_id")
            counts = {"learnt_locations": known["location"].nunique()}
            counts |= {f"locations_{c}": n for c, n in by_class["location"].nunique().items()} | {f"crops_{c}": n for c, n in by_class.size().items()}
            return data.answer(test, found[test]).assign(**counts)
        raise SystemExit(f"draw {draw}, fold {fold}: no subset of {share:g} of the locations allows cross-validation")

    config = {"way": AFTER, "networks": [n.network for n in train.networks], "share": share, "subset": subset}
    return data.remember(splits, config, compute).assign(draw=draw, fold=fold, subset=subset)


def report(tables: dict[float, pd.DataFrame], ids: tuple[str, ...], svg: Path | None) -> list[tuple[float, float]]:
    """Print macro F1 by the share of the locations. Returns locations and macro F1 of each share."""
    rows: list[list[object]] = []
    curve: list[tuple[float, float, tuple[float, float]]] = []
    by_class: dict[str, list[tuple[float, float, float]]] = {c: [] for c in ids}
    found = {share: figures(table, ids) for share, table in tables.items()}
    all_f1 = mean_over_present_classes(found[max(found)].f1)
    for share, table in tables.items():
        models = table.drop_duplicates(["draw", "fold", "subset"]).fillna(0)
        f1 = mean_over_present_classes(found[share].f1)
        locations, crops = models["learnt_locations"].mean(), models[[f"crops_{c}" for c in ids]].sum(axis=1).mean()
        by_subset = [mean_over_present_classes(figures(part, ids).f1)[0] for _, part in table.groupby(["draw", "subset"])]
        spread = f"{min(by_subset):.2f} to {max(by_subset):.2f}"
        rows.append([f"{share:.0%}", locations, crops, f1[0], found[share].interval(f1), spread, found[share].interval(f1 - all_f1)])
        curve.append((locations, f1[0], percentile_interval(f1, found[share].locations) or (f1[0], f1[0])))
        for i, c in enumerate(ids):
            by_class[c].append((models[f"locations_{c}"].mean(), models[f"crops_{c}"].mean(), found[share].f1[0, i]))
    columns = ("share", "locations", "crops", "macro F1", "95 % over locations", "draws and subsets", "less than with all, 95 %")
    show(f"{len(next(iter(tables.values())))} answers, learnt from some of the locations", columns, rows)
    cells = [[c, *(f"{f1:.2f} ({locations:.1f}, {crops:.0f})" for locations, crops, f1 in points)] for c, points in by_class.items()]
    show("F1 by class (locations and crops that were learnt from)", ("class", *(f"{share:.0%}" for share in tables)), cells)
    if svg:
        plot(curve, by_class, svg)
    return [(locations, f1) for locations, f1, _ in curve]


def plot(curve: list[tuple[float, float, tuple[float, float]]], by_class: dict[str, list[tuple[float, float, float]]], path: Path) -> None:
    """Macro F1 by the number of locations with its interval, and F1 of each class by the number of its own locations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    locations, f1, ends = zip(*curve, strict=True)
    left.plot(locations, f1, marker="o", linewidth=2.4)
    left.fill_between(locations, *zip(*ends, strict=True), alpha=0.15)
    left.set(title="all classes", xlabel="locations to learn from", ylabel="macro F1 at other locations", xlim=(0, None), ylim=(0, 1))
    for name, points in by_class.items():
        own, _, scores = zip(*points, strict=True)
        right.plot(own, scores, marker="o", linewidth=1.2, label=name)
    right.set(title="each class", xlabel="locations of the class to learn from", ylabel="F1 at other locations", xlim=(0, None), ylim=(0, 1))
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Learn from shares of the locations, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="shares of the training locations (default: 0.25 0.5 1)")
    parser.add_argument("--subsets", type=int, default=3, help="random subsets of the locations for each fold and share (default: %(default)s)")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2], help="seeds of the folds (default: 0 1 2)")
    parser.add_argument("--finished", action="store_true", help="report what the store has, and compute nothing")
    parser.add_argument("--plot", type=Path, help="write the curves as SVG")
    spec = parser.parse_args()
    data = read_data(spec, finished=spec.finished)
    tables: dict[float, list[pd.DataFrame]] = {share: [] for share in sorted(spec.shares)}
    for draw in spec.draws:
        for share, parts in tables.items():
            numbers = range(spec.subsets if share < 1 else 1)
            try:
                parts += [answers_of_fold(data, share, n, draw, fold) for n in numbers for fold in range(FOLDS)]
            except NotFinishedError:
                continue
    curve = report({share: pd.concat(parts, ignore_index=True) for share, parts in tables.items() if parts}, data.classes, spec.plot)
    scores = [f1 for _, f1 in curve]
    figure = "macro F1 " + ", ".join(f"{f1:.2f} with {locations:.0f} locations" for locations, f1 in curve)
    conclude("locations", figure=figure, aim="more with more locations", met=scores == sorted(scores))


if __name__ == "__main__":
    main()

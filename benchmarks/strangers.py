"""How well animals of a species that the model never learnt are separated from those that it knows, at other locations: methods side by side.

python benchmarks/strangers.py --data FOLDER

Each class is left out in turn. A linear head on frozen networks learns the other classes at four of five groups of locations; the animals of
the fifth group are asked for: those of the class that was left out are strangers. The area under the ROC curve (AUROC) is over the animals of
all groups in which the class is; bursts have the same weight, however many images they have. The classes are once coarse ones and once species.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from measure import conclude, show
from numpy.typing import NDArray
from real_crops import GUIDES, RealCrops, load_real_crops

from animl_pipeline.config.settings import load_settings
from animl_pipeline.inference.embedding_reference import fit_reference
from animl_pipeline.steps.training.linear_head import fit_heads
from animl_pipeline.storage.store import open_store

ROOT = Path(__file__).parents[1]
FOLDS = 5
REGULARISATION = 0.1
MIN_BURSTS = {"coarse": 2, "species": 4}
SHIPPED = "Mahalanobis and probability"
AIM = 0.75
Floats = NDArray[np.float64]


def scores_of(learnt: NDArray[np.bool_], asked: NDArray[np.bool_], targets: NDArray[np.int64], real: RealCrops) -> dict[str, Floats]:
    """Method → how strange each of the asked crops is."""
    names, number = np.unique(targets[learnt], return_inverse=True)
    blocks = [b[learnt] for b in real.blocks]
    everything, crops = np.concatenate(real.blocks, axis=1), real.rows
    (head,) = fit_heads(blocks, number, len(names), np.ones(len(number), bool), [REGULARISATION])
    logits = head.logits(everything[asked].astype(np.float64))
    largest = logits.max(axis=1)
    total = np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    first = crops[learnt].assign(n=np.arange(int(learnt.sum()))).drop_duplicates(["burst", "species"])["n"].to_numpy()
    inputs = everything[learnt][first]
    reference = fit_reference(inputs, number[first])
    components = reference.components(everything[asked])
    known, new = reference.points.astype(np.float64), components.astype(np.float64)
    similarity = np.sort(new @ known.T, axis=1)
    distance = reference.distances(components)
    return {
        "largest probability": total,
        "energy": -(total + largest),
        "nearest neighbour": 1 - similarity[:, -1],
        "fifth neighbour": 1 - similarity[:, -5],
        "nearest class mean": -(new @ (reference.class_means / np.linalg.norm(reference.class_means, axis=1, keepdims=True)).T).max(axis=1),
        "Mahalanobis": distance,
        "relative Mahalanobis": distance - _distance_to_all(known, new),
        SHIPPED: distance / distance.std() + total / total.std(),
    }


def _distance_to_all(known: Floats, new: Floats) -> Floats:
    """The Mahalanobis distance to all classes together."""
    from sklearn.covariance import ledoit_wolf

    centred = new - known.mean(axis=0)
    return np.asarray(np.einsum("ij,jk,ik->i", centred, np.linalg.inv(ledoit_wolf(known - known.mean(axis=0))[0]), centred))


def leave_one_out(real: RealCrops, targets: NDArray[np.int64], fold: NDArray[np.int64]) -> Iterator[tuple[int, dict[str, float]]]:
    """Class number → AUROC of each method."""
    from sklearn.metrics import roc_auc_score

    weight = 1 / real.rows.groupby("burst")["burst"].transform("size").to_numpy()
    for left_out in np.unique(targets):
        parts: list[dict[str, Floats]] = []
        asked = np.zeros((0,), np.int64)
        for group in np.unique(fold[targets == left_out]):
            learnt = (fold != group) & (targets != left_out)
            known = np.isin(targets, np.unique(targets[learnt])) | (targets == left_out)
            now = (fold == group) & known
            parts.append(scores_of(learnt, now, targets, real))
            asked = np.concatenate([asked, np.flatnonzero(now)])
        stranger = targets[asked] == left_out
        yield int(left_out), {m: float(roc_auc_score(stranger, np.concatenate([p[m] for p in parts]), sample_weight=weight[asked])) for m in parts[0]}


def choose_classes(real: RealCrops, level: str) -> tuple[RealCrops, NDArray[np.int64], list[str]]:
    """The crops of classes with enough bursts, without the images of field guides; their class numbers; the names."""
    names = real.rows[level]
    bursts = real.rows["burst"].groupby(names).nunique()
    enough = [c for c in bursts.index if c and bursts[c] >= MIN_BURSTS[level] and (names == c).sum() >= 12]
    chosen = real.only((names.isin(enough) & ~real.rows["source"].isin(GUIDES)).to_numpy())
    found, targets = np.unique(chosen.rows[level].to_numpy(str), return_inverse=True)
    return chosen, targets, found.tolist()


def assign_groups(rows: pd.DataFrame) -> NDArray[np.int64]:
    """One of ``FOLDS`` groups for each crop: whole places, the largest first; of a place with a third of all crops, whole bursts."""
    size = rows["place"].map(rows["place"].value_counts())
    unit = rows["place"].where(size < len(rows) / 3, rows["burst"])
    crops = unit.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    total, group = np.zeros(FOLDS), {}
    for name, n in crops.items():
        group[name] = int(total.argmin())
        total[group[name]] += n
    return unit.map(group).to_numpy(np.int64)


def main() -> None:
    """Compare the methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the real images (default: ANIML_DATA)")
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "real-crops", help="store for crops and embeddings (default: %(default)s)")
    given = parser.parse_args()
    settings = load_settings()
    settings = settings.model_copy(update={"store": str(given.store), "data": given.data or settings.data})
    real, means = load_real_crops(open_store(settings), settings), {}
    for level in ("coarse", "species"):
        chosen, targets, names = choose_classes(real, level)
        found = {names[c]: auroc for c, auroc in leave_one_out(chosen, targets, assign_groups(chosen.rows))}
        table = pd.DataFrame(found).T
        bursts = chosen.rows.groupby(level)["burst"].nunique()
        means[level] = table.mean()
        rows = [[c, int((targets == i).sum()), int(bursts[c]), *table.loc[c].tolist()] for i, c in enumerate(names)]
        show(f"AUROC, {level} classes", ("left out", "crops", "bursts", *table.columns), [*rows, ["mean", "", "", *means[level].tolist()]])
    both = sum(means.values()) / len(means)
    shown = ", ".join(f"{m} {v:.2f}" for m, v in both.sort_values(ascending=False).items())
    won = bool(both[SHIPPED] >= max(both["largest probability"], both["energy"]))
    conclude(
        "strangers",
        figure=f"mean AUROC with one class left out: {shown}",
        aim=f"shipped: at least {AIM} and both usual ones",
        met=won and both[SHIPPED] >= AIM,
    )


if __name__ == "__main__":
    main()

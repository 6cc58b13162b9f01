"""How often thresholds keep their aims at camera locations that did not choose them, and how far probabilities are from the truth there.

python benchmarks/thresholds.py --data FOLDER

The known locations of the plan's crops are divided into two halves, --halves times. Each half trains a head with the default networks by
cross-validation, and its out-of-fold answers choose temperature and thresholds, as a training does. The model then answers for the other
half. Of the aims that the thresholds of a half show with the stated confidence, about that share must hold at the other half. Aims that are
only reached on the half's own crops are counted apart. Embeddings and crops are kept in --store, so a second run takes a few minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from measure import conclude, show
from numpy.typing import NDArray

from animl_pipeline.cli.run_steps_to_crops import make_crops
from animl_pipeline.config import AimConfig, Plan, ThresholdsConfig, load_plan
from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.config.training import TrainingConfig
from animl_pipeline.core.table_schemas import CROPS
from animl_pipeline.inference.calibration_and_threshold_metrics import (
    expected_calibration_error,
    operating_point,
    probability_column,
    rescale_temperature,
)
from animl_pipeline.steps.calibration.step import fit_temperature
from animl_pipeline.steps.calibration.thresholds import choose_thresholds, meets_aim
from animl_pipeline.steps.embeddings.run_networks import run_network
from animl_pipeline.steps.evaluation.metrics import ece_limit_by_chance
from animl_pipeline.steps.training.choose_recipe import Candidate, choose
from animl_pipeline.steps.training.linear_head import REGULARISATIONS, fit_heads, out_of_fold_logits
from animl_pipeline.steps.training.location_folds import assign_folds, group_locations
from animl_pipeline.storage.store import Store, open_store

ROOT = Path(__file__).parents[1]
WITHIN, MAX_ECE = 0.1, 0.1
AIMS = (
    *(AimConfig(recall=v) for v in (0.95, 0.9, 0.8, 0.6)),
    *(AimConfig(precision=v) for v in (0.9, 0.8, 0.6, 0.4)),
)


class Halves(NamedTuple):
    """The crops of one half with out-of-fold answers, and those of the other with answers of the half's model; both calibrated."""

    chosen_on: pd.DataFrame
    other: pd.DataFrame


def answer(rows: pd.DataFrame, probabilities: NDArray[np.float64], classes: tuple[str, ...]) -> pd.DataFrame:
    """The crops in the columns of ``score_crops``."""
    columns = {probability_column(c): probabilities[:, i] for i, c in enumerate(classes)}
    predicted = np.asarray(classes, object)[probabilities.argmax(axis=1)]
    return rows[["crop_id", "class_id", "location"]].assign(predicted=predicted, probability=probabilities.max(axis=1), **columns)


def divide(rows: pd.DataFrame, blocks: list[NDArray[np.float32]], classes: tuple[str, ...], halves: int) -> Iterator[Halves]:
    """Train on each half of the locations and let its model answer for the other, twice for each division."""
    targets = np.asarray(rows["class_id"].map({c: i for i, c in enumerate(classes)}), np.int64)
    group = group_locations(rows)
    for seed in range(halves):
        groups = np.random.default_rng(seed).permutation(np.unique(group))
        first = np.isin(group, groups[: len(groups) // 2])
        for half in (first, ~first):
            own, its = [b[half] for b in blocks], targets[half]
            fold = assign_folds(rows[half].reset_index(drop=True), (), TrainingConfig().folds, seed)
            logits = out_of_fold_logits(own, its, len(classes), fold)
            best, _ = choose([Candidate("head", c, answers) for c, answers in zip(REGULARISATIONS, logits, strict=True)], its)
            (head,) = fit_heads(own, its, len(classes), np.ones(len(its), bool), [best.regularisation])
            held_out = fold >= 0
            before = best.probabilities()[held_out]
            temperature = fit_temperature(before, its[held_out])
            outside = head.logits(np.concatenate([b[~half] for b in blocks], axis=1).astype(np.float64))
            given = Candidate("head", best.regularisation, outside).probabilities()
            yield Halves(
                answer(rows[half][held_out], rescale_temperature(before, temperature), classes),
                answer(rows[~half], rescale_temperature(given, temperature), classes),
            )


def judge(halves: Halves, classes: tuple[str, ...], confidence: float) -> list[tuple[str, str, bool, bool, float]]:
    """For each class of both halves and each aim that is reached: kind, class, whether it is shown, whether it holds, false alarms per 1,000."""
    found = []
    known = [c for c in classes if (halves.chosen_on["class_id"] == c).any() and (halves.other["class_id"] == c).any()]
    for aim in AIMS:
        config = ThresholdsConfig(aims={"native": aim}, confidence=confidence)
        for t in choose_thresholds(halves.chosen_on, classes, config):
            there = operating_point(halves.other, t.id, t.value)
            if t.id in known and t.met_on_val and not (aim.precision and there.precision is None):
                found.append((t.aim, t.id, t.aim_met, meets_aim(there, aim), there.false_alarms_per_1000))
    return found


def embed(rows: pd.DataFrame, plan: Plan, store: Store, settings: Settings) -> list[NDArray[np.float32]]:
    """The embeddings of the default networks."""
    size = plan.model_input.size
    return [run_network(n, "", list(rows["blob"]), size, store, settings)[0] for n in TrainingConfig(recipe="head").networks]


def main() -> None:
    """Divide the locations, choose thresholds on each half, and print how many aims hold at the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=ROOT / "tests" / "flows" / "real-data.yaml", help="the plan (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder where the plan's relative paths start (default: ANIML_DATA)")
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "recipes", help="store for crops and embeddings (default: %(default)s)")
    parser.add_argument("--halves", type=int, default=20, help="divisions of the locations (default: %(default)s)")
    parser.add_argument("--confidence", type=float, default=ThresholdsConfig().confidence, help="the stated confidence (default: %(default)s)")
    given = parser.parse_args()
    settings = load_settings()
    settings = settings.model_copy(update={"store": str(given.store), "data": given.data or settings.data})
    plan, store = load_plan(given.plan), open_store(settings)
    rows = store.table(make_crops(plan, store, settings), CROPS).sort_values("crop_id")
    rows = rows[rows["location"] != ""].reset_index(drop=True)
    classes = tuple(plan.labels.classes)
    judged, errors = [], []
    for halves in divide(rows, embed(rows, plan, store, settings), classes, given.halves):
        judged += judge(halves, classes, given.confidence)
        sure, right = halves.other["probability"].to_numpy(), (halves.other["class_id"] == halves.other["predicted"]).to_numpy()
        errors.append((expected_calibration_error(sure, right), ece_limit_by_chance(sure)))
    table = pd.DataFrame(judged, columns=["aim", "class", "shown", "holds", "alarms"])
    by_aim = [
        [aim, *(v for shown in (True, False) for v in (int((part["shown"] == shown).sum()), part.loc[part["shown"] == shown, "holds"].mean()))]
        for aim, part in table.groupby("aim", sort=False)
    ]
    title = f"{len(rows)} crops at {rows['location'].nunique()} locations, {given.halves} divisions, confidence {given.confidence:g}"
    show(title, ("aim", "shown", "of these hold", "reached only", "of these hold"), by_aim)
    ece, limit = np.array(errors).T
    good = (ece <= np.maximum(MAX_ECE, limit)).mean()
    show(
        "Calibration error at the other half",
        ("mean", "limit by chance, mean", f"share at most {MAX_ECE:g} or the limit"),
        [[ece.mean(), limit.mean(), good]],
    )
    shown = table[table["shown"]]
    share, only = shown["holds"].mean(), table.loc[~table["shown"], "holds"].mean()
    figure = f"of {len(shown)} aims shown with confidence {given.confidence:g}, {share:.2f} hold at other locations (reached only: {only:.2f})"
    conclude("thresholds", figure=figure, aim=f"within {WITHIN:g} of the confidence", met=abs(share - given.confidence) <= WITHIN)


if __name__ == "__main__":
    main()

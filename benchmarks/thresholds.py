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
from typing import NamedTuple

import numpy as np
import pandas as pd
from measure import conclude, show
from recipes import Data, add_options, embed, head_probabilities, read_data

from animl_pipeline.config import AimConfig, ThresholdsConfig
from animl_pipeline.config.training import TrainingConfig
from animl_pipeline.inference.calibration_and_threshold_metrics import expected_calibration_error, operating_point
from animl_pipeline.steps.calibration.thresholds import choose_thresholds, meets_aim
from animl_pipeline.steps.evaluation.metrics import ece_limit_by_chance
from animl_pipeline.steps.training.location_folds import group_locations

WITHIN, MAX_ECE = 0.1, 0.1
AIMS = (
    *(AimConfig(recall=v) for v in (0.95, 0.9, 0.8, 0.6)),
    *(AimConfig(precision=v) for v in (0.9, 0.8, 0.6, 0.4)),
)


class Halves(NamedTuple):
    """The crops of one half with out-of-fold answers, and those of the other with answers of the half's model; both calibrated."""

    chosen_on: pd.DataFrame
    other: pd.DataFrame


def divide(data: Data, halves: int) -> Iterator[Halves]:
    """Train on each half of the locations and let its model answer for the other, twice for each division."""
    group = group_locations(data.rows)
    blocks = embed(data, TrainingConfig(recipe="head").networks)
    for seed in range(halves):
        groups = np.random.default_rng(seed).permutation(np.unique(group))
        first = np.isin(group, groups[: len(groups) // 2])
        for half in (first, ~first):
            found = head_probabilities(data.rows, blocks, data.classes, half, seed)
            answered = np.isfinite(found).all(axis=1)
            yield Halves(*(data.answer(chosen, found[chosen]) for chosen in (half & answered, ~half)))


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


def main() -> None:
    """Divide the locations, choose thresholds on each half, and print how many aims hold at the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--halves", type=int, default=20, help="divisions of the locations (default: %(default)s)")
    parser.add_argument("--confidence", type=float, default=ThresholdsConfig().confidence, help="the stated confidence (default: %(default)s)")
    given = parser.parse_args()
    data = read_data(given)
    judged, errors = [], []
    for halves in divide(data, given.halves):
        judged += judge(halves, data.classes, given.confidence)
        sure, right = halves.other["probability"].to_numpy(), (halves.other["class_id"] == halves.other["predicted"]).to_numpy()
        errors.append((expected_calibration_error(sure, right), ece_limit_by_chance(sure), sure.mean() - right.mean()))
    table = pd.DataFrame(judged, columns=["aim", "class", "shown", "holds", "alarms"])
    by_aim = [
        [aim, *(v for shown in (True, False) for v in (int((part["shown"] == shown).sum()), part.loc[part["shown"] == shown, "holds"].mean()))]
        for aim, part in table.groupby("aim", sort=False)
    ]
    title = f"{len(data.rows)} crops at {data.rows['location'].nunique()} locations, {given.halves} divisions, confidence {given.confidence:g}"
    show(title, ("aim", "shown", "of these hold", "reached only", "of these hold"), by_aim)
    ece, limit, too_sure = np.array(errors).T
    good = (ece <= np.maximum(MAX_ECE, limit)).mean()
    show(
        "Calibration error at the other half",
        ("mean", "limit by chance, mean", f"share at most {MAX_ECE:g} or the limit", "probability above accuracy, mean", "its SD"),
        [[ece.mean(), limit.mean(), good, too_sure.mean(), too_sure.std()]],
    )
    shown = table[table["shown"]]
    share, only = shown["holds"].mean(), table.loc[~table["shown"], "holds"].mean()
    figure = f"of {len(shown)} aims shown with confidence {given.confidence:g}, {share:.2f} hold at other locations (reached only: {only:.2f})"
    conclude("thresholds", figure=figure, aim=f"within {WITHIN:g} of the confidence", met=abs(share - given.confidence) <= WITHIN)


if __name__ == "__main__":
    main()

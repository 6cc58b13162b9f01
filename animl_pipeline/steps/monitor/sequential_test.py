"""Find a drop of recall or precision soon after it begins, with few false alarms: a CUSUM test on one outcome of each sequence.

The test adds up the log-likelihood ratio of "dropped" against "as usual", never below 0 (Page 1954, Continuous inspection schemes; for
yes-or-no outcomes: Reynolds and Stoumbos 1999, A CUSUM chart for monitoring a proportion when inspecting continuously). It alarms at a
threshold that is chosen so that, without a drop, alarms are as rare as the plan accepts: the mean number of outcomes until a false alarm
is computed by a Markov chain of the sum (Brook and Evans 1972, An approach to the probability distribution of CUSUM run length).

What is usual is learnt from the first outcomes (the reference) and again whenever they have doubled, always without the latest ones, so
that a drop is found before it becomes usual. Outcomes of one location and day resemble each other: each counts only as one part in the
design effect (Kish 1965), which is estimated from the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config.monitor import MonitorConfig
from animl_pipeline.core.table_schemas import SEQUENTIAL_TESTS
from animl_pipeline.steps.monitor.service_outcomes import ServedModel, ServiceSequences

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
DAY_S, YEAR_S = 86_400, 365.25 * 86_400
GRID = 200
"""Cells into which the sum's range is divided to compute run lengths."""
LOWER_QUANTILE = 0.1
"""The usual rate is taken from the lower end of what the reference allows (a quantile of Jeffreys' posterior), so that an unusually good
reference does not alarm later."""
LEAST_GAP = 0.02
"""The usual rate and the dropped one differ by at least this much; otherwise the reference is too small for the plan's drop."""


class CusumDesign(NamedTuple):
    """A test of one class.

    Attributes:
        usual, dropped: the rates that it tells apart.
        design_effect: so many outcomes count as one independent outcome.
        threshold: of the sum.
        per_year: outcomes a year in the reference.
    """

    usual: float
    dropped: float
    design_effect: float
    threshold: float
    per_year: float

    def steps(self) -> tuple[float, float]:
        """What a wrong and a right outcome add to the sum, before the design effect."""
        return float(np.log((1 - self.dropped) / (1 - self.usual))), float(np.log(self.dropped / self.usual))


class ClassTest(NamedTuple):
    """The test of one class, and its state now: ``reference``, ``usual``, ``alarm``, or ``undecidable`` (see ``LEAST_GAP``)."""

    metric: str
    class_id: str
    drop: float
    state: str
    reference: int
    usual: float
    recent: int
    recent_rate: float
    design: CusumDesign | None


def run_tests(
    sequences: ServiceSequences, model: ServedModel, invasive: Sequence[str], config: MonitorConfig, now_s: float
) -> tuple[list[ClassTest], pd.DataFrame]:
    """Test the recall of each invasive class and the precision of each native one.

    Returns:
        The tests with their states, and SEQUENTIAL_TESTS with every outcome in the order in which people reviewed them.
    """
    wanted = [(i, c, "recall" if c in invasive else "precision") for i, c in enumerate(model.own_classes()) if config.drop_of(c) > 0]
    tests, parts = [], []
    for i, class_id, metric in wanted:
        outcomes = _outcomes(sequences, i, metric)
        tested = run_cusum(outcomes, config.drop_of(class_id), len(wanted), config)
        parts.append(tested.rows.assign(metric=metric, class_id=class_id)[SEQUENTIAL_TESTS.names()])
        tests.append(_state(tested, metric, class_id, config, now_s))
    empty = pd.DataFrame({name: [] for name in SEQUENTIAL_TESTS.names()})
    return tests, pd.concat(parts, ignore_index=True) if parts else empty


def _outcomes(sequences: ServiceSequences, number: int, metric: str) -> pd.DataFrame:
    """Whether the model was right, for each sequence that counts, in the order of review."""
    found = sequences.outcomes
    hit = found.hit[:, number]
    counted = found.actual[:, number] if metric == "recall" else hit | found.false_alarm[:, number]
    rows = sequences.rows.assign(right=hit)[counted]
    return rows.sort_values(["validated_s", "taken_s", "location"], kind="stable", ignore_index=True)


class CusumRun(NamedTuple):
    """Outcomes with ``statistic, threshold, alarm``, the last design, how many outcomes it rests on, and whether the last alarm lasts."""

    rows: pd.DataFrame
    design: CusumDesign | None
    reference: int
    in_alarm: bool


def run_cusum(outcomes: pd.DataFrame, drop: float, tests: int, config: MonitorConfig) -> CusumRun:
    """Run the test over outcomes in the order of review.

    The sum goes no further than the threshold, and an alarm lasts until the sum is back at 0. Until then there is no second one, and what
    is usual stays as it was.

    Args:
        outcomes: ``right, location, taken_s``.
        drop: what an alarm shall find.
        tests: so many tests share the plan's false alarms.
        config: the plan's section.
    """
    first = config.reference_sequences
    statistic, threshold = np.full(len(outcomes), np.nan), np.full(len(outcomes), np.nan)
    alarm = np.zeros(len(outcomes), bool)
    reference, total, lasts = min(first, len(outcomes)), 0.0, False
    design = design_cusum(outcomes.head(first), drop, tests, config) if len(outcomes) >= first else None
    for i, is_right in enumerate(outcomes["right"].tolist()[first:], start=first):
        if i >= 2 * reference + first and not lasts:
            reference *= 2
            design = design_cusum(outcomes.head(reference), drop, tests, config) or design
        if design is None:
            continue
        wrong, right = (step / design.design_effect for step in design.steps())
        total = min(max(0.0, total + (right if is_right else wrong)), design.threshold)
        statistic[i], threshold[i] = total, design.threshold
        alarm[i] = not lasts and total >= design.threshold
        lasts = (lasts or bool(alarm[i])) and total > 0
    return CusumRun(outcomes.assign(statistic=statistic, threshold=threshold, alarm=alarm), design, reference, lasts)


def design_cusum(reference: pd.DataFrame, drop: float, tests: int, config: MonitorConfig) -> CusumDesign | None:
    """The test that reference outcomes (``right, location, taken_s``) allow; None if they cannot tell the drop from chance."""
    from scipy.stats import beta

    right = reference["right"].to_numpy(np.float64)
    effect = design_effect(right, reference["location"], reference["taken_s"])
    n, hits = len(right) / effect, right.sum() / effect
    usual = float(beta.ppf(LOWER_QUANTILE, hits + 0.5, n - hits + 0.5))
    dropped = float(right.mean()) - drop
    if dropped <= 0 or usual - dropped < LEAST_GAP:
        return None
    seconds = reference["taken_s"].dropna()
    years = max(float(seconds.max() - seconds.min()), DAY_S) / YEAR_S
    per_year = len(right) / years
    design = CusumDesign(usual, dropped, effect, 0.0, per_year)
    return design._replace(threshold=choose_threshold(design, per_year / effect * tests / config.false_alarms_per_year))


def design_effect(right: Floats, location: pd.Series, taken_s: pd.Series) -> float:
    """How much more the mean varies than that of independent outcomes, because those of a location and day resemble each other; at least 1."""
    mean = right.mean()
    if not 0 < mean < 1:
        return 1.0
    cluster = pd.factorize(location.astype(str) + (taken_s // DAY_S).astype(str))[0]
    deviations = np.bincount(cluster, right - mean)
    clusters = len(deviations)
    if clusters < 2:
        return 1.0
    variance = clusters / (clusters - 1) * float((deviations**2).sum())
    return max(1.0, float(variance / (len(right) * mean * (1 - mean))))


def choose_threshold(design: CusumDesign, outcomes_until_false_alarm: float) -> float:
    """The threshold with which a test alarms falsely once in so many independent outcomes, on average."""
    low, high = 0.0, 1.0
    while mean_run_length(design, high) < outcomes_until_false_alarm and high < 50:
        low, high = high, high * 1.5
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_run_length(design, middle) < outcomes_until_false_alarm else (low, middle)
    return high


def mean_run_length(design: CusumDesign, threshold: float) -> float:
    """The mean number of independent outcomes at the usual rate until the sum, from 0 on, reaches a threshold."""
    width = threshold / GRID
    state = np.arange(GRID) * width
    matrix = np.eye(GRID)
    for step, probability in zip(design.steps(), (1 - design.usual, design.usual), strict=True):
        reached = np.maximum(state + step, 0) / width
        cell = np.floor(reached).astype(int)
        upper = reached - cell  # the two nearest cells share what lies between them
        for target, share in ((cell, 1 - upper), (cell + 1, upper)):
            inside = target < GRID
            np.subtract.at(matrix, (np.flatnonzero(inside), target[inside]), probability * share[inside])
    return float(np.linalg.solve(matrix, np.ones(GRID))[0])


def _state(tested: CusumRun, metric: str, class_id: str, config: MonitorConfig, now_s: float) -> ClassTest:
    rows, design = tested.rows, tested.design
    recent = rows.loc[rows["validated_s"] >= now_s - config.recent_days * DAY_S, "right"]
    usual = rows["right"].head(tested.reference)
    complete = len(rows) >= config.reference_sequences
    state = ("alarm" if tested.in_alarm else "usual") if design else "undecidable" if complete else "reference"
    rates = (float(part.mean()) if len(part) else float("nan") for part in (usual, recent))
    usual_rate, recent_rate = rates
    return ClassTest(metric, class_id, config.drop_of(class_id), state, tested.reference, usual_rate, len(recent), recent_rate, design)

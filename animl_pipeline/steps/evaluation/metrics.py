"""Predictions → Metrics, and what they mean in plain words. Every figure is over the test split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.records import ClassScores, Metrics
from animl_pipeline.inference.scoring import probability_column
from animl_pipeline.steps.evaluation.bootstrap_intervals import Draws, interval, mean_of_held, rates

FEW_EXAMPLES = 30
"""Below, one example more or less moves recall by over three points."""

FEW_LOCATIONS = 3
"""Below, one odd background decides the class's figures."""


def metrics_of(scored: pd.DataFrame, ids: tuple[str, ...]) -> Metrics:
    """The scores of predictions; macro means are over the classes that the test set holds, a never-predicted class has precision 0.

    Average precision is one class against the rest, sklearn's step-wise sum over thresholds of (recall gained) x precision.
    Intervals are by bootstrap over places; see :mod:`animl_pipeline.steps.evaluation.bootstrap_intervals`.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix

    truth, predicted = scored["class_id"], scored["predicted"]
    draws = Draws(scored)
    confusions = draws.confusions(numbers(truth, ids), numbers(predicted, ids), len(ids))
    f1 = rates(confusions)[2]
    aps = np.stack([draws.average_precisions(scored[probability_column(c)].to_numpy(np.float64), (truth == c).to_numpy()) for c in ids], axis=1)
    classes = _class_scores(scored, ids, draws, confusions, aps)
    present = [c for c in classes if c.examples]
    hits = np.trace(confusions, axis1=1, axis2=2) / np.maximum(confusions.sum(axis=(1, 2)), 1)
    return Metrics(
        examples=len(scored),
        locations=_locations(scored),
        accuracy=float(accuracy_score(truth, predicted)),
        macro_precision=_mean([c.precision for c in present]),
        macro_recall=_mean([c.recall for c in present]),
        macro_f1=_mean([c.f1 for c in present]),
        macro_average_precision=_mean([c.average_precision for c in present if c.average_precision is not None]),
        classes=classes,
        confusion=tuple(tuple(int(n) for n in row) for row in confusion_matrix(truth, predicted, labels=list(ids))),
        accuracy_interval=interval(hits, draws.locations),
        macro_f1_interval=interval(mean_of_held(f1), draws.locations),
        macro_average_precision_interval=interval(mean_of_held(aps), draws.locations),
    )


def numbers(names: pd.Series[str], ids: tuple[str, ...]) -> NDArray[np.int64]:
    """Class numbers of class ids."""
    return np.asarray(names.map({c: i for i, c in enumerate(ids)}), np.int64)


def thin_classes(metrics: Metrics) -> tuple[ClassScores, ...]:
    """Classes of the test set with too few examples or places for their figures to be firm, fewest examples first."""
    thin = [c for c in metrics.classes if c.examples and (c.examples < FEW_EXAMPLES or c.locations < FEW_LOCATIONS)]
    return tuple(sorted(thin, key=lambda c: (c.examples, c.id)))


def absent_classes(metrics: Metrics) -> tuple[ClassScores, ...]:
    """Classes of which the test set holds no example."""
    return tuple(c for c in metrics.classes if not c.examples)


def headline(metrics: Metrics) -> str:
    """Three sentences for a biologist: the verdict, what it rests on, and how firm that is; without a verdict, how good the model is."""
    return " ".join(sentences(metrics))


def sentences(metrics: Metrics) -> tuple[str, str, str]:
    """The headline's three sentences."""
    if metrics.verdict is None:
        return how_good(metrics)
    return _what_to_do(metrics), _against_champion(metrics), _how_firm(metrics)


def how_good(metrics: Metrics) -> tuple[str, str, str]:
    """Three sentences: how good, which class is weakest and what it is taken for, on how much this rests."""
    return _how_good(metrics), _weakest(metrics), _how_firm(metrics)


VERDICTS = {"promote": "Promote", "hold": "Hold", "need_more_data": "Need more data"}


def _what_to_do(metrics: Metrics) -> str:
    more = len(metrics.reasons) - 1
    others = f" ({count(more, 'further reason')} below)" if more > 0 and metrics.verdict != "promote" else ""
    return f"{VERDICTS[metrics.verdict or 'hold']}: {metrics.reasons[0]}{others}."


def _against_champion(metrics: Metrics) -> str:
    c = metrics.comparison
    interval = ranged(metrics.macro_f1_interval)
    if c is None:
        return f"Its mean F1, every class counting alike, is {metrics.macro_f1:.2f}{interval}, and there is no released model to compare it with."
    return (
        f"On the same {count(c.examples, 'test example')} its mean F1, every class counting alike, is {c.macro_f1[1]:.2f}, the released model's "
        f"({c.champion}) {c.macro_f1[0]:.2f}: a change of {c.macro_f1_change:+.2f}{ranged(c.macro_f1_interval, sign=True)}."
    )


def ranged(ends: tuple[float, float] | None, *, sign: bool = False) -> str:
    """`` (95 % interval 0.60 to 0.70)``, or nothing."""
    if ends is None:
        return ""
    low, high = (f"{v:+.2f}" if sign else f"{v:.2f}" for v in ends)
    return f" (95 % interval {low} to {high})"


def _class_scores(
    scored: pd.DataFrame, ids: tuple[str, ...], draws: Draws, confusions: NDArray[np.float64], aps: NDArray[np.float64]
) -> tuple[ClassScores, ...]:
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    truth = scored["class_id"]
    precision, recall, f1, support = precision_recall_fscore_support(truth, scored["predicted"], labels=list(ids), zero_division=0.0)
    drawn = rates(confusions)
    known = []
    for i, c in enumerate(ids):
        ends = [interval(values[:, i], draws.locations_of((truth == c).to_numpy())) for values in (*drawn, aps)]
        known.append(
            ClassScores(
                id=c,
                examples=int(support[i]),
                locations=_locations(scored[truth == c]),
                precision=float(precision[i]),
                recall=float(recall[i]),
                f1=float(f1[i]),
                average_precision=float(average_precision_score(truth == c, scored[probability_column(c)])) if support[i] else None,
                precision_interval=ends[0],
                recall_interval=ends[1],
                f1_interval=ends[2],
                average_precision_interval=ends[3],
            )
        )
    return tuple(known)


def _locations(rows: pd.DataFrame) -> int:
    """How many places are known among the rows; an unknown one ("") is none."""
    return len(set(rows["location"]) - {""})


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _how_good(metrics: Metrics) -> str:
    right = sum(metrics.confusion[i][i] for i in range(len(metrics.classes)))
    where = (
        f"At {count(metrics.locations, 'camera location')} that it never saw in training"
        if metrics.locations
        else "On test pictures of unknown places"
    )
    return (
        f"{where}, the model names {right:,} of {count(metrics.examples, 'example')} correctly "
        f"({percent(metrics.accuracy)}); with every class counting alike, its mean F1 is {metrics.macro_f1:.2f}."
    )


def _weakest(metrics: Metrics) -> str:
    present = [(i, c) for i, c in enumerate(metrics.classes) if c.examples]
    i, worst = min(present, key=lambda pair: (pair[1].f1, pair[1].id))
    if worst.f1 == 1.0:
        return "It makes no mistake on this test set."
    missed = {c.id: metrics.confusion[i][j] for j, c in enumerate(metrics.classes) if j != i}
    false = {c.id: metrics.confusion[j][i] for j, c in enumerate(metrics.classes) if j != i}
    parts = []
    if (n := sum(missed.values())) > 0:
        which = f"all its {count(n, 'example')}" if n == worst.examples > 1 else f"{n:,} of its {count(worst.examples, 'example')}"
        parts.append(f"{which} {_be(n)} missed, {_mostly('called', missed)}")
    if sum(false.values()):
        parts.append(
            f"{count(sum(false.values()), 'example')} of other classes {_be(sum(false.values()))} wrongly called {worst.id}, {_mostly('', false)}"
        )
    return f"Its weakest class is {worst.id} (F1 {worst.f1:.2f}): {'; and '.join(parts)}."


def _mostly(verb: str, counts: dict[str, int]) -> str:
    """What most of the mistakes are: ``most often called fox (9)``, ``most often called bird or fox (2 each)``, ``all called fox``."""
    most, total = max(counts.values()), sum(counts.values())
    names = sorted(c for c, n in counts.items() if n == most)
    if most == total:
        return " ".join(filter(None, ["all" if total > 1 else "", verb or "of class", names[0]]))
    each = f"{most:,} each" if len(names) > 1 else f"{most:,}"
    return " ".join(filter(None, ["most often", verb, f"{some(names, last='or')} ({each})"]))


def _how_firm(metrics: Metrics) -> str:
    base = f"This rests on {count(metrics.examples, 'test example')} from {count(metrics.locations, 'camera location')}"
    thin, absent = thin_classes(metrics), absent_classes(metrics)
    if not thin and not absent:
        return f"{base}, with at least {FEW_EXAMPLES} examples and {FEW_LOCATIONS} places of every class."
    parts = [base]
    if thin:
        named = some([f"{c.id} ({count(c.examples, 'example')} from {count(c.locations, 'place')})" for c in thin])
        parts.append(f", which is few for {named}: take {'its' if len(thin) == 1 else 'their'} figures as hints")
    if absent:
        has, them = ("has", "it") if len(absent) == 1 else ("have", "them")
        parts.append(f"; {some([c.id for c in absent])} {has} no test example at all, so nothing is known of {them}")
    return f"{''.join(parts)}."


def some(items: Sequence[str], most: int = 4, last: str = "and") -> str:
    """``a, b and c``; of a long list the first few and how many more there are."""
    if len(items) > most:
        return f"{', '.join(items[:most])} {last} {len(items) - most} more"
    return f" {last} ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def count(n: int, noun: str) -> str:
    """``1 place``, ``1,200 places``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def percent(share: float) -> str:
    """A share in whole per cent, never rounded up to 100 or down to 0."""
    if 0.995 <= share < 1:
        return "over 99 %"
    if 0 < share < 0.005:
        return "under 1 %"
    return f"{share * 100:.0f} %"


def _be(n: int) -> str:
    return "is" if n == 1 else "are"

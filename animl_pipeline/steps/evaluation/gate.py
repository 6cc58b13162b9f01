"""The gate: whether the model may be released, by the plan's rules, with the reasons in words."""

from __future__ import annotations

from animl_pipeline.config import GateConfig
from animl_pipeline.core.records import ClassComparison, ClassScores, Comparison, Metrics, Verdict
from animl_pipeline.steps.evaluation.metrics import count, ranged, some


def judged(metrics: Metrics, gate: GateConfig, invasive: tuple[str, ...], unreadable: str = "") -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons, the weightiest first.

    ``hold``: a rule is broken. ``need_more_data``: none is, but the test set is too small to say so. ``promote``: neither. The rules
    look at the figures themselves; an interval that holds 0 makes a fall no smaller, but the reason says that it may be chance.

    Args:
        metrics: the scores, with the comparison where there is a champion.
        gate: the plan's rules.
        invasive: the classes that must not be missed.
        unreadable: why the released model could not be asked, where it could not.
    """
    broken = [*_invaders(metrics.comparison, gate, invasive), *_whole(metrics, gate)]
    if unreadable:
        broken.append(f"the released model could not be asked, so nothing is known of what would be lost: {unreadable}")
    thin = _thin(metrics, gate)
    if broken:
        return "hold", (*broken, *thin)
    if thin:
        return "need_more_data", thin
    return "promote", _good(metrics, gate, invasive)


def _invaders(comparison: Comparison | None, gate: GateConfig, invasive: tuple[str, ...]) -> list[str]:
    """What is lost of invasive classes, the worst loss first."""
    if comparison is None:
        return []
    gone = [f"the released model knows the invasive class {c}, this one does not" for c in comparison.gone_invasive]
    lost = []
    for d in (d for d in comparison.classes if d.id in invasive):
        if d.recall_change < -gate.max_invasive_recall_drop:
            lost.append((d.recall_change, _fallen(d, d.recall, d.recall_interval, "", gate)))
        elif d.named is not None and d.named[1] - d.named[0] < -gate.max_invasive_recall_drop:
            lost.append((d.named[1] - d.named[0], _fallen(d, d.named, d.named_interval, " at its threshold", gate)))
    return gone + [reason for _, reason in sorted(lost)]


def _fallen(d: ClassComparison, recall: tuple[float, float], ends: tuple[float, float] | None, how: str, gate: GateConfig) -> str:
    missed = round((1 - recall[1]) * d.examples)
    return (
        f"it misses the invasive class {d.id}: its recall{how} fell from the released model's {recall[0]:.2f} to {recall[1]:.2f} "
        f"({missed:,} of {count(d.examples, 'test example')} missed), a change of {recall[1] - recall[0]:+.2f}{_sure(ends)} where at most "
        f"-{gate.max_invasive_recall_drop:.2f} is allowed"
    )


def _whole(metrics: Metrics, gate: GateConfig) -> list[str]:
    reasons = []
    c = metrics.comparison
    if c is not None and c.macro_f1_change < -gate.max_macro_f1_drop:
        reasons.append(
            f"its mean F1 fell from the released model's {c.macro_f1[0]:.2f} to {c.macro_f1[1]:.2f}, a change of {c.macro_f1_change:+.3f}"
            f"{_sure(c.macro_f1_interval)} where at most -{gate.max_macro_f1_drop:.3f} is allowed"
        )
    if metrics.macro_f1 < gate.min_macro_f1:
        reasons.append(f"its mean F1 is {metrics.macro_f1:.2f}, and the plan asks for at least {gate.min_macro_f1:.2f}")
    return reasons


def _sure(ends: tuple[float, float] | None) -> str:
    """An interval of a change, and whether it may be chance."""
    if ends is None:
        return " (one place only, so it may be chance)"
    return f"{ranged(ends, sign=True)[:-1]}, so it may be chance)" if ends[1] >= 0 else ranged(ends, sign=True)


def _thin(metrics: Metrics, gate: GateConfig) -> tuple[str, ...]:
    """One reason that names every class with too few test examples or places."""
    thin = sorted((c for c in metrics.classes if _is_thin(c, gate)), key=lambda c: (c.examples, c.locations, c.id))
    if not thin:
        return ()
    named = some([f"{c.id} ({count(c.examples, 'example')} from {count(c.locations, 'place')})" for c in thin])
    return (
        f"the test set is too small to judge {named}, where the plan asks for {count(gate.min_examples, 'example')} from "
        f"{count(gate.min_locations, 'place')} of every class",
    )


def _is_thin(c: ClassScores, gate: GateConfig) -> bool:
    return c.examples < gate.min_examples or c.locations < gate.min_locations


def _good(metrics: Metrics, gate: GateConfig, invasive: tuple[str, ...]) -> tuple[str, ...]:
    c = metrics.comparison
    enough = f"every class has at least {count(gate.min_examples, 'test example')} from {count(gate.min_locations, 'place')}"
    if c is None:
        return ("it is the first model for its endpoint, and no rule of the plan's gate is broken", enough)
    known = [d.id for d in c.classes if d.id in invasive]
    kept = f" and no invasive class ({some(known)}) lost more than {gate.max_invasive_recall_drop:.2f} of its recall" if known else ""
    return (f"its mean F1 did not fall by more than {gate.max_macro_f1_drop:.2f} against the released model{kept}", enough)

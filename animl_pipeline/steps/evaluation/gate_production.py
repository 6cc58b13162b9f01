"""The gate's rules for the score of production: sequences of images, with detector, classifier and thresholds together."""

from __future__ import annotations

from animl_pipeline.config import GateConfig
from animl_pipeline.core.evaluation_results import Interval, ProductionComparison, ProductionScore, SequenceScores
from animl_pipeline.steps.evaluation.report_wording import describe_misses, format_interval, format_sequences, join_words


def broken_production_rules(production: ProductionScore, gate: GateConfig, invasive: tuple[str, ...]) -> list[str]:
    """The rules that the model breaks, the most important first: invasive classes missed, lowest mean F1, false alarms, fall of the mean F1."""
    compared = production.comparison
    lost = _lost_invasive_classes(compared, gate, invasive) if compared else []
    low = _low_mean_f1(production, gate)
    few = [_describe_low_recall(c, gate) for c in production.classes if c.id in invasive and _is_missed_too_often(c, gate)]
    more = _more_false_alarms(compared, gate) if compared else []
    many = _too_many_false_alarms(production, gate)
    fallen = _fallen_mean_f1(compared, gate) if compared else []
    return [*few, *lost, *low, *many, *more, *fallen]


def reasons_to_promote_production(production: ProductionScore, gate: GateConfig, invasive: tuple[str, ...]) -> tuple[str, ...]:
    """Why the model may be released, in two sentences: what it finds, and what it raises falsely, beside the released model."""
    compared = production.comparison
    if compared is None:
        return ()
    before, after = compared.macro_f1
    found = [c for c in production.classes if c.id in invasive and c.recall is not None]
    finds = f"; it finds {join_words([f'{c.found():,.0f} of {format_sequences(c.sequences)} with {c.id}' for c in found])}" if found else ""
    alarms = compared.false_alarms_per_1000_empty
    falsely = f", and labels {alarms[1]:.0f} of 1,000 empty sequences (the released model: {alarms[0]:.0f})" if alarms else ""
    return (f"scored as in production, its mean F1 is {after:.2f} and the released model's {before:.2f}{falsely}{finds}",)


def describe_drop(interval: Interval | None) -> str:
    """The interval of a drop, and whether the drop may be chance."""
    if interval is None:
        return " (one location only, so it may be chance)"
    text = format_interval(interval, sign=True)
    return f"{text[:-1]}, so it may be chance)" if interval[1] >= 0 else text


def _is_missed_too_often(c: SequenceScores, gate: GateConfig) -> bool:
    recall, least = c.noticed_recall(), gate.min_invasive_sequence_recall
    if recall is None:
        return False
    return recall == 0 if least is None else recall < least


def _describe_low_recall(c: SequenceScores, gate: GateConfig) -> str:
    noticed = f"; {c.found() - c.hits:,.0f} of these were found as {c.parent}" if c.found() > c.hits else ""
    least = gate.min_invasive_sequence_recall
    number = f"only {c.found():,.0f}" if c.found() else "none"
    aim = "" if least is None else f"; the plan asks for a share of at least {least:.2f}"
    return (
        f"scored as in production, it finds {number} of {format_sequences(c.sequences)} with the invasive class {c.id} "
        f"({describe_misses(c)}{noticed}){aim}"
    )


def _low_mean_f1(production: ProductionScore, gate: GateConfig) -> list[str]:
    mean = production.macro_f1()
    if mean is None or mean >= gate.min_macro_f1:
        return []
    return [
        f"scored as in production, its mean F1 is {mean:.2f}{format_interval(production.macro_f1_interval)}; the plan asks for at least "
        f"{gate.min_macro_f1:.2f}; of {format_sequences(sum(c.sequences for c in production.classes))} with animals, "
        f"{describe_misses(*production.classes)}"
    ]


def _lost_invasive_classes(compared: ProductionComparison, gate: GateConfig, invasive: tuple[str, ...]) -> list[str]:
    """Invasive classes of which the champion finds more sequences, the largest loss first."""
    lost = []
    for c in (c for c in compared.classes if c.id in invasive and c.recall is not None):
        before, after = c.noticed or c.recall or (0.0, 0.0)
        interval = c.noticed_interval if c.noticed else c.recall_interval
        if after - before < -gate.max_invasive_recall_drop:
            reason = (
                f"it misses more of the invasive class {c.id} than the released model: of {format_sequences(c.sequences)} with it, the share that is "
                f"found fell from {before:.2f} to {after:.2f}, a change of {after - before:+.2f}{describe_drop(interval)}; "
                f"the plan allows {-gate.max_invasive_recall_drop:.2f}"
            )
            lost.append((after - before, reason))
    return [reason for _, reason in sorted(lost)]


def _too_many_false_alarms(production: ProductionScore, gate: GateConfig) -> list[str]:
    limit, found = gate.max_false_alarms_per_1000_empty, production.false_alarms_per_1000_empty
    if limit is None or found is None or found <= limit:
        return []
    return [f"scored as in production, it labels {found:.0f} of 1,000 empty sequences; the plan allows {limit:g}"]


def _more_false_alarms(compared: ProductionComparison, gate: GateConfig) -> list[str]:
    alarms = compared.false_alarms_per_1000_empty
    if alarms is None or alarms[1] - alarms[0] <= gate.max_false_alarm_rise_per_1000_empty:
        return []
    interval = compared.false_alarms_interval
    chance = "" if interval is None or interval[0] > 0 else ", which may be chance"
    return [
        f"it labels more empty sequences than the released model: {alarms[1]:.0f} of 1,000, and the released model {alarms[0]:.0f}{chance}; "
        f"the plan allows {gate.max_false_alarm_rise_per_1000_empty:g} more"
    ]


def _fallen_mean_f1(compared: ProductionComparison, gate: GateConfig) -> list[str]:
    before, after = compared.macro_f1
    if after - before >= -gate.max_macro_f1_drop:
        return []
    return [
        f"scored as in production, its mean F1 fell from {before:.2f} to {after:.2f}, a change of {after - before:+.3f}"
        f"{describe_drop(compared.macro_f1_interval)}; the plan allows {-gate.max_macro_f1_drop:.3f}"
    ]

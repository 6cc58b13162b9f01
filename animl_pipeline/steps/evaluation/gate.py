"""The gate: whether a model may be released by the plan's rules, with the reasons in words."""

from __future__ import annotations

from animl_pipeline.config import GateConfig
from animl_pipeline.core.evaluation_results import ClassComparison, Interval, Metrics, ProductionComparison, ProductionScore, SequenceScores, Verdict
from animl_pipeline.core.report_formats import format_count
from animl_pipeline.steps.evaluation.report_wording import describe_misses, format_interval, format_sequences, join_words


def decide_verdict(
    metrics: Metrics, gate: GateConfig, invasive: tuple[str, ...], comparison_error: str = "", champion_problem: str = ""
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons, the most important first.

    ``hold``: the model breaks a rule, or the released model is not known. ``need_more_data``: it breaks none, but the test set is too
    small, or too little of it could be compared. ``promote``: otherwise. The rules look at the scores themselves, not at their
    intervals. If an interval includes 0, the reason says that the change may be chance.

    ``comparison_error``: why the champion could not be compared; "" if it could or if there is none. ``champion_problem``: why it is not
    certain which model is the champion; "" if it is certain.
    """
    broken = _removed_invasive_classes(metrics)
    if metrics.production is not None:
        broken += broken_production_rules(metrics.production, gate, invasive)
    else:
        broken += [*_lost_invasive_classes(metrics, gate, invasive), *_fallen_mean_f1(metrics, gate)]
    if metrics.macro_f1 < gate.min_macro_f1:
        broken.append(f"its mean F1 on crops is {metrics.macro_f1:.2f}; the plan asks for at least {gate.min_macro_f1:.2f}")
    if comparison_error:
        broken.append(f"the released model could not be compared with it: {comparison_error}")
    if champion_problem:
        broken.append(f"it is not certain which model is released: {champion_problem}")
    too_small = (*_no_sequences(metrics), *_too_little_compared(metrics, gate), *_too_small_test_set(metrics, gate))
    if broken:
        return "hold", (*broken, *too_small)
    if too_small:
        return "need_more_data", too_small
    return "promote", _reasons_to_promote(metrics, gate, invasive)


def _removed_invasive_classes(metrics: Metrics) -> list[str]:
    removed = metrics.comparison.removed_invasive if metrics.comparison else ()
    return [f"the released model knows the invasive class {c} and this model does not" for c in removed]


def _lost_invasive_classes(metrics: Metrics, gate: GateConfig, invasive: tuple[str, ...]) -> list[str]:
    """Invasive classes that the champion finds better on crops, the largest loss first."""
    if metrics.comparison is None:
        return []
    lost = []
    for c in (c for c in metrics.comparison.classes if c.id in invasive):
        limit = -gate.max_invasive_recall_drop
        at_threshold = c.recall_at_threshold
        if c.recall_change < limit:
            lost.append((c.recall_change, _describe_recall_drop(c, c.recall, c.recall_interval, "", limit)))
        elif at_threshold is not None and (change := at_threshold[1] - at_threshold[0]) < limit:
            lost.append((change, _describe_recall_drop(c, at_threshold, c.recall_at_threshold_interval, " at its threshold", limit)))
    return [reason for _, reason in sorted(lost)]


def _describe_recall_drop(c: ClassComparison, recall: tuple[float, float], interval: Interval | None, where: str, limit: float) -> str:
    missed = round((1 - recall[1]) * c.examples)
    return (
        f"it misses more of the invasive class {c.id} than the released model: recall{where} fell from {recall[0]:.2f} to {recall[1]:.2f} "
        f"({missed:,} of {format_count(c.examples, 'test example')} missed), a change of {recall[1] - recall[0]:+.2f}{describe_drop(interval)}; "
        f"the plan allows {limit:.2f}"
    )


def _fallen_mean_f1(metrics: Metrics, gate: GateConfig) -> list[str]:
    c = metrics.comparison
    if c is None or c.macro_f1_change >= -gate.max_macro_f1_drop:
        return []
    return [
        f"its mean F1 is lower than the released model's: it fell from {c.macro_f1[0]:.2f} to {c.macro_f1[1]:.2f}, a change of "
        f"{c.macro_f1_change:+.3f}{describe_drop(c.macro_f1_interval)}; the plan allows {-gate.max_macro_f1_drop:.3f}"
    ]


def _no_sequences(metrics: Metrics) -> tuple[str, ...]:
    production = metrics.production
    if production is None or production.macro_f1() is not None:
        return ()
    if production.sequences:
        return ("no sequence of the test locations shows an animal of the plan's classes, so nothing could be scored as in production",)
    return ("no image of the test locations could be scored as in production: none is completely reviewed, downloaded and readable",)


def _too_little_compared(metrics: Metrics, gate: GateConfig) -> tuple[str, ...]:
    """One reason if both models know the classes of hardly any test crop, so that the comparison says nothing."""
    c = metrics.comparison
    if c is None or (c.examples >= max(1, gate.min_examples) and c.locations >= min(metrics.locations, max(1, gate.min_locations))):
        return ()
    return (
        f"only {format_count(c.examples, 'test crop')} from {format_count(c.locations, 'location')} could be compared with the released model, "
        f"because the other {c.left_out:,} are of classes that it does not know",
    )


def _too_small_test_set(metrics: Metrics, gate: GateConfig) -> tuple[str, ...]:
    """One reason that names every class with too few test examples or locations."""
    few = [c for c in metrics.classes if c.examples < gate.min_examples or c.locations < gate.min_locations]
    if not few:
        return ()
    few.sort(key=lambda c: (c.examples, c.locations, c.id))
    names = join_words([f"{c.id} ({format_count(c.examples, 'example')} from {format_count(c.locations, 'location')})" for c in few])
    return (
        f"the test set has too few examples of {names}; the plan asks for {format_count(gate.min_examples, 'example')} from "
        f"{format_count(gate.min_locations, 'location')} of every class",
    )


def _reasons_to_promote(metrics: Metrics, gate: GateConfig, invasive: tuple[str, ...]) -> tuple[str, ...]:
    c = metrics.comparison
    enough = f"every class has at least {format_count(gate.min_examples, 'test example')} from {format_count(gate.min_locations, 'location')}"
    if metrics.production is not None and metrics.production.comparison is not None:
        return (*reasons_to_promote_production(metrics.production, gate, invasive), enough)
    if c is None:
        first = f"is the first {'by the plan (gate.first_model)' if gate.first_model else 'that is released from this store'}"
        return (f"it breaks no rule of the plan and {first}", enough)
    compared = [d.id for d in c.classes if d.id in invasive]
    recall = f", and no invasive class ({join_words(compared)}) lost more than {gate.max_invasive_recall_drop:.2f} of its recall" if compared else ""
    return (f"its mean F1 did not fall by more than {gate.max_macro_f1_drop:.2f} against the released model{recall}", enough)


def broken_production_rules(production: ProductionScore, gate: GateConfig, invasive: tuple[str, ...]) -> list[str]:
    """The rules that the model breaks, the most important first: invasive classes missed, lowest mean F1, false alarms, fall of the mean F1."""
    compared = production.comparison
    lost = _invasive_classes_lost_in_production(compared, gate, invasive) if compared else []
    low = _low_mean_f1_in_production(production, gate)
    few = [_describe_low_recall(c, gate) for c in production.classes if c.id in invasive and _is_missed_too_often(c, gate)]
    more = _more_false_alarms(compared, gate) if compared else []
    many = _too_many_false_alarms(production, gate)
    fallen = _fallen_mean_f1_in_production(compared, gate) if compared else []
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


def _low_mean_f1_in_production(production: ProductionScore, gate: GateConfig) -> list[str]:
    mean = production.macro_f1()
    if mean is None or mean >= gate.min_macro_f1:
        return []
    return [
        f"scored as in production, its mean F1 is {mean:.2f}{format_interval(production.macro_f1_interval)}; the plan asks for at least "
        f"{gate.min_macro_f1:.2f}; of {format_sequences(sum(c.sequences for c in production.classes))} with animals, "
        f"{describe_misses(*production.classes)}"
    ]


def _invasive_classes_lost_in_production(compared: ProductionComparison, gate: GateConfig, invasive: tuple[str, ...]) -> list[str]:
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


def _fallen_mean_f1_in_production(compared: ProductionComparison, gate: GateConfig) -> list[str]:
    before, after = compared.macro_f1
    if after - before >= -gate.max_macro_f1_drop:
        return []
    return [
        f"scored as in production, its mean F1 fell from {before:.2f} to {after:.2f}, a change of {after - before:+.3f}"
        f"{describe_drop(compared.macro_f1_interval)}; the plan allows {-gate.max_macro_f1_drop:.3f}"
    ]

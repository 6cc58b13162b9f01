"""The sentences of the report: headline, performance, test set; and how numbers are written."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from animl_pipeline.core.evaluation_results import (
    AutoAccept,
    AutoAcceptClass,
    ClassScores,
    FalseBoxScores,
    Interval,
    Metrics,
    ProductionScore,
    SequenceScores,
    Threshold,
)
from animl_pipeline.core.report_formats import format_count, format_percent

FEW_EXAMPLES = 30
"""With fewer examples, one example more or less changes recall by over three points."""
FEW_LOCATIONS = 3
"""With fewer locations, one unusual background decides the scores of the class."""
MANY_FALSE_ALARMS = 100.0
"""False alarms per 1,000 test crops of other classes; with more, people would stop looking at a class's labels."""
VERDICTS = {"promote": "Promote", "hold": "Hold", "need_more_data": "Need more data"}
_ADVICE = {
    "promote": "you can deploy this model, because",
    "hold": "do not deploy this model, because",
    "need_more_data": "do not deploy this model yet, because",
}


def classes_with_few_examples(metrics: Metrics) -> tuple[ClassScores, ...]:
    """Classes with too few test examples or locations for reliable scores, fewest examples first. Classes without examples are not among them."""
    few = [c for c in metrics.classes if c.examples and (c.examples < FEW_EXAMPLES or c.locations < FEW_LOCATIONS)]
    return tuple(sorted(few, key=lambda c: (c.examples, c.id)))


def classes_without_examples(metrics: Metrics) -> tuple[ClassScores, ...]:
    """Classes without a test example."""
    return tuple(c for c in metrics.classes if not c.examples)


def write_headline(metrics: Metrics) -> str:
    """Three sentences for a biologist: the verdict, the comparison, how much data this is based on. Without a verdict, how good the model is."""
    return " ".join(headline_sentences(metrics))


def headline_sentences(metrics: Metrics) -> tuple[str, str, str]:
    """The three sentences of the headline."""
    if metrics.verdict is None:
        return describe_performance(metrics)
    return _describe_verdict(metrics), _describe_comparison(metrics), _describe_test_set(metrics)


def describe_performance(metrics: Metrics) -> tuple[str, str, str]:
    """Three sentences: how good the model is, its weakest class, how much data this is based on."""
    return _describe_accuracy(metrics), _describe_weakest_class(metrics), _describe_test_set(metrics)


def _describe_verdict(metrics: Metrics) -> str:
    verdict = metrics.verdict or "hold"
    more = len(metrics.reasons) - 1
    others = f" ({format_count(more, 'more reason')} below)" if more > 0 and verdict != "promote" else ""
    return f"{VERDICTS[verdict]}: {_ADVICE[verdict]} {metrics.reasons[0]}{others}."


def _describe_comparison(metrics: Metrics) -> str:
    c = metrics.comparison
    p = metrics.production.comparison if metrics.production else None
    if p is not None and c is not None:
        before, after = p.macro_f1
        return (
            f"Scored as in production on the same sequences, its mean F1 over all classes is {after:.2f} and the released model's ({c.champion}) is "
            f"{before:.2f}, a change of {after - before:+.2f}{format_interval(p.macro_f1_interval, sign=True)}."
        )
    if c is None:
        return f"Its mean F1 over all classes is {_describe_mean_f1(metrics)}; there is no released model to compare with."
    return (
        f"On the same {format_count(c.examples, 'test crop')}, its mean F1 over all classes is {c.macro_f1[1]:.2f} and the released model's "
        f"({c.champion}) is {c.macro_f1[0]:.2f}, a change of {c.macro_f1_change:+.2f}{format_interval(c.macro_f1_interval, sign=True)}."
    )


def _describe_mean_f1(metrics: Metrics) -> str:
    """``0.98 (95 % interval …) on crops and 0.82 (…) as in production``."""
    on_crops = f"{metrics.macro_f1:.2f}{format_interval(metrics.macro_f1_interval)} on crops"
    mean = metrics.production.macro_f1() if metrics.production else None
    if metrics.production is None or mean is None:
        return on_crops
    return f"{on_crops} and {mean:.2f}{format_interval(metrics.production.macro_f1_interval)} as in production"


def _describe_accuracy(metrics: Metrics) -> str:
    right = sum(metrics.confusion[i][i] for i in range(len(metrics.classes)))
    where = f"At {format_count(metrics.locations, 'camera location')} that it never saw in training" if metrics.locations else "At unknown locations"
    return (
        f"{where}, the model names {right:,} of {format_count(metrics.examples, 'test crop')} correctly ({format_percent(metrics.accuracy)}); "
        f"its mean F1 over all classes is {metrics.macro_f1:.2f} on crops."
    )


def _describe_weakest_class(metrics: Metrics) -> str:
    i, worst = min(((i, c) for i, c in enumerate(metrics.classes) if c.examples), key=lambda pair: (pair[1].f1, pair[1].id))
    if worst.f1 == 1.0:
        return "It makes no mistake on this test set."
    called = {c: metrics.confusion[i][j] for j, c in enumerate(metrics.outputs()) if j != i}
    are_really = {c.id: metrics.confusion[j][i] for j, c in enumerate(metrics.classes) if j != i}
    missed, false = sum(called.values()), sum(are_really.values())
    parts = []
    if missed:
        of = f"all {format_count(missed, 'example')}" if missed == worst.examples > 1 else f"{missed:,} of {format_count(worst.examples, 'example')}"
        parts.append(f"{of} {'is' if missed == 1 else 'are'} missed and {_most_frequent(called)}")
    if false:
        parts.append(
            f"{format_count(false, 'example')} of other classes {'is' if false == 1 else 'are'} called {worst.id}: {_list_counts(are_really)}"
        )
    return f"Its weakest class is {worst.id} (F1 {worst.f1:.2f}): {'; '.join(parts)}."


def _most_frequent(called: dict[str, int]) -> str:
    """``called fox``, ``most often called fox (9)``, ``most often called bird or fox (2 each)``."""
    most = max(called.values())
    names = sorted(c for c, n in called.items() if n == most)
    if most == sum(called.values()):
        return f"called {names[0]}"
    return f"most often called {join_words(names, last='or')} ({most:,}{' each' if len(names) > 1 else ''})"


def _list_counts(counts: dict[str, int]) -> str:
    """``fox (9) and bird (2)``, the most frequent first."""
    return join_words([f"{c} ({n:,})" for c, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n])


def _describe_test_set(metrics: Metrics) -> str:
    base = f"The test set has {format_count(metrics.examples, 'example')} from {format_count(metrics.locations, 'camera location')}"
    few, absent = classes_with_few_examples(metrics), classes_without_examples(metrics)
    if not few and not absent:
        return f"{base}, with at least {FEW_EXAMPLES} examples and {FEW_LOCATIONS} locations of every class."
    if few:
        names = join_words([f"{c.id} ({format_count(c.examples, 'example')} from {format_count(c.locations, 'location')})" for c in few])
        base += f"; it has few of {names}, so {'this score is' if len(few) == 1 else 'these scores are'} uncertain"
    if absent:
        base += f"; it has no example of {join_words([c.id for c in absent])}, so nothing is known of {'it' if len(absent) == 1 else 'them'}"
    return f"{base}."


def describe_false_alarms(production: ProductionScore) -> str:
    """The false alarms of all classes together: of the empty sequences that were seen, of 1,000, and in a week."""
    per_1000, per_week = production.false_alarms_per_1000_empty, production.false_alarms_per_week
    if per_1000 is None:
        return "People called no sequence of the test locations empty, so false alarms on empty images are not known."
    week = ""
    if per_week is not None:
        many = f"about {per_week:,.0f}" if per_week >= 1 else "less than 1"
        week = f"; with sequences of other animals, this is {many} false alarm{'' if per_week < 1.5 else 's'} a week at these locations"
    seen = round(production.empty_sequences)
    labelled = round(per_1000 * production.empty_sequences / 1000)
    gets = "gets" if labelled == 1 else "get"
    return f"Of {format_count(seen, 'empty sequence')}, {labelled:,} {gets} a label of an animal ({per_1000:,.0f} of 1,000){week}."


def describe_nothing(metrics: Metrics, invasive: Collection[str]) -> tuple[str, ...]:
    """What the class for false boxes saves and costs, in sentences; none if the model has no such class."""
    found, effect = metrics.nothing, metrics.production.nothing if metrics.production else None
    if found is None:
        return ()
    sentences = [
        f"The model has a class for false boxes, {found.id}, which Animl never shows. Of {_format_false_boxes(found)} in the test set, "
        f"{found.recognised:,} {'is' if found.recognised == 1 else 'are'} recognised; of {format_count(metrics.examples, 'animal')}, "
        f"{found.animals:,} {'is' if found.animals == 1 else 'are'} taken for one."
    ]
    if effect is not None and effect.false_alarms_per_1000_empty is not None:
        without, with_it = effect.false_alarms_per_1000_empty
        interval = format_interval(effect.false_alarms_interval, sign=True, digits=0)
        sentences.append(
            f"It saves: of 1,000 empty sequences, {with_it:,.0f} get a label; without this class {without:,.0f} would, "
            f"a change of {with_it - without:+,.0f}{interval}."
        )
    elif effect is not None:
        sentences.append("What it saves is not known: no sequence of the test locations is empty.")
    shown = [c for c in effect.classes if c.id in invasive or not invasive] if effect is not None else []
    changes = [
        f"of the sequences with {c.id}, {c.recall[0]:.2f} are found without it and {c.recall[1]:.2f} with it, "
        f"a change of {c.recall[1] - c.recall[0]:+.2f}{format_interval(c.recall_interval, sign=True)}"
        for c in shown
        if c.recall is not None
    ]
    if changes:
        sentences.append(f"It costs, at the same thresholds: {'; '.join(changes)}.")
    return tuple(sentences)


def describe_other_animal(metrics: Metrics) -> tuple[str, ...]:
    """What becomes of animals of no class of the plan, in sentences; none if the model has no class for them."""
    found = metrics.other_animal
    if found is None:
        return ()
    shown = "Animl shows" if any(t.id == found.id for t in metrics.thresholds) else "Animl does not show"
    sentences = [
        f"The model has a class for other animals, {found.id}, which {shown}. Of {format_count(found.examples, 'other animal')} from "
        f"{format_count(found.locations, 'location')} in the test set, {found.recognised:,} {'is' if found.recognised == 1 else 'are'} recognised. "
        f"Of {format_count(metrics.examples, 'animal')} of the plan, {found.animals:,} {'is' if found.animals == 1 else 'are'} taken for one."
    ]
    if found.called:
        sentences.append(f"The other animals that are not recognised are called {_list_counts(found.called)}.")
    return tuple(sentences)


def _format_false_boxes(found: FalseBoxScores) -> str:
    return f"{found.examples:,} false box{'' if found.examples == 1 else 'es'}"


def describe_production(c: SequenceScores) -> str:
    """One class in words, such as: Of 41 sequences with rat, 38 were found; the detector missed 2 and the model 1."""
    if c.hits == c.sequences:
        return f"All {format_sequences(c.sequences)} with {c.id} were found." if c.sequences != 1 else f"The only sequence with {c.id} was found."
    found = f"Of {format_sequences(c.sequences)} with {c.id}, {c.hits:,.0f} {'was' if c.hits == 1 else 'were'} found; {describe_misses(c)}."
    if c.found() == c.hits:
        return found
    noticed, by_parent = c.found(), c.found() - c.hits
    return f"{found} With {c.parent}, {noticed:,.0f} {'was' if noticed == 1 else 'were'} noticed, of which {by_parent:,.0f} only as {c.parent}."


def describe_misses(*classes: SequenceScores) -> str:
    """The causes of misses of these classes together, such as: the detector missed 2 and the model 3; "" where nothing was missed."""
    causes = {"detector": "missed_by_detector", "threshold": "missed_by_threshold", "model": "missed_by_classifier"}
    missed = [(n, name) for name, cause in causes.items() if (n := sum(getattr(c, cause) for c in classes))]
    return join_words([f"the {name} {'missed ' if i == 0 else ''}{n:,.0f}" for i, (n, name) in enumerate(missed)]) if missed else ""


def describe_auto_accepts(found: AutoAccept) -> list[str]:
    """A sentence for each class; one sentence for all of them where the test set has too few locations for any answer."""
    candidates = [c for c in found.classes if c.answer != "always_review"]
    if not candidates or any(c.answer not in {"too_few_locations", "no_images"} for c in candidates):
        return [describe_auto_accept(found, c) for c in found.classes]
    best = max(candidates, key=lambda c: c.locations)
    most = f", of which {best.locations:,} have such images of {best.id}" if best.locations else ""
    lowest = (
        f" No limit below {format_per_1000(best.lowest_limit_per_1000)} of 1,000 can be shown with so many." if best.lowest_limit_per_1000 else ""
    )
    return [
        f"Cannot say for any class: a limit of {found.max_invasive_per_1000:g} of 1,000 takes such images from at least "
        f"{found.locations_needed:,} test locations, and the test set has {found.locations:,}{most}.{lowest}"
    ]


def describe_auto_accept(found: AutoAccept, c: AutoAcceptClass) -> str:
    """From which probability on images of a class may go without review, or why that is not known."""
    if c.answer == "always_review":
        return f"Always review {c.id}: it is invasive."
    if c.answer == "no_images":
        return f"{c.id}: cannot say, because no image with a box shows {c.id} alone with a probability of at least 0.5."
    limit = f"{found.max_invasive_per_1000:g} of 1,000"
    if c.answer == "too_few_locations":
        lowest = format_per_1000(c.lowest_limit_per_1000 or 0.0)
        return (
            f"{c.id}: cannot say, because such images come from {format_count(c.locations, 'location')} only. A limit of {limit} takes at least "
            f"{found.locations_needed:,}; {c.locations:,} can show no limit below {lowest} of 1,000."
        )
    p = c.point or c.points[-1]
    seen = f"{p.skipped_with_invasive:,.0f} of {format_count(round(p.skipped), 'image')} from {format_count(p.locations, 'location')}"
    if c.answer == "too_risky":
        bound = f"at a mean location it may be {format_per_1000(p.bound_per_1000)} of 1,000"
        why = bound if p.bound_per_1000 > found.max_invasive_per_1000 else f"over all images this is more than {limit}"
        return f"{c.id}: cannot say. At {p.threshold:g}, {seen} hold an invasive animal; {why}."
    return (
        f"{c.id}: images with {c.id} alone at {p.threshold:g} or above need no review. With {format_percent(found.confidence)} confidence, at most "
        f"{limit} of them hold an invasive animal at a mean location (on the test set: {seen}). This saves {format_percent(p.work_saved)} of the "
        "review."
    )


def format_per_1000(value: float) -> str:
    """A number of 1,000 with two digits, or without decimals from 10 on."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def format_sequences(n: float) -> str:
    """``1 sequence``, ``1,200 sequences``; a weighted number is rounded."""
    return format_count(round(n), "sequence")


def format_interval(interval: Interval | None, *, sign: bool = False, digits: int = 2) -> str:
    """`` (95 % interval 0.60 to 0.70)``; "" for None."""
    if interval is None:
        return ""
    low, high = (f"{v:{'+' if sign else ''}.{digits}f}" for v in interval)
    return f" (95 % interval {low} to {high})"


def join_words(items: Sequence[str], most: int = 4, last: str = "and") -> str:
    """``a, b and c``; of a long list the first few and how many more there are."""
    if len(items) > most:
        return f"{', '.join(items[:most])} {last} {len(items) - most} more"
    return f" {last} ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def classes_with_many_false_alarms(thresholds: Sequence[Threshold]) -> list[str]:
    """The invasive classes whose thresholds raise more than ``MANY_FALSE_ALARMS`` false alarms per 1,000 crops of the test set."""
    return [t.id for t in thresholds if t.group == "invasive" and t.test and t.test.false_alarms_per_1000 > MANY_FALSE_ALARMS]


def describe_many_false_alarms(thresholds: Sequence[Threshold]) -> tuple[str, ...]:
    """A sentence for the verdict about invasive thresholds that raise many false alarms; none if there are none."""
    many = classes_with_many_false_alarms(thresholds)
    found = [f"{t.id} {t.test.false_alarms_per_1000:.0f} of 1,000 (threshold {t.value:.2f})" for t in thresholds if t.test and t.id in many]
    if not found:
        return ()
    return (
        f"at the thresholds of invasive classes, many crops of other classes are false alarms: {', '.join(found)}; a lower recall in "
        "thresholds.aims raises the threshold",
    )

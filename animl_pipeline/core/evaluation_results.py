"""What an evaluation found: scores on the test set, the comparison with the champion, the verdict.

An interval is a 95 % interval from a bootstrap over locations. It is None if fewer than two locations have examples.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.frozen_record import Digest, Record, Share

Interval = tuple[float, float]
"""Lower and upper end of a 95 % interval."""
Verdict = Literal["promote", "hold", "need_more_data"]


def is_none(value: object) -> bool:
    """For fields that records of earlier versions lack, and that are left out where they say nothing."""
    return value is None


class ClassScores(Record):
    """One class on the test set. ``average_precision`` is None if the test set has no example of the class."""

    id: str
    examples: int
    locations: int
    precision: float
    recall: float
    f1: float
    average_precision: float | None
    precision_interval: Interval | None = None
    recall_interval: Interval | None = None
    f1_interval: Interval | None = None
    average_precision_interval: Interval | None = None


class OperatingPoint(Record):
    """Recall and precision of one class at its threshold."""

    examples: int
    locations: int
    recall: float | None = Field(description="None if there is no example of the class")
    precision: float | None = Field(description="None if no crop is predicted to be this class")
    false_alarms_per_1000: float = Field(description="crops of other classes predicted to be this class, of 1000 crops")


class Threshold(Record):
    """The threshold of one class, the aim it was chosen for, and its recall and precision on val and test."""

    id: str
    group: Literal["invasive", "native"]
    aim: str
    value: Share
    aim_met: bool = Field(description="whether the aim holds at other locations with ``confidence``, as far as val shows it")
    met_on_val: bool = Field(default=False, description="whether the threshold reaches the aim on the crops of val themselves")
    confidence: Share | None = Field(default=None, description="the plan's; None in models of earlier versions")
    val: OperatingPoint
    bound: OperatingPoint | None = Field(
        default=None, description="on val, what holds at other locations with ``confidence``: recall and precision at least, false alarms at most"
    )
    children: tuple[str, ...] = Field(
        default=(), exclude_if=lambda value: not value, description="of a parent class; it is scored on the sums of their probabilities"
    )
    test: OperatingPoint | None = None
    recall_interval: Interval | None = Field(default=None, description="of the recall on test")
    precision_interval: Interval | None = Field(default=None, description="of the precision on test")

    def describe_aim(self) -> str:
        """Whether the aim is reached, on how many examples and locations, and what is sure, in words."""
        if not self.val.examples:
            return "no example to choose by"
        seen = f"{self.val.examples:,} example{'' if self.val.examples == 1 else 's'} at {self.val.locations:,} location"
        seen += "" if self.val.locations == 1 else "s"
        if self.bound is None or self.confidence is None:
            return f"{'reached' if self.aim_met else 'not reached'} on {seen}"
        sure = f"{self.confidence * 100:g} % confidence"
        if self.aim_met:
            return f"shown with {sure} by {seen}"
        known = {"recall >=": self.bound.recall, "precision >=": self.bound.precision}
        parts = [f"{name} {value:.2f}" for name, value in known.items() if name in self.aim and value is not None]
        if "false alarms" in self.aim:
            parts.append(f"at most {self.bound.false_alarms_per_1000:.0f} false alarms per 1000")
        shown = f" show only {' and '.join(parts)} with {sure}" if parts else ""
        return f"reached, but {seen}{shown}" if self.met_on_val and shown else f"not reached; {seen}{shown}"


class Calibration(Record):
    """The expected calibration error on the test set, in 15 equal bins: how far probabilities are from the share of right answers.

    ``ece_limit_by_chance``: a perfectly calibrated model stays below it on 95 of 100 test sets of this size.
    """

    temperature: float
    ece_before: float = Field(description="before temperature scaling")
    ece_after: float = Field(description="after temperature scaling")
    ece_limit_by_chance: float
    unknown_share: float = Field(description="share of test crops that reach no class's threshold")
    accuracy_of_known: float | None = Field(description="of the other crops, the share whose likeliest class is right")


class SliceScores(Record):
    """The scores on one slice of the test set. ``by`` is the property that slices are made by, such as the location."""

    by: str
    name: str
    examples: int
    locations: int
    accuracy: float
    macro_f1: float | None = Field(description="None with fewer than two classes")
    accuracy_interval: Interval | None = None
    macro_f1_interval: Interval | None = None
    left_out: int = 0


class EquivalentScores(Record):
    """The scores if the plan's equivalent classes count as right: class id → (precision, recall, f1)."""

    accuracy: float
    macro_f1: float
    classes: dict[str, tuple[float, float, float]]


class ClassComparison(Record):
    """One class: challenger minus champion, on the same crops. Pairs are (champion, challenger)."""

    id: str
    examples: int
    locations: int
    recall: tuple[float, float]
    f1: tuple[float, float]
    recall_change: float
    recall_interval: Interval | None
    f1_change: float
    f1_interval: Interval | None
    average_precision_change: float
    average_precision_interval: Interval | None
    recall_at_threshold: tuple[float, float] | None = Field(default=None, description="each at its model's own threshold, if both have one")
    recall_at_threshold_interval: Interval | None = Field(default=None, description="of the change")


class Comparison(Record):
    """Champion (the released model) and challenger (the new one) on the test crops whose class both know."""

    champion: str = Field(description="the champion's version")
    package: Digest
    examples: int
    locations: int
    left_out: int = Field(description="test crops of classes that the champion does not know")
    added_classes: tuple[str, ...] = Field(description="classes that only the challenger knows")
    removed_classes: tuple[str, ...] = Field(description="classes that only the champion knows")
    removed_invasive: tuple[str, ...] = Field(default=(), description="those that the champion's plan calls invasive")
    own_model_input: bool = Field(description="whether the champion's model input differs, so that its crops were made again")
    macro_f1: tuple[float, float]
    macro_f1_change: float
    macro_f1_interval: Interval | None
    macro_average_precision: tuple[float, float]
    macro_average_precision_change: float
    macro_average_precision_interval: Interval | None
    classes: tuple[ClassComparison, ...]


class SequenceScores(Record):
    """One class in the sequences of the test locations, with detector, classifier and threshold together, as in production.

    Counts are weighted where a location was sampled. A miss has one cause. ``false_alarms_on_empty`` are sequences in which people saw
    nothing, ``false_alarms_on_others`` those with other animals or people.
    """

    id: str
    sequences: float = Field(description="with the class or one that counts as it")
    locations: int = Field(description="with such a sequence")
    hits: float
    missed_by_detector: float
    missed_by_threshold: float
    missed_by_classifier: float
    false_alarms_on_empty: float
    false_alarms_on_others: float
    precision: float | None = Field(description="None if no sequence was called this class")
    recall: float | None = Field(description="None if there is no such sequence")
    f1: float | None
    false_alarms_per_1000_empty: float | None = Field(description="None if there is no empty sequence")
    precision_interval: Interval | None = None
    recall_interval: Interval | None = None
    f1_interval: Interval | None = None
    false_alarms_interval: Interval | None = Field(default=None, description="of the false alarms per 1,000 empty sequences")
    parent: str | None = Field(default=None, exclude_if=is_none, description="the class's parent, if it has one")
    noticed: float | None = Field(
        default=None, exclude_if=is_none, description="sequences in which the animal got the label of the class or of its parent"
    )

    def found(self) -> float:
        """Sequences that are hits by the class itself or by its parent."""
        return self.hits if self.noticed is None else self.noticed

    def noticed_recall(self) -> float | None:
        """The share of the sequences that are hits by the class itself or by its parent; None if there is no such sequence."""
        return self.found() / self.sequences if self.sequences else None

    def false_alarms(self) -> float:
        """Sequences without the class that were called the class."""
        return self.false_alarms_on_empty + self.false_alarms_on_others


class ProductionChange(Record):
    """One class: challenger minus champion, on the same sequences. Pairs are (champion, challenger)."""

    id: str
    sequences: float
    locations: int
    recall: tuple[float, float] | None = Field(description="None if there is no such sequence")
    recall_interval: Interval | None = Field(default=None, description="of the change")
    noticed: tuple[float, float] | None = Field(
        default=None, exclude_if=is_none, description="recall with labels of the class's parent, if one has it"
    )
    noticed_interval: Interval | None = Field(default=None, exclude_if=is_none, description="of the change")
    false_alarms_per_1000_empty: tuple[float, float] | None = Field(description="None if there is no empty sequence")
    false_alarms_interval: Interval | None = Field(default=None, description="of the change")


class ProductionComparison(Record):
    """Champion and challenger on the same sequences. Pairs are (champion, challenger); intervals are of the change."""

    macro_f1: tuple[float, float] = Field(description="mean over the classes that both know and that the sequences show")
    macro_f1_interval: Interval | None = None
    false_alarms_per_1000_empty: tuple[float, float] | None = Field(description="empty sequences with a label of any class, of 1,000")
    false_alarms_interval: Interval | None = None
    classes: tuple[ProductionChange, ...] = Field(description="the classes that both know")


class ProductionScore(Record):
    """How the model would do in Animl at the test locations, by TNC's own rules for sequences of images."""

    images: int
    sequences: float
    empty_sequences: float
    locations: int
    not_searched: int = Field(default=0, description="images that could not be downloaded or decoded")
    detector_confidence: float
    classes: tuple[SequenceScores, ...]
    parents: tuple[SequenceScores, ...] = Field(
        default=(), exclude_if=lambda value: not value, description="parent classes; a label of a child counts as one of its parent, too"
    )
    false_alarms_per_1000_empty: float | None = Field(description="empty sequences with a label of any class, of 1,000")
    false_alarms_interval: Interval | None = None
    false_alarms_per_week: float | None = Field(
        default=None, description="of all test locations together, each over its own time from the first to the last image; None without times"
    )
    macro_f1_interval: Interval | None = None
    comparison: ProductionComparison | None = Field(default=None, description="None if there is no champion")
    nothing: ProductionComparison | None = Field(
        default=None,
        exclude_if=is_none,
        description="what the class for false boxes does: the first of each pair is of the same model without it; None without such a class",
    )

    def macro_f1(self) -> float | None:
        """Mean F1 over the classes that the sequences show, with labels of their parents; None if they show none."""
        f1 = [2 * c.found() / (c.found() + c.false_alarms() + c.sequences) for c in self.classes if c.sequences]
        return sum(f1) / len(f1) if f1 else None


class LaterScores(Record):
    """The model on later images of known cameras, from which it never learnt (``splits.test_after``). The verdict does not use them."""

    first_day: str = Field(description="day of the earliest of these images")
    examples: int = Field(description="crops")
    locations: int
    accuracy: float | None = Field(description="None if there are no crops of animals")
    macro_f1: float | None
    accuracy_interval: Interval | None = None
    macro_f1_interval: Interval | None = None
    classes: tuple[ClassScores, ...] = ()
    production: ProductionScore | None = Field(default=None, description="None if the plan has no section `production`")


class FalseBoxScores(Record):
    """The class for false boxes on the test crops. It is no animal: no other score counts it or its crops, except false alarms at thresholds."""

    id: str
    examples: int = Field(description="false boxes in the test set")
    locations: int
    recognised: int = Field(description="of these, how many are given this class")
    animals: int = Field(description="animals in the test set that are given this class")


class OtherAnimalScores(Record):
    """The class for animals of no class of the plan, on the test crops. No other score counts it or its crops, except false alarms at thresholds."""

    id: str
    examples: int = Field(description="other animals in the test set")
    locations: int
    recognised: int = Field(description="of these, how many are given this class")
    animals: int = Field(description="animals of the plan's classes that are given this class")
    called: dict[str, int] = Field(description="class → how many of the other animals are given it instead")


class AutoAcceptPoint(Record):
    """Images that one class and threshold would skip. An image is skipped if each of its boxes shows this class alone, at the threshold or above.

    Risks are the share of a location's skipped images in which people saw an invasive animal, as a mean over the locations with skipped images.
    """

    threshold: Share
    locations: int = Field(description="with skipped images")
    skipped: float = Field(description="images; weighted where a location was sampled")
    skipped_with_invasive: float
    work_saved: Share = Field(description="of the images with a box, the share that is skipped")
    observed_per_1000: float
    bound_per_1000: float = Field(description="95 % upper bound of this threshold alone")
    holds: bool = Field(description="whether the bound, and the share over all skipped images, are within the plan's limit")


class AutoAcceptClass(Record):
    """From which probability of one class on images may go without review. ``point`` is the chosen threshold.

    ``too_risky``: even the strictest threshold with enough locations is not shown to be safe; it is the ``point``.
    """

    id: str
    answer: Literal["skip", "too_risky", "too_few_locations", "no_images", "always_review"]
    locations: int = Field(default=0, description="with skipped images at the lowest threshold")
    lowest_limit_per_1000: float | None = Field(default=None, description="no lower limit can be shown with so many locations")
    point: AutoAcceptPoint | None = None
    points: tuple[AutoAcceptPoint, ...] = Field(default=(), description="all thresholds that skip images, the strictest first")


class AutoAccept(Record):
    """Which images may go without review, with 95 % confidence over locations for each class alone."""

    max_invasive_per_1000: float = Field(description="the plan's limit of the risk")
    confidence: Share
    source: Literal["sequences", "crops"] = Field(description="all searched images of the production score, or the images of the test crops")
    images: float = Field(description="with a box; weighted where a location was sampled")
    images_with_invasive: float
    locations: int
    locations_needed: int = Field(description="the fewest locations with skipped images that can show that the limit is kept")
    classes: tuple[AutoAcceptClass, ...]


class Metrics(Record):
    """All results of an evaluation. Macro means are over the classes that the test set has.

    ``confusion[i][j]`` counts examples of class i that were predicted as class j, in the order of ``classes``. If the model has
    classes for other animals or false boxes, the last columns count animals that were taken for such.
    """

    examples: int
    locations: int
    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    macro_average_precision: float
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    accuracy_interval: Interval | None = None
    macro_f1_interval: Interval | None = None
    macro_average_precision_interval: Interval | None = None
    calibration: Calibration | None = None
    thresholds: tuple[Threshold, ...] = ()
    slices: tuple[SliceScores, ...] = ()
    with_equivalents: EquivalentScores | None = None
    comparison: Comparison | None = None
    production: ProductionScore | None = Field(default=None, description="None if the plan has no section `production`")
    later: LaterScores | None = Field(default=None, exclude_if=is_none, description="None if the plan has no later test, or nothing is in it")
    auto_accept: AutoAccept | None = Field(default=None, description="None if the plan does not ask for it, or names no invasive class")
    nothing: FalseBoxScores | None = Field(default=None, exclude_if=is_none, description="None if the model has no class for false boxes")
    other_animal: OtherAnimalScores | None = Field(default=None, exclude_if=is_none, description="None if the model has no class for other animals")
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = Field(default=(), description="of the verdict, in words, the most important first")

    def outputs(self) -> tuple[str, ...]:
        """The class ids of the columns of ``confusion``."""
        return (*(c.id for c in self.classes), *(extra.id for extra in (self.other_animal, self.nothing) if extra))


class Report(Record):
    """The result of a training run: scores, the artifacts that hold model, report and package, and the counts of each step."""

    model: str
    version: str
    headline: str
    metrics: Metrics
    model_artifact: Artifact
    evaluation: Artifact
    package: Artifact
    step_counts: tuple[tuple[str, Counts], ...] = ()
    verdict: Verdict | None = Field(default=None, description="None if there is no verdict")
    reasons: tuple[str, ...] = Field(default=(), description="of the verdict, in words")

    def page_address(self, reports_url: str) -> str:
        """Where people read this report: its page on the report server at ``reports_url`` (ANIML_REPORTS_URL); "" if there is no server."""
        return f"{reports_url.rstrip('/')}/steps/{self.evaluation.step}/{self.evaluation.key}/report.html" if reports_url else ""

"""The small frozen records that pass between the rooms. No tables, pictures, models or paths of one machine.

A box is ``[ymin, xmin, ymax, xmax]``, relative to the picture, everywhere inside; other orders live only at the edges.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A sha256 in lower-case hexadecimal."""
Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0, le=1)]


class Record(BaseModel):
    """A frozen record that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Box(Record):
    """An axis-aligned box, relative to the picture's height and width: 0 <= min < max <= 1."""

    ymin: float = Field(ge=0, le=1)
    xmin: float = Field(ge=0, le=1)
    ymax: float = Field(ge=0, le=1)
    xmax: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.ymin < self.ymax and self.xmin < self.xmax):
            raise ValueError(f"an empty box: [ymin, xmin, ymax, xmax] = {self.as_list()}")
        return self

    def as_list(self) -> list[float]:
        """The box as ``[ymin, xmin, ymax, xmax]``."""
        return [self.ymin, self.xmin, self.ymax, self.xmax]

    @classmethod
    def of(cls, values: tuple[float, float, float, float] | list[float]) -> Box:
        """A box from ``[ymin, xmin, ymax, xmax]``."""
        ymin, xmin, ymax, xmax = values
        return cls(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax)


WHOLE_IMAGE = Box(ymin=0, xmin=0, ymax=1, xmax=1)


class Counts(Record):
    """What a step kept and what it dropped, by reason. ``noted`` counts what was odd and kept."""

    kept: int = Field(ge=0)
    dropped: dict[str, int] = {}
    noted: dict[str, int] = {}
    unit: str = "objects"

    def __str__(self) -> str:
        """One line for a person."""
        parts = [f"{self.kept:,} {self.unit} kept"]
        if self.dropped:
            reasons = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in sorted(self.dropped.items()))
            parts.append(f"{sum(self.dropped.values()):,} dropped ({reasons})")
        if self.noted:
            parts.append("noted: " + ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in sorted(self.noted.items())))
        return "; ".join(parts)


class Artifact(Record):
    """What a step made, by content: where the store keeps it, and its digest.

    ``digest`` covers the files' names and contents and nothing else, so two runs that made the same have the same
    digest, whenever and wherever they ran. ``cached`` tells that this call reused it.
    """

    step: str
    key: Digest
    digest: Digest
    counts: Counts
    cached: bool = Field(default=False, exclude=True)


class ModelInput(Record):
    """What a model sees of an animal: the box, squared, resized and normalised (carried out in ``pixels``).

    ``margin`` widens the square by this share of its side on every side; ``mean`` and ``std`` are of RGB in 0-1.
    """

    size: int = Field(default=224, ge=32, le=1024, description="side of the model's square input, in pixels")
    margin: float = Field(default=0.0, ge=0, le=1, description="share of the square's side added on every side")
    mean: tuple[Share, Share, Share] = (0.485, 0.456, 0.406)
    std: tuple[Spread, Spread, Spread] = (0.229, 0.224, 0.225)


class ClassInfo(Record):
    """One class: ``id`` is its key in an endpoint's answer and in Animl's MLModel categories, ``name`` is for people."""

    id: str
    name: str

    @model_validator(mode="after")
    def _fit_for_mongo(self) -> Self:
        # Names become map keys in MongoDB (no '.', no leading '$').
        if not self.id or "." in self.id or self.id.startswith("$"):
            raise ValueError(f"a class id may not be empty, hold '.' or begin with '$': {self.id!r}")
        return self


class Agreement(Record):
    """How far torch and ONNX differ on the same real crops: the largest absolute difference of a probability."""

    max_abs: float = Field(ge=0)
    crops: int = Field(ge=0)


class ModelCard(Record):
    """What a packaged model is and came from; it travels inside model.tar.gz as card.json.

    It holds no times and no machine's names, so that the same training gives the same package, byte for byte.
    ``thresholds`` and the temperature are those of an uncalibrated model (none, 1) until the step calibration; ``metrics`` is
    empty until the model was scored on the test set. A class is named where its probability reaches its threshold; where no
    class's does, the animal is unknown.
    """

    format: int = 1
    model: str
    version: str
    architecture: str
    classes: tuple[ClassInfo, ...] = Field(min_length=2)
    model_input: ModelInput
    temperature: float = Field(default=1.0, gt=0)
    thresholds: dict[str, Share] = Field(default={}, description="class id → probability from which on the class is named")
    onnx_sha256: Digest
    agreement: Agreement
    data_digest: Digest
    weights: str
    plan: dict[str, Any]
    metrics: dict[str, Any] = {}

    def class_ids(self) -> tuple[str, ...]:
        """The class ids in the order of the model's outputs."""
        return tuple(c.id for c in self.classes)


Interval = tuple[float, float]
"""The ends of a 95 % interval by bootstrap over places; None in its stead where fewer than two places hold examples."""
Verdict = Literal["promote", "hold", "need_more_data"]


class ClassScores(Record):
    """One class on the test set. ``average_precision`` is None where the test set holds no example of it."""

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
    """A class at a threshold: of ``examples`` crops of it, the share named so; of all crops named so, the share that are one."""

    examples: int
    locations: int
    recall: float | None = Field(description="None where there is no example")
    precision: float | None = Field(description="None where nothing is named so")
    false_alarms_per_1000: float = Field(description="crops of other classes named so, of 1000 crops")


class Threshold(Record):
    """From which probability on a class is named, for which aim, and what it costs on val and on test."""

    id: str
    group: Literal["invasive", "native"]
    aim: str
    value: Share
    met: bool = Field(description="whether val reaches the aim")
    val: OperatingPoint
    test: OperatingPoint | None = None
    recall_interval: Interval | None = Field(default=None, description="of the recall on test")
    precision_interval: Interval | None = Field(default=None, description="of the precision on test")


class Calibration(Record):
    """How far stated probabilities are from how often they are right (expected calibration error, 15 equal bins) on the test set.

    ``by_chance`` is what a perfectly calibrated model stays below on 95 of 100 test sets of this size.
    """

    temperature: float
    before: float
    after: float
    by_chance: float
    unknown: float = Field(description="share of test crops that reach no class's threshold")
    right_if_named: float | None = Field(description="share of the others whose likeliest class is right")


class Part(Record):
    """The scores on a part of the test set, or of groups of crops: ``by`` says how it was parted."""

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
    """The scores where the plan's equivalents count as right: class id → (precision, recall, f1)."""

    accuracy: float
    macro_f1: float
    classes: dict[str, tuple[float, float, float]]


class ClassComparison(Record):
    """One class, challenger less champion, on the same crops."""

    id: str
    examples: int
    locations: int
    recall: tuple[float, float] = Field(description="the champion's and the challenger's")
    f1: tuple[float, float]
    recall_change: float
    recall_interval: Interval | None
    f1_change: float
    f1_interval: Interval | None
    average_precision_change: float
    average_precision_interval: Interval | None
    named: tuple[float, float] | None = Field(default=None, description="recall at each model's own threshold, where both have one")
    named_interval: Interval | None = Field(default=None, description="of the change of that")


class Comparison(Record):
    """Champion (released last) and challenger on the same test crops: those whose class both know."""

    champion: str = Field(description="the champion's version")
    package: Digest
    examples: int
    locations: int
    left_out: int = Field(description="test crops of classes that the champion does not know")
    new: tuple[str, ...] = Field(description="classes that only the challenger knows")
    gone: tuple[str, ...] = Field(description="classes that only the champion knows")
    gone_invasive: tuple[str, ...] = Field(default=(), description="those of them that the champion's plan calls invasive")
    own_view: bool = Field(description="whether the champion's view differs, so that its crops were cut anew")
    macro_f1: tuple[float, float]
    macro_f1_change: float
    macro_f1_interval: Interval | None
    macro_average_precision: tuple[float, float]
    macro_average_precision_change: float
    macro_average_precision_interval: Interval | None
    classes: tuple[ClassComparison, ...]


class Metrics(Record):
    """A packaged model on a test set. Macro means are over classes that the test set holds.

    ``confusion[i][j]`` counts examples of class i that were called class j, in the order of ``classes``.
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
    parts: tuple[Part, ...] = ()
    credited: EquivalentScores | None = None
    comparison: Comparison | None = None
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = Field(default=(), description="of the verdict, in words, the weightiest first")


class Report(Record):
    """How a packaged model did: its scores, where page and predictions lie in the store, and each step's counts before."""

    model: str
    version: str
    headline: str
    metrics: Metrics
    model_artifact: Artifact
    evaluation: Artifact
    package: Artifact
    story: tuple[tuple[str, Counts], ...] = ()
    verdict: Verdict | None = Field(default=None, description="None: it was not judged")
    reasons: tuple[str, ...] = Field(default=(), description="of the verdict, in words")


class Answer(Record):
    """One golden answer: what the offline classifier said of one box of one picture, by class id."""

    image: str = Field(description="file name inside the package's folder reference/")
    box: Box
    probabilities: dict[str, float]


class Latency(Record):
    """What the check of a live endpoint saw, in milliseconds: the first answer (which may wake it up), then half and 95 % of the others."""

    first_ms: float
    p50_ms: float
    p95_ms: float


class Approval(Record):
    """A person's yes to the release of one package."""

    by: str = Field(pattern=r"\S", max_length=200, description="the person, as they name themselves")
    note: str = Field(default="", max_length=2000)
    at: str = Field(description="ISO time, UTC")
    door: Literal["prefect", "command line"]

    def __str__(self) -> str:
        """One line for a person."""
        return f"approved by {self.by} ({self.at}, {self.door})" + (f": {self.note}" if self.note else "")


class Release(Record):
    """A model version put behind an endpoint: by which names, and what the check of the live endpoint saw."""

    endpoint: str
    endpoint_config: str
    sagemaker_model: str
    version: str
    package_digest: Digest | None = Field(description="None after a rollback to a configuration that was not released from here")
    previous_config: str | None
    checked: int = Field(description="golden crops sent to the live endpoint")
    max_difference: float = Field(description="largest |probability live - offline| seen")
    changed: bool = Field(description="false when the endpoint served this package already")
    latency: Latency | None = None
    approval: Approval | None = Field(default=None, description="None: the plan asks for none")
    batch: Release | None = Field(default=None, description="the same version behind the endpoint for batches, where the plan has one")

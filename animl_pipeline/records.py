"""The small frozen records that pass between the rooms. No tables, pictures, models or paths of one machine.

A box is ``[ymin, xmin, ymax, xmax]``, relative to the picture, everywhere inside; other orders live only at the edges.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

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


WHOLE_PICTURE = Box(ymin=0, xmin=0, ymax=1, xmax=1)


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


class View(Record):
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
    ``metrics`` is empty until the model was scored on the test set.
    """

    format: int = 1
    model: str
    version: str
    architecture: str
    classes: tuple[ClassInfo, ...] = Field(min_length=2)
    view: View
    temperature: float = Field(default=1.0, gt=0)
    onnx_sha256: Digest
    agreement: Agreement
    data_digest: Digest
    weights: str
    plan: dict[str, Any]
    metrics: dict[str, Any] = {}

    def class_ids(self) -> tuple[str, ...]:
        """The class ids in the order of the model's outputs."""
        return tuple(c.id for c in self.classes)


class ClassScores(Record):
    """One class on the test set. ``average_precision`` is None where the test set holds no example of it."""

    id: str
    examples: int
    places: int
    precision: float
    recall: float
    f1: float
    average_precision: float | None


class Metrics(Record):
    """A packaged model on a test set. Macro means are over classes that the test set holds.

    ``confusion[i][j]`` counts examples of class i that were called class j, in the order of ``classes``.
    """

    examples: int
    places: int
    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    macro_average_precision: float
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]


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


class Answer(Record):
    """One golden answer: what the offline classifier said of one box of one picture, by class id."""

    picture: str = Field(description="file name inside the package's folder golden/")
    box: Box
    probabilities: dict[str, float]


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

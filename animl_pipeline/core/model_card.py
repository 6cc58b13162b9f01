"""The description of a packaged model: its input, its classes, and where it comes from."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from animl_pipeline.core.frozen_record import Digest, Record, Share

_StandardDeviation = Annotated[float, Field(gt=0, le=1)]


class ModelInput(Record):
    """How a box becomes the model's input: squared, resized and normalised (``core.model_input`` does it).

    ``margin`` widens the square by this share of its side on every side. ``mean`` and ``std`` are of RGB values in 0-1.
    """

    size: int = Field(default=224, ge=32, le=1024, description="side of the model's square input, in pixels")
    margin: float = Field(default=0.0, ge=0, le=1, description="share of the square's side added on every side")
    mean: tuple[Share, Share, Share] = Field(default=(0.485, 0.456, 0.406), description="of red, green and blue, as the pretrained weights need it")
    std: tuple[_StandardDeviation, _StandardDeviation, _StandardDeviation] = Field(
        default=(0.229, 0.224, 0.225), description="of red, green and blue, as the pretrained weights need it"
    )


class ClassInfo(Record):
    """One class. ``id`` is its key in the endpoint's answers and in Animl's MLModel categories; ``name`` is for people."""

    id: str
    name: str

    @model_validator(mode="after")
    def _valid_mongodb_key(self) -> Self:
        # Class ids become map keys in MongoDB (no '.', no leading '$').
        if not self.id or "." in self.id or self.id.startswith("$"):
            raise ValueError(f"a class id must not be empty, contain '.' or begin with '$': {self.id!r}")
        # Animl reads the order of an answer's keys, and JavaScript moves keys that are whole numbers to the front. 1 to 3 are MegaDetector's.
        if re.fullmatch("[0-9]+", self.id):
            raise ValueError(f"a class id must not be a whole number, because Animl would show another class than the most probable one: {self.id!r}")
        return self


class Agreement(Record):
    """How much torch and ONNX differ on the same crops: the largest absolute difference of a probability."""

    max_abs: float = Field(ge=0)
    crops: int = Field(ge=0)


class ModelCard(Record):
    """What a packaged model is and how it was made. It is card.json inside model.tar.gz.

    It holds no times and no machine names, so the same training gives the same package, byte for byte.
    Until the calibration step, the temperature is 1 and ``thresholds`` is empty. ``metrics`` is empty until the model was scored
    on the test set. A class is predicted if its probability reaches its threshold; if no class's does, the animal is unknown.
    """

    format: int = 1
    model: str
    version: str
    architecture: str
    classes: tuple[ClassInfo, ...] = Field(min_length=2)
    model_input: ModelInput
    temperature: float = Field(default=1.0, gt=0)
    thresholds: dict[str, Share] = Field(default={}, description="class id → lowest probability at which the class is predicted")
    nothing: str | None = Field(
        default=None, exclude_if=lambda value: value is None, description="the last class, if it means a false box: no animal, and never answered"
    )
    other_animal: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="the class for animals of no other class, after those that are scored; it is answered if it has a threshold",
    )
    parents: dict[str, tuple[str, ...]] = Field(
        default={},
        exclude_if=lambda value: not value,
        description="parent → its children, classes of animals; it is answered, too, and has a threshold, but is no output of the model",
    )
    out_of_fold: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="whether the model learnt from val, too; temperature and thresholds then come from models of a cross-validation",
    )
    onnx_sha256: Digest
    embedding_reference: Digest | None = Field(
        default=None, exclude_if=lambda value: value is None, description="sha256 of the file with embeddings of animals that the model learnt from"
    )
    agreement: Agreement
    data_digest: Digest
    weights: str
    plan: dict[str, Any]
    metrics: dict[str, Any] = Field(default={}, description="``evaluation_results.Metrics`` as JSON")

    @model_validator(mode="after")
    def _unscored_are_last(self) -> Self:
        unscored = self.unscored_ids()
        if unscored and (self.class_ids()[-len(unscored) :] != unscored or self.nothing in self.thresholds):
            raise ValueError(f"expected the last classes to be those that are not scored, and nothing to have no threshold, found {unscored}")
        return self

    @model_validator(mode="after")
    def _parents_have_thresholds(self) -> Self:
        children = [c for of_parent in self.parents.values() for c in of_parent]
        animals, needed = self.animal_ids(), {*self.parents, *children}
        wrong = set(self.parents) & set(self.class_ids()) or set(children) - set(animals) or needed - set(self.thresholds)
        if wrong or len(set(children)) < len(children):
            raise ValueError(f"expected parents of classes of animals, all with thresholds and each class with one parent, found {self.parents}")
        return self

    def class_ids(self) -> tuple[str, ...]:
        """The class ids in the order of the model's outputs."""
        return tuple(c.id for c in self.classes)

    def animal_ids(self) -> tuple[str, ...]:
        """The class ids without those of ``unscored_ids``: those that are answered and scored."""
        return tuple(c for c in self.class_ids() if c not in self.unscored_ids())

    def unscored_ids(self) -> tuple[str, ...]:
        """The classes for other animals and for false boxes, if the model has them: the last outputs. No mean score counts them."""
        return tuple(c for c in (self.other_animal, self.nothing) if c is not None)

    def hidden_ids(self) -> tuple[str, ...]:
        """The classes that are never answered: that for false boxes, and that for other animals unless it has a threshold."""
        return tuple(c for c in self.unscored_ids() if c not in self.thresholds)

    def answered_ids(self) -> tuple[str, ...]:
        """The keys of an answer: the classes of animals, then the parents."""
        return (*self.animal_ids(), *self.parents)

    def registered_classes(self) -> tuple[ClassInfo, ...]:
        """The classes that Animl knows: those of the model, then the parents."""
        return (*self.classes, *(ClassInfo(id=p, name=p) for p in self.parents))

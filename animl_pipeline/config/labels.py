"""The plan's section `labels`: which labels become which class, what is left out, and how much of a class is expected."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from animl_pipeline.config.value_types_and_messages import PathOrUrl, Seed, did_you_mean, explain_unknown_classes
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.location_names import tidy_name
from animl_pipeline.core.model_card import ClassInfo

ALL_SOURCES = "*"
"""The key of ``from`` for labels of every source."""
Labels = tuple[Annotated[str, AfterValidator(tidy_name)], ...]
"""Labels as exports are read: an accent may be part of its letter or follow it, a blank may be one that does not break; they look the same."""
Level = Literal[
    "kingdom", "phylum", "subphylum", "superclass", "class", "subclass", "infraclass", "superorder", "order", "suborder", "infraorder",
    "superfamily", "family", "subfamily", "tribe", "genus", "subgenus", "species", "subspecies", "variety",
]  # fmt: skip
ErrorOrWarn = Literal["error", "warn"]


class TaxonConfig(Record):
    """A taxon: everything that belongs to it by the plan's taxonomy."""

    level: Level = Field(description="rank of the taxon")
    name: str = Field(min_length=1, description="scientific name, any case; of a species with its genus: canis latrans")


class TaxonomyConfig(Record):
    """The table that says which label belongs to which taxon."""

    table: PathOrUrl = Field(description="LILA's taxonomy mapping (CSV) or an MLModel document of Animl (JSON): a path, https://… or s3://…")
    datasets: dict[str, str] = Field(default={}, description="source → data set of the table; a source that is not named uses all data sets")


class ClassConfig(Record):
    """One class of the model: which labels become it, and how many annotations of it at most."""

    from_: dict[str, Labels] = Field(alias="from", default={}, description="labels, any case: a list, or a list for each source ('*': for all)")
    taxa: tuple[TaxonConfig, ...] = Field(default=(), description="labels of these taxa become the class, too; needs labels.taxonomy")
    exclude: Labels = Field(default=(), description="labels that `taxa` includes and that do not become the class")
    exclude_taxa: tuple[TaxonConfig, ...] = Field(default=(), description="taxa within `taxa` that do not become the class")
    max_count: int | None = Field(default=None, ge=1, description="keep at most this many annotations")
    max_per_location: int | None = Field(default=None, ge=1, description="keep at most this many annotations of one location")
    prioritize: Labels = Field(default=(), description="what a limit keeps first: names of sources or labels, in this order")
    min_count: int | None = Field(default=None, ge=0, description="expected number of annotations, at least")
    min_locations: int | None = Field(default=None, ge=0, description="expected number of locations, at least")

    @field_validator("from_", mode="before")
    @classmethod
    def _expand_list(cls, value: Any) -> Any:
        """A list is short for ``{"*": list}``."""
        if value in ([], {}, ()):
            raise ValueError("expected at least one label, found none; leave the key out where `taxa` are enough")
        return {ALL_SOURCES: value} if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if empty := [source for source, labels in self.from_.items() if "" in labels]:
            raise ValueError(f"from: expected labels, found an empty one{'' if empty[0] == ALL_SOURCES else f' for {empty[0]}'}")
        if not self.taxa and not any(self.from_.values()):
            raise ValueError("from: expected at least one label (or taxa), found none")
        both = {label.casefold() for label in self.exclude} & {label.casefold() for label in self.labels()}
        if both:
            raise ValueError(f"the label {min(both)!r} is in from and in exclude of the same class; remove it from one")
        return self

    def labels(self, source: str | None = None) -> Labels:
        """The labels in ``from`` for a source; without one, for any source."""
        lists = self.from_.values() if source is None else (self.from_.get(ALL_SOURCES, ()), self.from_.get(source, ()))
        return tuple(dict.fromkeys(label for labels in lists for label in labels))


class OtherAnimalConfig(Record):
    """A class of the model for animals that no class of the plan names, so that a cow is not called a deer. No mean score counts it."""

    id: str = Field(default="other_animal", description="the class's id; no class of the plan may have it")
    exclude: Labels = Field(default=(), description="labels outside of the plan that do not become the class, such as mammal, which may be a deer")
    max_images: int = Field(default=2000, ge=1, description="at most this many images of each source, spread over names and locations")
    max_per_location: int = Field(default=20, ge=1, description="at most this many images with one name at one location")
    register_: bool = Field(
        default=False,
        alias="register",
        description="whether Animl shows the class, with a threshold of its own; if not, it is registered as disabled",
    )


class NothingConfig(Record):
    """A class of the model for false boxes, such as waving grass. It is no animal: no score counts it, and Animl never shows it."""

    id: str = Field(default="nothing", description="the class's id; no class of the plan may have it")
    max_images: int = Field(default=2000, ge=1, description="the detector looks for false boxes in at most this many empty images")
    max_per_location: int = Field(default=50, ge=1, description="in at most this many of one location")


class LabelsConfig(Record):
    """Which labels become which class, and what is left out. Labels are compared without case."""

    classes: dict[str, ClassConfig] = Field(min_length=2, description="class → the labels that it takes, or labels and taxa")
    empty: Labels = Field(default=("empty",), description="labels that mean: no animal in the image")
    exclude: Labels = Field(default=(), description="labels to leave out")
    exclude_taxa: tuple[TaxonConfig, ...] = Field(default=(), description="taxa to leave out")
    taxonomy: TaxonomyConfig | None = Field(default=None, description="which label belongs to which taxon")
    max_per_location: int | None = Field(default=None, ge=1, description="for classes without their own")
    min_count: int = Field(default=1, ge=0, description="expected annotations of a class, at least; for classes without their own")
    min_locations: int = Field(default=0, ge=0, description="expected locations of a class, at least; for classes without their own")
    on_too_few: ErrorOrWarn = Field(default="error", description="when a class has fewer annotations or locations than expected")
    on_conflict: ErrorOrWarn = Field(
        default="error", description="when a label has two meanings; warn: the first counts, in the order classes, empty, exclude"
    )
    equivalents: dict[str, tuple[str, ...]] = Field(
        default={}, description="scoring only: class → other classes that count as right when they are predicted for it"
    )
    other_animal: OtherAnimalConfig | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="a class for animals outside of the plan's classes, learnt from reviewed labels that the plan does not name; null: none",
    )
    nothing: NothingConfig | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # a plan without it is recorded, and gives keys, as if there were no such section
        description="a class for false boxes, learnt from the detector's boxes on empty images that people reviewed; null: none",
    )
    parents: dict[str, tuple[str, ...]] = Field(
        default={},
        exclude_if=lambda value: not value,  # a plan without it is recorded, and gives keys, as if there were no such key
        description="parent → classes, its children; it answers the sum of their probabilities where none of them reaches its threshold",
    )
    seed: Seed = Field(default=0, description="which annotations a limit keeps")

    @field_validator("classes", mode="before")
    @classmethod
    def _expand_lists(cls, value: Any) -> Any:
        """``fox: [fox, island fox]`` is short for ``fox: {from: [fox, island fox]}``."""
        if not isinstance(value, dict):
            return value
        return {k: {"from": v} if isinstance(v, (list, tuple)) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        for class_id in self.class_ids():
            _check_class_id(class_id)
        ids = self.class_ids()
        for key in ("other_animal", "nothing"):
            extra = getattr(self, key)
            if extra and ids.count(extra.id) > 1:
                raise ValueError(f"{key}: {extra.id!r} is also another class of the plan; give the class another name in {key}.id")
        conflicts = list(self.conflicts())
        if conflicts and self.on_conflict == "error":
            raise ValueError(f"{'; '.join(conflicts)}; a label has one meaning")
        named = {c for one, others in self.equivalents.items() for c in (one, *others)}
        if unknown := explain_unknown_classes(named, tuple(self.classes)):
            raise ValueError(f"equivalents: {unknown}")
        self._check_parents()
        taxa = [c for c, rule in self.classes.items() if rule.taxa or rule.exclude_taxa] + (["exclude_taxa"] if self.exclude_taxa else [])
        if taxa and self.taxonomy is None:
            raise ValueError(f"{taxa[0]}: taxa need a table that says which label belongs to which taxon; name it in labels.taxonomy.table")
        return self

    def _check_parents(self) -> None:
        children = [c for of_parent in self.parents.values() for c in of_parent]
        for parent, of_parent in self.parents.items():
            _check_class_id(parent)
            if parent in self.class_ids():
                raise ValueError(f"parents: expected the name of a parent, found the class {parent!r}; give the parent a name that no class has")
            if len(of_parent) < 2:
                raise ValueError(f"parents.{parent}: expected at least two classes of the plan, found {len(of_parent)}")
        if unknown := explain_unknown_classes(children, tuple(self.classes)):
            raise ValueError(f"parents: {unknown}")
        for twice in sorted({c for c in children if children.count(c) > 1}):
            raise ValueError(f"parents: the class {twice!r} is named twice; a class has one parent")

    def class_ids(self) -> tuple[str, ...]:
        """The class ids in the order of the model's outputs: the plan's classes, then those for other animals and for false boxes, if there are."""
        return (*self.classes, *(extra.id for extra in (self.other_animal, self.nothing) if extra))

    @property
    def other_animal_id(self) -> str | None:
        """The id of the class for animals outside of the plan; None if the plan has none."""
        return self.other_animal.id if self.other_animal else None

    @property
    def nothing_id(self) -> str | None:
        """The id of the class for false boxes; None if the plan has none."""
        return self.nothing.id if self.nothing else None

    def conflicts(self) -> Iterator[str]:
        """A line for each label that the plan gives two meanings in one source."""
        reported = set()
        for source in (ALL_SOURCES, *self.named_sources()):
            first: dict[str, str] = {}
            meanings = [(f"classes.{c}", rule.labels(source)) for c, rule in self.classes.items()]
            for meaning, labels in [*meanings, ("empty", self.empty), ("exclude", self.exclude)]:
                for label in (text.casefold() for text in labels):
                    if first.setdefault(label, meaning) != meaning and (label, meaning) not in reported:
                        reported.add((label, meaning))
                        yield f"the label {label!r} is in {first[label]!r} and in {meaning!r}"

    def named_sources(self) -> list[str]:
        """The sources that the section names, sorted."""
        datasets = self.taxonomy.datasets if self.taxonomy else ()
        return sorted({s for rule in self.classes.values() for s in rule.from_ if s != ALL_SOURCES} | set(datasets))

    def check_sources(self, known: Collection[str]) -> None:
        """Check that the plan has all sources that the section names.

        Raises:
            ValueError: a source is missing, or `prioritize` names neither a source nor a label of its class.
        """
        unknown = [f"{source!r}{did_you_mean(source, known)}" for source in self.named_sources() if source not in known]
        if unknown:
            raise ValueError(f"labels names sources that the plan lacks: {', '.join(unknown)}; the plan's sources are {', '.join(known)}")
        for class_id, rule in self.classes.items():
            labels = {label.casefold() for label in rule.labels()}
            for entry in () if rule.taxa else rule.prioritize:
                if entry not in known and entry.casefold() not in labels:
                    raise ValueError(f"labels.classes.{class_id}.prioritize: {entry!r} is neither a source nor a label in `from`")


def _check_class_id(class_id: str) -> None:
    ClassInfo(id=class_id, name=class_id)
    if not class_id.isprintable() or class_id != class_id.strip():
        raise ValueError(f"expected a class id of one line of printable text without spaces around it, found {class_id!r}")

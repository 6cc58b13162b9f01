"""The label specification: which names become which class, what is left out, and what is asked of a class."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from animl_pipeline.config.fields import PathOrUrl, Seed
from animl_pipeline.core.records import ClassInfo, Record

ANY = "*"
"""Stands for every source."""
Names = tuple[Annotated[str, AfterValidator(partial(unicodedata.normalize, "NFC"))], ...]
"""Category names. An accent may be written as a part of its letter or after it (as macOS names folders): they look the same, and are the same."""
Level = Literal[
    "kingdom", "phylum", "subphylum", "superclass", "class", "subclass", "infraclass", "superorder", "order", "suborder", "infraorder",
    "superfamily", "family", "subfamily", "tribe", "genus", "subgenus", "species", "subspecies", "variety",
]  # fmt: skip
Word = Literal["error", "warn"]


class TaxonConfig(Record):
    """A taxon: all that belongs to it by the plan's taxonomy."""

    level: Level
    name: str = Field(min_length=1, description="scientific name, any case; of a species with its genus: canis latrans")


class TaxonomyConfig(Record):
    """Where it is written which name belongs to which taxon."""

    table: PathOrUrl = Field(description="LILA's taxonomy mapping (CSV) or an MLModel document of Animl (JSON): a path, https://… or s3://…")
    datasets: dict[str, str] = Field(default={}, description="which data set of the table a source is; a source that is not named: all of them")


class ClassConfig(Record):
    """One class of the model: what becomes it, and how many of it at most."""

    from_: dict[str, Names] = Field(
        alias="from", default={}, description="category names, any case: a list, or a list for each source ('*': for all)"
    )
    taxa: tuple[TaxonConfig, ...] = Field(default=(), description="names that belong to these taxa, too; needs labels.taxonomy")
    exclude: Names = Field(default=(), description="names that `taxa` would bring and that are not meant")
    exclude_taxa: tuple[TaxonConfig, ...] = Field(default=(), description="taxa within `taxa` that are not meant")
    max_count: int | None = Field(default=None, ge=1, description="keep at most this many objects")
    max_per_location: int | None = Field(default=None, ge=1, description="keep at most this many of one place")
    prioritize: Names = Field(default=(), description="what a limit keeps first: names of sources or categories, in this order")
    min_count: int | None = Field(default=None, ge=0, description="expected objects at least")
    min_locations: int | None = Field(default=None, ge=0, description="expected places at least")

    @field_validator("from_", mode="before")
    @classmethod
    def _for_all_sources(cls, value: Any) -> Any:
        """A list is short for ``{"*": list}``."""
        if value in ([], {}, ()):
            raise ValueError("expected at least one category name, found none; leave the key out where `taxa` say all")
        return {ANY: value} if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if blank := [s for s, names in self.from_.items() for n in names if not n]:
            raise ValueError(f"from: expected category names, found an empty one{'' if blank[0] == ANY else f' for {blank[0]}'}")
        if not self.taxa and not any(self.from_.values()):
            raise ValueError("from: expected at least one category name (or taxa), found none")
        both = {n.casefold() for n in self.exclude} & {n.casefold() for n in self.names()}
        if both:
            raise ValueError(f"the name {min(both)!r} is in from and in exclude of the same class; take it out of one")
        return self

    def names(self, source: str | None = None) -> Names:
        """The names that become this class in a source; without one, in any."""
        lists = self.from_.values() if source is None else (self.from_.get(ANY, ()), self.from_.get(source, ()))
        return tuple(dict.fromkeys(name for names in lists for name in names))


class LabelsConfig(Record):
    """Which category names become which class, and what is left out. Names are compared without case."""

    classes: dict[str, ClassConfig] = Field(min_length=2)
    empty: Names = Field(default=("empty",), description="names that mean: no animal here")
    exclude: Names = Field(default=(), description="names left out on purpose")
    exclude_taxa: tuple[TaxonConfig, ...] = Field(default=(), description="taxa left out on purpose")
    taxonomy: TaxonomyConfig | None = Field(default=None, description="which name belongs to which taxon")
    max_per_location: int | None = Field(default=None, ge=1, description="for classes without their own")
    min_count: int = Field(default=1, ge=0, description="expected objects of a class at least, for classes without their own")
    min_locations: int = Field(default=0, ge=0, description="expected places of a class at least, for classes without their own")
    on_too_few: Word = Field(default="error", description="a class with fewer objects or places than expected")
    conflicts: Word = Field(default="error", description="a name with two meanings; warn: the first counts, in the order classes, empty, exclude")
    equivalents: dict[str, tuple[str, ...]] = Field(
        default={}, description="scoring only: class → other classes that are right for it when predicted"
    )
    seed: Seed = Field(default=0, description="which objects a cap keeps")

    @field_validator("classes", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """``fox: [fox, island fox]`` is short for ``fox: {from: [fox, island fox]}``."""
        if not isinstance(value, dict):
            return value
        return {k: {"from": v} if isinstance(v, (list, tuple)) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for class_id in self.classes:
            ClassInfo(id=class_id, name=class_id)
            if not class_id.isprintable() or class_id != class_id.strip():
                raise ValueError(f"a class id is one line of printable text without blanks around it, found {class_id!r}")
        conflict = next(self.conflicting(), None)
        if conflict is not None and self.conflicts == "error":
            raise ValueError(f"{conflict}; a name has one meaning")
        strangers = [c for c, others in self.equivalents.items() for c in (c, *others) if c not in self.classes]
        if strangers:
            raise ValueError(f"equivalents: {strangers[0]!r} is no class of labels.classes ({', '.join(self.classes)})")
        taxa = [c for c, rule in self.classes.items() if rule.taxa or rule.exclude_taxa] + (["exclude_taxa"] if self.exclude_taxa else [])
        if taxa and self.taxonomy is None:
            raise ValueError(f"{taxa[0]}: taxa need a table that says which name belongs to which; name one in labels.taxonomy.table")
        return self

    def class_of(self, source: str | None = None) -> dict[str, str]:
        """Folded category name → class id in a source (without one: in any), by names alone; the first class counts."""
        found: dict[str, str] = {}
        for class_id, rule in self.classes.items():
            for name in rule.names(source):
                found.setdefault(name.casefold(), class_id)
        return found

    def conflicting(self) -> Iterator[str]:
        """Each name that is given two meanings in one source, in words."""
        told = set()
        for source in (ANY, *self.sources()):
            seen: dict[str, str] = {}
            meanings = [(f"classes.{c}", rule.names(source)) for c, rule in self.classes.items()]
            for meaning, names in [*meanings, ("empty", self.empty), ("exclude", self.exclude)]:
                for name in (n.casefold() for n in names):
                    if seen.setdefault(name, meaning) != meaning and (name, meaning) not in told:
                        told.add((name, meaning))
                        yield f"the name {name!r} is in {seen[name]!r} and in {meaning!r}"

    def sources(self) -> list[str]:
        """The sources that the specification names, in order."""
        return sorted({s for rule in self.classes.values() for s in rule.from_ if s != ANY} | set(self.taxonomy.datasets if self.taxonomy else ()))

    def check_sources(self, known: Collection[str]) -> None:
        """See that all sources are there that the specification names.

        Raises:
            ValueError: one is not, or `prioritize` names neither a source nor a name of its class.
        """
        for source in self.sources():
            if source not in known:
                raise ValueError(f"labels names the source {source!r}; the plan's sources are {', '.join(known)}")
        for class_id, rule in self.classes.items():
            names = {n.casefold() for n in rule.names()}
            for entry in () if rule.taxa else rule.prioritize:
                if entry not in known and entry.casefold() not in names:
                    raise ValueError(f"labels.classes.{class_id}.prioritize: {entry!r} is neither a source nor a name in `from`")

    def least(self, class_id: str) -> tuple[int, int]:
        """How many objects and places a class is expected to have."""
        rule = self.classes[class_id]
        return (
            self.min_count if rule.min_count is None else rule.min_count,
            self.min_locations if rule.min_locations is None else rule.min_locations,
        )

    def right_for(self) -> dict[str, frozenset[str]]:
        """Class id → the predictions that count as right for it: itself, and its equivalents."""
        return {c: frozenset({c, *self.equivalents.get(c, ())}) for c in self.classes}

"""Read a plan from its YAML file, check it, and explain in the plan's own words what does not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from animl_pipeline.config.plan import Plan
from animl_pipeline.config.renamed_keys import renamed_key
from animl_pipeline.config.strict_yaml import parse_yaml
from animl_pipeline.config.value_types import shorten
from animl_pipeline.core.errors import PlanError
from animl_pipeline.core.frozen_record import Record

MOST_ERRORS = 6
"""A message explains this many errors."""


class Overrides(Record):
    """Changes for one run; what is left empty stays as the plan says. The model card records the values used."""

    epochs: int | None = Field(default=None, ge=1, le=10**6, title="Epochs", description="train.epochs: how often the model sees every crop")
    batch_size: int | None = Field(default=None, ge=2, le=10**6, title="Batch size", description="train.batch_size: lower it when memory runs out")
    learning_rate: float | None = Field(default=None, gt=0, le=1, title="Learning rate", description="train.lr")
    seed: int | None = Field(default=None, ge=0, lt=2**63, title="Seed", description="train.seed: another random draw of the same training")
    max_per_location: int | None = Field(
        default=None, ge=1, title="Most annotations of one location", description="labels.max_per_location: for classes without their own limit"
    )

    def applied(self, plan: Plan) -> Plan:
        """The plan with these changes, checked as a whole.

        Raises:
            PlanError: a change does not fit the plan.
        """
        data = plan.model_dump(mode="json", by_alias=True)
        for section, values in self._by_section().items():
            data[section] |= {key: value for key, value in values.items() if value is not None}
        return check_plan(data, f"the plan of {plan.model} with this run's changes") if self != Overrides() else plan

    def changes(self, plan: Plan) -> list[str]:
        """What these changes make different from the plan, such as ``train.epochs 3``; empty if they only repeat the plan's values."""
        data = plan.model_dump(mode="json", by_alias=True)
        return [
            f"{section}.{key} {value}"
            for section, values in self._by_section().items()
            for key, value in values.items()
            if value is not None and data[section][key] != value
        ]

    def _by_section(self) -> dict[str, dict[str, Any]]:
        """The plan's section → key → the new value, None for no change."""
        train = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.learning_rate, "seed": self.seed}
        return {"train": train, "labels": {"max_per_location": self.max_per_location}}


def load_plan(path: str | Path) -> Plan:
    """The checked plan of a YAML file.

    Raises:
        PlanError: the file does not exist, is too large, is not YAML, or has a key or value that does not fit. ``details["keys"]`` lists
            the keys of all errors.
    """
    path = Path(path)
    data = parse_yaml(path)
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise PlanError(f"{path}: expected keys such as model, sources and labels, found {found}", code="not_a_mapping")
    return check_plan(data, str(path))


def find_plan(plan: str | Path, folder: Path) -> Path:
    """The file of a plan that is given by its path, or by its name in ``folder``: ``sample`` for ``<folder>/sample.yaml``.

    Raises:
        PlanError: neither exists; the message lists the known names.
    """
    named = folder / f"{plan}.yaml"
    if Path(plan).suffix in {".yaml", ".yml"} or Path(plan).is_file():
        return Path(plan)
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", str(plan)) and named.is_file():
        return named
    names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "no plan"
    raise PlanError(
        f"expected the name of a plan or the path of its YAML file, found {shorten(str(plan))}; the folder {folder} (ANIML_PLANS) holds: {names}",
        code="unknown_plan",
    )


def check_plan(data: dict[str, Any], origin: str = "the plan") -> Plan:
    """The plan that a plan file's content describes; ``origin`` names the file in messages.

    Raises:
        PlanError: as in :func:`load_plan`.
    """
    try:
        return Plan.model_validate(data)
    except ValidationError as e:
        errors = _ordered(e.errors(include_url=False))
        said = "; ".join(_explain(error) for error in errors[:MOST_ERRORS])
        more = f" (and {len(errors) - MOST_ERRORS} more)" if len(errors) > MOST_ERRORS else ""
        keys = [".".join(map(str, error["loc"])) for error in errors]
        raise PlanError(f"{origin}: {said}{more}", code=errors[0]["type"], keys=keys) from e


def _ordered(errors: list[Any]) -> list[Any]:
    """The errors, unknown keys first, since an unknown key is often a misspelt missing one."""
    parents = {error["loc"][:n] for error in errors for n in range(len(error["loc"]))}
    kept = [error for error in errors if error["type"] != "too_short" or error["loc"] not in parents]  # too short because of a wrong entry
    return sorted(kept, key=lambda error: error["type"] not in {"extra_forbidden", "invalid_key"})


def _explain(error: Any) -> str:
    """One pydantic error in the plan's own words."""
    location = [str(part) for part in error["loc"]]
    where = _one_line(".".join(location)) or "the plan"
    if error["type"] == "extra_forbidden":
        new = renamed_key(location)
        return (
            f"the key {where!r} is now called {new!r}"
            if new
            else f"the key {where!r} is not known; known here are: {', '.join(_keys_beside(location))}"
        )
    if error["type"] == "missing":
        return f"the key {where!r} is missing, and every plan needs it"
    message = _one_line(re.sub(r"^Value error, ", "", error["msg"]))
    if error["type"] in {"tuple_type", "too_short"}:  # YAML calls it a list
        message = message.replace("tuple", "list").replace("Tuple", "List")
    if error["type"] == "value_error":
        return f"{where}: {message}" if location else message
    return f"{where}: {message[0].lower()}{message[1:]}, found {shorten(error['input'])}"


def _one_line(text: str) -> str:
    """``text`` with line ends and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _keys_beside(location: list[str]) -> list[str]:
    """The known keys of the section that holds the last part of ``location``."""
    section: Any = Plan
    for part in location[:-1]:
        inner = section.model_fields.get(part) if isinstance(section, type) and issubclass(section, Record) else None
        if inner is not None:
            section = _section_in(inner.annotation) or section
    return [f.alias or name for name, f in section.model_fields.items()]


def _section_in(annotation: Any) -> type[Record] | None:
    """The section type inside an annotation such as ``tuple[SourceConfig, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    return next((found for inner in getattr(annotation, "__args__", ()) if (found := _section_in(inner))), None)

"""Read a plan from its YAML file and check it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError

from animl_pipeline.config.plan import Plan
from animl_pipeline.config.plan_errors import explain_errors, find_all_errors
from animl_pipeline.config.strict_yaml import parse_yaml
from animl_pipeline.config.value_types_and_messages import did_you_mean, shorten
from animl_pipeline.core.errors import PlanError
from animl_pipeline.core.frozen_record import Record

MOST_ERRORS = 12
"""A message explains this many errors."""


class Overrides(Record):
    """Changes for one run; what is left empty stays as the plan says. The model card records the values used."""

    PLAN_KEYS: ClassVar[dict[str, str]] = {
        "train.epochs": "epochs",
        "train.batch_size": "batch_size",
        "train.lr": "learning_rate",
        "train.seed": "seed",
        "labels.max_per_location": "max_per_location",
    }
    """Key of the plan → the field that changes it."""
    ONLY_FINE_TUNING: ClassVar[frozenset[str]] = frozenset({"train.epochs", "train.batch_size", "train.lr"})
    """Keys that the recipe ``head`` does not use."""

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
            PlanError: a change does not fit the plan, or the plan's recipe does not use it.
        """
        if plan.train.recipes() == ("head",):
            for change in self.changes(plan):
                if change.partition(" ")[0] in self.ONLY_FINE_TUNING:
                    raise PlanError(
                        f"{change}: expected a change that the plan's recipe uses, found one of fine-tuning, while train.recipe is head; "
                        "leave it out, or set train.recipe: fine_tune in the plan",
                        code="unused_change",
                    )
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
        sections: dict[str, dict[str, Any]] = {}
        for plan_key, field in self.PLAN_KEYS.items():
            section, _, key = plan_key.partition(".")
            sections.setdefault(section, {})[key] = getattr(self, field)
        return sections


def load_plan(path: str | Path) -> Plan:
    """The checked plan of a YAML file.

    Raises:
        PlanError: the file does not exist, is too large, is not YAML, or has a key or value that does not fit. ``details["keys"]`` lists the keys of
            all errors.
    """
    path = Path(path)
    data = parse_yaml(path)
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise PlanError(f"{path}: expected keys such as model, sources and labels, found {found}", code="not_a_mapping")
    return check_plan(data, str(path))


def find_plan(plan: str | Path, folder: Path) -> Path:
    """The file of a plan that is given by its path, with or without .yaml, or by its name in ``folder``: ``sample`` for ``<folder>/sample.yaml``.

    Raises:
        PlanError: neither exists; the message lists the known names.
    """
    is_name = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", str(plan)) is not None
    has_suffix = Path(plan).suffix in {".yaml", ".yml"}
    if Path(plan).is_file():
        return Path(plan)
    for file in (folder / str(plan) if has_suffix else folder / f"{plan}.yaml",) if is_name else ():
        if file.is_file():
            return file
    if has_suffix:
        return Path(plan)
    if Path(f"{plan}.yaml").is_file():
        return Path(f"{plan}.yaml")
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    raise PlanError(
        f"expected the name of a plan or the path of its YAML file, found {shorten(str(plan))}{did_you_mean(str(plan), names)}; "
        f"the folder {folder} (ANIML_PLANS) holds: {', '.join(names) or 'no plan'}",
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
        errors = explain_errors(find_all_errors(data, e))
        shown = [error.text for error in errors[:MOST_ERRORS]]
        said = shown[0] if len(errors) == 1 else f"{len(errors)} errors: " + "; ".join(f"({n}) {text}" for n, text in enumerate(shown, 1))
        more = f"; and {len(errors) - MOST_ERRORS} more" if len(errors) > MOST_ERRORS else ""
        raise PlanError(f"{origin}: {said}{more}", code=errors[0].type, keys=[error.key for error in errors]) from e

"""A plan from its YAML file; what is wrong with it in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from animl_pipeline.config.fields import short
from animl_pipeline.config.plan import Plan
from animl_pipeline.core.errors import PlanError
from animl_pipeline.core.records import Record


class _StrictLoader(yaml.SafeLoader):
    """YAML as the safe loader reads it, but a key said twice is a fault: else the second would silently win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in getattr(node, "value", []):
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return dict(super().construct_mapping(node, deep=deep))


class Overrides(Record):
    """Changes for one run; what is left empty stays as the plan says. The card records what was used."""

    epochs: int | None = Field(default=None, ge=1, le=10**6, title="Epochs", description="train.epochs: how often every crop is seen")
    batch_size: int | None = Field(default=None, ge=1, le=10**6, title="Batch size", description="train.batch_size: lower it when memory runs out")
    learning_rate: float | None = Field(default=None, gt=0, le=1, title="Learning rate", description="train.lr")
    seed: int | None = Field(default=None, ge=0, lt=2**63, title="Seed", description="train.seed: another draw of the same training")
    max_per_location: int | None = Field(
        default=None, ge=1, title="Most objects of one place", description="labels.max_per_location: for classes without their own"
    )

    def applied(self, plan: Plan) -> Plan:
        """The plan with these changes, checked as a whole.

        Raises:
            PlanError: a change does not fit the plan.
        """
        train = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.learning_rate, "seed": self.seed}
        changes: dict[str, dict[str, Any]] = {"train": train, "labels": {"max_per_location": self.max_per_location}}
        data = plan.model_dump(mode="json", by_alias=True)
        for section, values in changes.items():
            data[section] |= {key: value for key, value in values.items() if value is not None}
        return check_plan(data, f"the plan of {plan.model} with this run's changes") if self != Overrides() else plan


def load_plan(path: str | Path) -> Plan:
    """Read and check a plan.

    Raises:
        PlanError: the file is not there, is not YAML, or has a key or value that does not fit; one line names the
            first such key and says how many more there are.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise PlanError(
            f"expected a plan at {path}, found none ({e.strerror}); give the path of a YAML file, such as deployments/plans/sample.yaml"
        ) from e
    except UnicodeDecodeError as e:
        raise PlanError(f"{path} is not a text file (byte {e.start} is no UTF-8); give the path of a YAML file") from e
    try:
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader that also refuses repeated keys
    except yaml.YAMLError as e:
        where = getattr(e, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise PlanError(f"{path} is not YAML{line}: {getattr(e, 'problem', None) or getattr(e, 'reason', None) or 'it does not parse'}") from e
    except (ValueError, RecursionError) as e:  # a date or a number that cannot be; brackets nested by the thousand
        raise PlanError(f"{path} is not YAML that a plan can be read from: {e}") from e
    if not isinstance(data, dict):
        raise PlanError(f"{path}: expected keys such as model, sources and labels, found {'nothing' if data is None else type(data).__name__}")
    return check_plan(data, str(path))


def find_plan(plan: str | Path, folder: Path) -> Path:
    """The file of a plan that is named by its path, or by its name in ``folder``: ``sample`` for ``<folder>/sample.yaml``.

    Raises:
        PlanError: there is neither; the message lists the names that there are.
    """
    named = folder / f"{plan}.yaml"
    if Path(plan).suffix in {".yaml", ".yml"} or Path(plan).is_file():
        return Path(plan)
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", str(plan)) and named.is_file():
        return named
    names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "no plan"
    raise PlanError(f"expected a plan's name or the path of its YAML file, found {short(str(plan))}; {folder} (ANIML_PLANS) holds: {names}")


def check_plan(data: dict[str, Any], origin: str = "the plan") -> Plan:
    """Check what a plan file holds; ``origin`` names it in messages.

    Raises:
        PlanError: as in :func:`load_plan`.
    """
    try:
        return Plan.model_validate(data)
    except ValidationError as e:
        # a wrong key first: it is often what the missing one was meant to be
        found = e.errors(include_url=False)
        within = {error["loc"][:n] for error in found for n in range(len(error["loc"]))}
        found = [error for error in found if error["type"] != "too_short" or error["loc"] not in within]  # short for want of what is wrong in it
        errors = sorted(found, key=lambda error: error["type"] not in {"extra_forbidden", "invalid_key"})
        more = f" ({len(errors) - 1} more after this)" if len(errors) > 1 else ""
        raise PlanError(f"{origin}: {_explain(errors[0])}{more}") from e


def _explain(error: Any) -> str:
    """One pydantic error in the plan's own words."""
    location = [str(part) for part in error["loc"]]
    where = _one_line(".".join(location)) or "the plan"
    if error["type"] == "extra_forbidden":
        known = ", ".join(_keys_beside(location))
        return f"the key {where!r} is not known; here a plan has: {known}"
    if error["type"] == "missing":
        return f"the key {where!r} is missing; a plan cannot do without it"
    message = _one_line(re.sub(r"^Value error, ", "", error["msg"]))
    if error["type"] in {"tuple_type", "too_short"}:  # as YAML calls it
        message = message.replace("tuple", "list").replace("Tuple", "List")
    if error["type"] == "value_error":
        return f"{where}: {message}" if location else message
    return f"{where}: {message[0].lower()}{message[1:]}, found {short(error['input'])}"


def _one_line(text: str) -> str:
    """``text`` with its line ends and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _keys_beside(location: list[str]) -> list[str]:
    """The keys that the record at ``location``'s parent knows."""
    record: Any = Plan
    for part in location[:-1]:
        inner = record.model_fields.get(part) if isinstance(record, type) and issubclass(record, Record) else None
        if inner is not None:
            record = _record_in(inner.annotation) or record
    return [f.alias or name for name, f in record.model_fields.items()]


def _record_in(annotation: Any) -> type[Record] | None:
    """The record type inside an annotation such as ``tuple[SourcePlan, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _record_in(inner)
        if found:
            return found
    return None

"""Arguments and options that several commands take, and the settings and plans that come of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from animl_pipeline.config import Overrides, Plan, find_plan, load_plan
from animl_pipeline.config.plan_errors import explain_errors
from animl_pipeline.config.settings import Settings, check_store_address, load_settings
from animl_pipeline.config.value_types_and_messages import did_you_mean, shorten
from animl_pipeline.core.errors import PlanError, SettingsError


def plan_names(incomplete: str) -> list[str]:
    """The plans of the folder of plans, for the shell's completion."""
    return sorted(file.stem for file in load_settings().plans.glob("*.yaml") if file.stem.startswith(incomplete))


PlanArgument = Annotated[
    str,
    typer.Argument(
        metavar="PLAN",
        autocompletion=plan_names,
        help="the plan's YAML file, such as deployments/plans/sample.yaml, or its name there, such as sample",
    ),
]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="folder or s3://bucket/prefix for all that steps make (ANIML_STORE)", show_default=False)
]
DataOption = Annotated[Path | None, typer.Option("--data", help="folder where relative paths of the plan start (ANIML_DATA)", show_default=False)]
VersionOption = Annotated[
    str,
    typer.Option(
        metavar="VERSION", help="of `animl-pipeline versions PLAN`, trials too; without it, the latest that is no trial", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help=f"change the plan for this run, which is then a trial: {', '.join(Overrides.PLAN_KEYS)}; once for each",
        show_default=False,
    ),
]


class Debug:
    """Whether --debug was given."""

    on = False


def settings_with(store: str | None = None, data: Path | None = None) -> Settings:
    """The settings of the environment, changed by a command's options.

    Raises:
        SettingsError: an environment variable or an option is not valid.
    """
    changes: dict[str, object] = {}
    if store is not None:
        try:
            changes["store"] = check_store_address(store)
        except ValueError as e:
            raise SettingsError(f"--store: {e}", code="invalid_option") from e
    if data is not None:
        changes["data"] = data
    return load_settings().model_copy(update=changes)


def overrides_of(changes: Sequence[str]) -> Overrides:
    """What a run changes of its plan.

    ``changes``: texts such as train.epochs=3. Without its section, a key is known, too.

    Raises:
        PlanError: one is no known key with a fitting value.
    """
    fields = {key.rpartition(".")[2]: field for key, field in Overrides.PLAN_KEYS.items()}
    fields |= {field: field for field in Overrides.model_fields} | Overrides.PLAN_KEYS
    values = {}
    for change in changes:
        key, _, value = change.partition("=")
        if key not in fields or not value:
            expected = f"--set: expected KEY=VALUE with one of {', '.join(Overrides.PLAN_KEYS)}"
            raise PlanError(f"{expected}, found {shorten(change)}{did_you_mean(key, fields)}", code="invalid_option")
        values[fields[key]] = value
    try:
        return Overrides.model_validate(values)
    except ValidationError as e:
        raise PlanError(f"--set: {explain_errors(e.errors(include_url=False))[0].text}", code="invalid_option") from e


def open_plan(plan: str, settings: Settings) -> Plan:
    """The plan that a command was given: its file, or its name in the folder of plans.

    Raises:
        PlanError: there is no such plan, or it is not valid.
    """
    return load_plan(find_plan(plan, settings.plans))

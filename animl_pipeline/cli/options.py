"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from animl_pipeline.config import Plan, find_plan, load_plan
from animl_pipeline.config.settings import load_settings

PlanPath = Annotated[Path, typer.Argument(metavar="PLAN", help="the plan's YAML file, such as deployments/plans/sample.yaml")]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="folder or s3://bucket/prefix for all that steps make (ANIML_STORE)", show_default=False)
]
DataOption = Annotated[Path | None, typer.Option("--data", help="folder where the plan's relative paths start (ANIML_DATA)", show_default=False)]


def opened_plan(plan: Path) -> Plan:
    """The plan that a command was given: its file, or as a flow takes it, its name in the folder ANIML_PLANS."""
    return load_plan(find_plan(str(plan), load_settings().plans))

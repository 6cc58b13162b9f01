"""`animl-pipeline release PLAN`, and what belongs to it: status, history, rollback, register, gc."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from animl_pipeline.cli import console
from animl_pipeline.cli.options import PlanPath, StoreOption, opened_plan
from animl_pipeline.cli.prefect_server import load_prefect
from animl_pipeline.cli.release_output import show_cleared, show_history, show_outlook, show_release, show_status
from animl_pipeline.cli.run_flow import Debug, run
from animl_pipeline.config import Plan
from animl_pipeline.config.settings import load_settings, remember
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.records import Release
from animl_pipeline.storage.step_cache import Store, open_store


class _ReleaseItself(TyperGroup):
    """`release PLAN` is short for `release run PLAN`; a plan called like a command needs a path, such as ./status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"} and not self._misspelt(args):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def _misspelt(self, args: list[str]) -> bool:
        """Whether the first of several words is a command that there almost is; it is then refused as one."""
        return len(args) > 1 and not args[1].startswith("-") and bool(get_close_matches(args[0], self.commands))


releases = typer.Typer(
    cls=_ReleaseItself,
    help="Put a package behind its SageMaker endpoint: `release PLAN` (the same as `release run PLAN`), and look after what is there. "
    "AWS is where boto3's usual variables point to; AWS_ENDPOINT_URL_SAGEMAKER and its kin lead to `animl-pipeline sagemaker-local` instead.",
    epilog="Begin with: animl-pipeline release PLAN --dry-run. docs/release.md tells the whole story.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Force = Annotated[
    str, typer.Option("--force", metavar="REASON", help="release although the report's verdict is not to; the history keeps the reason")
]


@releases.command("run")
def release(
    plan: PlanPath,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="change nothing: show what would change, what it costs, and what is in the way")] = False,
    force: Force = "",
    approve_as: Annotated[
        str | None,
        typer.Option("--approve-as", metavar="NAME", help="your name: you have read the report and approve (where the plan says approval: required)"),
    ] = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="a note on your approval; the history keeps it")] = "",
    store: StoreOption = None,
) -> None:
    """Put the newest package of PLAN behind its endpoint, and check the live answers.

    The endpoint goes back to what it served before if the answers differ from the offline ones. A release that was killed
    is finished or undone by the next one. Where PLAN says `release.approval: required`, say who approves with --approve-as;
    a release that was started on a Prefect server asks in its UI instead.
    """
    remember(store=store)
    if note and approve_as is None:
        raise ReleaseError("--note belongs to an approval: give your name, too, with --approve-as NAME")
    if approve_as is not None:
        from animl_pipeline.deploy import approval

        approval(approve_as, note, "command line")  # refused before anything is done
    if dry_run:
        _foresee(plan, force, approved=approve_as is not None)
        return
    load_prefect()
    from flows.release import release as flow
    from flows.run_states import reached

    done: Release = reached(run(flow, str(plan), force, approve_as or "", note, return_state=True))
    show_release(done, "now serves" if done.changed else "served already")


@releases.command()
def status(plan: PlanPath, store: StoreOption = None) -> None:
    """Show what PLAN's endpoints serve now, and whether a release is half done (exit code 1 then)."""
    remember(store=store)
    from animl_pipeline.deploy import endpoints_status

    checked, kept = _opened(plan)
    states = endpoints_status(checked, kept, load_settings())
    show_status(states)
    if any(s.unfinished for s in states):
        raise typer.Exit(1)


@releases.command()
def history(plan: PlanPath, store: StoreOption = None) -> None:
    """List every release and rollback of PLAN's endpoints, the newest last."""
    remember(store=store)
    from animl_pipeline.deploy import release_history

    checked, kept = _opened(plan)
    for where in checked.release.endpoints(checked.model):
        show_history(where.line, release_history(checked, kept, where.purpose))


@releases.command()
def rollback(
    plan: PlanPath,
    to: Annotated[
        str | None, typer.Option(help="version or endpoint configuration to go back to; without it, the one before the present one")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Put an earlier version behind PLAN's endpoints again, and check it there."""
    remember(store=store)
    load_prefect()
    from flows.release import rollback as flow

    done: Release = run(flow, str(plan), to)
    show_release(done, "serves again")


@releases.command()
def register(
    plan: PlanPath,
    only_files: Annotated[bool, typer.Option("--only-files", help="write the files, change nothing in AWS and Animl")] = False,
    folder: Annotated[Path | None, typer.Option(help="copy the files there as well", show_default=False)] = None,
    store: StoreOption = None,
) -> None:
    """Tell Animl of the model behind PLAN's endpoint: SSM, MLModel document, categoryConfig, automation rules, a checklist.

    With --only-files the newest package is meant, whether it was released or not: a changed class list must be known to
    Animl before the endpoint answers with it.
    """
    remember(store=store)
    from animl_pipeline.deploy import register_model, served_package
    from animl_pipeline.deploy.latest_report import newest_report

    checked, kept = _opened(plan)
    settings = load_settings()
    package = newest_report(checked.model, kept).package if only_files else served_package(checked, kept, settings)
    if package is None:
        raise ReleaseError(f"expected a released package behind {checked.endpoint_name()}, found none; release first, or write the --only-files")
    with console.watched(debug=Debug.on):
        told = register_model(package, checked, kept, settings, only_files=only_files)
    console.out.print(f"{told.folder}: {', '.join(told.files)}")
    for name, value in told.parameters.items():
        console.out.print(f"  SSM    {name} = {value}{' (not written)' if only_files else ''}")
    for project, what in told.rules.items():
        console.out.print(f"  rules  {project}: {what}")
    if folder is not None:
        _copy(told.folder, told.files, folder, kept)
    console.out.print("next: checklist.md")


@releases.command()
def gc(
    plan: PlanPath,
    keep: Annotated[int | None, typer.Option(min=1, help="released versions to go back to; without it, the plan's release.keep")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="delete nothing, only say what would go")] = False,
    store: StoreOption = None,
) -> None:
    """Delete old models, configurations and packages of PLAN: never what an endpoint uses or a rollback needs."""
    remember(store=store)
    from animl_pipeline.deploy import clear_away

    checked, kept = _opened(plan)
    with console.watched(debug=Debug.on):
        cleared = clear_away(checked, kept, load_settings(), keep=keep, look_only=dry_run)
    show_cleared(cleared, look_only=dry_run)


def _foresee(plan: Path, force: str, *, approved: bool) -> None:
    """The dry run; exit code 1 where a release would be refused or fail."""
    from animl_pipeline.deploy import foresee_release
    from animl_pipeline.deploy.latest_report import newest_report

    checked, kept = _opened(plan)
    report = newest_report(checked.model, kept)
    outlook = foresee_release(report.package, checked, kept, load_settings(), report=report, force=force, approved=approved)
    show_outlook(outlook, f"{checked.model} {report.version}")
    if outlook.refused or any(f.state == "fault" for f in outlook.findings):
        raise typer.Exit(1)


def _opened(plan: Path) -> tuple[Plan, Store]:
    return opened_plan(plan), open_store(load_settings())


def _copy(source: str, files: tuple[str, ...], folder: Path, store: Store) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    inside = source.removeprefix(f"{store.object_store}/")
    for name in files:
        (folder / name).write_bytes(store.object_store.read(f"{inside}/{name}") or b"")
    console.out.print(f"copied to {folder}")

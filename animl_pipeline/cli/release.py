"""`animl-pipeline release PLAN`, and the commands that belong to it: status, history, rollback, register, gc."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from animl_pipeline.cli import console
from animl_pipeline.cli.options import Debug, JsonOption, PlanArgument, StoreOption, VersionOption, open_plan, settings_with
from animl_pipeline.cli.prefect_connection import load_prefect
from animl_pipeline.cli.release_output import show_cleanup, show_dry_run, show_history, show_release, show_status
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.storage.open_existing_or_temporary_store import open_existing_store
from animl_pipeline.storage.store import Store


class _RunByDefault(TyperGroup):
    """`release PLAN` is short for `release run PLAN`. A plan with the name of a command needs a path, such as ./status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"} and not self._is_misspelt_command(args):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def _is_misspelt_command(self, args: list[str]) -> bool:
        """Whether the first of several words is nearly a command. It is then refused as a command."""
        return len(args) > 1 and not args[1].startswith("-") and bool(get_close_matches(args[0], self.commands))


releases = typer.Typer(
    cls=_RunByDefault,
    help="Deploy a package to its SageMaker endpoint: `release PLAN` (the same as `release run PLAN`), and look after what is deployed. "
    "boto3's usual variables say which AWS account; AWS_ENDPOINT_URL_SAGEMAKER and the like lead to `animl-pipeline sagemaker-local` instead.",
    epilog="Begin with: animl-pipeline release PLAN --dry-run. docs/release.md explains releases.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@releases.command("run")
def release(
    plan: PlanArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="change nothing: show what would change, and what prevents a release")] = False,
    force: Annotated[str, typer.Option("--force", metavar="REASON", help="release against the report's verdict; the history keeps the reason")] = "",
    approve_as: Annotated[
        str | None,
        typer.Option("--approve-as", metavar="NAME", help="your name: you have read the report and approve (if the plan says approval: required)"),
    ] = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="a note on your approval; the history keeps it")] = "",
    version: VersionOption = "",
    store: StoreOption = None,
) -> None:
    """Deploy the latest package of PLAN, or that of a version, to its endpoint, and check the live answers.

    The endpoint goes back to what it served before if the answers differ from the offline ones. The next release finishes or
    undoes one that was killed. If PLAN says `release.approval: required`, say who approves with --approve-as; a release that was
    started on a Prefect server asks in its UI instead.
    """
    settings = settings_with(store)
    if note and approve_as is None:
        raise ReleaseError("--note belongs to an approval: give your name, too, with --approve-as NAME", code="note_without_name")
    if approve_as is not None:
        from animl_pipeline.deploy import new_approval

        new_approval(approve_as, note, "command line")  # refused before anything is done
    if dry_run:
        _dry_run(plan, force, version, settings, approved=approve_as is not None)
        return
    open_plan(plan, settings)  # refused before Prefect is loaded and its server starts
    open_existing_store(settings)
    load_prefect()
    from animl_pipeline.cli.run_with_prefect import run_flow
    from flows.end_states import result_of
    from flows.release import release as flow

    done = result_of(run_flow(flow, plan, force, approve_as or "", note, settings.store, version, return_state=True))
    show_release(done, "now serves" if done.changed else "served already")


@releases.command()
def status(plan: PlanArgument, store: StoreOption = None) -> None:
    """Show what PLAN's endpoints serve now, and whether a release is unfinished (exit code 1 then)."""
    settings = settings_with(store)
    from animl_pipeline.deploy import endpoint_statuses

    states = endpoint_statuses(open_plan(plan, settings), open_existing_store(settings), settings)
    show_status(states)
    if any(s.unfinished for s in states):
        raise typer.Exit(1)


@releases.command()
def history(plan: PlanArgument, as_json: JsonOption = False, store: StoreOption = None) -> None:
    """List every release and rollback of PLAN's endpoints, the newest last."""
    settings = settings_with(store)
    from animl_pipeline.deploy import release_records

    checked, opened = open_plan(plan, settings), open_existing_store(settings)
    histories = {e.base_name: release_records(checked, opened, e.purpose) for e in checked.release.endpoints(checked.model)}
    if as_json:
        console.print_json({endpoint: [r.model_dump(mode="json") for r in records] for endpoint, records in histories.items()})
        return
    for endpoint, records in histories.items():
        show_history(endpoint, records)


@releases.command()
def rollback(
    plan: PlanArgument,
    to: Annotated[
        str | None, typer.Option(help="version or endpoint configuration to go back to; without it, the one before the present one")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Put an earlier version behind PLAN's endpoints again, and check it there."""
    settings = settings_with(store)
    open_plan(plan, settings)
    open_existing_store(settings)
    load_prefect()
    from animl_pipeline.cli.run_with_prefect import run_flow
    from flows.release import rollback as flow

    show_release(run_flow(flow, plan, to, settings.store), "serves again")


@releases.command()
def register(
    plan: PlanArgument,
    only_files: Annotated[bool, typer.Option("--only-files", help="write the files, change nothing in AWS and Animl")] = False,
    folder: Annotated[Path | None, typer.Option(help="also copy the files to this folder", show_default=False)] = None,
    store: StoreOption = None,
) -> None:
    """Register the model behind PLAN's endpoint in Animl: SSM, MLModel document, categoryConfig, automation rules, a checklist.

    With --only-files the latest package is used, whether it was released or not: Animl must know a changed class list before
    the endpoint answers with it.
    """
    settings = settings_with(store)
    from animl_pipeline.deploy import deployed_package, register_model
    from animl_pipeline.deploy.trained_versions import read_latest_report

    checked, opened = open_plan(plan, settings), open_existing_store(settings)
    package = read_latest_report(checked.model, opened).package if only_files else deployed_package(checked, opened, settings)
    if package is None:
        raise ReleaseError(
            f"expected a released package behind {checked.endpoint_name()}, found none; release first, or use --only-files", code="not_released"
        )
    with console.show_progress(debug=Debug.on):
        registration = register_model(package, checked, opened, settings, only_files=only_files)
    console.out.print(f"{registration.folder}: {', '.join(registration.files)}")
    for name, value in registration.parameters.items():
        console.out.print(f"  SSM    {name} = {value}{' (not written)' if only_files else ''}")
    for project, result in registration.rules.items():
        console.out.print(f"  rules  {project}: {result}")
        for line in registration.kept.get(project, ()):
            console.out.print(f"  kept   {project}: {line}; a person chose it (release.register.existing_thresholds)")
    if folder is not None:
        _copy(registration.folder, registration.files, folder, opened)
    console.out.print("next: checklist.md")


@releases.command()
def gc(
    plan: PlanArgument,
    keep: Annotated[
        int | None, typer.Option(min=1, help="released versions to keep for a rollback; without it, the plan's release.keep_versions")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="delete nothing, only show what would be deleted")] = False,
    store: StoreOption = None,
) -> None:
    """Delete old models, configurations and packages of PLAN: never what an endpoint uses or a rollback needs."""
    settings = settings_with(store)
    from animl_pipeline.deploy import delete_unused

    with console.show_progress(debug=Debug.on):
        result = delete_unused(open_plan(plan, settings), open_existing_store(settings), settings, keep_versions=keep, dry_run=dry_run)
    show_cleanup(result, dry_run=dry_run)


def _dry_run(plan: str, force: str, version: str, settings: Settings, *, approved: bool) -> None:
    """Show what a release would do; exit code 1 if it would be refused or fail."""
    from animl_pipeline.deploy import dry_run_release
    from animl_pipeline.deploy.trained_versions import read_report

    checked, opened = open_plan(plan, settings), open_existing_store(settings)
    report = read_report(checked.model, version, opened)
    result = dry_run_release(report.package, checked, opened, settings, report=report, force=force, approved=approved)
    if show_dry_run(result, f"{checked.model} {report.version}"):
        raise typer.Exit(1)


def _copy(source: str, files: tuple[str, ...], folder: Path, store: Store) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prefix = source.removeprefix(f"{store.object_store}/")
    for name in files:
        (folder / name).write_bytes(store.object_store.read(f"{prefix}/{name}") or b"")
    console.out.print(f"copied to {folder}")

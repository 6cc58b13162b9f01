"""The commands of ``animl-pipeline``. Its ``--help`` explains them."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ClassVar, NoReturn

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.lazy_commands import LazyCommand, LazyGroup
from animl_pipeline.cli.options import ChangesOption, DataOption, Debug, PlanArgument, StoreOption, open_plan, overrides_of, settings_with
from animl_pipeline.cli.prefect_connection import load_prefect, prepare_prefect, require_server
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.errors import PipelineError


class Commands(LazyGroup):
    """The commands that are in modules of their own. A command in this module imports what it needs when it runs."""

    lazy: ClassVar[dict[str, LazyCommand]] = {
        "plan": LazyCommand("plan_check:plans", "Write, check and preview plans."),
        "release": LazyCommand("release:releases", "Deploy a package to its endpoint."),
        "weights": LazyCommand("weights:weights", "List and download pretrained weights."),
        "detectors": LazyCommand("compare_detectors:detectors", "Compare detectors on a plan's own images."),
        "store": LazyCommand("store:stores", "Show the store, delete what is not needed."),
        "rollback": LazyCommand("release:rollback", "Put an earlier version behind the endpoint."),
        "versions": LazyCommand("report_and_versions:versions", "List what was trained and released, with verdict and scores."),
        "report": LazyCommand("report_and_versions:report", "Show where a version's report is."),
        "report-server": LazyCommand("report_and_versions:report_server", "Serve a team's reports."),
        "predict": LazyCommand("predict:predict", "Name the animals in an image or a folder, on this machine."),
        "monitor": LazyCommand("monitor:monitor", "Say how the model in service does."),
        "review-next": LazyCommand("review_next:review_next", "List the images to review next."),
        "reinfer": LazyCommand("reinfer:reinfer", "Ask the released model about old, unreviewed images."),
        "evaluate": LazyCommand("evaluate_package:evaluate", "Score a package on the labelled boxes of a plan."),
        "compare": LazyCommand("compare_other_models:compare", "Score other models' answers beside the plan's model."),
    }


app = typer.Typer(
    name="animl-pipeline",
    cls=Commands,
    help="Retrain a species classifier from labels that people validated in Animl, evaluate it, and deploy it to SageMaker.",
    epilog="Begin with: animl-pipeline demo. Where data is read and written comes from the environment (ANIML_STORE, ANIML_DATA, AWS_…); "
    "what to train comes from a plan (deployments/plans/).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.out.print(f"animl-pipeline {version('animl-pipeline')}")
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and Prefect's own log")] = False,
    _version: Annotated[bool, typer.Option("--version", help="show the version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Prepare what all commands share."""
    Debug.on = debug
    if context.invoked_subcommand in {"retrain", "demo", "up", "release", "doctor"} and console.err.is_terminal:
        console.err.print(f"animl-pipeline {context.invoked_subcommand}: starting, which takes some seconds")
    prepare_prefect(context.invoked_subcommand, debug=debug)


@app.command(short_help="Train, score and package a classifier.")
def retrain(plan: PlanArgument, changes: ChangesOption = None, store: StoreOption = None, data: DataOption = None) -> None:
    """Train, score and package a classifier by PLAN, and write a report.

    Steps whose inputs and plan are unchanged are reused, and a killed run goes on where it was. Without a Prefect server
    (PREFECT_API_URL) an embedded one runs for as long as this command.
    """
    settings = settings_with(store, data)
    from animl_pipeline.cli.plan_check import check_what_it_names

    overrides = overrides_of(changes or [])
    checked = overrides.applied(open_plan(plan, settings))
    check_what_it_names(checked, settings)  # refused before Prefect is loaded and its server starts
    load_prefect()
    from animl_pipeline.cli.run_with_prefect import run_flow
    from animl_pipeline.cli.tables import show_scores, show_step_counts
    from animl_pipeline.storage.store import open_store
    from flows.retrain import retrain as flow

    report = run_flow(flow, plan, overrides, store=settings.store, data=str(settings.data))
    show_step_counts(report.step_counts)
    show_scores(report)
    console.out.print(f"report: {open_store(settings).path(report.evaluation, 'report.html')}")
    if report.verdict in {None, "promote"}:
        approved = " --approve-as NAME, once you have read the report" if checked.release.approval == "required" else ""
        trial = f" --version {report.version}" if changes else ""
        console.out.print(f"next: animl-pipeline release {plan}{trial}{approved}")
    else:
        console.out.print("next: read the report; without --force REASON this model will not be released")


@app.command(short_help="Run the whole pipeline on a synthetic data set.")
def demo(
    folder: Annotated[Path, typer.Option(help="where the demo keeps its data set, store and endpoint")] = Path("runs/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="leave the endpoint running until Ctrl-C")] = False,
) -> None:
    """Run the whole pipeline on a synthetic data set, from export to endpoint, all on this machine."""
    from animl_pipeline.cli.demo import run_demo

    load_prefect()
    run_demo(folder, keep=keep, debug=Debug.on)


@app.command(short_help="Check this machine, and say what to fix.")
def doctor() -> None:
    """Check this machine: packages, store, disk, weights, Animl, AWS, Prefect. Says what to fix."""
    from animl_pipeline.cli.doctor import run_checks

    failed = 0
    for check in run_checks(load_settings()):
        failed += check.state == "error"
        console.out.print(f"{check.mark} {check.what:<14} {check.found}")
    if failed:
        raise typer.Exit(1)


@app.command(short_help="Run Prefect's UI, all deployments, a worker, the reports.")
def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the server, on this machine only")] = 4200,
    reports_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="of the reports, on this machine only; without it, the one after --port", show_default=False)
    ] = None,
    local_sagemaker: Annotated[
        Path | None,
        typer.Option("--local-sagemaker", help="folder of a SageMaker on this machine that releases go to; without it, AWS", show_default=False),
    ] = None,
    store: StoreOption = None,
    data: DataOption = None,
) -> None:
    """Run a Prefect server with all deployments, a worker and the reports on this machine until Ctrl-C, to train from a browser."""
    settings = settings_with(store, data)
    load_prefect()
    from animl_pipeline.cli.prefect_up import run_up

    run_up(port, reports_port or port % 65535 + 1, settings, local_sagemaker)


@app.command(short_help="Run a team's Prefect server.")
def server(
    host: Annotated[str, typer.Option(help="address of this machine to listen on; 0.0.0.0 for all")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="to listen on")] = 4200,
) -> None:
    """Run Prefect's server and UI until Ctrl-C, with the password of PREFECT_SERVER_API_AUTH_STRING (user:password).

    Only requests for known hosts are answered: this machine's, PREFECT_API_URL's and PREFECT_SERVER_UI_API_URL's. Other web pages
    are refused. A team needs it and `worker`; `up` runs both on one machine.
    """
    load_prefect()
    from animl_pipeline.cli.prefect_server import serve_prefect

    serve_prefect(host, port)


@app.command(short_help="Carry out the runs of a Prefect server.")
def worker() -> None:
    """Carry out the runs of the Prefect server of PREFECT_API_URL until Ctrl-C.

    Only flows, variables and working directory that this machine's own prefect.yaml declares are accepted: no run can bring commands
    of its own.
    """
    require_server()
    from animl_pipeline.cli.guarded_prefect_worker import work
    from animl_pipeline.cli.prefect_connection import check_server

    check_server()
    work()


@app.command(short_help="Put the deployments on a Prefect server.")
def deploy() -> None:
    """Put all deployments and automations on the Prefect server of PREFECT_API_URL (a team's; `up` does it by itself)."""
    server = require_server()
    from animl_pipeline.cli.prefect_deployments import deploy as put_deployments

    put_deployments()
    console.out.print(f"{server} has all deployments; a worker carries out their runs: animl-pipeline worker")


@app.command(short_help="Report to the server that images were validated.")
def notify(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="name of a plan that the server has: deployed as retrain/PLAN")],
    batch: Annotated[str, typer.Option(help="an id of what was validated; the same id starts one run only")] = "",
    epochs: Annotated[int | None, typer.Option(min=1, help="train.epochs of this run", show_default=False)] = None,
) -> None:
    """Send the Prefect server (PREFECT_API_URL) the event that images of PLAN were validated. It then starts a training.

    A plan that is not deployed there is refused.
    """
    server = require_server()
    from animl_pipeline.cli.notify_validated import notify as send_event

    send_event(plan, {"epochs": epochs}, batch)
    console.out.print(f"sent to {server}: images of {plan} were validated")


@app.command("sagemaker-local", short_help="Run SageMaker's API on this machine.")
def sagemaker_local(
    folder: Annotated[Path, typer.Option(help="where it keeps its state")] = Path("runs/sagemaker"),
    bucket: Annotated[str | None, typer.Option(help="S3 bucket to make in it; without it, ANIML_MODELS_BUCKET's")] = None,
) -> None:
    """Run SageMaker's and S3's API on this machine until Ctrl-C, and print the variables that make boto3 use them."""
    from animl_pipeline.cli.sagemaker_local import serve_local_aws

    serve_local_aws(folder, bucket or load_settings().models_bucket)


def main() -> None:
    """Run a command. An error that a user can fix is one line and an exit code; a traceback comes only with --debug."""
    from flows import stop_signals

    stop_signals.handle_signals()
    try:
        app(standalone_mode=True)
    except stop_signals.Stopped:
        stop_signals.exit_now()
    except PipelineError as e:
        _fail(str(e), e.exit_code)
    except Exception as e:  # noqa: BLE001 - an unexpected error; EX_SOFTWARE of sysexits.h
        _fail(f"unexpected {type(e).__name__}: {e} (run with --debug for the traceback)", 70)


def _fail(reason: str, status: int) -> NoReturn:
    """End with one line; with --debug, with the exception that is being handled."""
    from flows import stop_signals

    if stop_signals.is_stopping():  # a library made another exception of it
        stop_signals.exit_now()
    if Debug.on:
        raise  # noqa: PLE0704 - called from an except clause
    console.err.print(f"animl-pipeline: {console.one_line(reason)}", markup=False)
    sys.exit(status)


if __name__ == "__main__":
    main()

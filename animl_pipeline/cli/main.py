"""The command line: the same flows, from a terminal. ``animl-pipeline --help`` teaches them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import DataOption, PlanPath, StoreOption, opened_plan
from animl_pipeline.cli.plan_check import plans
from animl_pipeline.cli.prefect_server import load_prefect, need_server
from animl_pipeline.cli.release import releases, rollback
from animl_pipeline.cli.run_flow import Debug as _Debug
from animl_pipeline.cli.run_flow import run as _run
from animl_pipeline.cli.store import stores
from animl_pipeline.cli.weights import weights
from animl_pipeline.config.settings import load_settings, prepare_prefect, remember
from animl_pipeline.core.errors import PipelineError
from animl_pipeline.core.records import Report
from flows import lifecycle
from flows.lifecycle import collect_seldom, share_one_heap

app = typer.Typer(
    name="animl-pipeline",
    help="Retrain a species classifier from labels that people validated in Animl, judge it, and put it behind SageMaker.",
    epilog="Begin with: animl-pipeline demo. Where things lie comes from the environment (ANIML_STORE, ANIML_DATA, AWS_…); "
    "what to train from a plan (deployments/plans/).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(plans, name="plan", short_help="Write, check and preview plans.")
app.add_typer(releases, name="release", short_help="Put a package behind its endpoint.")
app.add_typer(weights, name="weights", short_help="Pretrained weights that have a name.")
app.add_typer(stores, name="store", short_help="Show and clear what steps have made.")


@app.callback()
def start(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and Prefect's own log")] = False,
) -> None:
    """Prepare what all commands share."""
    _Debug.on = debug
    prepare_prefect(debug=debug)


@app.command(short_help="Train, score and package a classifier.")
def retrain(plan: PlanPath, store: StoreOption = None, data: DataOption = None) -> None:
    """Train, score and package a classifier by PLAN; the end is a report.

    Steps whose inputs, plan and code are unchanged are reused, and a killed run goes on where it was. Without a Prefect
    server (PREFECT_API_URL) an embedded one runs for as long as this command.
    """
    remember(store=store, data=data)
    load_prefect()
    from animl_pipeline.storage.step_cache import open_store
    from flows.retrain import retrain as flow

    report: Report = _run(flow, str(plan))
    console.show_story(report.story)
    console.show_scores(report)
    console.out.print(f"report: {open_store(load_settings()).path(report.evaluation, 'report.html')}")
    if report.verdict in {None, "promote"}:
        approved = " --approve-as NAME, once you have read the report" if opened_plan(plan).release.approval == "required" else ""
        console.out.print(f"next: animl-pipeline release {plan}{approved}")
    else:
        console.out.print("next: read the report; a release of this model would be refused without --force REASON")


app.command("rollback", short_help="Put an earlier version behind the endpoint.")(rollback)


@app.command(short_help="Name the animals in a picture, here.")
def predict(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="a picture")],
    plan: Annotated[Path, typer.Option("--plan", help="whose newest model answers")] = Path("deployments/plans/sample.yaml"),
    box: Annotated[str | None, typer.Option(help="ymin,xmin,ymax,xmax, each 0-1; without it, MegaDetector looks for animals")] = None,
    store: StoreOption = None,
) -> None:
    """Name the animals in IMAGE with the newest model of a plan, on this machine."""
    remember(store=store)
    from animl_pipeline.cli.predict import named_animals, parsed_box

    with console.watched(debug=_Debug.on):
        animals = named_animals(image, opened_plan(plan), parsed_box(box))
    if not animals:
        console.out.print("no animal found; give --box to ask about a place in the picture")
    for found, answer in animals:
        console.out.print(f"box [{', '.join(f'{v:.3f}' for v in found.as_list())}]")
        console.show_answer(answer)


@app.command(short_help="Run the whole street on a drawn island.")
def demo(
    folder: Annotated[Path, typer.Option(help="where the demo keeps its sample, store and endpoint")] = Path("runs/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="leave the endpoint up until Ctrl-C")] = False,
) -> None:
    """Run the whole street on a drawn island: export to endpoint, all on this machine."""
    from animl_pipeline.cli.demo import run_demo

    run_demo(folder, keep=keep, debug=_Debug.on)


@app.command(short_help="Check this machine, say what to mend.")
def doctor() -> None:
    """Check this machine: packages, store, disk, weights, AWS, Prefect; says what to mend."""
    from animl_pipeline.cli.doctor import examined

    faults = 0
    for check in examined(load_settings()):
        faults += check.state == "fault"
        console.out.print(f"{check.mark} {check.what:<14} {check.found}")
    if faults:
        raise typer.Exit(1)


@app.command(short_help="Run Prefect's UI, deployments and a worker.")
def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the server, on this machine only")] = 4200,
    local_sagemaker: Annotated[
        Path | None,
        typer.Option("--local-sagemaker", help="folder of a SageMaker on this machine that releases go to; without it, AWS", show_default=False),
    ] = None,
    store: StoreOption = None,
    data: DataOption = None,
) -> None:
    """Run a Prefect server with all deployments and a worker on this machine until Ctrl-C: trainings from a browser."""
    remember(store=store, data=data)
    load_prefect()
    from animl_pipeline.cli.run_server import run_here

    run_here(port, local_sagemaker=local_sagemaker)


@app.command(short_help="Put the deployments on a Prefect server.")
def deploy() -> None:
    """Put all deployments and automations on the Prefect server of PREFECT_API_URL (a team's; `up` does it by itself)."""
    server = need_server()
    from animl_pipeline.cli.run_server import deploy as put

    put()
    console.out.print(f"{server} has all deployments; a worker works them off: prefect worker start --pool animl")


@app.command(short_help="Tell the server that images were validated.")
def notify(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="name of a plan that the server has: deployed as retrain/PLAN")],
    batch: Annotated[str, typer.Option(help="an id of what was validated; the same id starts one run only")] = "",
    epochs: Annotated[int | None, typer.Option(min=1, help="train.epochs of this run", show_default=False)] = None,
) -> None:
    """Tell the Prefect server (PREFECT_API_URL) that images of PLAN were validated; it then starts a training.

    A plan that is not deployed there is refused.
    """
    server = need_server()
    from animl_pipeline.cli.run_server import notify as tell

    tell(plan, {"epochs": epochs}, batch)
    console.out.print(f"told {server}: images of {plan} were validated")


@app.command("sagemaker-local", short_help="Run SageMaker's API on this machine.")
def sagemaker_local(
    folder: Annotated[Path, typer.Option(help="where it keeps its state")] = Path("runs/sagemaker"),
    bucket: Annotated[str | None, typer.Option(help="S3 bucket to make in it; without it, ANIML_MODELS_BUCKET's")] = None,
) -> None:
    """Run SageMaker's and S3's API on this machine until Ctrl-C, and print the variables that lead boto3 to it."""
    from animl_pipeline.cli.demo import serve_locally

    serve_locally(folder, bucket or load_settings().models_bucket)


def main() -> None:
    """Run a command; a user's error is one line and an exit code, a traceback only with --debug."""
    share_one_heap()
    collect_seldom()
    lifecycle.listen_for_stops()
    try:
        app(standalone_mode=True)
    except lifecycle.Stopped:
        lifecycle.leave()
    except PipelineError as e:
        _give_up(str(e), e.exit_code)
    except Exception as e:  # noqa: BLE001 - what nobody foresaw; EX_SOFTWARE of sysexits.h
        _give_up(f"unexpected {type(e).__name__}: {e} (run with --debug for the traceback)", 70)


def _give_up(reason: str, status: int) -> NoReturn:
    """End with one line; with --debug, with the exception that is being handled."""
    if lifecycle.was_stopped():  # what a library made of it on the way
        lifecycle.leave()
    if _Debug.on:
        raise  # noqa: PLE0704 - called from an except clause
    console.err.print(f"animl-pipeline: {console.one_line(reason)}", markup=False)
    sys.exit(status)


if __name__ == "__main__":
    main()

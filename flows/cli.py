"""The command line: the same flows, from a terminal. ``animl-pipeline --help`` teaches them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from animl_pipeline.errors import PipelineError, SettingsError
from animl_pipeline.plan import load_plan
from animl_pipeline.records import Release, Report
from animl_pipeline.settings import load_settings, prefect_server, prepare_prefect, remember
from flows import ending, screen
from flows.commands.options import DataOption, PlanPath, StoreOption
from flows.commands.plan import plans

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
app.add_typer(plans, name="plan")


@app.callback()
def start(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and Prefect's own log")] = False,
) -> None:
    """Prepare what all commands share."""
    _Debug.on = debug
    prepare_prefect(debug=debug)


@app.command()
def retrain(plan: PlanPath, store: StoreOption = None, data: DataOption = None) -> None:
    """Train, score and package a classifier by PLAN; the end is a report.

    Steps whose inputs, plan and code are unchanged are reused, and a killed run goes on where it was. Without a Prefect
    server (PREFECT_API_URL) an embedded one runs for as long as this command.
    """
    remember(store=store, data=data)
    from animl_pipeline.store import open_store
    from flows.retrain import retrain as flow

    report: Report = _run(flow, str(plan))
    screen.show_story(report.story)
    screen.show_scores(report)
    screen.out.print(f"report: {open_store(load_settings()).path(report.evaluation, 'report.html')}")
    screen.out.print(f"next: animl-pipeline release {plan}")


@app.command()
def release(plan: PlanPath, store: StoreOption = None) -> None:
    """Put the newest package of PLAN behind its SageMaker endpoint, and check the live answers.

    The endpoint goes back to what it served before if the answers differ from the offline ones. AWS is where boto3's usual
    variables point to; AWS_ENDPOINT_URL_SAGEMAKER and its kin lead to `animl-pipeline sagemaker-local` instead.
    """
    remember(store=store)
    from flows.release import release as flow

    done: Release = _run(flow, str(plan))
    what = "now serves" if done.changed else "served already"
    screen.out.print(f"{done.endpoint} {what} {done.version}; {done.checked} golden crops agree within {done.max_difference:.1e}")


@app.command()
def rollback(
    plan: PlanPath,
    to: Annotated[str | None, typer.Option(help="endpoint configuration to go back to; without it, the one before the present one")] = None,
    store: StoreOption = None,
) -> None:
    """Put an earlier version behind PLAN's endpoint again."""
    remember(store=store)
    from flows.release import rollback as flow

    done: Release = _run(flow, str(plan), to)
    screen.out.print(f"{done.endpoint} serves {done.endpoint_config} again")


@app.command()
def predict(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="a picture")],
    plan: Annotated[Path, typer.Option("--plan", help="whose newest model answers")] = Path("deployments/plans/sample.yaml"),
    box: Annotated[str | None, typer.Option(help="ymin,xmin,ymax,xmax, each 0-1; without it, MegaDetector looks for animals")] = None,
    store: StoreOption = None,
) -> None:
    """Name the animals in IMAGE with the newest model of a plan, on this machine."""
    remember(store=store)
    from flows.predict import named_animals, parsed_box

    with screen.watched(debug=_Debug.on):
        animals = named_animals(image, load_plan(plan), parsed_box(box))
    if not animals:
        screen.out.print("no animal found; give --box to ask about a place in the picture")
    for found, answer in animals:
        screen.out.print(f"box [{', '.join(f'{v:.3f}' for v in found.as_list())}]")
        screen.show_answer(answer)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="where the demo keeps its sample, store and endpoint")] = Path("runs/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="leave the endpoint up until Ctrl-C")] = False,
) -> None:
    """Run the whole street on a drawn island: export to endpoint, all on this machine."""
    from flows.demo import run_demo

    run_demo(folder, keep=keep, debug=_Debug.on)


@app.command()
def doctor() -> None:
    """Check this machine: packages, store, disk, weights, AWS, Prefect; says what to mend."""
    from flows.doctor import examined

    faults = 0
    for check in examined(load_settings()):
        faults += check.state == "fault"
        screen.out.print(f"{check.mark} {check.what:<14} {check.found}")
    if faults:
        raise typer.Exit(1)


@app.command("sagemaker-local")
def sagemaker_local(
    folder: Annotated[Path, typer.Option(help="where it keeps its state")] = Path("runs/sagemaker"),
    bucket: Annotated[str | None, typer.Option(help="S3 bucket to make in it; without it, ANIML_MODELS_BUCKET's")] = None,
) -> None:
    """Run SageMaker's and S3's API on this machine until Ctrl-C, and print the variables that lead boto3 to it."""
    from flows.demo import serve_locally

    serve_locally(folder, bucket or load_settings().models_bucket)


def _run(flow: Callable[..., Any], *arguments: str | None) -> Any:
    """A flow's result; its progress is shown."""
    try:
        with screen.watched(debug=_Debug.on):
            return flow(*arguments)
    except RuntimeError as e:
        if "ephemeral Prefect API server" in str(e):  # Prefect has no errors of its own for these
            raise SettingsError(f"Prefect's embedded server did not start ({e}); see that PREFECT_HOME (~/.prefect) can be written") from e
        if "Failed to reach API" not in str(e):
            raise
        raise SettingsError(
            f"PREFECT_API_URL: expected a Prefect server at {prefect_server()}, reached none; start one (`prefect server start`) or unset it"
        ) from e


class _Debug:
    """Whether --debug was given."""

    on = False


def main() -> None:
    """Run a command; a user's error is one line and an exit code, a traceback only with --debug."""
    ending.listen_for_stops()
    try:
        app(standalone_mode=True)
    except ending.Stopped:
        ending.leave()
    except PipelineError as e:
        _give_up(str(e), e.exit_code)
    except Exception as e:  # noqa: BLE001 - what nobody foresaw; EX_SOFTWARE of sysexits.h
        _give_up(f"unexpected {type(e).__name__}: {e} (run with --debug for the traceback)", 70)


def _give_up(reason: str, status: int) -> NoReturn:
    """End with one line; with --debug, with the exception that is being handled."""
    if ending.was_stopped():  # what a library made of it on the way
        ending.leave()
    if _Debug.on:
        raise  # noqa: PLE0704 - called from an except clause
    screen.err.print(f"animl-pipeline: {screen.one_line(reason)}", markup=False)
    sys.exit(status)


if __name__ == "__main__":
    main()

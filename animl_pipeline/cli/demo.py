"""`animl-pipeline demo`: the whole pipeline on a synthetic data set, on this machine; and the local SageMaker that it uses."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from animl_pipeline.cli import console
from animl_pipeline.cli.options import open_plan, settings_with
from animl_pipeline.cli.run_with_prefect import run_flow
from animl_pipeline.cli.sagemaker_local import run_local_aws, wait_until_stopped
from animl_pipeline.cli.tables import show_scores, show_step_counts
from animl_pipeline.config.settings import Settings, use_local_aws
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.release_and_reference_types import Release
from animl_pipeline.dev.synthetic_dataset import write_synthetic_dataset
from animl_pipeline.storage.store import open_store

PLAN = "sample"


def run_demo(folder: Path, *, keep: bool, debug: bool) -> None:
    """Make the synthetic data set, train on it, release to a local SageMaker, and ask the endpoint about one image.

    ``folder``: holds sample/, store/ and sagemaker/; a second run reuses all of it.
    """
    started = time.monotonic()
    settings = settings_with(str(folder / "store"), folder)
    with run_local_aws(folder / "sagemaker", settings.models_bucket) as variables:
        use_local_aws(variables)  # boto3 reads the addresses from the environment only
        with console.show_progress(debug=debug):
            write_synthetic_dataset(folder / "sample")
        report, release = run_flow(_train_and_release, settings)
        show_step_counts(report.step_counts)
        show_scores(report)
        console.out.print(
            f"{release.endpoint} serves {release.version}; {release.checked} reference predictions agree within {release.max_difference:.1e}"
        )
        _ask_about_one_image(report, settings)
        console.out.print(f"report: {open_store(settings).path(report.evaluation, 'report.html')}")
        console.out.print("to go on with this data set, in any folder:")
        for line in commands_to_go_on(folder):
            console.out.print(line, soft_wrap=True)
        console.out.print(f"the demo took {time.monotonic() - started:.0f} s")
        if keep:
            wait_until_stopped()


def commands_to_go_on(folder: Path) -> list[str]:
    """What a person can type after the demo: the settings, and a command that uses them."""
    data, store = (shlex.quote(str(path.resolve())) for path in (folder, folder / "store"))
    return [f"export ANIML_DATA={data} ANIML_STORE={store}", f"animl-pipeline versions {PLAN}"]


def _train_and_release(settings: Settings) -> tuple[Report, Release]:
    from flows.end_states import result_of
    from flows.release import release
    from flows.retrain import retrain

    report = retrain(PLAN, store=settings.store, data=str(settings.data))
    return report, result_of(release(PLAN, store=settings.store, return_state=True))


def _ask_about_one_image(report: Report, settings: Settings) -> None:
    """Send the image of the first reference prediction as Animl does, and show the answer."""
    from animl_pipeline.deploy import invoke_endpoint
    from animl_pipeline.deploy.live_check import read_reference_predictions

    prediction, image = read_reference_predictions(report.package, open_store(settings))[0]
    answer = invoke_endpoint(open_plan(PLAN, settings).endpoint_name(), image.read_bytes(), prediction.box)
    console.out.print(f"the endpoint's answer for {image}, box {prediction.box.as_list()}:")
    console.show_probabilities(answer)

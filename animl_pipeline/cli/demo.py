"""The whole street on a drawn island, on this machine: what ``make demo`` runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from animl_pipeline.cli import console
from animl_pipeline.config import Plan, load_plan
from animl_pipeline.config.settings import load_settings, remember, use_local_aws
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.core.records import Release, Report
from animl_pipeline.dev.sagemaker_local import local_sagemaker
from animl_pipeline.dev.synthetic import draw_sample
from animl_pipeline.storage.step_cache import open_store

PLAN = Path("deployments/plans/sample.yaml")


def run_demo(folder: Path, *, keep: bool, debug: bool) -> None:
    """Draw the sample, retrain on it, release to a local SageMaker, and ask the endpoint about one picture.

    Args:
        folder: holds sample/, store/ and sagemaker/; a second run reuses all of it.
        keep: stay up with the endpoint until Ctrl-C.
        debug: show Prefect's own log.
    """
    from flows.release import release
    from flows.retrain import retrain
    from flows.run_states import reached

    started = time.monotonic()
    remember(store=folder / "store", data=folder)
    plan = load_plan(_plan_file())
    with console.watched(debug=debug), on_this_machine(folder / "sagemaker", load_settings().models_bucket):
        draw_sample(folder / "sample")
        report = retrain(str(_plan_file()))
        done: Release = reached(release(str(_plan_file()), return_state=True))
        console.show_story(report.story)
        console.show_scores(report)
        console.out.print(f"{done.endpoint} serves {done.version}; {done.checked} golden crops agree within {done.max_difference:.1e}")
        _ask_for_one_image(plan, report)
        console.out.print(f"report: {open_store(load_settings()).path(report.evaluation, 'report.html')}")
        console.out.print("to go on with this island, such as with `animl-pipeline retrain` or `make serve`:")
        console.out.print(f"export ANIML_DATA={folder} ANIML_STORE={folder / 'store'}", soft_wrap=True)
        console.out.print(f"the demo took {time.monotonic() - started:.0f} s")
        if keep:
            _wait()


def serve_locally(folder: Path, bucket: str) -> None:
    """Run SageMaker's and S3's API on this machine until Ctrl-C; prints the variables that lead boto3 to them."""
    with on_this_machine(folder, bucket) as addresses:
        settings = load_settings()
        ours = {"ANIML_ROLE_ARN": settings.role_arn, "ANIML_ENDPOINT_IMAGE": settings.endpoint_image}
        for name, value in (addresses | ours).items():
            console.out.print(f"export {name}={value}", soft_wrap=True)
        _wait()


@contextmanager
def on_this_machine(state: Path, bucket: str) -> Iterator[dict[str, str]]:
    """SageMaker and S3 on this machine, with a bucket for models, and this process's boto3 sent there."""
    import boto3
    from botocore.exceptions import ParamValidationError

    with local_sagemaker(state) as addresses:
        variables = addresses.variables()
        use_local_aws(variables)
        try:
            boto3.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        except ParamValidationError as e:
            raise SettingsError(f"expected the name of a bucket (ANIML_MODELS_BUCKET, --bucket), found {bucket!r}") from e
        yield variables


def _ask_for_one_image(plan: Plan, report: Report) -> None:
    """Send the first golden picture as Animl does, and show the answer."""
    from animl_pipeline.core.records import Answer
    from animl_pipeline.deploy import ask_endpoint

    store = open_store(load_settings())
    reference = [Answer.model_validate(a) for a in json.loads(store.path(report.package, "reference.json").read_bytes())]
    image = store.path(report.package, f"reference/{reference[0].image}")
    answer = ask_endpoint(plan.endpoint_name(), image.read_bytes(), reference[0].box)
    console.out.print(f"the endpoint's answer for {image}, box {reference[0].box.as_list()}:")
    console.show_answer(answer)


def _plan_file() -> Path:
    """The sample's plan: beside the checkout's code, wherever the command is run."""
    return PLAN if PLAN.exists() else Path(str(resources.files("flows"))).parent / PLAN


def _wait() -> None:
    console.err.print("up until Ctrl-C")
    threading.Event().wait()

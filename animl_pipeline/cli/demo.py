"""`animl-pipeline demo`: the whole pipeline on a synthetic data set, on this machine; and the local SageMaker that it uses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from animl_pipeline.cli import console
from animl_pipeline.cli.options import open_plan, settings_with
from animl_pipeline.cli.run_flow import run_flow
from animl_pipeline.config.settings import Settings, load_settings, use_local_aws
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.release_records import Release
from animl_pipeline.dev.sagemaker_local import local_sagemaker
from animl_pipeline.dev.synthetic_dataset import write_synthetic_dataset
from animl_pipeline.storage.step_cache import open_store

PLAN = "sample"


def run_demo(folder: Path, *, keep: bool, debug: bool) -> None:
    """Make the synthetic data set, train on it, release to a local SageMaker, and ask the endpoint about one image.

    Args:
        folder: holds sample/, store/ and sagemaker/; a second run reuses all of it.
        keep: go on with the endpoint until Ctrl-C.
        debug: show Prefect's own log.
    """
    started = time.monotonic()
    settings = settings_with(str(folder / "store"), folder)
    with run_local_aws(folder / "sagemaker", settings.models_bucket) as variables:
        use_local_aws(variables)  # boto3 reads the addresses from the environment only
        with console.show_progress(debug=debug):
            write_synthetic_dataset(folder / "sample")
        report, release = run_flow(_train_and_release, settings)
        console.show_step_counts(report.step_counts)
        console.show_scores(report)
        console.out.print(
            f"{release.endpoint} serves {release.version}; {release.checked} reference predictions agree within {release.max_difference:.1e}"
        )
        _ask_about_one_image(report, settings)
        console.out.print(f"report: {open_store(settings).path(report.evaluation, 'report.html')}")
        console.out.print("to go on with this data set, such as with `animl-pipeline retrain` or `make serve`:")
        console.out.print(f"export ANIML_DATA={folder} ANIML_STORE={folder / 'store'}", soft_wrap=True)
        console.out.print(f"the demo took {time.monotonic() - started:.0f} s")
        if keep:
            _wait_until_stopped()


def serve_local_aws(folder: Path, bucket: str) -> None:
    """Run SageMaker's and S3's API on this machine until Ctrl-C, and print the variables that make boto3 use them."""
    with run_local_aws(folder, bucket) as variables:
        for name, value in variables.items():
            console.out.print(f"export {name}={value}", soft_wrap=True)
        _wait_until_stopped()


@contextmanager
def run_local_aws(state: Path, bucket: str) -> Iterator[dict[str, str]]:
    """SageMaker and S3 on this machine, with a bucket for models. Yields the environment variables that lead to them.

    Raises:
        SettingsError: the folder cannot be used, or the bucket's name is not valid.
    """
    import boto3
    from botocore.exceptions import ParamValidationError

    from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE

    settings = load_settings()
    with local_sagemaker(state) as addresses:
        variables = addresses.variables()
        client = boto3.client(
            "s3",
            endpoint_url=variables["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id="local",
            aws_secret_access_key="local",  # noqa: S106 - the local server takes any
            region_name="us-west-2",
        )
        try:
            client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        except ParamValidationError as e:
            raise SettingsError(
                f"expected the name of a bucket (ANIML_MODELS_BUCKET, --bucket), found {bucket!r}", code="invalid_bucket", bucket=bucket
            ) from e
        yield variables | {"ANIML_ROLE_ARN": settings.role_arn or ROLE, "ANIML_ENDPOINT_IMAGE": settings.endpoint_image or IMAGE}


def _train_and_release(settings: Settings) -> tuple[Report, Release]:
    from flows.release import release
    from flows.retrain import retrain
    from flows.run_states import result_of

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


def _wait_until_stopped() -> None:
    console.err.print("running until Ctrl-C")
    threading.Event().wait()

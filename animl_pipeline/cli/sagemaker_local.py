"""Run SageMaker's and S3's API on this machine: the command sagemaker-local, also used by the demo."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from animl_pipeline.cli import console
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.dev.sagemaker_local import local_sagemaker


def serve_local_aws(folder: Path, bucket: str) -> None:
    """Run SageMaker's and S3's API on this machine until Ctrl-C. Prints the variables for boto3, which are in ``environment.sh``, too."""
    with run_local_aws(folder, bucket) as variables:
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        file = folder / "environment.sh"
        file.write_text("\n".join([*lines, ""]), encoding="utf-8")
        for line in lines:
            console.out.print(line, soft_wrap=True)
        console.err.print(f"in another terminal: source {shlex.quote(str(file))}", soft_wrap=True)
        try:
            wait_until_stopped()
        finally:
            file.unlink(missing_ok=True)  # the next start has other ports


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


def wait_until_stopped() -> None:
    """Wait for Ctrl-C."""
    console.err.print("running until Ctrl-C")
    threading.Event().wait()

"""Start a local SageMaker for the time of a ``with`` block: for the demo and the tests."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from animl_pipeline.core.errors import ReleaseError, SettingsError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.dev.sagemaker_local.api_validation import REGION
from animl_pipeline.dev.sagemaker_local.fault_injection import Faults

START_S = 120
"""How long the server may take to start, in seconds. It first restores the endpoints of an earlier run."""


class Addresses(Record):
    """Addresses of the local services; ``s3`` is None when the server was started without S3."""

    sagemaker: str
    s3: str | None = None

    def variables(self) -> dict[str, str]:
        """The environment variables that make boto3 use these services."""
        found = {"AWS_ENDPOINT_URL_SAGEMAKER": self.sagemaker, "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": self.sagemaker}
        found["AWS_ENDPOINT_URL_SERVICE_QUOTAS"] = self.sagemaker
        if self.s3:
            found |= {f"AWS_ENDPOINT_URL_{service}": self.s3 for service in ("S3", "SSM", "IAM", "STS", "ECR")}
        return found | {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": REGION}

    def set_faults(self, **faults: float) -> Faults:
        """Inject faults from now on, or stop injecting them; returns all faults as they are now.

        Raises:
            ReleaseError: the fault does not exist, or its value does not fit.
        """
        request = urllib.request.Request(f"{self.sagemaker}/local/faults", json.dumps(faults).encode(), {"Content-Type": "application/json"})  # noqa: S310 - our own server
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own server
                return Faults.model_validate_json(answer.read())
        except urllib.error.HTTPError as e:
            raise ReleaseError(f"the local SageMaker: {json.loads(e.read())['message']}") from e


@contextmanager
def local_sagemaker(state: Path, *, s3: bool = True, port: int = 0, faults: Faults | None = None) -> Iterator[Addresses]:
    """Start the server in its own process and give its addresses; afterwards stop it and all its child processes.

    ``s3``: serve S3, SSM, IAM, STS and ECR as well. ``faults``: faults to inject; :meth:`Addresses.set_faults` changes them later.

    Raises:
        ReleaseError: it did not start; the message is the last line of its log.
        SettingsError: the folder cannot be created.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SettingsError(f"the local SageMaker cannot keep its state in {state} ({e.strerror}); give another folder") from e
    command = [
        sys.executable,
        "-m",
        "animl_pipeline.dev.sagemaker_local",
        "--state",
        str(state),
        "--port",
        str(port),
        "--with-parent",
        str(os.getpid()),
    ]
    command += ["--faults", (faults or Faults()).model_dump_json()]
    with (state / "server.log").open("ab") as errors:
        begins = errors.tell()
        process = subprocess.Popen([*command, *(["--s3"] if s3 else [])], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
    try:
        yield _addresses(process, state / "server.log", begins)
    finally:
        _end(process)


def _addresses(process: subprocess.Popen[bytes], errors: Path, begins: int) -> Addresses:
    """The addresses from the first line that the server prints."""
    assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline() if ready else b""
    if not line:
        said = errors.read_bytes()[begins:].decode(errors="replace").strip().splitlines()
        raise ReleaseError(f"the local SageMaker did not start: {said[-1] if said else f'it said nothing for {START_S} s'}")
    return Addresses.model_validate(json.loads(line))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()  # its child processes notice it
        process.wait()
    if process.stdout is not None:
        process.stdout.close()

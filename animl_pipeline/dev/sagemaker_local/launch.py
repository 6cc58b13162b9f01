"""A local SageMaker for as long as a ``with`` lasts: for the demo and the tests."""

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
from animl_pipeline.core.records import Record
from animl_pipeline.dev.sagemaker_local.api_validation import REGION
from animl_pipeline.dev.sagemaker_local.fault_injection import Faults

START_S = 120
"""How long the server may take to start; endpoints of an earlier time are brought back first."""


class Addresses(Record):
    """Where the local services listen; ``s3`` is None when the server was started without."""

    sagemaker: str
    s3: str | None = None

    def variables(self) -> dict[str, str]:
        """The environment that makes boto3 speak to them."""
        found = {"AWS_ENDPOINT_URL_SAGEMAKER": self.sagemaker, "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": self.sagemaker}
        found["AWS_ENDPOINT_URL_SERVICE_QUOTAS"] = self.sagemaker
        if self.s3:
            found |= {f"AWS_ENDPOINT_URL_{service}": self.s3 for service in ("S3", "SSM", "IAM", "STS", "ECR")}
        return found | {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": REGION}

    def turn(self, **faults: float) -> Faults:
        """Let something go wrong from now on, or no longer; all faults as they are now come back.

        Raises:
            ReleaseError: there is no such fault, or its value does not fit.
        """
        asked = urllib.request.Request(f"{self.sagemaker}/local/faults", json.dumps(faults).encode(), {"Content-Type": "application/json"})  # noqa: S310 - our own server
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310 - our own server
                return Faults.model_validate_json(answer.read())
        except urllib.error.HTTPError as e:
            raise ReleaseError(f"the local SageMaker: {json.loads(e.read())['message']}") from e


@contextmanager
def local_sagemaker(state: Path, *, s3: bool = True, port: int = 0, faults: Faults | None = None) -> Iterator[Addresses]:
    """Start the server in a process of its own, give its addresses, end it and all its programs afterwards.

    Args:
        state: folder that keeps models, configs and endpoints.
        s3: serve S3, SSM, IAM, STS and ECR as well.
        port: 0 takes a free one.
        faults: what shall go wrong; :meth:`Addresses.turn` changes it later.

    Raises:
        ReleaseError: it did not start; the line is its own.
        SettingsError: the folder cannot be made.
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
    """The server's first line."""
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
        process.kill()  # its programs notice that it is gone
        process.wait()
    if process.stdout is not None:
        process.stdout.close()

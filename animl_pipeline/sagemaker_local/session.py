"""A local SageMaker for as long as a ``with`` lasts: for the demo and the tests."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from animl_pipeline.errors import ReleaseError, SettingsError
from animl_pipeline.records import Record
from animl_pipeline.sagemaker_local.contract import REGION

START_S = 120
"""How long the server may take to start; endpoints of an earlier time are brought back first."""


class Addresses(Record):
    """Where the local services listen; ``s3`` is None when the server was started without."""

    sagemaker: str
    s3: str | None = None

    def variables(self) -> dict[str, str]:
        """The environment that makes boto3 speak to them."""
        found = {"AWS_ENDPOINT_URL_SAGEMAKER": self.sagemaker, "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": self.sagemaker}
        if self.s3:
            found |= {"AWS_ENDPOINT_URL_S3": self.s3, "AWS_ENDPOINT_URL_SSM": self.s3}
        return found | {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": REGION}


@contextmanager
def local_sagemaker(state: Path, *, s3: bool = True, port: int = 0) -> Iterator[Addresses]:
    """Start the server in a process of its own, give its addresses, end it and all its programs afterwards.

    Raises:
        ReleaseError: it did not start; the line is its own.
        SettingsError: the folder cannot be made.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SettingsError(f"the local SageMaker cannot keep its state in {state} ({e.strerror}); give another folder") from e
    command = [sys.executable, "-m", "animl_pipeline.sagemaker_local", "--state", str(state), "--port", str(port), "--with-parent", str(os.getpid())]
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

"""Endpoint programs as processes: download and unpack the package, start the real program, wait for its /ping, stop it."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

VARIANT = "AllTraffic"
ANSWER_S = 60
"""Seconds that SageMaker gives a container to answer a request."""
MAX_UNPACKED = 8_000_000_000


class StartError(Exception):
    """A program that did not start; the message is SageMaker's FailureReason."""


class Health(NamedTuple):
    """Seconds that a program may take to answer /ping (SageMaker: three minutes); ``never`` simulates one that does not answer."""

    within_s: float = 180
    never: bool = False


class Reply(NamedTuple):
    """The answer of a program."""

    status: int
    content_type: str
    body: bytes


class EndpointProcess:
    """A started program: its process, port and log, and the number of its open requests."""

    def __init__(self, process: subprocess.Popen[bytes], log_file: Path, max_concurrency: int | None) -> None:
        """``max_concurrency`` is that of a serverless endpoint; None: an instance, which accepts every request."""
        self.process = process
        self.log_file = log_file
        self.serverless = max_concurrency is not None
        self.max_concurrency = max_concurrency or 10_000
        self.port = 0
        self._open_requests = 0
        self._idle = threading.Condition()

    def alive(self) -> bool:
        """Whether its process still runs."""
        return self.process.poll() is None

    def has_ended(self, within_s: float) -> bool:
        """Whether its process has ended or ends within this time."""
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def accept_request(self) -> bool:
        """Accept a request; False when it has as many open requests as it may have."""
        with self._idle:
            if self._open_requests >= self.max_concurrency:
                return False
            self._open_requests += 1
            return True

    def request_done(self) -> None:
        """Note that an accepted request was answered."""
        with self._idle:
            self._open_requests -= 1
            self._idle.notify_all()

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, timeout_s: float = ANSWER_S) -> Reply:
        """Send one request to the program; returns its answer. Raises OSError or http.client.HTTPException: it did not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.headers.get("content-type", ""), response.read())
        finally:
            connection.close()

    def end(self, patience_s: float = ANSWER_S) -> None:
        """Wait until all open requests are answered, then stop the program."""
        with self._idle:
            self._idle.wait_for(lambda: self._open_requests == 0, patience_s)
        end(self.process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process: SIGTERM, then SIGKILL after 10 s."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start_endpoint_process(folder: Path, log_file: Path, max_concurrency: int | None, ended: threading.Event, health: Health) -> EndpointProcess:
    """Start the endpoint program with an unpacked package and wait until it answers /ping; ``ended`` stops the wait.

    Raises:
        StartError: it ended or did not answer in time; the message holds the end of its log.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "animl_pipeline.serve", "serve", "--model", str(folder), "--host", "127.0.0.1", "--port", "0"]
    with log_file.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--with-parent", str(os.getpid())], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    running = EndpointProcess(process, log_file, max_concurrency)
    try:
        _await_ping(running, ended, health)
    except BaseException:
        running.end(0)
        raise
    return running


def download_package(url: str, models: Path, s3: S3Client) -> Path:
    """The folder with the unpacked package of an s3:// address; downloaded once.

    Raises:
        StartError: it cannot be downloaded or unpacked.
    """
    folder = models / hashlib.sha256(url.encode()).hexdigest()[:24]
    if folder.exists():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=models, prefix=".part-"))
    try:
        with tempfile.TemporaryFile(dir=models) as archive:
            _download(url, archive, s3)
            _unpack(archive, scratch)
        scratch.replace(folder)
    except OSError as e:
        if not folder.exists():  # otherwise another thread was faster
            raise StartError(f"Failed to extract model data archive from {url}: {e.strerror}") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _download(url: str, target: IO[bytes], s3: S3Client) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = url.removeprefix("s3://").partition("/")
    try:
        s3.download_fileobj(bucket, key, target)
    except (BotoCoreError, ClientError) as e:
        raise StartError(f"Failed to download model data from {url}: {e}") from e
    target.seek(0)


def _unpack(archive: IO[bytes], folder: Path) -> None:
    """Unpack with tarfile's data filter: no files outside of the folder, no devices, no links out of it."""
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            if sum(member.size for member in tar.getmembers()) > MAX_UNPACKED:
                raise StartError(f"Failed to extract model data archive: more than {MAX_UNPACKED:,} bytes")
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError) as e:
        raise StartError(f"Failed to extract model data archive: {e}") from e


def _await_ping(running: EndpointProcess, ended: threading.Event, health: Health) -> None:
    """Wait for /ping; ``ended`` is set when this server stops."""
    deadline = time.monotonic() + health.within_s
    while time.monotonic() < deadline:
        if not running.alive():
            raise StartError(
                f"The container for production variant {VARIANT} ended before it passed the ping health check: {_tail(running.log_file)}"
            )
        if not health.never and _pings(running):
            return
        if ended.wait(0.05):
            raise StartError("the local SageMaker is stopping")
    raise StartError(
        f"The primary container for production variant {VARIANT} did not pass the ping health check in {health.within_s:.0f} s. Please check "
        f"CloudWatch logs for this endpoint: {_tail(running.log_file)}"
    )


def _pings(running: EndpointProcess) -> bool:
    running.port = running.port or _port(running.log_file)
    if not running.port:
        return False
    try:
        return running.request("GET", "/ping", timeout_s=5).status == 200
    except (OSError, http.client.HTTPException):
        return False


def _port(log_file: Path) -> int:
    """The port that the program listens on, from its log; 0 before it is known."""
    for line in log_file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if '"event": "listening"' in line and line.endswith("\n"):
            return int(json.loads(line)["port"])
    return 0


def _tail(log_file: Path) -> str:
    """The last line of a program's log."""
    lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][-600:] if lines else "its log is empty"

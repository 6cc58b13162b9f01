"""``python -m animl_pipeline.dev.sagemaker_local --state FOLDER``: run the server until a signal stops it or its parent process ends."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from filelock import FileLock, Timeout

from animl_pipeline.core.errors import PipelineError, SettingsError
from animl_pipeline.core.refuse_foreign_requests import Allowed, refusal, refuse_foreign
from animl_pipeline.dev.sagemaker_local.api_validation import IMAGE, REGION, ROLE
from animl_pipeline.dev.sagemaker_local.control_api import ControlApi
from animl_pipeline.dev.sagemaker_local.fault_injection import Faults
from animl_pipeline.dev.sagemaker_local.http_api import create_app
from animl_pipeline.serve.listen_and_watch_parent import listen_on, watch_parent

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from mypy_boto3_s3 import S3Client


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal arrives; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("werkzeug", "botocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        with _locked(options.state), _s3_server(options.s3) as s3_address:
            _serve(options, s3_address)
    except PipelineError as e:
        sys.stderr.write(f"{e}\n")
        return e.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="animl_pipeline.dev.sagemaker_local", description="SageMaker's API on this machine.")
    parser.add_argument("--state", type=Path, required=True, help="folder that keeps models, configs and endpoints")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--s3", action="store_true", help="serve S3, SSM, IAM, STS and ECR as well (moto, in memory)")
    parser.add_argument("--faults", type=Faults.model_validate_json, default=Faults(), metavar="JSON", help="faults to inject (fault_injection.py)")
    parser.add_argument("--with-parent", type=int, metavar="PID", help="end when the parent process PID has ended")
    return parser


def _serve(options: argparse.Namespace, s3_address: str | None) -> None:
    listening = listen_on("127.0.0.1", options.port, "give another with --port")
    control = ControlApi(options.state, _s3_client(s3_address), options.faults)
    server = uvicorn.Server(
        uvicorn.Config(refuse_foreign(create_app(control), Allowed()), log_config=None, access_log=False, timeout_graceful_shutdown=5)
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn handles them while it runs and raises them again when it ends
        signal.signal(number, lambda *_: sys.exit(0))
    if options.with_parent:
        watch_parent(options.with_parent, lambda: os._exit(0))  # its child processes notice it, and the state file is always complete
    try:
        control.resume()
        sys.stdout.write(json.dumps({"sagemaker": f"http://127.0.0.1:{listening.getsockname()[1]}", "s3": s3_address}) + "\n")
        sys.stdout.flush()
        server.run(sockets=[listening])
    finally:
        control.end()


def _s3_client(address: str | None) -> S3Client:
    """A client for the S3 of this process, or for the S3 that AWS_ENDPOINT_URL_S3 and the usual variables name."""
    import boto3

    if address is None:
        return boto3.client("s3")
    return boto3.client("s3", endpoint_url=address, region_name=REGION, aws_access_key_id="local", aws_secret_access_key="local")  # noqa: S106 - any value works


@contextmanager
def _s3_server(wanted: bool) -> Iterator[str | None]:
    """A real API of S3, SSM, IAM, STS and ECR on this machine; gives its address, None where it is not wanted."""
    if not wanted:
        yield None
        return
    try:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server
    except ImportError as e:
        raise SettingsError("--s3 needs moto, which is not installed; install animl-pipeline[local]") from e
    app = _refuse_foreign_wsgi(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        _create_role_and_image(address)
        yield address
    finally:
        server.shutdown()
        thread.join()


def _refuse_foreign_wsgi(app: WSGIApplication) -> WSGIApplication:
    """The application, for programs of this machine only: moto itself lets every web page read and write."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = ((name.removeprefix("HTTP_").replace("_", "-"), value) for name, value in environ.items() if name.startswith("HTTP_"))
        reason = refusal(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""), headers, Allowed())
        if not reason:
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [reason.encode()]

    return guarded


def _create_role_and_image(address: str) -> None:
    """Create what an account needs before a release: a role that trusts SageMaker, and the endpoint's image in ECR."""
    import boto3

    where: dict[str, Any] = {"endpoint_url": address, "region_name": REGION, "aws_access_key_id": "local", "aws_secret_access_key": "local"}
    trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    boto3.client("iam", **where).create_role(RoleName=ROLE.rpartition("/")[2], AssumeRolePolicyDocument=document)
    repository, tag = IMAGE.partition("/")[2].split(":")
    ecr = boto3.client("ecr", **where)
    ecr.create_repository(repositoryName=repository)
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": {"digest": "sha256:0"}, "layers": []}
    ecr.put_image(repositoryName=repository, imageManifest=json.dumps(manifest), imageTag=tag)


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Let only one server use a folder."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        with FileLock(state / "server.lock", timeout=5):
            yield
    except Timeout as e:
        raise SettingsError(f"another local SageMaker uses the folder {state}; stop it or give another with --state") from e
    except OSError as e:
        raise SettingsError(f"the folder {state} cannot be written ({os.strerror(e.errno or 0)}); give another with --state") from e


if __name__ == "__main__":
    sys.exit(main())

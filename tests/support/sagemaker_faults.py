"""Faults for release tests: AWS faults, packages with wrong predictions or a broken archive, a server that denies access."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from animl_pipeline.config import Plan
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.release_and_reference_types import ReferencePrediction
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.deploy import release_records
from animl_pipeline.dev.sagemaker_local import Addresses, Faults
from animl_pipeline.storage.store import StepOutput, Store, Workspace


@contextmanager
def with_faults(cloud: Addresses, **faults: float) -> Iterator[None]:
    """Inject faults into the local SageMaker until the end of the block."""
    cloud.set_faults(**faults)
    try:
        yield
    finally:
        cloud.set_faults(**Faults().model_dump())


def with_wrong_predictions(store: Store, package: Artifact) -> Artifact:
    """The package with reference predictions that its model does not give, so that its live check fails."""

    def build(space: Workspace) -> StepOutput:
        for name in store.files(package):
            (space.out / name).parent.mkdir(exist_ok=True, parents=True)
            (space.out / name).write_bytes(store.path(package, name).read_bytes())
        predictions = read_predictions(store, package)
        wrong = [
            p.model_copy(update={"probabilities": dict(zip(p.probabilities, reversed(p.probabilities.values()), strict=True))}) for p in predictions
        ]
        (space.out / "reference_predictions.json").write_text("[" + ",".join(a.model_dump_json() for a in wrong) + "]")
        return StepOutput(Counts(kept=len(predictions), unit="reference predictions"))

    return store.make(Step("package", version=1), inputs={"package": package}, build=build)


def read_predictions(store: Store, package: Artifact) -> list[ReferencePrediction]:
    """The reference predictions of a package."""
    return [ReferencePrediction.model_validate(row) for row in json.loads(store.path(package, "reference_predictions.json").read_bytes())]


def release_states(plan: Plan, store: Store) -> list[tuple[str, str]]:
    """Kind and state of every record of the plan's realtime endpoint."""
    return [(r.kind, r.state) for r in release_records(plan, store)]


def with_broken_archive(store: Store, package: Artifact) -> Artifact:
    """The package with an archive that cannot be unpacked."""

    def build(space: Workspace) -> StepOutput:
        for name in store.files(package):
            (space.out / name).parent.mkdir(exist_ok=True, parents=True)
            (space.out / name).write_bytes(b"broken" if name == "model.tar.gz" else store.path(package, name).read_bytes())
        return StepOutput(Counts(kept=3, unit="reference predictions"))

    return store.make(Step("package", version=1), inputs={"package": package}, config={"broken": True}, build=build)


@contextmanager
def access_denied_server() -> Iterator[str]:
    """The address of a service that denies every call."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"__type": "AccessDeniedException", "message": "not you"}'
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()

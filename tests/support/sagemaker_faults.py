"""What goes wrong on the way to an endpoint, made on purpose."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from animl_pipeline.config import Plan
from animl_pipeline.core.records import Answer, Artifact, Counts
from animl_pipeline.core.step import Step
from animl_pipeline.deploy import release_records
from animl_pipeline.dev.sagemaker_local import Addresses, Faults
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace


@contextmanager
def faulty(cloud: Addresses, **faults: float) -> Iterator[None]:
    """Let something go wrong in the cloud until the end of the block."""
    cloud.turn(**faults)
    try:
        yield
    finally:
        cloud.turn(**Faults().model_dump())


def spoiled(store: Store, package: Artifact) -> Artifact:
    """The package with golden answers that its model does not give: what a model broken on its way to the endpoint looks like."""

    def build(space: Workspace) -> StepOutput:
        for name in store.files(package):
            (space.out / name).parent.mkdir(exist_ok=True, parents=True)
            (space.out / name).write_bytes(store.path(package, name).read_bytes())
        answers = read_reference(store, package)
        turned = [
            a.model_copy(update={"probabilities": dict(zip(a.probabilities, reversed(a.probabilities.values()), strict=True))}) for a in answers
        ]
        (space.out / "reference.json").write_text("[" + ",".join(a.model_dump_json() for a in turned) + "]")
        return StepOutput(Counts(kept=len(answers), unit="golden answers"))

    return store.make(Step("package", version=1), inputs={"package": package}, build=build)


def read_reference(store: Store, package: Artifact) -> list[Answer]:
    return [Answer.model_validate(row) for row in json.loads(store.path(package, "reference.json").read_bytes())]


def states(plan: Plan, store: Store) -> list[tuple[str, str]]:
    return [(r.kind, r.state) for r in release_records(plan, store)]


def broken(store: Store, package: Artifact) -> Artifact:
    """The package with an archive that no program can unpack."""

    def build(space: Workspace) -> StepOutput:
        for name in store.files(package):
            (space.out / name).parent.mkdir(exist_ok=True, parents=True)
            (space.out / name).write_bytes(b"broken" if name == "model.tar.gz" else store.path(package, name).read_bytes())
        return StepOutput(Counts(kept=3, unit="golden answers"))

    return store.make(Step("package", version=1), inputs={"package": package}, config={"broken": True}, build=build)


@contextmanager
def denying() -> Iterator[str]:
    """A service that denies everything; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"__type": "AccessDeniedException", "message": "not you"}'
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()

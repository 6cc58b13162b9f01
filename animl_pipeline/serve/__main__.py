"""``python -m animl_pipeline.serve serve``: the program inside the endpoint's image."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from pathlib import Path

from animl_pipeline.core.errors import PipelineError
from animl_pipeline.core.image_structure import ALL_FORMATS, DEFAULT_FORMATS
from animl_pipeline.serve.json_logging import log_event, start_json_log
from animl_pipeline.serve.limits import MAX_BODY, MAX_REQUESTS
from animl_pipeline.serve.listen_and_watch_parent import listen_on, watch_parent


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal arrives; the exit status comes back."""
    options = _parser().parse_args(arguments)
    gc.disable()  # until the model is loaded: imports make no garbage, and searching for it takes a tenth of the start
    start_json_log()
    try:
        return _serve(options)
    except PipelineError as e:
        sys.stderr.write(f"{e}\n")
        return e.exit_code


def _parser() -> argparse.ArgumentParser:
    """SageMaker runs ``<image> serve``, and passes everything else as environment variables."""
    parser = argparse.ArgumentParser(prog="animl_pipeline.serve", description="Answer /ping and /invocations with a packaged classifier.")
    parser.add_argument("verb", nargs="?", default="serve", choices=["serve"])
    parser.add_argument(
        "--model",
        type=Path,
        default=Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model")),
        help="folder with model.onnx and card.json (SM_MODEL_DIR, else /opt/ml/model)",
    )
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")  # noqa: S104 - SageMaker calls the container from outside
    parser.add_argument(
        "--port",
        type=int,
        default=os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080"),
        help="port to listen on (SAGEMAKER_BIND_TO_PORT, else 8080); 0 takes a free one",
    )
    parser.add_argument("--max-body", type=int, default=MAX_BODY, help=f"largest request, in bytes ({MAX_BODY:,})")
    parser.add_argument(
        "--max-requests", type=int, default=MAX_REQUESTS, help=f"requests to read, hold and answer at the same time ({MAX_REQUESTS}); more get 429"
    )
    parser.add_argument("--memory", type=int, metavar="MB", help="memory to stay within (by default that of the container or machine)")
    parser.add_argument(
        "--formats",
        type=_parse_formats,
        default=os.environ.get("ANIML_IMAGE_FORMATS", ",".join(DEFAULT_FORMATS)),
        help=f"formats of images to accept, from {', '.join(ALL_FORMATS)} (ANIML_IMAGE_FORMATS, else {','.join(DEFAULT_FORMATS)})",
    )
    parser.add_argument("--with-parent", type=int, metavar="PID", help="end when the parent process PID ends")
    return parser


def _parse_formats(text: str) -> tuple[str, ...]:
    """The names of formats in a text with commas, in upper case."""
    formats = tuple(name.strip().upper() for name in text.split(",") if name.strip())
    if not formats or not set(formats) <= set(ALL_FORMATS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(ALL_FORMATS)}, found {text[:80]!r}; correct --formats or ANIML_IMAGE_FORMATS")
    return formats


def _serve(options: argparse.Namespace) -> int:
    listening = listen_on(options.host, options.port, "choose another with --port or SAGEMAKER_BIND_TO_PORT")
    log_event("listening", port=listening.getsockname()[1])

    from animl_pipeline.serve.app import create_app
    from animl_pipeline.serve.http_connections import make_server, max_connections
    from animl_pipeline.serve.model_worker import ModelWorker

    def collect_garbage_again() -> None:
        gc.freeze()  # the objects of imports and model stay, and need no search
        gc.enable()

    def stop() -> None:
        server.should_exit = True

    connections, memory = max_connections(), options.memory and options.memory * 1_000_000
    worker = ModelWorker(
        options.model, options.max_body, max_requests=min(options.max_requests, connections // 2), memory=memory, formats=options.formats,
        on_loaded=collect_garbage_again, on_failure=stop,
    )  # fmt: skip
    server = make_server(create_app(worker), connections)
    if options.with_parent:
        watch_parent(options.with_parent, lambda: os._exit(0))  # no client is left to receive an answer
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn handles it while it runs, and raises it again at its end
    server.run(sockets=[listening])
    if worker.failure:
        sys.stderr.write(f"{worker.failure}\n")
    return 1 if worker.failure else 0


if __name__ == "__main__":
    sys.exit(main())

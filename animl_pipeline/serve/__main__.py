"""``python -m animl_pipeline.serve serve``: the program inside the endpoint's image."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import socket
import sys
from pathlib import Path

from animl_pipeline.core.errors import PipelineError, SettingsError
from animl_pipeline.serve.container_resources import use_one_heap
from animl_pipeline.serve.json_logging import begin_journal, note
from animl_pipeline.serve.limits import MAX_BODY, MAX_IN_HAND
from animl_pipeline.serve.parent_watch import watch_parent


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop; the exit status comes back."""
    asked = _parser().parse_args(arguments)
    use_one_heap()
    gc.disable()  # until the model is loaded: what imports make is no garbage, and looking for some is a tenth of the start
    begin_journal()
    try:
        return _serve(asked)
    except PipelineError as e:
        sys.stderr.write(f"{e}\n")
        return e.exit_code


def _parser() -> argparse.ArgumentParser:
    """SageMaker starts the image as ``<image> serve`` and says the rest by variables."""
    parser = argparse.ArgumentParser(prog="animl_pipeline.serve", description="Answer /ping and /invocations over a packaged classifier.")
    parser.add_argument("verb", nargs="?", default="serve", choices=["serve"])
    parser.add_argument(
        "--model",
        type=Path,
        default=Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model")),
        help="folder of model.onnx and card.json (SM_MODEL_DIR, else /opt/ml/model)",
    )
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")  # noqa: S104 - inside a container SageMaker asks from outside
    parser.add_argument(
        "--port",
        type=int,
        default=os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080"),
        help="8080 unless SAGEMAKER_BIND_TO_PORT says otherwise; 0 takes a free one",
    )
    parser.add_argument("--max-body", type=int, default=MAX_BODY, help=f"largest request, in bytes ({MAX_BODY:,})")
    parser.add_argument(
        "--max-in-hand", type=int, default=MAX_IN_HAND, help=f"requests being read, waiting or answered at once ({MAX_IN_HAND}); more get 429"
    )
    parser.add_argument("--memory", type=int, metavar="MB", help="memory to stay within; by default what the container or machine has")
    parser.add_argument("--with-parent", type=int, metavar="PID", help="end when the parent process PID has ended")
    return parser


def _serve(asked: argparse.Namespace) -> int:
    listening = listen_on(asked.host, asked.port, "give another with --port or SAGEMAKER_BIND_TO_PORT")
    note("listening", port=listening.getsockname()[1])

    import uvicorn

    from animl_pipeline.serve.app import create_app
    from animl_pipeline.serve.model_worker import Program

    def loaded() -> None:
        gc.freeze()  # what is there now stays
        gc.enable()

    def stop() -> None:
        server.should_exit = True

    memory = asked.memory and asked.memory * 1_000_000
    program = Program(asked.model, asked.max_body, max_in_hand=asked.max_in_hand, memory=memory, loaded=loaded, failed=stop)
    config = uvicorn.Config(
        create_app(program), loop="asyncio", http="h11", ws="none", lifespan="on",
        log_config=None, access_log=False, server_header=False, timeout_keep_alive=75, timeout_graceful_shutdown=60,
    )  # fmt: skip
    server = uvicorn.Server(config)
    if asked.with_parent:
        watch_parent(asked.with_parent, lambda: os._exit(0))  # nobody is left to whom an answer could go
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn handles it while it runs, and raises it once more at its end
    server.run(sockets=[listening])
    if program.fault:
        sys.stderr.write(f"{program.fault}\n")
    return 1 if program.fault else 0


def listen_on(host: str, port: int, remedy: str) -> socket.socket:
    """A bound socket.

    Raises:
        SettingsError: the port is in use or may not be taken; ``remedy`` says what to do.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted connections inherit it; else each kept-alive answer waits 40 ms
    try:
        listening.bind((host, port))
        listening.listen(1024)  # now, so that nobody is turned away while the model loads
    except (OSError, OverflowError) as e:
        listening.close()
        raise SettingsError(f"port {port} of {host} cannot be taken ({getattr(e, 'strerror', None) or e}); {remedy}") from e
    return listening


if __name__ == "__main__":
    sys.exit(main())

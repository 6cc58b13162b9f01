"""Compare the endpoint program with TorchScript + torchvision: same requests, same network and weights, same image.

::

    python benchmarks/serve.py [--image FILE] [--starts 5] [--requests 60]

EfficientNet-B3 at 300 px from timm, untrained, eight classes; a generated image of 1600 x 1200 pixels and 0.9 MB unless a file
is given. Each program uses one thread for a request. Both are started in turn. CPU seconds and the largest resident set are
read from /proc after the first answer, and CPU seconds per request over requests one after the other. Medians are compared.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from measure import conclude, show

DOCKERFILE = Path(__file__).parents[1] / "docker/endpoint.Dockerfile"
BOX = [0.1, 0.2, 0.8, 0.9]
SIZE = 300
CLASSES = tuple("abcdefgh")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONCURRENT = 20
QUIET = ("-W", "ignore::FutureWarning")  # torch warns at each call that TorchScript is deprecated
MAX_COLD_CPU, MAX_COLD_MEMORY, MAX_REQUEST_CPU = 1 / 6, 1 / 3, 0.55
"""The aims, as shares of what TorchScript + torchvision needs."""


class Run(NamedTuple):
    """What one run of a program took: CPU seconds, megabytes, milliseconds."""

    cold_cpu_s: float
    cold_mb: float
    request_cpu_ms: float
    p50_ms: float
    p95_ms: float
    after_mb: float
    answer: dict[str, float]


def main() -> None:
    """Measure both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="use this image instead of the generated one")
    parser.add_argument("--starts", type=int, default=5, help="how often to start each program")
    parser.add_argument("--requests", type=int, default=60, help="requests per start, one after the other, and then as many with 20 at the same time")
    options = parser.parse_args()
    image = options.image.read_bytes() if options.image else generated_image()
    body = json.dumps({"image": base64.b64encode(image).decode(), "bbox": BOX}).encode()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, *QUIET, __file__, "make", folder], check=True)
        programs = {"animl_pipeline.serve": ["-m", "animl_pipeline.serve", "--model", folder, "--host", "127.0.0.1", "--port", "0"]}
        programs["TorchScript + torchvision"] = [*QUIET, __file__, "peer", folder]
        runs: dict[str, list[Run]] = {name: [] for name in programs}
        for _ in range(options.starts):
            for name, command in programs.items():
                runs[name].append(measure_run(command, body, options.requests))
    report(runs, len(image))


def report(runs: dict[str, list[Run]], image: int) -> None:
    """The table, and whether the aims are met."""
    ours, theirs = (medians(of_one) for of_one in runs.values())
    worst = max(abs(ours.answer[c] - theirs.answer[c]) for c in CLASSES)
    rows = [
        ["start to first answer, CPU s", ours.cold_cpu_s, theirs.cold_cpu_s, ours.cold_cpu_s / theirs.cold_cpu_s],
        ["memory at the first answer, MB", ours.cold_mb, theirs.cold_mb, ours.cold_mb / theirs.cold_mb],
        ["a request, CPU ms", ours.request_cpu_ms, theirs.request_cpu_ms, ours.request_cpu_ms / theirs.request_cpu_ms],
        [f"{CONCURRENT} at the same time: p50, ms", ours.p50_ms, theirs.p50_ms, ours.p50_ms / theirs.p50_ms],
        [f"{CONCURRENT} at the same time: p95, ms", ours.p95_ms, theirs.p95_ms, ours.p95_ms / theirs.p95_ms],
        ["largest memory, MB", ours.after_mb, theirs.after_mb, ours.after_mb / theirs.after_mb],
    ]
    show(
        f"endpoint programs, EfficientNet-B3 at {SIZE} px, an image of {image / 1e6:.2f} MB (answers differ by {worst:.1e})",
        ["", *runs, "share"],
        rows,
    )
    shares = [row[3] for row in rows[:3]]
    conclude(
        "serve",
        figure=f"{shares[0]:.3f} of the CPU and {shares[1]:.3f} of the memory of a cold start, {shares[2]:.3f} of the CPU of a request",
        aim=f"at most {MAX_COLD_CPU:.3f}, {MAX_COLD_MEMORY:.3f}, {MAX_REQUEST_CPU}",
        met=shares[0] <= MAX_COLD_CPU and shares[1] <= MAX_COLD_MEMORY and shares[2] <= MAX_REQUEST_CPU and worst < 1e-4,
    )


def medians(runs: list[Run]) -> Run:
    """The median of each figure."""
    return Run(*(statistics.median(figures) for figures in list(zip(*runs, strict=True))[:-1]), runs[0].answer)


def measure_run(command: list[str], body: bytes, requests: int) -> Run:
    """Start a program, send requests, and end it."""
    with started(command) as (process, port):
        answer = json.loads(first_answer(process, port, body))
        cold_cpu_s, cold_mb = cpu_s(process.pid), peak_mb(process.pid)
        for _ in range(5):  # a TorchScript program compiles itself during its first requests
            ask(port, body)
        before = cpu_s(process.pid)
        for _ in range(requests):
            ask(port, body)
        request_ms = (cpu_s(process.pid) - before) / requests * 1000
        with ThreadPoolExecutor(CONCURRENT) as pool:
            times_ms = sorted(pool.map(lambda _: timed(port, body), range(max(requests, CONCURRENT * 5))))
        return Run(cold_cpu_s, cold_mb, request_ms, times_ms[len(times_ms) // 2], times_ms[int(len(times_ms) * 0.95)], peak_mb(process.pid), answer)


@contextmanager
def started(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running program and its port."""
    # the environment of the endpoint's Docker image, for both programs
    variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **dict(re.findall(r"(MALLOC_\w+)=(\d+)", DOCKERFILE.read_text()))}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=os.environ | variables, cwd=Path(__file__).parents[1]
    )
    assert process.stdout is not None
    try:
        yield process, next(line["port"] for line in map(json.loads, process.stdout) if line["event"] == "listening")
    finally:
        process.kill()
        process.communicate()


def first_answer(process: subprocess.Popen[str], port: int, body: bytes) -> bytes:
    """Call /ping until it answers 200, as SageMaker does, then ask for an answer."""
    while process.poll() is None:
        try:
            if call(port, "GET", "/ping")[0] == 200:
                return ask(port, body)
        except OSError:  # it does not listen yet
            pass
        time.sleep(0.1)
    sys.exit("the program ended before it answered")


def ask(port: int, body: bytes) -> bytes:
    """The answer to a request, which must succeed."""
    status, answer = call(port, "POST", "/invocations", body)
    assert status == 200, answer
    return answer


def timed(port: int, body: bytes) -> float:
    """Milliseconds of one request."""
    began = time.perf_counter()
    ask(port, body)
    return (time.perf_counter() - began) * 1000


def call(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of all threads of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """The largest resident set so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def generated_image() -> bytes:
    """A JPEG of 1600 x 1200 pixels and 0.9 MB: noise over a gradient, always the same."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    gradient = np.linspace(40, 200, 1200)[:, None, None]
    coarse = np.asarray(Image.fromarray(rng.integers(0, 90, (150, 200, 3), dtype=np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC), float)
    pixels = (gradient + coarse - 45 + rng.normal(0, 9, (1200, 1600, 1))).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def make(folder: Path) -> None:
    """Write the network as a package and as frozen TorchScript."""
    import timm
    import torch

    from animl_pipeline.core.model_card import Agreement, ClassInfo, ModelCard, ModelInput
    from animl_pipeline.steps.training.onnx_export import export_onnx

    torch.manual_seed(0)
    network = timm.create_model("efficientnet_b3", num_classes=len(CLASSES)).eval()
    with torch.no_grad():
        torch.jit.freeze(torch.jit.trace(network, torch.zeros(1, 3, SIZE, SIZE))).save(str(folder / "model.pt"))  # type: ignore[no-untyped-call]
    card = ModelCard(
        model="b3", version="1", architecture="efficientnet_b3", classes=tuple(ClassInfo(id=c, name=c) for c in CLASSES),
        model_input=ModelInput(size=SIZE, mean=MEAN, std=STD), onnx_sha256=export_onnx(network, SIZE, folder / "model.onnx"),
        agreement=Agreement(max_abs=0, crops=1), data_digest="0" * 64, weights="none", plan={},
    )  # fmt: skip
    (folder / "card.json").write_text(card.model_dump_json(), encoding="utf-8")


def peer(folder: Path) -> None:
    """The comparison program: starlette, a TorchScript model and torchvision's transforms, with one thread for each request."""
    import socket

    import torch
    import uvicorn
    from PIL import Image
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    torch.set_num_threads(1)
    model = torch.jit.load(str(folder / "model.pt")).eval()  # type: ignore[no-untyped-call]

    def classify(body: bytes) -> dict[str, float]:
        request = json.loads(body)
        image = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        left, top, side = square(request["bbox"], *image.size)
        model_input = transforms.resize(transforms.crop(image, top, left, side, side), [SIZE, SIZE], InterpolationMode.BICUBIC)
        inputs = transforms.normalize(transforms.to_tensor(model_input), list(MEAN), list(STD))
        with torch.inference_mode():
            return dict(zip(CLASSES, torch.softmax(model(inputs[None]), 1)[0].tolist(), strict=True))

    async def invocations(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(classify, await request.body()))

    async def ping(_: Request) -> Response:
        return Response()

    app = Starlette(routes=[Route("/ping", ping), Route("/invocations", invocations, methods=["POST"])])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(json.dumps({"event": "listening", "port": listening.getsockname()[1]}), flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def square(box: list[float], width: int, height: int) -> tuple[int, int, int]:
    """Left, top and side of the square around a box, shifted to stay inside the image."""
    ymin, xmin, ymax, xmax = box
    left, right, top, bottom = int(xmin * width), int(xmax * width), int(ymin * height), int(ymax * height)
    side = max(right - left, bottom - top)

    def begin(twice_centre: int, length: int) -> int:
        return (length - side) // 2 if side >= length else min(max((twice_centre - side) // 2, 0), length - side)

    return begin(left + right, width), begin(top + bottom, height), side


if __name__ == "__main__":
    verbs: dict[str, Any] = {"make": make, "peer": peer}
    if len(sys.argv) == 3 and sys.argv[1] in verbs:
        verbs[sys.argv[1]](Path(sys.argv[2]))
    else:
        main()

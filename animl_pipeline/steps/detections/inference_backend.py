"""A network's forward pass as the machine does it best: ONNX Runtime on a CPU, torch in half precision on a GPU.

On a CPU the network is exported to ONNX once, compared with torch, and kept in the cache; later runs load neither torch nor
the package that made the checkpoint. Where the two differ, or the export fails, torch answers.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.storage.object_store import disk_errors, write_atomic
from animl_pipeline.storage.step_cache import digest_of, sha256_of

log = logging.getLogger(__name__)

Arrays = list[NDArray[np.float32]]
Forward = Callable[[NDArray[np.uint8]], Arrays]
"""RGB uint8 [n, height, width, 3] → the network's outputs, float32."""

CLOSE = 1e-3
"""How far an output of ONNX Runtime may be from torch's, relative to that output's largest value."""

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap")
"""What drivers of GPUs show on Linux: NVIDIA's, Windows' for its Linux, AMD's, and that of NVIDIA's small boards."""

NO_ROOM = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory", "bad_alloc")
"""What MPS, cuDNN, cuBLAS and torch's allocator for CPUs say where memory does not suffice; they have no error of their own."""


class Network(NamedTuple):
    """A network in torch that takes uint8 [n, height, width, 3], and what its family must know to read its outputs."""

    module: Any
    facts: dict[str, Any]
    height: int
    width: int
    any_size: bool = False


class Loaded(NamedTuple):
    """A forward pass. ``alone``: ask it a picture at a time from several threads, else in batches from one."""

    forward: Forward
    facts: dict[str, Any]
    alone: bool


def load_network(names: list[Any], make: Callable[[], Network], settings: Settings) -> Loaded:
    """The forward pass of the network that ``make`` builds.

    Args:
        names: what its outputs depend on: the weights' sha256, the family's recipe, sizes.
        make: builds it in torch; not called where the cache holds its ONNX already.
        settings: where the cache is.
    """
    device = device_here()
    if device != "cpu":
        network = make()
        return Loaded(by_torch(network.module, device), network.facts, alone=False)
    folder = settings.cache.expanduser() / "detectors" / digest_of([names, version("torch")])[:32]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            facts = _facts(folder)
            if facts is None:
                network = make()
                if not _export(network, folder):
                    return Loaded(by_torch(network.module, device), network.facts, alone=True)
                facts = network.facts
    return Loaded(_by_onnx(folder / "network.onnx"), facts, alone=True)


def _facts(folder: Path) -> dict[str, Any] | None:
    """What was noted beside a network in the cache, None where there is none or it had changed."""
    try:
        noted = json.loads((folder / "network.json").read_bytes())
        return dict(noted["facts"]) if sha256_of(folder / "network.onnx") == noted["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _export(network: Network, folder: Path) -> bool:
    """Write the network as ONNX into the cache, if it answers as torch does; whether it does comes back."""
    import torch

    path, fresh = folder / "network.onnx", folder / ".part.onnx"
    sizes = {1: "height", 2: "width"}
    example = torch.zeros(1, network.height, network.width, 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the exporter's about its own insides
            outputs = [f"out{i}" for i in range(len(network.module(example)))]
            torch.onnx.export(
                network.module, (example,), str(fresh), input_names=["pixels"], output_names=outputs, dynamo=False, opset_version=17,
                dynamic_axes={"pixels": sizes} | {name: {2: "anchors"} for name in outputs} if network.any_size else None,
            )  # fmt: skip
        apart = _difference(_by_onnx(fresh), by_torch(network.module, "cpu"), network)
    except Exception as e:  # noqa: BLE001 - whatever an exporter of another's network may raise: torch then answers, more slowly
        log.warning("detections: the network could not be turned into ONNX (%s); torch answers, more slowly", str(e).splitlines()[0] if str(e) else e)
        fresh.unlink(missing_ok=True)
        return False
    if apart > CLOSE:
        log.warning("detections: ONNX Runtime and torch differ by %.1e; torch answers, more slowly", apart)
        fresh.unlink()
        return False
    fresh.replace(path)
    write_atomic(folder / "network.json", json.dumps({"sha256": sha256_of(path), "facts": network.facts, "difference": apart}).encode())
    log.info("detections: the network is kept as ONNX in %s; it differs from torch by %.1e", folder, apart)
    return True


def _difference(one: Forward, other: Forward, network: Network) -> float:
    """How far two forward passes are apart on made-up pictures, of several shapes where the network takes any."""
    chance = np.random.default_rng(0)
    shapes = [(network.height, network.width)]
    if network.any_size:
        shapes += [(network.width, network.height), (max(32, network.height // 64 * 32), network.width)]
    largest = 0.0
    for height, width in shapes:
        coarse = chance.integers(0, 256, (1, height // 32, width // 32, 3)).repeat(32, 1).repeat(32, 2)
        pixels = (coarse * 0.8 + chance.integers(0, 52, (1, height, width, 3))).astype(np.uint8)
        for a, b in zip(one(pixels), other(pixels), strict=True):
            largest = max(largest, float(np.abs(a - b).max() / max(1.0, float(np.abs(b).max()))))
    return largest


def _by_onnx(path: Path) -> Forward:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # pictures are looked at side by side instead
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def forward(pixels: NDArray[np.uint8]) -> Arrays:
        answers = [session.run(None, {"pixels": pixels[i : i + 1]}) for i in range(len(pixels))]  # on a CPU more at a time is slower
        return [np.concatenate(output) for output in zip(*answers, strict=True)]

    return forward


def by_torch(module: Any, device: str) -> Forward:
    """The network's forward pass by torch, in half precision on a GPU, and in smaller parts where memory does not suffice.

    Raises:
        DetectionsError: the device cannot be used.
    """
    import torch

    try:
        with faults_of(device):
            module = module.eval().to(device)
    except MemoryError as e:
        raise DetectionsError(
            f"the memory of {device} does not suffice for the detector ({e}); end what else uses it, or set detections.detector to a smaller one"
        ) from e

    def forward(pixels: NDArray[np.uint8]) -> Arrays:
        inputs = torch.from_numpy(pixels).to(device, non_blocking=True)
        with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=device == "cuda"):
            return [output.float().cpu().numpy() for output in module(inputs)]

    return _in_parts(forward, device)


def _in_parts(forward: Forward, device: str) -> Forward:
    """The same for any number of pictures: where memory does not suffice, half as many go at a time from then on."""
    most = sys.maxsize

    def in_parts(pixels: NDArray[np.uint8]) -> Arrays:
        nonlocal most
        answers: list[Arrays] = []
        start = 0
        while start < len(pixels):
            part = pixels[start : start + most]
            answer = _unless_no_room(forward, part, device)
            if answer is None:
                most = len(part) // 2
                log.warning("detections: the memory of %s does not suffice for %d pictures at a time; from here on %d", device, len(part), most)
                continue
            answers.append(answer)
            start += len(part)
        return [np.concatenate(output) for output in zip(*answers, strict=True)]

    return in_parts


def _unless_no_room(forward: Forward, pixels: NDArray[np.uint8], device: str) -> Arrays | None:
    """The answer, None where memory does not suffice for so many; what a failed try held is free again by then.

    Raises:
        DetectionsError: it does not suffice for one, or the device failed.
    """
    try:
        with faults_of(device):
            return forward(pixels)
    except MemoryError as e:
        if len(pixels) == 1:
            raise no_room(device, pixels[0], e) from e
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
    return None


def no_room(device: str, pixels: NDArray[np.uint8], error: MemoryError) -> DetectionsError:
    """Where memory does not suffice for a single picture, as a line."""
    height, width = pixels.shape[:2]
    return DetectionsError(
        f"the memory of {device} does not suffice for one picture of {width} x {height} pixels ({error}); lower detections.image_size, "
        "end what else uses it, or set CUDA_VISIBLE_DEVICES= to look on the processor"
    )


@contextmanager
def faults_of(device: str) -> Iterator[None]:
    """What torch raises: MemoryError where memory does not suffice, DetectionsError for any other fault of a GPU."""
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as e:
        said = (str(e).splitlines() or [type(e).__name__])[0]
        if isinstance(e, MemoryError | torch.OutOfMemoryError) or any(sign in str(e) for sign in NO_ROOM):
            raise MemoryError(said) from e
        if device == "cpu":
            raise
        raise DetectionsError(
            f"torch cannot look at pictures on {device} ({said}); mend its driver, or set CUDA_VISIBLE_DEVICES= to look on the processor"
        ) from e


def device_here() -> str:
    """Where torch would compute: cuda, mps or cpu. On a Linux machine without a GPU's driver torch need not be loaded to know."""
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in DRIVERS):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

"""Run a detector's network: ONNX Runtime on a CPU, torch in half precision on a GPU.

On a CPU the network is exported to ONNX once, compared with torch, and kept in the cache. Later runs import neither torch nor the package
that made the checkpoint. If the export fails or gives other outputs, torch runs the network.
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
from animl_pipeline.storage.atomic_files import disk_errors, write_atomic
from animl_pipeline.storage.store import digest_of, sha256_of

log = logging.getLogger(__name__)

Arrays = list[NDArray[np.float32]]
Forward = Callable[[NDArray[np.uint8]], Arrays]
"""RGB uint8 [n, height, width, 3] → the network's outputs, float32."""

MAX_DIFFERENCE = 1e-3
"""Largest accepted difference between ONNX Runtime and torch, relative to the largest value of an output."""
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap")
"""Device files of GPU drivers on Linux: NVIDIA, WSL, AMD, and NVIDIA's embedded boards."""
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory", "bad_alloc")
"""Texts of out-of-memory errors that have no class of their own: of MPS, cuDNN, cuBLAS and torch's CPU allocator."""


class Network(NamedTuple):
    """A network in torch.

    Attributes:
        module: takes uint8 [n, height, width, 3] and gives a tuple of arrays.
        metadata: JSON values that its detector needs to read the outputs, such as class names.
        height, width: size of the input in pixels.
        any_size: whether it also takes inputs of other sizes.
    """

    module: Any
    metadata: dict[str, Any]
    height: int
    width: int
    any_size: bool = False


class LoadedNetwork(NamedTuple):
    """A network that is ready to run. ``batched``: one thread runs batches (a GPU); else several threads run one image each."""

    forward: Forward
    metadata: dict[str, Any]
    batched: bool


def load_network(identity: list[Any], build: Callable[[], Network], settings: Settings) -> LoadedNetwork:
    """Load the network for this machine's processor.

    ``identity``: JSON values that its outputs depend on, such as the sha256 of the weights. ``build``: builds the network in torch. Not
    called if the cache holds the exported network.

    Raises:
        DetectionsError: the GPU cannot run it.
        Exception: whatever ``build`` raises.
    """
    device = find_device()
    if device != "cpu":
        network = build()
        return LoadedNetwork(run_with_torch(network.module, device), network.metadata, batched=True)
    folder = settings.cache.expanduser() / "detectors" / digest_of([identity, version("torch")])[:32]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            metadata = _read_metadata(folder)
            if metadata is None:
                network = build()
                if not _export(network, folder):
                    return LoadedNetwork(run_with_torch(network.module, device), network.metadata, batched=False)
                metadata = network.metadata
    return LoadedNetwork(_run_with_onnxruntime(folder / "network.onnx"), metadata, batched=False)


def find_device() -> str:
    """The device that torch uses here: cuda, mps or cpu. On Linux without a GPU driver torch is not imported."""
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in GPU_DEVICES):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


# -- ONNX Runtime ------------------------------------------------------------------------------------------------------


def _run_with_onnxruntime(path: Path) -> Forward:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # several threads run one image each instead
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def forward(pixels: NDArray[np.uint8]) -> Arrays:
        outputs = [session.run(None, {"pixels": pixels[i : i + 1]}) for i in range(len(pixels))]  # batches are slower on a CPU
        return [np.concatenate(output) for output in zip(*outputs, strict=True)]

    return forward


def _read_metadata(folder: Path) -> dict[str, Any] | None:
    """The metadata of the exported network in a cache folder; None if there is none, or the file has another sha256."""
    try:
        saved = json.loads((folder / "network.json").read_bytes())
        return dict(saved["metadata"]) if sha256_of(folder / "network.onnx") == saved["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _export(network: Network, folder: Path) -> bool:
    """Export the network to ONNX in the cache folder. False if that fails or its outputs differ from torch's."""
    import torch

    path, temporary = folder / "network.onnx", folder / ".part.onnx"
    sizes = {1: "height", 2: "width"}
    example = torch.zeros(1, network.height, network.width, 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            names = [f"out{i}" for i in range(len(network.module(example)))]
            torch.onnx.export(
                network.module, (example,), str(temporary), input_names=["pixels"], output_names=names, dynamo=False, opset_version=17,
                dynamic_axes={"pixels": sizes} | {name: {2: "anchors"} for name in names} if network.any_size else None,
            )  # fmt: skip
        difference = _largest_difference(_run_with_onnxruntime(temporary), run_with_torch(network.module, "cpu"), network)
    except Exception as e:  # noqa: BLE001 - an exporter may raise anything about another package's network; torch is the slower fallback
        log.warning("detections: the export to ONNX failed (%s); torch runs the detector, more slowly", _first_line(e))
        temporary.unlink(missing_ok=True)
        return False
    if difference > MAX_DIFFERENCE:
        log.warning("detections: ONNX Runtime and torch differ by %.1e; torch runs the detector, more slowly", difference)
        temporary.unlink()
        return False
    temporary.replace(path)
    write_atomic(folder / "network.json", json.dumps({"sha256": sha256_of(path), "metadata": network.metadata, "difference": difference}).encode())
    log.info("detections: exported the network to ONNX in %s; it differs from torch by %.1e", folder, difference)
    return True


def _largest_difference(one: Forward, other: Forward, network: Network) -> float:
    """The largest relative difference between two forward passes on random images, in several shapes if the network takes any."""
    rng = np.random.default_rng(0)
    shapes = [(network.height, network.width)]
    if network.any_size:
        shapes += [(network.width, network.height), (max(32, network.height // 64 * 32), network.width)]
    largest = 0.0
    for height, width in shapes:
        blocks = rng.integers(0, 256, (1, height // 32, width // 32, 3)).repeat(32, 1).repeat(32, 2)
        pixels = (blocks * 0.8 + rng.integers(0, 52, (1, height, width, 3))).astype(np.uint8)
        for a, b in zip(one(pixels), other(pixels), strict=True):
            largest = max(largest, float(np.abs(a - b).max() / max(1.0, float(np.abs(b).max()))))
    return largest


# -- torch -------------------------------------------------------------------------------------------------------------


def run_with_torch(module: Any, device: str) -> Forward:
    """The forward pass of a torch module, in half precision on cuda. If memory runs out, the batch is run in two halves.

    Raises:
        DetectionsError: the device cannot be used, or its memory is too small.
    """
    import torch

    with torch_errors(device):
        module = module.eval().to(device)

    def forward(pixels: NDArray[np.uint8]) -> Arrays:
        try:
            with torch_errors(device), torch.inference_mode(), torch.autocast(device, torch.float16, enabled=device == "cuda"):
                return [output.float().cpu().numpy() for output in module(torch.from_numpy(pixels).to(device, non_blocking=True))]
        except DetectionsError as e:
            if e.code != "out_of_memory" or len(pixels) == 1:
                raise
        # Outside of the except block, so that the tensors of the failed batch are freed.
        if device == "cuda":
            torch.cuda.empty_cache()
        half = len(pixels) // 2
        log.warning("detections: a batch of %d images needs more memory than %s has; running it in two halves", len(pixels), device)
        return [np.concatenate(halves) for halves in zip(forward(pixels[:half]), forward(pixels[half:]), strict=True)]

    return forward


@contextmanager
def torch_errors(device: str) -> Iterator[None]:
    """Raise DetectionsError when torch runs out of memory (code ``out_of_memory``) or a GPU fails (``gpu_failed``)."""
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if isinstance(e, MemoryError | torch.OutOfMemoryError) or any(text in str(e) for text in OUT_OF_MEMORY):
            problem, remedy = "needs more memory than there is", "lower detections.image_size, choose a smaller detector, stop other programs"
            code = "out_of_memory"
        elif device == "cpu":
            raise
        else:
            problem, remedy, code = "fails", "repair the driver", "gpu_failed"
        raise DetectionsError(
            f"the detector {problem} on {device} ({_first_line(e)}); {remedy}, or set CUDA_VISIBLE_DEVICES= to use the CPU", code=code
        ) from e


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

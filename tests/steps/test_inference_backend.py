"""What a GPU needs of the detectors, as far as a CPU can show it: half precision, too little memory, a device that fails, batches."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.detections.choose_detector import ChosenDetector
from animl_pipeline.steps.detections.detector import Detection
from animl_pipeline.steps.detections.inference_backend import LoadedNetwork, Network, load_network, run_with_torch
from animl_pipeline.steps.detections.run_detector import run_detector
from animl_pipeline.steps.detections.yolox_lite import DEPTH, WIDTH, build_network
from animl_pipeline.storage.store import Store

SIDE = 640


class LimitedMemory(nn.Module):
    """Gives the means of images. Allocates more memory than there is for a batch of more than ``limit``."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.batches: list[int] = []

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        if torch.onnx.is_in_onnx_export():
            raise NotImplementedError("cannot be exported")
        self.batches.append(len(pixels))
        if len(pixels) > self.limit:
            torch.empty(2**58)
        return (pixels.float().mean((1, 2)),)


def load(module: nn.Module, settings: Settings) -> LoadedNetwork:
    return load_network([str(id(module))], lambda: Network(module, {}, 64, 64), settings)


@pytest.fixture(autouse=True)
def _no_gpu() -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU, which would run the network")


def test_a_batch_that_needs_too_much_memory_is_halved_and_no_image_is_lost(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    limited = LimitedMemory(limit=4)
    forward = load(limited, settings).forward
    pixels = np.random.default_rng(0).integers(0, 256, (13, 64, 64, 3), np.uint8)
    with caplog.at_level(logging.WARNING):
        (means,) = forward(pixels)
    assert means == pytest.approx(pixels.mean((1, 2)), rel=1e-4)
    assert limited.batches[-7:] == [13, 6, 3, 3, 7, 3, 4]
    assert "13 images" in caplog.text


def test_an_image_that_needs_too_much_memory_is_one_error_line(settings: Settings) -> None:
    forward = load(LimitedMemory(limit=0), settings).forward
    with pytest.raises(DetectionsError) as refused:
        forward(np.zeros((2, 32, 64, 3), np.uint8))
    assert refused.value.code == "out_of_memory"
    assert "\n" not in str(refused.value)


class TooLarge(nn.Module):
    """A network that fits into no memory."""

    def _apply(self, *_: Any, **__: Any) -> Any:
        return torch.empty(2**58)


def test_a_network_that_needs_too_much_memory_is_one_error_line() -> None:
    with pytest.raises(DetectionsError) as refused:
        run_with_torch(TooLarge(), "cpu")
    assert refused.value.code == "out_of_memory"
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")
def test_a_gpu_that_fails_is_one_error_line() -> None:
    with pytest.raises(DetectionsError) as refused:
        run_with_torch(nn.Linear(1, 1), "cuda")
    assert refused.value.code == "gpu_failed"


def test_half_precision_moves_no_box_of_megadetector_lite(tmp_path: Path) -> None:
    from yolox.models import YoloPafpn, YoloxHead, YoloxModule

    torch.manual_seed(0)
    untrained: Any = YoloxModule(YoloPafpn(DEPTH, WIDTH), YoloxHead(1, WIDTH))
    torch.save({"model": untrained.state_dict()}, tmp_path / "lite.pth")
    module = build_network(tmp_path / "lite.pth", SIDE).module
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8))
    with torch.inference_mode():
        (single,) = module(pixels)
        theirs = untrained.eval()(pixels.permute(0, 3, 1, 2).float())
        with torch.autocast("cpu", torch.float16):
            (half,) = module(pixels)
    assert torch.equal(single, torch.cat([theirs[..., :4], single[..., 4:]], dim=-1)), "the boxes equal those of the yolox package"
    assert float((half[..., :4] - single[..., :4]).abs().max()) < 0.1, "in pixels; half precision alone would move them by a quarter"


class BatchPair:
    """A batched detector that answers its first batch only after it got a second. Its confidence is the image's red value."""

    batched = True
    categories = frozenset({ANIMAL})

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)
        self.met = False

    def preprocess(self, data: bytes) -> float:
        return round(float(np.asarray(open_image(data))[..., 0].mean())) / 1000

    def predict(self, inputs: Sequence[float]) -> list[list[Detection]]:
        with contextlib.suppress(threading.BrokenBarrierError):  # open after the first pair
            self.barrier.wait(60)
            self.met = True
            self.barrier.abort()
        return [[Detection(ANIMAL, red, 0.1, 0.1, 0.2, 0.2)] for red in inputs]


def test_a_gpu_gets_the_next_batch_while_the_boxes_of_the_last_are_read(store: Store, settings: Settings) -> None:
    reds = [10, 200, 60, 130, 30, 90, 250]
    blobs = [store.put_blob(_png(red)) for red in reds]
    broken = store.put_blob(b"not an image")
    pair = BatchPair()
    chosen = ChosenDetector("pair", "yolox-lite", "0" * 64, 64, 0.1, lambda: pair)
    config = DetectionsConfig(batch_size=2)
    found = run_detector([*blobs[:3], broken, *blobs[3:]], chosen, config, store, settings)
    assert pair.met, "the detector had two batches at a time"
    assert [[d.confidence for d in found[blob]] for blob in blobs] == [[red / 1000] for red in reds]  # type: ignore[union-attr]
    assert found[broken] == "image_broken"
    again = chosen._replace(load=lambda: pytest.fail("all images are in the index"))
    assert run_detector(blobs, again, config, store, settings) == {blob: found[blob] for blob in blobs}


def _png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()

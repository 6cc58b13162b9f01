"""What a GPU asks of the detectors, as far as a processor can show it: half precision, memory that does not suffice, a device that fails."""

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
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.steps.detections.choose_detector import Choice
from animl_pipeline.steps.detections.detector import ANIMAL, Detection
from animl_pipeline.steps.detections.inference_backend import Loaded, Network, by_torch, load_network
from animl_pipeline.steps.detections.run_detector import run_detector
from animl_pipeline.steps.detections.yolox_lite import DEPTH, WIDTH, build_network
from animl_pipeline.storage.step_cache import Store

SIDE = 640


class Hungry(nn.Module):
    """Means of pictures, for which more memory than there is anywhere is asked where more than ``most`` come at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.asked: list[int] = []

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        if torch.onnx.is_in_onnx_export():
            raise NotImplementedError("no exporter knows this")
        self.asked.append(len(pixels))
        if len(pixels) > self.most:
            torch.empty(2**58)
        return (pixels.float().mean((1, 2)),)


def loaded(module: nn.Module, settings: Settings) -> Loaded:
    return load_network([str(id(module))], lambda: Network(module, {}, 64, 64), settings)


@pytest.fixture(autouse=True)
def _no_gpu() -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is a GPU here, which would answer")


def test_where_memory_runs_out_half_as_many_images_go_at_a_time_and_none_is_lost(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    hungry = Hungry(most=3)
    forward = loaded(hungry, settings).forward
    pixels = np.random.default_rng(0).integers(0, 256, (13, 64, 64, 3), np.uint8)
    with caplog.at_level(logging.WARNING):
        (means,) = forward(pixels)
    assert means == pytest.approx(pixels.mean((1, 2)), rel=1e-4)
    assert hungry.asked[-7:] == [13, 6, 3, 3, 3, 3, 1]
    assert "does not suffice for 13 pictures at a time; from here on 6" in caplog.text
    hungry.asked.clear()
    forward(pixels[:4])
    assert hungry.asked == [3, 1], "what was learnt of the memory is kept"


def test_where_memory_does_not_suffice_for_one_image_one_line_says_what_to_turn(settings: Settings) -> None:
    forward = loaded(Hungry(most=0), settings).forward
    with pytest.raises(DetectionsError, match=r"does not suffice for one picture of 64 x 32 pixels .* lower detections\.image_size") as refused:
        forward(np.zeros((2, 32, 64, 3), np.uint8))
    assert "\n" not in str(refused.value)


class Giant(nn.Module):
    """A network for which there is no room anywhere."""

    def _apply(self, *_: Any, **__: Any) -> Any:
        return torch.empty(2**58)


def test_a_network_that_the_memory_cannot_hold_is_one_line() -> None:
    with pytest.raises(DetectionsError, match=r"the memory of cpu does not suffice for the detector \(.+\); .* detections\.detector") as refused:
        by_torch(Giant(), "cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no GPUs")
def test_a_gpu_that_cannot_be_used_is_one_line() -> None:
    with pytest.raises(DetectionsError, match=r"torch cannot look at pictures on cuda \(.+\); .* set CUDA_VISIBLE_DEVICES= to look on the processor"):
        by_torch(nn.Linear(1, 1), "cuda")


def test_half_precision_moves_no_location_of_megadetector_lites_network(tmp_path: Path) -> None:
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
    assert torch.equal(single, torch.cat([theirs[..., :4], single[..., 4:]], dim=-1)), "the places that the package itself gives"
    assert float((half[..., :4] - single[..., :4]).abs().max()) < 0.1, (
        "a tenth of a pixel; in half precision alone they would be a quarter of one apart"
    )


class Paired:
    """A detector that answers its first batch only once it was given a second: a picture's red is the confidence of what it finds."""

    alone = False
    categories = frozenset({ANIMAL})

    def __init__(self) -> None:
        self.two = threading.Barrier(2)
        self.met = False

    def preprocess(self, data: bytes) -> float:
        return round(float(np.asarray(open_image(data))[..., 0].mean())) / 1000

    def predict(self, prepared: Sequence[float]) -> list[list[Detection]]:
        with contextlib.suppress(threading.BrokenBarrierError):  # open from the first pair on
            self.two.wait(60)
            self.met = True
            self.two.abort()
        return [[Detection(ANIMAL, red, 0.1, 0.1, 0.2, 0.2)] for red in prepared]


def test_a_gpu_is_given_a_batch_while_what_it_saw_in_the_last_one_is_sorted_out(store: Store, settings: Settings) -> None:
    reds = [10, 200, 60, 130, 30, 90, 250]
    blobs = [store.put_blob(_png(red)) for red in reds]
    broken = store.put_blob(b"no picture")
    paired = Paired()
    choice = Choice("paired", "0" * 64, "", 64, 0.1, lambda: paired)
    spec = DetectionsConfig(batch_size=2)
    seen = run_detector([*blobs[:3], broken, *blobs[3:]], choice, spec, store, settings)
    assert paired.met, "two batches were in its hands at a time"
    assert [[found.confidence for found in seen[blob]] for blob in blobs] == [[red / 1000] for red in reds]  # type: ignore[union-attr]
    assert seen[broken] == "image_broken"
    again = Choice("paired", "0" * 64, "", 64, 0.1, lambda: pytest.fail("all was remembered"))
    assert run_detector(blobs, again, spec, store, settings) == {blob: seen[blob] for blob in blobs}


def _png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()

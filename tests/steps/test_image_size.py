"""An image is complete: its size is read, and a cut or damaged one is refused."""

from __future__ import annotations

import io
from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import ImageError
from animl_pipeline.steps.images.download import image_size
from tests.conftest import jpeg
from tests.support.paths import DATA as REAL


def test_the_size_of_a_jpeg_is_read_without_decoding_it() -> None:
    assert image_size(jpeg(160, 120)) == (160, 120)


@pytest.mark.parametrize("end", [2, 10, 500, 1000])
def test_a_jpeg_that_is_cut_off_is_refused(end: int) -> None:
    with pytest.raises(ImageError):
        image_size(jpeg(160, 120)[:-end])


def test_a_jpeg_with_bytes_after_its_end_is_decoded() -> None:
    assert image_size(jpeg(160, 120) + bytes(20)) == (160, 120)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"<html>", b"\xff\xd8\xff\xe0\x00\x00"])
def test_bytes_that_are_not_an_image_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        image_size(data)


def test_other_formats_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg())).save(buffer, "PNG")
    assert image_size(buffer.getvalue()) == (64, 48)
    with pytest.raises(ImageError):
        image_size(buffer.getvalue()[:-50])


@given(st.floats(0, 0.999), st.floats(0, 0.2), st.randoms(use_true_random=False), st.sampled_from(["zero", "random", "gone"]))
@hypothesis_settings(max_examples=100, deadline=None)
def test_an_image_that_decodes_is_never_refused(at: float, share: float, random: Random, how: str) -> None:
    data = jpeg(160, 120, seed=7)
    start, end = int(at * len(data)), int(min(1.0, at + share) * len(data)) + 1
    middle = {"zero": bytes(end - start), "random": random.randbytes(end - start), "gone": b""}[how]
    damaged = data[:start] + middle + data[end:]
    try:
        size = open_image(damaged).size
    except ImageError:
        return
    assert image_size(damaged) == size


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.exists(), reason="no real images beside the checkout")
def test_real_images_are_complete_and_refused_when_cut_off() -> None:
    paths = sorted(p for p in REAL.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})[::25]
    assert len(paths) > 50
    for path in paths:
        data = path.read_bytes()
        assert image_size(data) == open_image(data).size, path
        with pytest.raises(ImageError):
            image_size(data[: len(data) * 2 // 3])

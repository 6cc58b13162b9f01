"""Decoding, its memory limit, and the model input: a square inside the image, the same for training, scoring and serving."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from animl_pipeline.core.box_type import WHOLE_IMAGE, Box
from animl_pipeline.core.decode_image import MAX_PIXELS, ROW_BYTES, DecodeBudget, decoded_bytes, open_image, read_header
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.model_input import extract_crop, normalise, square_around
from tests.conftest import jpeg

LIMIT = 1000
sides = st.integers(1, 400)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    ymin, xmin = draw(st.floats(0, 0.95)), draw(st.floats(0, 0.95))
    return Box(ymin=ymin, xmin=xmin, ymax=draw(st.floats(ymin + 0.01, 1)), xmax=draw(st.floats(xmin + 0.01, 1)))


def encode(kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), (10, 200, 30)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


# -- model input


@given(boxes(), sides, sides, st.sampled_from([0.0, 0.1, 0.5]))
def test_the_square_contains_the_box_and_stays_inside_the_image_if_it_fits(box: Box, width: int, height: int, margin: float) -> None:
    left, top, side = square_around(box, width, height, margin)
    assert side >= max(int(box.xmax * width) - int(box.xmin * width), int(box.ymax * height) - int(box.ymin * height), 1)
    if side <= width:
        assert 0 <= left <= width - side
        assert left <= int(box.xmin * width) <= int(box.xmax * width) <= left + side
    if side <= height:
        assert 0 <= top <= height - side


@given(boxes(), st.integers(8, 90), st.integers(8, 90))
def test_a_crop_always_has_the_size_of_the_model_input(box: Box, width: int, height: int) -> None:
    model_input = ModelInput(size=32)
    image = Image.new("RGB", (width, height), (200, 10, 10))
    assert extract_crop(image, box, model_input).size == (32, 32)
    assert normalise([extract_crop(image, box, model_input)], model_input).shape == (1, 3, 32, 32)


def test_a_crop_is_black_outside_of_a_narrow_image() -> None:
    pixels = np.asarray(extract_crop(Image.new("RGB", (100, 40), (255, 255, 255)), WHOLE_IMAGE, ModelInput(size=100)))
    assert pixels[:25].max() == 0
    assert pixels[40:60].min() == 255
    assert pixels[75:].max() == 0


def test_normalisation_is_value_over_255_minus_mean_over_std_per_channel() -> None:
    model_input = ModelInput(size=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    got = normalise([Image.new("RGB", (32, 32), (51, 102, 204))], model_input)[0, :, 0, 0]
    assert got == pytest.approx([(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, (0.8 - 0.3) / 0.2], abs=1e-6)
    assert got.dtype == np.float32


# -- decoding


@pytest.mark.parametrize(
    "data", [b"", b"<html>", jpeg()[:300], b"\xff\xd8\xff\xe0nothing", b"GIF89a\x01"], ids=["empty", "html", "truncated", "header only", "gif"]
)
def test_bytes_that_do_not_decode_raise_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError) as refused:
        open_image(data)
    assert refused.value.code in {"unknown_format", "damaged"}


def test_a_truncated_image_raises_even_if_another_package_allowed_truncated_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    complete = jpeg()
    with pytest.raises(ImageError):
        open_image(complete[: len(complete) // 2])


@given(st.binary(max_size=200), st.integers(0, 2000))
def test_damaged_bytes_give_an_image_or_an_image_error_in_one_line(noise: bytes, at: int) -> None:
    complete = jpeg(32, 24)
    damaged = complete[: at % len(complete)] + noise + complete[at % len(complete) + len(noise) :]
    try:
        result = open_image(damaged).mode
    except ImageError as e:
        result = str(e)
    assert result == "RGB" or "\n" not in result


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (12_000, 10_000)).save(buffer, "PNG")
    with pytest.raises(ImageError) as refused:
        open_image(buffer.getvalue())
    assert refused.value.code == "too_many_pixels"


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1", "LA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (250, 250, 250)).convert(mode).save(buffer, "TIFF")
    image = open_image(buffer.getvalue())
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert np.asarray(image).mean() > 200


def test_odd_palettes_and_metadata_open_without_a_warning() -> None:
    grey = Image.radial_gradient("L").convert("P")
    palette, metadata = io.BytesIO(), io.BytesIO()
    grey.save(palette, "PNG", transparency=bytes(range(256)))
    truncated = Image.Exif()
    truncated[0x0132] = "2024:01:02 03:04:05"
    Image.new("RGB", (9, 9)).save(metadata, "JPEG", exif=truncated.tobytes()[:-30])
    for data in (palette.getvalue(), metadata.getvalue()):  # pytest turns a warning into an error
        assert open_image(data).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_upper_byte() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((10, 20), 0x8040, np.uint16)).save(buffer, "PNG")
    assert np.asarray(open_image(buffer.getvalue())).max() == 0x80


def test_thirty_two_bit_grey_is_clipped_to_sixteen_bits_and_keeps_their_upper_byte() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[-5, 0x8040, 70_000]], np.int32)).save(buffer, "TIFF")
    assert np.asarray(open_image(buffer.getvalue()))[0, :, 0].tolist() == [0, 0x80, 0xFF]


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encode("JPEG", exif=exif)).size == (40, 20)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_the_formats_of_cameras_and_their_tools_open(kind: str) -> None:
    assert open_image(encode(kind)).size == read_header(encode(kind))[:2] == (40, 20)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "ICO", "TGA", "PDF"])
def test_other_formats_are_refused_even_if_another_package_registered_them(kind: str) -> None:
    Image.init()
    with pytest.raises(ImageError) as refused:
        open_image(encode(kind))
    assert refused.value.code == "unknown_format"


# -- memory


def test_a_header_says_how_much_memory_decoding_takes() -> None:
    assert read_header(encode("JPEG")).bytes_per_pixel == 4
    assert read_header(encode("JPEG", progressive=True)).bytes_per_pixel == 12
    assert read_header(encode("PNG", "RGBA")).bytes_per_pixel == 12
    assert read_header(encode("WEBP")).bytes_per_pixel == 16
    with pytest.raises(ImageError):
        read_header(b"not an image")


def test_decoded_bytes_include_the_largest_square_but_not_one_that_is_refused() -> None:
    header = read_header(encode("JPEG"))
    assert decoded_bytes(header) == 4 * 40 * 20 + 20 * ROW_BYTES
    assert decoded_bytes(header, 30) == 4 * (40 * 20 + 30 * 30) + 30 * ROW_BYTES
    assert decoded_bytes(header, 20_000) == 4 * (40 * 20 + MAX_PIXELS) + 20_000 * ROW_BYTES


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 3 * LIMIT), min_size=1, max_size=60))
def test_a_budget_is_never_exceeded_and_every_thread_gets_its_turn(sizes: list[int]) -> None:
    budget, lock = DecodeBudget(LIMIT), threading.Lock()
    held: list[int] = []
    snapshots: list[list[int]] = []

    def hold(size: int) -> None:
        with budget.reserve(size):
            with lock:
                held.append(size)
                snapshots.append(list(held))
            with lock:
                held.remove(size)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, sizes, timeout=60))
    assert len(snapshots) == len(sizes)
    assert all(sum(s) <= LIMIT or not any(sum(s) - size for size in s) for s in snapshots), "a size above the limit is held alone"


def test_sizes_that_fit_together_are_held_together() -> None:
    budget, together = DecodeBudget(LIMIT), threading.Barrier(4)

    def hold(_: int) -> None:
        with budget.reserve(LIMIT // 4):
            together.wait(60)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(4)))


def test_memory_is_free_again_after_an_error() -> None:
    budget = DecodeBudget(LIMIT)
    with pytest.raises(ImageError), budget.reserve_for(b"not an image"):
        raise AssertionError
    with pytest.raises(KeyError), budget.reserve(LIMIT):
        raise KeyError
    with budget.reserve(LIMIT):
        pass

"""The view: a square inside the picture, the same for training, scoring and serving; bad pictures raise."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.imaging import extract_crop, normalise, open_image, read_header, square_around
from animl_pipeline.core.records import WHOLE_IMAGE, Box, ModelInput
from tests.conftest import jpeg

sides = st.integers(1, 400)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    ymin, xmin = draw(st.floats(0, 0.95)), draw(st.floats(0, 0.95))
    return Box(ymin=ymin, xmin=xmin, ymax=draw(st.floats(ymin + 0.01, 1)), xmax=draw(st.floats(xmin + 0.01, 1)))


@given(boxes(), sides, sides, st.sampled_from([0.0, 0.1, 0.5]))
def test_the_square_holds_the_box_and_stays_inside_where_it_fits(box: Box, width: int, height: int, margin: float) -> None:
    left, top, side = square_around(box, width, height, margin)
    assert side >= max(int(box.xmax * width) - int(box.xmin * width), int(box.ymax * height) - int(box.ymin * height), 1)
    if side <= width:
        assert 0 <= left <= width - side
        assert left <= int(box.xmin * width) <= int(box.xmax * width) <= left + side
    if side <= height:
        assert 0 <= top <= height - side


@given(boxes(), st.integers(8, 90), st.integers(8, 90))
def test_a_view_is_always_of_the_views_size(box: Box, width: int, height: int) -> None:
    model_input = ModelInput(size=32)
    image = Image.new("RGB", (width, height), (200, 10, 10))
    assert extract_crop(image, box, model_input).size == (32, 32)
    assert normalise([extract_crop(image, box, model_input)], model_input).shape == (1, 3, 32, 32)


def test_a_square_past_a_narrow_image_is_black_there() -> None:
    pixels = np.asarray(extract_crop(Image.new("RGB", (100, 40), (255, 255, 255)), WHOLE_IMAGE, ModelInput(size=100)))
    assert pixels[:25].max() == 0
    assert pixels[40:60].min() == 255
    assert pixels[75:].max() == 0


def test_normalisation_is_value_over_255_minus_mean_by_std_channel_by_channel() -> None:
    model_input = ModelInput(size=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    got = normalise([Image.new("RGB", (32, 32), (51, 102, 204))], model_input)[0, :, 0, 0]
    assert got == pytest.approx([(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, (0.8 - 0.3) / 0.2], abs=1e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    "data", [b"", b"<html>", jpeg()[:300], b"\xff\xd8\xff\xe0nothing", b"GIF89a\x01"], ids=["empty", "html", "torn", "head", "gif"]
)
def test_what_does_not_decode_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(ImageError, match="not a picture that decodes"):
        open_image(data)


def test_a_torn_image_raises_though_another_package_asked_pillow_to_let_it_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = jpeg()
    with pytest.raises(ImageError):
        open_image(whole[: len(whole) // 2])


@given(st.binary(max_size=200), st.integers(0, 2000))
def test_damaged_bytes_give_a_image_or_a_image_error_and_nothing_else(noise: bytes, at: int) -> None:
    whole = jpeg(32, 24)
    damaged = whole[: at % len(whole)] + noise + whole[at % len(whole) + len(noise) :]
    try:
        mode = open_image(damaged).mode
    except ImageError as e:
        mode = "RGB" if "\n" not in str(e) else str(e)
    assert mode == "RGB"


def test_a_bomb_of_pixels_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (12_000, 10_000)).save(buffer, "PNG")
    with pytest.raises(ImageError, match="12000 x 10000 pixels; at most"):
        open_image(buffer.getvalue())


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1", "LA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (250, 250, 250)).convert(mode).save(buffer, "TIFF")
    image = open_image(buffer.getvalue())
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert np.asarray(image).mean() > 200


def test_what_pillow_only_grumbles_about_is_opened_without_a_word() -> None:
    grey = Image.radial_gradient("L").convert("P")
    palette, notes = io.BytesIO(), io.BytesIO()
    grey.save(palette, "PNG", transparency=bytes(range(256)))
    torn = Image.Exif()
    torn[0x0132] = "2024:01:02 03:04:05"
    Image.new("RGB", (9, 9)).save(notes, "JPEG", exif=torn.tobytes()[:-30])
    for data in (palette.getvalue(), notes.getvalue()):  # a warning would be an error here
        assert open_image(data).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_upper_byte() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((10, 20), 0x8040, np.uint16)).save(buffer, "PNG")
    assert np.asarray(open_image(buffer.getvalue())).max() == 0x80


def test_exif_orientation_is_left_alone() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    assert open_image(buffer.getvalue()).size == (40, 20)


def saved(kind: str, mode: str = "RGB", **how: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), (10, 200, 30)).convert(mode).save(buffer, kind, **how)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_what_cameras_and_their_tools_write_is_opened(kind: str) -> None:
    assert open_image(saved(kind)).size == read_header(saved(kind))[:2] == (40, 20)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "ICO", "TGA", "PDF"])
def test_other_formats_are_none_of_ours_even_where_another_package_has_loaded_them(kind: str) -> None:
    Image.init()
    with pytest.raises(ImageError, match="no known picture format"):
        open_image(saved(kind))


def test_a_header_says_how_much_memory_decoding_takes() -> None:
    assert read_header(saved("JPEG")).bytes_per_pixel == 4
    assert read_header(saved("JPEG", progressive=True)).bytes_per_pixel == 12
    assert read_header(saved("PNG", "RGBA")).bytes_per_pixel == 12
    assert read_header(saved("WEBP")).bytes_per_pixel == 16
    with pytest.raises(ImageError):
        read_header(b"no picture")


def test_thirty_two_bit_grey_is_cut_off_at_sixteen_bits_and_keeps_its_upper_byte() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[-5, 0x8040, 70_000]], np.int32)).save(buffer, "TIFF")
    assert np.asarray(open_image(buffer.getvalue()))[0, :, 0].tolist() == [0, 0x80, 0xFF]

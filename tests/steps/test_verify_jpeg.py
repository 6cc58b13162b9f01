"""Whether a picture decodes, found out without decoding it: held against the whole decoder on damaged files; and the pace of asking."""

from __future__ import annotations

import io
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.steps.images.concurrency import FIRST, SHORTEST_ROUND, Pace
from animl_pipeline.steps.images.verify_jpeg import image_size
from tests.conftest import jpeg
from tests.support.paths import DATA as REAL

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged EXIF


@cache
def image(kind: str) -> bytes:
    whole = Image.open(io.BytesIO(jpeg(160, 120, seed=7)))
    buffer = io.BytesIO()
    options = {
        "baseline": {}, "progressive": {"progressive": True}, "restarts": {"restart_marker_blocks": 4},
        "grey": {}, "exif": {"exif": b"Exif\0\0" + jpeg(16, 16)}, "optimised": {"optimize": True, "subsampling": 0},
    }[kind]  # fmt: skip
    (whole.convert("L") if kind == "grey" else whole).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def decodes(data: bytes) -> bool:
    try:
        open_image(data)
    except ImageError:
        return False
    return True


def looks_whole(data: bytes) -> bool:
    try:
        image_size(data)
    except ImageError:
        return False
    return True


KINDS = ("baseline", "progressive", "restarts", "grey", "exif", "optimised")


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_the_decoders(kind: str) -> None:
    assert image_size(image(kind)) == (160, 120)


@pytest.mark.parametrize("kind", KINDS)
def test_a_image_cut_off_anywhere_is_noticed(kind: str) -> None:
    data = image(kind)
    assert [n for n in range(0, len(data) - 2, 7) if looks_whole(data[:n]) != decodes(data[:n])] == []
    assert not any(looks_whole(data[:n]) for n in range(0, len(data) - 2, 7))


@given(st.sampled_from(KINDS), st.floats(0, 0.999), st.floats(0, 0.2), st.randoms(use_true_random=False), st.sampled_from("zero random gone".split()))
@settings(max_examples=150, deadline=None)
def test_what_decodes_is_never_refused(kind: str, at: float, share: float, dice, how: str) -> None:  # noqa: ANN001 - hypothesis's own Random
    data = image(kind)
    start, end = int(at * len(data)), int(min(1.0, at + share) * len(data)) + 1
    middle = {"zero": bytes(end - start), "random": dice.randbytes(end - start), "gone": b""}[how]
    damaged = data[:start] + middle + data[end:]
    if decodes(damaged):
        assert looks_whole(damaged)


def test_nearly_all_that_does_not_decode_is_noticed_without_decoding() -> None:
    """Of every header byte changed: what the decoder refuses is refused here, too, but for a few scans that only decoding shows."""
    data = image("baseline")
    header = data.index(b"\xff\xda") + 12
    changed = [data[:i] + bytes([data[i] ^ bit]) + data[i + 1 :] for i in range(header) for bit in (1, 16, 128)]
    refused = [c for c in changed if not decodes(c)]
    missed = [c for c in refused if looks_whole(c)]
    assert len(refused) > 50
    assert len(missed) <= len(refused) // 50


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"<html>", b"\xff\xd8\xff\xe0\x00\x00"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="not a picture that decodes"):
        image_size(data)


def test_other_formats_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg())).save(buffer, "PNG")
    assert image_size(buffer.getvalue()) == (64, 48)
    with pytest.raises(ImageError):
        image_size(buffer.getvalue()[:-50])


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.exists(), reason="no real pictures beside the checkout")
def test_real_images_whole_and_cut_are_judged_as_the_decoder_judges_them() -> None:
    paths = sorted(p for p in REAL.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})[::25]
    assert len(paths) > 50
    for path in paths:
        data = path.read_bytes()
        assert image_size(data) == open_image(data).size, path
        assert not looks_whole(data[: len(data) * 2 // 3]), path


def told(pace: Pace, n: int, seconds: float = 0.05, every: int = 0) -> None:
    for i in range(n):
        pace.told(seconds, trouble=every > 0 and i % every == 0)


def test_the_pace_grows_to_its_limit_while_answers_come_well() -> None:
    pace = Pace(32)
    assert pace.width == FIRST
    told(pace, 8 + 16 + 32)
    assert pace.width == 32
    told(pace, 320)
    assert pace.width == 32


def test_the_pace_halves_when_many_fail_and_comes_back_one_by_one() -> None:
    pace = Pace(32)
    told(pace, 8 + 16)
    assert pace.width == 32
    told(pace, 32, every=2)
    assert pace.width == 16
    told(pace, 16)
    assert pace.width == 17
    told(pace, 17 + SHORTEST_ROUND * 20, every=1)
    assert pace.width == 1


def test_a_few_faults_and_slow_answers_do_not_halve_the_pace_but_slow_ones_stop_its_growth() -> None:
    pace = Pace(64)
    told(pace, 8)
    told(pace, 16, every=16)
    assert pace.width == 32
    told(pace, 32 * 5, seconds=0.5)
    assert pace.width == 32


def test_a_small_limit_is_kept() -> None:
    pace = Pace(3)
    told(pace, 100)
    assert pace.width == 3

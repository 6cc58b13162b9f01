"""EXIF orientation: what is shown as a box is the same part of the stored image, and the frame of boxes is worked out from the sides."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from animl_pipeline.core.box_type import Frame
from animl_pipeline.core.image_orientation import MISMATCH, SHOWN, STORED, find_frames, read_orientation, turn_to_stored
from tests.support.turned_images import disc_image

ORIENTATIONS = range(1, 9)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_orientation_is_read(kind: str, orientation: int) -> None:
    assert read_orientation(disc_image(orientation, kind=kind).data) == orientation


UNUSABLE = [b"", b"no image", disc_image(0).data, disc_image(77).data, disc_image(6).data[:40], disc_image(6, kind="TIFF").data]


@pytest.mark.parametrize("data", UNUSABLE)
def test_an_image_without_a_usable_orientation_is_upright(data: bytes) -> None:
    assert read_orientation(data) == 1


@given(st.sampled_from(ORIENTATIONS), st.integers(12, 52), st.integers(12, 36), st.integers(2, 10))
def test_a_box_around_a_disc_as_shown_is_around_it_as_stored(orientation: int, x: int, y: int, radius: int) -> None:
    image = disc_image(orientation, x=x, y=y, radius=radius, kind="PNG")
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(image.data))).convert("RGB"))
    rows, columns = np.nonzero((shown == (255, 0, 0)).all(axis=2))
    height, width = shown.shape[:2]
    box = np.array([[rows.min() / height, columns.min() / width, (rows.max() + 1) / height, (columns.max() + 1) / width]])
    np.testing.assert_allclose(turn_to_stored(box, np.array([orientation]))[0], image.box, atol=1e-9)


def frames(named: tuple[int, int], stored: tuple[int, int], orientation: int, frame: Frame = "auto", turned: bool = False) -> int:
    return int(find_frames([named], [stored], np.array([orientation]), frame, turned).code[0])


@pytest.mark.parametrize(
    ("named", "stored", "orientation", "expected"),
    [
        ((240, 320), (320, 240), 6, SHOWN),
        ((320, 240), (320, 240), 6, STORED),
        ((1500, 2001), (320, 240), 8, SHOWN),  # a smaller copy, rounded to whole pixels
        ((240, 320), (320, 240), 1, MISMATCH),
        ((240, 320), (320, 240), 3, MISMATCH),
        ((640, 360), (320, 240), 6, MISMATCH),
        ((640, 360), (0, 0), 1, STORED),
    ],
)
def test_the_sides_decide_where_they_can(named: tuple[int, int], stored: tuple[int, int], orientation: int, expected: int) -> None:
    for turned in (False, True):
        assert frames(named, stored, orientation, turned=turned) == expected


@pytest.mark.parametrize("named", [(0, 0), (1, 1), (200, 200)])
def test_where_the_sides_cannot_decide_the_plan_does_else_what_the_tool_is_known_to_do(named: tuple[int, int]) -> None:
    stored = (400, 400)
    assert [frames(named, stored, o) for o in ORIENTATIONS] == [STORED] * 8
    assert [o for o in ORIENTATIONS if frames(named, stored, o, turned=True) == SHOWN] == [3, 6, 8]
    assert [o for o in ORIENTATIONS if frames(named, stored, o, "shown") == SHOWN] == list(range(2, 9))
    assert [o for o in ORIENTATIONS if frames(named, stored, o, "stored", turned=True) == SHOWN] == []
    assert find_frames([named], [stored], np.array([6]), "auto", False).assumed.all()
    assert not find_frames([named], [stored], np.array([1]), "auto", True).assumed.any()
    assert not find_frames([named], [stored], np.array([6]), "shown", False).assumed.any()


def test_images_that_tell_decide_for_those_that_do_not_if_they_agree() -> None:
    stored, orientation = [(320, 240), (320, 240), (320, 240)], np.array([6, 3, 8])
    assert list(find_frames([(240, 320), (320, 240), (0, 0)], stored, orientation, "auto", False).code) == [SHOWN, SHOWN, SHOWN]
    assert list(find_frames([(320, 240), (320, 240), (0, 0)], stored, orientation, "auto", True).code) == [STORED, STORED, STORED]
    assert list(find_frames([(320, 240), (320, 240), (240, 320)], stored, orientation, "auto", False).code) == [STORED, STORED, SHOWN]

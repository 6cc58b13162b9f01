"""Repeat detections are found by location and overlap, and the search agrees with a comparison of all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from animl_pipeline.steps.detections.box_overlap import LocatedBox, find_repeat_detections, iou

boxes = st.tuples(st.sampled_from("PQ"), st.sampled_from("abcdef"), st.integers(0, 4), st.integers(0, 4), st.integers(5, 8), st.integers(5, 8))


def compare_all_pairs(located: list[LocatedBox], min_occasions: int, min_iou: float) -> set[int]:
    return {
        one.key
        for one in located
        if len({o.occasion for o in located if o.location == one.location and iou(one.box, o.box) >= min_iou}) >= min_occasions
    }


@given(st.lists(boxes, max_size=40), st.integers(2, 5))
@hypothesis_settings(deadline=None)
def test_repeat_detections_are_those_of_a_comparison_of_all_pairs(rows: list[Any], occasions: int) -> None:
    located = [LocatedBox(i, location, when, (y / 20, x / 20, (y + h) / 20, (x + w) / 20)) for i, (location, when, y, x, h, w) in enumerate(rows)]
    assert find_repeat_detections(located, occasions, 0.8 - 1e-12) == compare_all_pairs(located, occasions, 0.8 - 1e-12)


def test_a_stone_in_hundreds_of_images_is_found() -> None:
    rng = np.random.default_rng(0)
    rows = np.where(np.arange(900)[:, None] % 3, [0.3, 0.4, 0.5, 0.6], [0.1, 0.42, 0.3, 0.62]) + rng.normal(0, 0.003, (900, 4))
    located = [LocatedBox(i, "P", str(i // 9), (b[0], b[1], b[2], b[3])) for i, b in enumerate(rows.tolist())]
    for occasions in (30, 60, 95):
        expected = compare_all_pairs(located, occasions, 0.93)
        assert find_repeat_detections(located, occasions, 0.93) == expected
    assert 0 < len(expected) < len(located)

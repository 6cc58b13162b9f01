"""Repeated boxes where there are many: found by place and overlap, in a time that does not grow with the square of a place's boxes."""

from __future__ import annotations

import numpy as np

from animl_pipeline.steps.detections.iou import overlap
from animl_pipeline.steps.detections.repeat_detections import Spotted, repeated


def test_a_stone_in_thousands_of_images_is_found_like_one_in_a_few() -> None:
    chance = np.random.default_rng(0)
    locations = np.where(np.arange(900)[:, None] % 3, [0.3, 0.4, 0.5, 0.6], [0.1, 0.42, 0.3, 0.62]) + chance.normal(0, 0.003, (900, 4))
    spotted = [Spotted(i, "P", str(i // 9), (b[0], b[1], b[2], b[3])) for i, b in enumerate(locations.tolist())]
    for occasions in (30, 60, 95):
        plain = {one.key for one in spotted if len({o.occasion for o in spotted if overlap(one.box, o.box) >= 0.93}) >= occasions}
        assert repeated(spotted, occasions, 0.93) == plain
    assert 0 < len(plain) < len(spotted)

"""The memory for decoded pictures: never more held than there is, nobody left waiting, and what a picture is counted as."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.imaging import MAX_PIXELS, DecodeBudget, decoded_bytes, read_header

ALL = 1000


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 3 * ALL), min_size=1, max_size=60))
def test_never_more_is_held_than_there_is_and_everybody_gets_through(sizes: list[int]) -> None:
    memory, lock = DecodeBudget(ALL), threading.Lock()
    held: list[int] = []
    seen: list[list[int]] = []

    def hold(size: int) -> None:
        with memory.reserve(size):
            with lock:
                held.append(size)
                seen.append(list(held))
            with lock:
                held.remove(size)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, sizes, timeout=60))
    assert len(seen) == len(sizes)
    assert all(sum(together) <= ALL or not any(sum(together) - size for size in together) for together in seen), "who wants more than all is alone"


def test_images_that_fit_side_by_side_are_held_side_by_side() -> None:
    memory, together = DecodeBudget(ALL), threading.Barrier(4)

    def hold(_: int) -> None:
        with memory.reserve(ALL // 4):
            together.wait(60)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(4)))


def test_what_was_held_is_free_again_after_a_fault() -> None:
    memory = DecodeBudget(ALL)
    with pytest.raises(ImageError), memory.reserve_for(b"no picture"):
        raise AssertionError
    with pytest.raises(KeyError), memory.reserve(ALL):
        raise KeyError
    with memory.reserve(ALL):
        pass


def test_a_image_counts_with_its_largest_square_and_a_strip_without_a_square_that_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200)).save(buffer, "JPEG")
    header = read_header(buffer.getvalue())
    assert decoded_bytes(header) == 4 * 300 * 200
    assert decoded_bytes(header, 150) == 4 * (300 * 200 + 150 * 150)
    assert decoded_bytes(header, 10**6) == 4 * (300 * 200 + MAX_PIXELS)

"""Near-duplicates: copies of an image keep their locations in one split, and similar images do not."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from animl_pipeline.config import SplitsConfig
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.steps.crops.extract import compute_phash
from animl_pipeline.steps.splits.near_duplicates import near_duplicates
from animl_pipeline.storage.store import Store
from tests.support.crops_to_split import Row, island, split, split_of_locations
from tests.support.paths import DATA as REAL


def random_phash(seed: int) -> str:
    return np.random.default_rng(seed).bytes(16).hex()


def flip_bits(phash: str, bits: int) -> str:
    """A perceptual hash with its first bits flipped."""
    return f"{int(phash, 16) ^ ((1 << bits) - 1 << (128 - bits)):032x}"


def copies_at_two_locations(first: tuple[str, str], second: tuple[str, str]) -> list[Row]:
    """Twelve locations, and one image in two files: (time, hash) at p0 and at p1."""
    rows = [(*r, f"2024-03-{int(r[0].removeprefix('isle/p')) + 1:02}T00:{i % 12:02}:00", random_phash(i)) for i, r in enumerate(island(12))]
    return [*rows, ("isle/p0", "fox", "", "first", *first), ("isle/p1", "fox", "", "second", *second)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("other_time", ["2024-05-01T10:00:07", "2024-05-01T02:00:07.000-08:00", "2024-05-01T03:00:07", "2024:05:01 10:00:07"])
def test_copies_taken_at_the_same_second_in_any_time_zone_keep_their_locations_together(store: Store, seed: int, other_time: str) -> None:
    rows = copies_at_two_locations(("2024-05-01T10:00:07", random_phash(900)), (other_time, flip_bits(random_phash(900), 12)))
    t, counts = split(store, rows, SplitsConfig(seed=seed))
    assert split_of_locations(t)["isle/p0"] == split_of_locations(t)["isle/p1"]
    assert counts.notes["copies_kept_together"] == 2


@pytest.mark.parametrize(
    ("time", "bits"),
    [("2024-05-01T10:00:08", 4), ("2024-05-03T10:00:07", 4), ("", 4), ("2024-05-01T10:00:07", 13)],
    ids=["another second", "two days later", "no time", "too different"],
)
def test_images_that_only_look_alike_or_only_have_the_same_time_are_not_copies(store: Store, time: str, bits: int) -> None:
    _, counts = split(store, copies_at_two_locations(("2024-05-01T10:00:07", random_phash(900)), (time, flip_bits(random_phash(900), bits))))
    assert "copies_kept_together" not in counts.notes


@pytest.mark.parametrize("time", ["2024-05-01T10:07:07", "2024-05-02T13:00:07", "1970-01-01T00:00:00", ""])
def test_copies_with_a_wrong_time_or_none_keep_their_locations_together(store: Store, time: str) -> None:
    copies = copies_at_two_locations(("2024-05-01T10:00:07", random_phash(900)), (time, flip_bits(random_phash(900), 3)))
    t, counts = split(store, copies)
    assert split_of_locations(t)["isle/p0"] == split_of_locations(t)["isle/p1"]
    assert counts.notes["copies_kept_together"] == 2


def test_one_copy_among_many_similar_images_is_found(store: Store) -> None:
    """A location's images differ little among themselves at night."""
    rows = [("isle/p0", "fox", "", f"n{i}", f"2024-05-01T10:{i % 60:02}:{i // 60:02}", flip_bits(random_phash(900), i % 3)) for i in range(400)]
    t, _ = split(store, [*copies_at_two_locations(("", ""), ("", "")), *rows, ("isle/p1", "fox", "", "copy", "", flip_bits(random_phash(900), 3))])
    assert split_of_locations(t)["isle/p0"] == split_of_locations(t)["isle/p1"]


def test_images_that_look_alike_at_many_locations_do_not_link_them_but_are_in_one_split(store: Store) -> None:
    fog = [(f"isle/p{p}", "fox", "", f"fog{p}", "", flip_bits(random_phash(900), p % 3)) for p in range(6)]
    t, counts = split(store, [*copies_at_two_locations(("", ""), ("", "")), *fog], SplitsConfig(train_only=("isle/p0",), test_only=("isle/p1",)))
    assert t[t["image"].str.startswith("fog")]["split"].nunique() == 1
    assert set(counts.dropped) == {"likely_copy_of_a_held_out_image"}


def test_copies_are_not_looked_for_without_hashes_or_if_the_plan_says_so(store: Store) -> None:
    assert split(store, island(12))[1].notes["images_not_compared_for_copies"] == 12 * 12
    rows = copies_at_two_locations(("2024-05-01T10:00:07", random_phash(900)), ("2024-05-01T10:00:07", random_phash(900)))
    assert "copies_kept_together" not in split(store, rows, SplitsConfig(near_duplicate_bits=None))[1].notes


images_with_hashes = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 3), st.sampled_from([0, 1, 900, 3600, 93600, 94500])), max_size=16
)


@given(images_with_hashes)
def test_copies_are_exactly_those_that_comparing_all_pairs_finds(rows: list[tuple[int, int, int, int]]) -> None:
    made = [flip_bits(random_phash(n), bits) for n, bits, _, _ in rows]
    table = pd.DataFrame({"location": [p for *_, p, _ in rows], "phash": pd.Series(made, dtype=str), "seconds": [float(t) for *_, t in rows]})
    certain, _ = near_duplicates(table, 12)
    found = {frozenset(p) for p in zip(certain.one.tolist(), certain.other.tolist(), strict=True)}

    def differ(a: int, b: int) -> int:
        return (int(made[a], 16) ^ int(made[b], 16)).bit_count() if rows[a][2] != rows[b][2] else 128

    def is_copy(a: int, b: int) -> bool:
        apart = abs(rows[a][3] - rows[b][3])
        return differ(a, b) <= 12 and apart % 900 == 0 and apart <= 26 * 3600

    pairs = list(itertools.combinations(range(len(rows)), 2))
    alike = [p for p in pairs if differ(*p) <= 3]
    together = [{i} for i in range(len(rows))]
    for _ in rows:
        for a, b in alike:
            together[a] |= together[b]
            together[b] |= together[a]
    few = [p for p in alike if len({rows[i][2] for i in together[p[0]]}) <= 3]
    assert found == {frozenset(p) for p in pairs if is_copy(*p)} | {frozenset(p) for p in few}


def test_a_black_image_has_no_hash() -> None:
    assert compute_phash(Image.new("RGB", (640, 480))) == ""
    assert len(compute_phash(Image.radial_gradient("L").convert("RGB"))) == 32


def real_images(every: int) -> list[tuple[str, Image.Image]]:
    found = []
    for export in sorted(REAL.glob("*/cct.json")):
        for image in json.loads(export.read_text())["images"][::every]:
            location = image.get("location_group") or image.get("location")
            path = export.parent / image["file_name"]
            if location:
                found.append((f"{export.parent.name}/{location}", open_image(path.read_bytes())))
    return found


def encoded_again(img: Image.Image, scale: float, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    small = img.resize((max(32, int(img.width * scale)), max(32, int(img.height * scale))), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=quality)
    return open_image(buffer.getvalue())


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images beside the checkout")
@pytest.mark.parametrize(("scale", "quality"), [(1, 90), (1, 50), (0.5, 75), (1.5, 80)])
def test_real_images_are_recognised_when_resized_and_encoded_again_and_others_are_not(scale: float, quality: int) -> None:
    images = real_images(every=29)
    bits = [(location, int(compute_phash(p) or "0", 16), int(compute_phash(encoded_again(p, scale, quality)) or "0", 16)) for location, p in images]
    assert len(bits) > 60
    assert np.mean([(one ^ again).bit_count() <= 12 for _, one, again in bits]) >= 0.97
    assert min((a ^ b).bit_count() for (p, a, _), (q, b, _) in itertools.combinations(bits, 2) if p != q) > 12

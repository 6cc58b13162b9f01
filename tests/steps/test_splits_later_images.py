"""The test on known cameras: the last images of the training locations, never learnt from, and nothing that shows the same."""

from __future__ import annotations

import tempfile
from datetime import date
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from animl_pipeline.config import SplitsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.table_schemas import LATE_IMAGES_LEFT_OUT, SPLITS
from animl_pipeline.steps.splits import split_by_location
from animl_pipeline.storage.store import Store, open_store
from tests.support.crops_to_split import CLASSES, Row, crops_step, split

DAY = date(2026, 7, 1)
EXAMPLES = 5
CONFIG = SplitsConfig(test_after=DAY)
HASHES = [f"{(i + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}" for i in range(4000)]


def seasons(locations: int = 12, per_location: int = 12) -> list[Row]:
    """Crops at each location, an image on the first of each month of 2026, with hashes far from each other."""
    rows: list[Row] = []
    for p in range(locations):
        for i in range(per_location):
            name = f"{p}-{i}"
            rows.append((f"isle/p{p}", CLASSES[(p + i) % 3], f"s{name}", name, f"2026-{i + 1:02d}-01T12:{p:02d}:{i:02d}", HASHES[p * 12 + i]))
    return rows


def crop(location: str, image: str, taken: str, sequence: str = "", phash: str = HASHES[-1]) -> Row:
    return (location, "fox", sequence, image, taken, phash)


def split_of_image(t: pd.DataFrame) -> dict[str, str]:
    return dict(zip(t["image"], t["split"].fillna(""), strict=True))


def location_in(t: pd.DataFrame, name: str) -> str:
    return str(t.loc[t["split"] == name, "location"].iloc[0])


def test_later_images_of_train_and_val_are_tested_and_never_learnt_from(store: Store) -> None:
    t, counts = split(store, seasons(), CONFIG)
    late = t["taken"] >= str(DAY)
    tested = set(t.loc[t["split"] == "test", "location"])
    at_test = t["location"].isin(tested)
    assert set(t.loc[at_test, "split"]) == {"test"}
    assert set(t.loc[~at_test & late, "split"]) == {"test_later"}
    assert set(t.loc[~at_test & ~late, "split"]) == {"train", "val"}
    assert counts.notes["test_later"] == int((~at_test & late).sum()) > 0


def test_a_plan_without_the_day_has_no_later_test(store: Store) -> None:
    t, counts = split(store, seasons())
    assert set(t["split"]) == {"train", "val", "test"}
    assert "test_later" not in counts.notes


def copied(phash: str, bits: int) -> str:
    return f"{int(phash, 16) ^ ((1 << bits) - 1):032x}"


ALIKE = copied(HASHES[-1], 9)
"""A hash that only a copy of the same second has."""


@pytest.mark.parametrize("link", ["sequence", "seconds", "another time zone", "clock reset"])
def test_what_crosses_the_date_is_not_tested(store: Store, link: str) -> None:
    location = location_in(split(store, seasons(), CONFIG)[0], "train")
    early, late = {
        "sequence": (crop(location, "early", "2026-06-30T23:40:00", "night"), crop(location, "late", "2026-07-01T00:10:00", "night", HASHES[-2])),
        "seconds": (crop(location, "early", "2026-06-30T23:59:58"), crop(location, "late", "2026-07-01T00:00:01", "", HASHES[-2])),
        "another time zone": (
            crop(location, "early", "2026-06-30T20:00:00"),
            crop(location, "late", "2026-07-01T03:00:00", "", copied(HASHES[-1], 9)),
        ),
        "clock reset": (crop(location, "early", "2026-01-01T00:00:07"), crop(location, "late", "2026-09-01T10:00:00", "", copied(HASHES[-1], 2))),
    }[link]
    t, counts = split(store, [*seasons(), early, late], SplitsConfig(test_after=DAY, seed=0))
    added = t[t["location"].eq(location) & t["image"].isin({"early", "late"})]
    assert set(added["split"].dropna()) <= {"train", "val"}
    assert counts.dropped["later_image_linked_to_train_or_val"] == 1


@pytest.mark.parametrize("dates", [("2026-06-20T10:00:00", "2026-08-01T10:00:00"), ("2026-08-01T10:00:00", "2026-06-20T10:00:00")])
def test_one_image_with_two_dates_is_not_learnt_from_and_tested(store: Store, dates: tuple[str, str]) -> None:
    location = location_in(split(store, seasons(), CONFIG)[0], "train")
    t, _ = split(store, [*seasons(), *(crop(location, "both", taken) for taken in dates)], CONFIG)
    assert t.loc[t["image"] == "both", "split"].nunique() <= 1


def test_a_copy_of_a_later_image_at_another_training_location_is_not_tested(store: Store) -> None:
    t, _ = split(store, seasons(), CONFIG)
    one, other = sorted(set(t.loc[t["split"] == "train", "location"]))[:2]
    rows = [*seasons(), crop(one, "late", "2026-07-20T10:00:00"), crop(other, "early", "2026-02-01T10:00:00", "", copied(HASHES[-1], 1))]
    t, _ = split(store, rows, CONFIG)
    found = split_of_image(t)
    assert found["late"] == ""
    assert found["early"] in {"train", "val"}


def test_an_image_without_a_date_is_not_learnt_from_where_later_images_are_tested(store: Store) -> None:
    location = location_in(split(store, seasons(), CONFIG)[0], "train")
    undated_location = [(f"isle/u{p}", CLASSES[i % 3], "", f"u{p}-{i}") for p in range(3) for i in range(6)]
    t, counts = split(store, [*seasons(), crop(location, "undated", ""), *undated_location], CONFIG)
    assert split_of_image(t)["undated"] == ""
    assert counts.dropped["undated_where_later_images_are_tested"] == 1
    assert t.loc[t["location"].str.startswith("isle/u"), "split"].isin({"train", "val", "test"}).all()


def test_the_later_test_stays_frozen_when_the_day_moves_or_goes(store: Store) -> None:
    first = split_of_image(split(store, seasons(), CONFIG)[0])
    tested = {image for image, name in first.items() if name == "test_later"}
    for config in (SplitsConfig(test_after=date(2026, 11, 1)), SplitsConfig(seed=4)):
        grown = [*seasons(), *(("isle/p0", "fox", "", f"more{i}", "2026-10-05T10:00:00", HASHES[-5 - i]) for i in range(3))]
        again = split_of_image(split(store, grown, config)[0])
        assert {image for image, name in again.items() if name == "test_later"} >= tested


def test_images_that_an_earlier_run_learnt_from_are_never_tested(store: Store) -> None:
    before = split_of_image(split(store, seasons())[0])
    t, counts = split(store, seasons(), CONFIG)
    after = split_of_image(t)
    learnt = {image for image, name in before.items() if name in {"train", "val"}}
    assert {after[image] for image in learnt} <= {"train", "val"}
    assert counts.notes["late_crops_used_for_training_before"] > 0
    location = location_in(t, "train")
    new = crop(location, "new", "2026-12-20T10:00:00")
    assert split_of_image(split(store, [*seasons(), new], CONFIG)[0])["new"] == "test_later"


def test_an_early_image_of_a_tested_later_sequence_is_not_learnt_from(store: Store) -> None:
    location = location_in(split(store, seasons(), CONFIG)[0], "test_later")
    late = next(row for row in seasons() if row[0] == location and row[4] >= str(DAY))
    t, counts = split(store, [*seasons(), crop(location, "early", "2026-06-29T10:00:00", late[2])], CONFIG)
    found = split_of_image(t)
    assert (found["early"], found[late[3]]) == ("", "test_later")
    assert counts.dropped == {"linked_to_a_tested_later_image": 1}


def test_late_images_that_no_test_shows_are_listed_with_the_reason(store: Store) -> None:
    location = location_in(split(store, seasons(), CONFIG)[0], "train")
    rows = [*seasons(), crop(location, "early", "2026-06-30T23:59:58"), crop(location, "late", "2026-07-01T00:00:01", "", HASHES[-2])]
    made = split_by_location(crops_step(store, rows), CONFIG, CLASSES, store, "m")
    assert store.table(made, LATE_IMAGES_LEFT_OUT)["reason"].tolist() == ["later_image_linked_to_train_or_val"]
    assert "test_later" in set(store.table(made, SPLITS)["split"])


def test_a_day_before_the_first_that_may_be_tested_is_refused() -> None:
    with pytest.raises(ValueError, match="test_after"):
        SplitsConfig(train_only_before=date(2026, 8, 1), test_after=DAY)


CROPS = st.lists(
    st.tuples(
        st.integers(0, 3),  # location
        st.integers(0, 2),  # class
        st.integers(0, 25),  # sequence
        st.integers(0, 60),  # image
        st.sampled_from(["", "2026-06-30T23:59:58", "2026-06-30T23:59:59", "2026-07-01T00:00:01", "2026-05-01T10:00:00", "2026-09-01T10:00:00"]),
        st.integers(0, 15),  # hash
        st.integers(0, 3),  # bits that differ from it
    ),
    max_size=40,
)


@hypothesis_settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(CROPS, CROPS, st.sampled_from([DAY, date(2026, 5, 2), date(2026, 8, 1), None]))
def test_nothing_is_learnt_from_and_tested_whatever_links_images(first: list[Any], more: list[Any], moved: date | None) -> None:
    """Two runs, the second with more crops and another day. The step itself counts leaks, and ``split`` expects none."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Settings(store=folder))
        rows = [*seasons(8, 12), *map(row_of, first)]
        before = split_of_image(split(store, rows, SplitsConfig(test_after=DAY, max_rounds=1))[0])
        after = split(store, [*rows, *map(row_of, more)], SplitsConfig(test_after=moved, max_rounds=1))[0]
    learnt = set(after.loc[after["split"].isin({"train", "val"}), "image"])
    assert not learnt & {image for image, name in before.items() if name in {"test", "test_later"}}
    tested = after[after["split"].isin({"test", "test_later"})]
    assert not set(tested["image"]) & {image for image, name in before.items() if name in {"train", "val"}}
    in_train = after[after["split"].isin({"train", "val"})]
    later = after[after["split"] == "test_later"]
    for link in ("image", "sequence"):
        assert not (set(in_train[link]) & set(later[link])) - {""}


def row_of(drawn: tuple[int, int, int, int, str, int, int]) -> Row:
    """A crop at one of the locations of ``seasons``, or with an unknown location."""
    location, number, sequence, image, taken, phash, bits = drawn
    name = f"isle/p{location}" if location else "isle/new"
    return (name, CLASSES[number], f"x{sequence}" if sequence < 20 else "", f"{image // 12}-{image % 12}" if image < 20 else f"new{image}", taken,
            copied(HASHES[phash * 2], bits))  # fmt: skip

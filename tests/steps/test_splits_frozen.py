"""The frozen test set: what was tested once is never trained on, and what was trained on once is never tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from animl_pipeline.config import SplitsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import SplitsError, StoreError
from animl_pipeline.steps.splits import split_by_location
from animl_pipeline.storage.store import Store, open_store
from tests.support.crops_to_split import CLASSES, Row, crops_step, island, split, split_of_locations


def test_a_second_call_with_the_same_crops_is_cached_though_the_registry_has_grown(store: Store) -> None:
    crops = crops_step(store, island(12))
    first = split_by_location(crops, SplitsConfig(), CLASSES, store, "m")
    assert split_by_location(crops, SplitsConfig(), CLASSES, store, "m").cached
    split_by_location(crops_step(store, [*island(12), *island(20)[200:]]), SplitsConfig(), CLASSES, store, "m")
    again = split_by_location(crops, SplitsConfig(), CLASSES, store, "m")
    assert again.digest == first.digest


def test_a_renamed_test_location_is_recognised_by_its_images(store: Store) -> None:
    rows = island(12)
    location = next(p for p, s in split_of_locations(split(store, rows)[0]).items() if s == "test")
    renamed = [("isle/new name" if r[0] == location else r[0], *r[1:]) for r in rows]
    assert split_of_locations(split(store, [*renamed, ("isle/new name", "fox", "", "new")], SplitsConfig(seed=3))[0])["isle/new name"] == "test"
    later = [("isle/newer name", "fox", "", "new"), *rows[:0], *(r for r in renamed if r[0] != "isle/new name")]  # only the newest image is left
    assert split_of_locations(split(store, later, SplitsConfig(seed=3))[0])["isle/newer name"] == "test"


@pytest.fixture
def split_once(store: Store) -> tuple[list[Row], str, str]:
    """Crops that were split once, a location of the test set, and a location that was trained on."""
    rows = island(12)
    side = split_of_locations(split(store, rows)[0])
    return rows, next(p for p, s in side.items() if s == "test"), next(p for p, s in side.items() if s == "train")


@pytest.mark.parametrize("under", ["tested", "trained", "new"])
def test_a_tested_and_a_trained_location_that_became_one_are_left_out(store: Store, split_once: tuple[list[Row], str, str], under: str) -> None:
    rows, tested, trained = split_once
    name = {"tested": tested, "trained": trained, "new": "isle/merged"}[under]
    merged = [(name if r[0] in {tested, trained} else r[0], *r[1:]) for r in rows]
    t, counts = split(store, merged)
    assert name not in split_of_locations(t)
    assert counts.dropped == {"used_for_training_and_testing": 24}


def test_a_new_location_that_is_linked_to_a_tested_one_is_in_test(store: Store, split_once: tuple[list[Row], str, str]) -> None:
    rows, tested, _ = split_once
    new = [("isle/new", "fox", "", f"n{i}") for i in range(5)]
    assert (
        split_of_locations(split(store, [*rows, *new, ("isle/new", "fox", "isle/both", "b1"), (tested, "fox", "isle/both", "b2")])[0])["isle/new"]
        == "test"
    )


def test_a_link_between_a_tested_and_a_trained_location_is_cut_so_that_both_stay(store: Store, split_once: tuple[list[Row], str, str]) -> None:
    rows, tested, trained = split_once
    old = next(r[3] for r in rows if r[0] == tested)
    more: list[Row] = [(trained, "fox", "", old), (tested, "fox", "", "new"), (trained, "fox", "", "new")]
    t, counts = split(store, [*rows, *more])
    assert counts.dropped == {"image_was_tested": 1, "linked_to_a_test_location": 1, "linked_to_a_training_location": 1}
    assert (split_of_locations(t)[tested], split_of_locations(t)[trained] != "test") == ("test", True)
    assert t[t["location"] == tested]["split"].notna().sum() == 12


def test_a_new_location_linked_to_a_tested_and_to_a_trained_one_is_left_out(store: Store, split_once: tuple[list[Row], str, str]) -> None:
    rows, tested, trained = split_once
    links: list[Row] = [("isle/new", "fox", "isle/a", "n1"), (tested, "fox", "isle/a", "n2"), ("isle/new", "fox", "isle/b", "n3")]
    t, counts = split(store, [*rows, *links, (trained, "fox", "isle/b", "n4")])
    assert counts.dropped == {"linked_to_test_and_training_locations": 2}
    assert "isle/new" not in split_of_locations(t)


def test_a_higher_test_set_number_starts_a_new_test_set_and_the_old_number_brings_the_old_one_back(
    store: Store, split_once: tuple[list[Row], str, str]
) -> None:
    rows, tested, trained = split_once
    swapped = SplitsConfig(test_set=2, train_only=(tested,), test_only=(trained,))
    side = split_of_locations(split(store, rows, swapped)[0])
    assert (side[tested], side[trained]) == ("train", "test")
    side = split_of_locations(split(store, rows, SplitsConfig(seed=5))[0])
    assert (side[tested], side[trained] != "test") == ("test", True)


@pytest.mark.parametrize("shard", [b'["isle/p1",{"side":"test"}]\n', b"torn ["], ids=["another shape", "torn"])
def test_a_registry_that_cannot_be_read_ends_the_run(store: Store, shard: bytes) -> None:
    crops = crops_step(store, island(12))
    store.object_store.put("index/splits/m/1.jsonl", shard)
    with pytest.raises(StoreError):
        split_by_location(crops, SplitsConfig(), CLASSES, store, "m")
    assert store.object_store.read("index/splits/m/1.jsonl") == shard


def test_a_registry_of_the_first_version_keeps_the_test_set_frozen(store: Store) -> None:
    names = {"isle/p1": "tested", "isle/gone": "tested", "isle/p2": "learnt"} | {f"1-{i}": "tested" for i in range(12)} | {"9-0": "tested"}
    store.add_to_index("splits/m", {name: {"as": use, "run": "earlier"} for name, use in names.items()})
    side = split_of_locations(split(store, island(12))[0])
    assert (side["isle/p1"], side["isle/p9"], side["isle/p2"] != "test") == ("test", "test", True)


class World:
    """Cameras, and what the export calls their locations, over years. Only this class knows which camera took an image."""

    def __init__(self) -> None:
        self.name = {camera: f"isle/{camera}" for camera in range(6)}
        self.images = [(camera, f"{camera}-{i}") for camera in self.name for i in range(6)]

    def rows(self) -> list[Row]:
        return [(self.name[camera], CLASSES[i % 3], "", img) for i, (camera, img) in enumerate(self.images)]

    def grow(self, data: st.DataObject, year: int) -> None:
        for new in range(data.draw(st.integers(0, 3), label="new cameras")):
            camera = 100 * (year + 1) + new
            self.name[camera] = f"isle/{camera}"
            self.images += [(camera, f"{camera}-{i}") for i in range(5)]
        cameras = st.sampled_from(sorted(self.name))
        for n, camera in enumerate(data.draw(st.lists(cameras, max_size=3), label="new images of old cameras")):
            self.images += [(camera, f"more-{year}-{n}")]
        for n, camera in enumerate(data.draw(st.lists(cameras, max_size=2), label="renamed")):
            old = self.name[camera]
            self.name |= {c: f"isle/renamed-{year}-{n}" for c, name in self.name.items() if name == old}
        for one, other in data.draw(st.lists(st.tuples(cameras, cameras), max_size=2), label="merged"):
            old, new = self.name[one], self.name[other]
            self.name |= {c: new for c, name in self.name.items() if name == old}


def five_retrainings(folder: Path, data: st.DataObject) -> None:
    """Cameras are added, take more images, are renamed and merged: no camera is ever used for both training and testing."""
    store = open_store(Settings(store=str(folder)))
    world = World()
    tested: set[Any] = set()
    trained: set[Any] = set()
    for year in range(5):
        try:
            t, counts = split(store, world.rows(), SplitsConfig(max_rounds=2, seed=year))
        except SplitsError as e:
            if year == 0 or e.code not in {"too_few_locations", "empty_split"}:
                raise
            return  # too many locations were merged to go on
        camera_of = {img: camera for camera, img in world.images}
        used = t.dropna(subset="split")
        assert used.groupby("location")["split"].nunique().max() == 1
        test, rest = used[used["split"] == "test"], used[used["split"] != "test"]
        tested |= set(test["image"]) | set(test["image"].map(camera_of))
        trained |= set(rest["image"]) | set(rest["image"].map(camera_of))
        assert tested & trained == set()
        assert set(counts.dropped) <= {"used_for_training_and_testing"}
        if data.draw(st.booleans(), label="run again"):
            again, _ = split(store, world.rows(), SplitsConfig(max_rounds=2, seed=year))
            pd.testing.assert_frame_equal(again, t)
        world.grow(data, year)


@hypothesis_settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_over_five_retrainings_no_camera_is_used_for_both_training_and_testing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    five_retrainings(tmp_path_factory.mktemp("grow"), data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_over_five_retrainings_of_hundreds_of_islands(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    five_retrainings(tmp_path_factory.mktemp("grow"), data)

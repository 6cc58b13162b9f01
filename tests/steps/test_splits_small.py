"""Splits of small sets: what val and test ask for leaves enough of every class to learn from, and what is lacking is said."""

from __future__ import annotations

import logging

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from animl_pipeline.config import SplitsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.storage.step_cache import Store, open_store
from tests.steps.test_splits import Row, split


def few(**locations: list[int]) -> list[Row]:
    """So many crops of each class at places of its own."""
    return [(f"isle/{c}{p}", c, "", f"{c}{p}-{i}") for c, counts in locations.items() for p, n in enumerate(counts) for i in range(n)]


def test_most_of_a_class_that_lives_at_one_big_location_is_learnt_from_and_not_spent_on_measuring(store: Store) -> None:
    rows = few(bird=[20, 18, 9, 8, 6, 5, 4], fox=[17, 1, 1, 1], pig=[25, 8, 5])
    t, counts = split(store, rows, SplitsConfig(val=0.15, test=0.25), classes=("bird", "fox", "pig"))
    held = t.groupby(["class_id", "split"]).size()
    assert held["fox", "train"] >= 17
    assert held["pig", "train"] >= 25
    assert (counts.noted["few_fox_in_val"], counts.noted["few_fox_in_test"]) <= (2, 2)


@hypothesis_settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(st.integers(1, 12), min_size=4, max_size=7), min_size=3, max_size=3), st.integers(0, 3))
def test_train_keeps_near_its_share_however_small_the_set_is(tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], seed: int) -> None:
    store = open_store(Settings(store=str(tmp_path_factory.mktemp("store"))))
    rows = few(**dict(zip(("bird", "fox", "pig"), sizes, strict=True)))
    t, _ = split(store, rows, SplitsConfig(val=0.15, test=0.25, seed=seed), classes=("bird", "fox", "pig"))
    learnt = t[t["split"] == "train"].groupby("class_id").size()
    assert (learnt >= 0.3 * t.groupby("class_id").size()).all()
    assert set(t["split"]) == {"train", "val", "test"}


def test_what_is_lacking_is_said_in_plain_numbers(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    split(store, few(bird=[9, 8, 7, 6, 5, 5], fox=[17, 1, 1, 1]), classes=("bird", "fox"))
    assert "fox at 1 place, asked for are 10 crops at 1 place: it has 20 crops at 4 places; more would starve the other sides" in caplog.text
    assert "1 places" not in caplog.text

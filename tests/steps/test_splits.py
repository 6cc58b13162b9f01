"""Splits: no location or sequence in two splits, shares near the wanted ones, and reasons where a class has too few crops."""

from __future__ import annotations

import dataclasses
import logging
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from animl_pipeline.config import SplitsConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core import progress
from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.errors import PlanError, SplitsError
from animl_pipeline.core.table_schemas import CROPS
from animl_pipeline.steps.splits import read_split_table, split_by_location
from animl_pipeline.steps.splits.grouping import group_crops, has_several, number_texts
from animl_pipeline.steps.splits.optimise import SplitProblem, SwapEstimates, score, search
from animl_pipeline.storage.store import Store, open_store
from tests.config.test_plan import plan_data
from tests.support.crops_to_split import CLASSES, Row, crops_step, crops_step_of, island, split, split_of_locations
from tests.support.table_rows import fill_rows


def problem_of(counts: np.ndarray[Any, Any], shares: tuple[float, float, float]) -> SplitProblem:
    """Groups that may be in any split. A class in three groups is wanted in every split."""
    held = (counts > 0).sum(0)
    minimums = np.stack([held >= 1, held >= 3, held >= 2]).astype(float)
    everywhere = np.ones((len(counts), 3), bool)
    return SplitProblem(np.stack([counts] * 3), np.stack([(counts > 0).astype(float)] * 3), np.array(shares), minimums, minimums, everywhere)


# -- shares


def test_each_location_is_in_one_split_and_shares_are_near_the_wanted_ones(store: Store) -> None:
    t, counts = split(store, island(40), SplitsConfig(val=0.2, test=0.2))
    assert t.groupby("location")["split"].nunique().max() == 1
    share = t["split"].value_counts(normalize=True)
    assert share["val"] == pytest.approx(0.2, abs=0.03)
    assert share["test"] == pytest.approx(0.2, abs=0.03)
    assert counts.notes["leaks_found"] == 0


def test_the_same_seed_gives_the_same_split(store: Store) -> None:
    crops = crops_step(store, island(25))
    one = split_by_location(crops, SplitsConfig(seed=1), CLASSES, store, "m")
    store.object_store.delete(f"steps/splits/{one.key}/manifest.json")
    again = split_by_location(crops, SplitsConfig(seed=1), CLASSES, store, "m")
    assert (again.cached, again.digest) == (False, one.digest)


def test_the_order_of_the_crops_does_not_change_the_split(store: Store, tmp_path: Path) -> None:
    rows = island(25)
    one, _ = split(store, rows)
    other, _ = split(open_store(Settings(store=str(tmp_path / "other"))), rows[::-1])
    assert split_of_locations(one) == split_of_locations(other)


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.integers(4, 14), st.integers(0, 5), st.data())
def test_every_class_with_enough_locations_is_in_every_split(groups: int, seed: int, data: st.DataObject) -> None:
    rows = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=groups, max_size=groups)
    counts = np.array(data.draw(rows), float)
    counts[:3] += 1  # every class has three locations
    splits = search(problem_of(counts, (0.6, 0.2, 0.2)), 10, np.random.default_rng(seed))
    assert all((counts[splits == s].sum(0) > 0).all() for s in range(3))


def test_the_search_is_far_better_than_the_best_of_many_random_splits() -> None:
    rng = np.random.default_rng(3)
    counts = rng.poisson(rng.lognormal(1, 1, (75, 1)) * rng.gamma(0.7, 1, (75, 8))).astype(float)
    problem = problem_of(counts, (0.7, 0.2, 0.1))
    random = min(score(rng.choice(3, 75, p=problem.shares), problem) for _ in range(2000))
    assert score(search(problem, 5, np.random.default_rng(0)), problem) < 0.7 * random


def test_the_search_keeps_groups_in_the_splits_that_are_allowed() -> None:
    rng = np.random.default_rng(4)
    problem = problem_of(rng.poisson(4, (40, 4)).astype(float), (0.7, 0.15, 0.15))
    allowed = rng.random((40, 3)) < 0.6
    allowed[~allowed.any(1), 0] = True
    problem = dataclasses.replace(problem, allowed=allowed)
    assert allowed[np.arange(40), search(problem, 10, rng)].all()


def test_a_search_with_many_classes_is_repeatable_and_good_and_reports_its_progress() -> None:
    """With so many classes, swaps are estimated before they are scored."""
    rng = np.random.default_rng(5)
    counts = rng.poisson(rng.lognormal(0, 1, (80, 1)) * rng.gamma(0.5, 1, (80, 150))).astype(float)
    problem = problem_of(counts, (0.7, 0.15, 0.15))
    calls: list[tuple[str, int, int]] = []
    progress.set_listener(lambda what, done, total: calls.append((what, done, total)))
    one = search(problem, 2, np.random.default_rng(0))
    progress.set_listener(None)
    assert [done for _, done, _ in calls] == [0, 1, 2]
    assert one.tolist() == search(problem, 2, np.random.default_rng(0)).tolist()
    assert score(one, problem) < 0.7 * min(score(rng.choice(3, 80, p=problem.shares), problem) for _ in range(200))


@given(st.integers(0, 1000))
@hypothesis_settings(max_examples=20, deadline=None)
def test_estimates_of_swaps_put_the_swaps_in_the_order_of_their_squared_differences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(2, (3, 12, 5)).astype(float)
    counts[1:] = counts[:1] if seed % 2 else counts[1:]
    weights, targets = rng.random((3, 5)) / 100, rng.random((3, 5)) * 20
    weights[1:] = weights[:1] if seed % 3 else weights[1:]
    splits = rng.permutation(np.arange(12) % 3)
    estimates = SwapEstimates(counts, weights, targets)
    estimates.start(np.roll(splits, 1))
    for g, (now, to) in enumerate(zip(np.roll(splits, 1), splits, strict=True)):
        estimates.move(g, int(now), int(to))
    group, partners = int(np.flatnonzero(splits == 0)[0]), np.flatnonzero(splits == 2)

    def cost(partner: int) -> float:
        after = splits.copy()
        after[[group, partner]] = 2, 0
        return float(sum(weights[s] @ np.square(counts[s][after == s].sum(0) - targets[s]) for s in range(3)))

    best = [estimates.best_partners(group, 0, 2, partners, n).tolist() for n in range(1, 5)]
    assert best == [sorted(sorted(partners.tolist(), key=lambda p: round(cost(p), 4))[:n]) for n in range(1, 5)]


# -- locations that belong together


def test_locations_that_share_a_sequence_or_an_image_stay_together(store: Store) -> None:
    rows = [*island(12), ("isle/p0", "fox", "isle/shared", "x"), ("isle/p1", "fox", "isle/shared", "y")]
    rows += [("isle/p2", "fox", "", "same"), ("isle/p3", "fox", "", "same")]
    side = split_of_locations(split(store, rows)[0])
    assert side["isle/p0"] == side["isle/p1"]
    assert side["isle/p2"] == side["isle/p3"]


linked_crops = st.lists(st.tuples(st.integers(0, 8), st.integers(-1, 12), st.integers(-1, 12)), min_size=1, max_size=60)


@given(linked_crops)
def test_grouping_joins_exactly_the_locations_that_are_linked(rows: list[tuple[int, int, int]]) -> None:
    location, one, other = np.array(rows).T
    group = group_crops(location, [one, other])
    assert not any(has_several(link, group).any() for link in (location, one, other))
    together = {frozenset({p}) for p in set(location.tolist())}  # the simple way: merge what shares a value until nothing does
    for link in (one, other):
        for value in set(link.tolist()) - {-1}:
            touched = [part for part in together if part & set(location[link == value].tolist())]
            together = (together - set(touched)) | {frozenset().union(*touched)}
    assert len(together) == len(set(group.tolist()))


def test_empty_text_has_no_number() -> None:
    assert number_texts(pd.Series(["", "a", "", "b", "a"])).tolist() == [-1, 1, -1, 2, 1]


# -- classes with too few crops


def test_a_class_at_one_location_is_in_train_and_the_log_says_why_it_is_nowhere_else(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    rows = [*island(10), *(("isle/lonely", "owl", f"isle/o{i}", f"o{i}") for i in range(9))]
    _, counts = split(store, rows, classes=(*CLASSES, "owl"))
    assert (counts.notes["no_owl_in_test"], counts.notes["no_owl_in_val"]) == (1, 1)
    assert "no_owl_in_train" not in counts.notes
    assert "owl: wanted 10 crops at 1 location in test, got 0 crops at 0 locations. It has 9 crops at 1 location. Train comes first" in caplog.text


def test_val_and_test_get_the_wanted_minimum_where_there_is_enough(store: Store) -> None:
    rows = [*island(30), *((f"isle/p{p}", "owl", "", f"o{p}-{i}") for p in range(8) for i in range(6))]
    t, counts = split(store, rows, SplitsConfig(val=0.1, test=0.1, min_per_class=12, min_locations_per_class=2), classes=(*CLASSES, "owl"))
    owls = t[t["class_id"] == "owl"]
    assert owls["split"].value_counts()[["val", "test"]].min() >= 12
    assert owls.groupby("split")["location"].nunique()[["val", "test"]].min() >= 2
    assert not any("owl" in note for note in counts.notes)


def test_the_log_says_that_all_locations_of_a_class_were_used_for_training(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    side = split_of_locations(split(store, island(12))[0])
    trained = sorted(p for p, s in side.items() if s == "train")[:4]
    caplog.set_level(logging.WARNING)
    rows = [*island(12), *((p, "owl", "", f"{p}-{i}") for p in trained for i in range(9))]
    split(store, rows, classes=(*CLASSES, "owl"))
    assert "but only 0 may be in test: 4 used for training before" in caplog.text


def test_two_locations_are_too_few(store: Store) -> None:
    with pytest.raises(SplitsError) as caught:
        split(store, island(2))
    assert caught.value.code == "too_few_locations"


def test_crops_of_an_unknown_class_are_refused(store: Store) -> None:
    with pytest.raises(SplitsError) as caught:
        split(store, island(5), classes=("fox", "bird"))
    assert caught.value.code == "unknown_class"


# -- unknown locations


def test_crops_of_unknown_location_are_dropped_or_trained_on_as_the_plan_says(store: Store) -> None:
    rows = [*island(9), ("", "fox", "", "u1"), ("", "fox", "", "0-0")]
    assert split(store, rows)[1].dropped == {"unknown_location": 2}
    t, counts = split(store, rows, SplitsConfig(unknown_location="train"))
    assert counts.dropped == {"unknown_location_linked_to_a_known_one": 1}  # this image has a known location as well
    assert (counts.notes["leaks_found"], counts.notes["leaks_not_checked"]) == (0, 1)
    assert t.set_index("image")["split"].to_dict()["u1"] == "train"


def test_an_image_of_unknown_location_that_may_be_of_a_held_out_sequence_is_not_trained_on(store: Store) -> None:
    rows: list[Row] = [(*r, f"2024-01-{1 + i // 12:02}T10:00:{i % 12:02}") for i, r in enumerate(island(9))]
    spec = SplitsConfig(unknown_location="train", test_only=("isle/p4",), train_only=("isle/p0",))
    unknown = [("", "fox", "isle/s4-0", "u1"), ("", "fox", "isle/s0-0", "u2"), ("", "fox", "", "u3", "2024-01-05T10:00:15")]
    t, counts = split(store, [*rows, *unknown, ("", "fox", "", "u4", "2024-01-05T10:00:30")], spec)
    assert counts.dropped == {"unknown_location_linked_to_a_known_one": 2}
    assert set(t.loc[t["split"].isna(), "image"]) == {"u1", "u3"}


# -- locations and days that the plan puts in one split


def test_locations_are_in_the_split_that_the_plan_wants_unless_the_history_forbids_it(store: Store) -> None:
    spec = SplitsConfig(train_only=("isle/p3",), test_only=("isle/p5",))
    side = split_of_locations(split(store, island(12), spec)[0])
    assert (side["isle/p3"], side["isle/p5"]) == ("train", "test")
    for config, code in (
        (SplitsConfig(train_only=("isle/p5",)), "train_only_conflict"),
        (SplitsConfig(test_only=("isle/p3",)), "test_only_conflict"),
    ):
        with pytest.raises(SplitsError) as caught:
            split(store, island(12), config)
        assert caught.value.code == code


def test_a_table_gives_the_splits_exactly_within_the_history(store: Store, settings: Settings, tmp_path: Path) -> None:
    wanted = {f"isle/p{i}": ("train", "val", "test")[i % 3] for i in range(9)}
    crops = crops_step(store, island(10))

    def divide(table: dict[str, str], test_set: int = 1) -> tuple[dict[str, str], Counts]:
        (tmp_path / "splits.csv").write_text("location,split\n" + "".join(f"{name},{s}\n" for name, s in table.items()))
        config = SplitsConfig(table=str(tmp_path / "splits.csv"), test_set=test_set)
        made = split_by_location(crops, config, CLASSES, store, "m", read_split_table(config, settings))
        found = store.table(crops, "crops.parquet").merge(store.table(made, "splits.parquet"), on="crop_id")
        return split_of_locations(found), made.counts

    found, counts = divide(wanted)
    assert found == wanted
    assert counts.dropped == {"location_not_in_split_table": 12}
    for changed, code in (
        ({"isle/p2": "train"}, "table_conflict"),
        ({"isle/p0": "test"}, "table_conflict"),
        ({"isle/p0": "later"}, "wrong_split_table"),
    ):
        with pytest.raises(SplitsError) as caught:
            divide(wanted | changed)
        assert caught.value.code == code
    assert divide(wanted | {"isle/p2": "train", "isle/p0": "test"}, test_set=2)[0]["isle/p2"] == "train"
    with pytest.raises(SplitsError) as caught:
        read_split_table(SplitsConfig(table=str(tmp_path / "absent.csv")), settings)
    assert caught.value.code == "no_split_table"
    linked = [*island(9), ("isle/p0", "fox", "", "same"), ("isle/p1", "fox", "", "same")]
    with pytest.raises(SplitsError) as caught:
        split_by_location(crops_step(store, linked), SplitsConfig(), CLASSES, store, "linked", wanted)
    assert caught.value.code == "table_conflict"


def test_a_split_table_with_semicolons_is_refused_in_one_line(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("location;split\nisle/Cove, north;test\n")
    with pytest.raises(SplitsError) as caught:
        read_split_table(SplitsConfig(table=str(tmp_path / "s.csv")), settings)
    assert caught.value.code == "wrong_split_table"
    assert "found location;split" in str(caught.value)


def test_linked_locations_cannot_be_put_in_different_splits(store: Store) -> None:
    rows = [*island(12), ("isle/p3", "fox", "", "same"), ("isle/p5", "fox", "", "same")]
    with pytest.raises(SplitsError) as caught:
        split(store, rows, SplitsConfig(train_only=("isle/p3",), test_only=("isle/p5",)))
    assert (caught.value.code, caught.value.details) == ("train_only_conflict", {"location": "isle/p3"})


def test_a_plan_that_wants_all_locations_in_test_is_refused(store: Store) -> None:
    with pytest.raises(SplitsError) as caught:
        split(store, island(4), SplitsConfig(test_only=tuple(f"isle/p{i}" for i in range(4))))
    assert caught.value.code == "empty_split"


def test_the_log_names_a_location_of_the_plan_that_has_no_crop(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    _, counts = split(store, island(12), SplitsConfig(train_only=("isle/p0",), test_only=("isle/p99",)))
    assert counts.notes["named_locations_without_crops"] == 1
    assert "'isle/p99'" in caplog.text


def test_days_keep_images_out_of_splits_and_a_location_still_stays_whole(store: Store) -> None:
    def year(location: int, i: int) -> int:
        return 2018 if location < 6 else 2025 if location > 23 else 2018 + i % 8  # early locations, late ones, and those with all years

    rows: list[Row] = [(*r, f"{year(n // 12, n % 12)}-06-01T00:00:{n % 12:02}") for n, r in enumerate(island(30))]
    spec = SplitsConfig(train_only_before=date(2020, 1, 1), test_only_after=date(2024, 1, 1))
    t, counts = split(store, [*rows, ("isle/p8", "fox", "", "undated")], spec)
    side = split_of_locations(t)
    assert {side[f"isle/p{p}"] for p in range(6)} == {"train"}
    assert {side[f"isle/p{p}"] for p in range(24, 30)} == {"test"}
    assert t.groupby("location")["split"].nunique().max() == 1
    assert t.loc[t["split"].isin(["train", "val"]), "taken"].max() < "2024"
    assert t.loc[t["split"].isin(["val", "test"]) & (t["taken"] != ""), "taken"].min() > "2020"
    assert set(counts.dropped) == {"too_old_for_testing", "too_new_for_training"}
    assert counts.notes["crops_without_a_date"] == 1


def test_a_plan_whose_days_leave_a_gap_is_refused() -> None:
    with pytest.raises(PlanError, match="test_only_after"):
        check_plan(plan_data(splits={"train_only_before": "2020-01-01", "test_only_after": "2019-01-01"}))


# -- small data sets


def few_crops(**locations: list[int]) -> list[Row]:
    """Crops of each class at locations of its own: the number at each location."""
    return [(f"isle/{c}{p}", c, "", f"{c}{p}-{i}") for c, counts in locations.items() for p, n in enumerate(counts) for i in range(n)]


def test_most_of_a_class_at_one_large_location_is_in_train(store: Store) -> None:
    rows = few_crops(bird=[20, 18, 9, 8, 6, 5, 4], fox=[17, 1, 1, 1], pig=[25, 8, 5])
    t, counts = split(store, rows, SplitsConfig(val=0.15, test=0.25), classes=("bird", "fox", "pig"))
    held = t.groupby(["class_id", "split"]).size()
    assert held["fox", "train"] >= 17
    assert held["pig", "train"] >= 25
    assert (counts.notes["few_fox_in_val"], counts.notes["few_fox_in_test"]) <= (2, 2)


@hypothesis_settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(st.integers(1, 12), min_size=4, max_size=7), min_size=3, max_size=3), st.integers(0, 3))
def test_train_has_nearly_its_share_in_small_data_sets(tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], seed: int) -> None:
    store = open_store(Settings(store=str(tmp_path_factory.mktemp("store"))))
    rows = few_crops(**dict(zip(("bird", "fox", "pig"), sizes, strict=True)))
    t, _ = split(store, rows, SplitsConfig(val=0.15, test=0.25, seed=seed), classes=("bird", "fox", "pig"))
    in_train = t[t["split"] == "train"].groupby("class_id").size()
    assert (in_train >= 0.3 * t.groupby("class_id").size()).all()
    assert set(t["split"]) == {"train", "val", "test"}


def test_the_log_says_what_a_class_lacks(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    split(store, few_crops(bird=[9, 8, 7, 6, 5, 5], fox=[17, 1, 1, 1]), classes=("bird", "fox"))
    assert "It has 20 crops at 4 locations. More would leave too little for the other splits." in caplog.text
    assert "1 locations" not in caplog.text


# -- scale


def test_tens_of_thousands_of_crops_are_split_in_seconds(store: Store) -> None:
    """No part of the step loops over rows in Python: that would take minutes with a million crops."""
    rng = np.random.default_rng(0)
    n = 30_000
    location = rng.zipf(1.3, n) % 300
    t = pd.DataFrame({"location": [f"isle/p{p}" for p in location], "class_id": np.array(CLASSES)[rng.choice(3, n, p=[0.8, 0.15, 0.05])]})
    t.insert(0, "crop_id", [f"{i:032x}" for i in range(n)])
    t["sequence"] = [f"isle/{i // 3}-{p}" for i, p in enumerate(location)]
    t["image"] = [rng.bytes(32).hex() for _ in range(n)]
    t["taken"] = (pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 10**8, n), unit="s")).strftime("%Y-%m-%dT%H:%M:%S")
    t["phash"] = [rng.bytes(16).hex() for _ in range(n)]
    crops = crops_step_of(store, fill_rows(CROPS, t.to_dict("records")), "scale")
    made = split_by_location(crops, SplitsConfig(), CLASSES, store, "m")
    assert made.counts.kept == n
    later = split_by_location(crops, SplitsConfig(seed=7), CLASSES, store, "m")
    test = [set(x.loc[x["split"] == "test", "crop_id"]) for x in (store.table(made, "splits.parquet"), store.table(later, "splits.parquet"))]
    assert test[0] == test[1]

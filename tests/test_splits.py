"""Splits: a place, a burst or a picture is never on two sides, and the shares come near what was asked."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from animl_pipeline.errors import SplitsError
from animl_pipeline.plan import SplitsPlan
from animl_pipeline.records import Artifact, Counts
from animl_pipeline.splits import Wanted, groups_of, leaks, score, search, split_by_location
from animl_pipeline.store import Made, Store, Workspace, write_table

CLASSES = ("fox", "bird", "rat")


def crops_step(store: Store, rows: list[tuple[str, str, str, str]]) -> Artifact:
    """A crops step from (place, label, sequence, picture)."""
    table = pd.DataFrame(rows, columns=["place", "label", "sequence", "picture"])
    table.insert(0, "crop_id", [f"c{i:05d}" for i in range(len(rows))])

    def build(space: Workspace) -> Made:
        write_table(space.out / "crops.parquet", table)
        return Made(Counts(kept=len(rows)))

    return store.make("crops", room="records", config={"rows": json.dumps(rows)}, build=build)


def island(places: int, per_place: int = 12) -> list[tuple[str, str, str, str]]:
    return [(f"isle/p{p}", CLASSES[(p + i) % 3], f"isle/s{p}-{i // 3}", f"{p}-{i}") for p in range(places) for i in range(per_place)]


def test_places_lie_on_one_side_and_shares_are_near_the_wanted(store: Store) -> None:
    crops = crops_step(store, island(40))
    splits = split_by_location(crops, SplitsPlan(val=0.2, test=0.2), CLASSES, store)
    t = store.table(splits, "splits.parquet").merge(store.table(crops, "crops.parquet"), on="crop_id")
    assert t.groupby("place")["split"].nunique().max() == 1
    share = t["split"].value_counts(normalize=True)
    assert share["val"] == pytest.approx(0.2, abs=0.03)
    assert share["test"] == pytest.approx(0.2, abs=0.03)
    assert json.loads(store.path(splits, "leakage.json").read_text()) == {"places": 0, "sequences": 0, "pictures": 0}
    assert sum(store.table(splits, "places.parquet")["crops"]) == len(t)


def test_the_same_seed_gives_the_same_split(store: Store) -> None:
    crops = crops_step(store, island(25))
    one = split_by_location(crops, SplitsPlan(seed=1, tries=50), CLASSES, store)
    store.depot.delete(f"steps/splits/{one.key}/manifest.json")
    assert split_by_location(crops, SplitsPlan(seed=1, tries=50), CLASSES, store).digest == one.digest


def test_places_that_share_a_burst_or_a_picture_stay_together(store: Store) -> None:
    rows = [*island(12), ("isle/p0", "fox", "isle/shared", "x"), ("isle/p1", "fox", "isle/shared", "y")]
    rows += [("isle/p2", "fox", "", "same"), ("isle/p3", "fox", "", "same")]
    crops = crops_step(store, rows)
    t = store.table(split_by_location(crops, SplitsPlan(), CLASSES, store), "splits.parquet").merge(store.table(crops, "crops.parquet"), on="crop_id")
    side = t.groupby("place")["split"].first()
    assert side["isle/p0"] == side["isle/p1"]
    assert side["isle/p2"] == side["isle/p3"]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 8).map(lambda p: f"s/p{p}"),
            st.sampled_from(CLASSES),
            st.integers(0, 12).map(lambda s: f"s/q{s}" if s else ""),
            st.text("ab", max_size=3),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_grouping_never_parts_a_place_a_burst_or_a_picture(rows: list[tuple[str, str, str, str]]) -> None:
    t = pd.DataFrame(rows, columns=["place", "label", "sequence", "picture"])
    t["split"] = groups_of(t).astype(str)
    assert leaks(t) == {"places": 0, "sequences": 0, "pictures": 0}


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(4, 14), st.integers(0, 5), st.data())
def test_every_class_with_places_enough_is_on_every_side(groups: int, seed: int, data: st.DataObject) -> None:
    counts = np.array(data.draw(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=groups, max_size=groups)), float)
    held = (counts > 0).sum(0)
    if counts.sum() == 0:
        return
    wanted = Wanted(counts, (counts > 0).astype(float), np.array([0.6, 0.2, 0.2]), np.stack([held >= 1, held >= 3, held >= 2]))
    sides = search(wanted, 200, np.random.default_rng(seed))
    for c in range(3):
        if held[c] >= 1:
            assert counts[sides == 0, c].sum() > 0


def test_the_search_beats_the_best_of_many_random_splits() -> None:
    rng = np.random.default_rng(3)
    counts = rng.poisson(rng.lognormal(1, 1, (75, 1)) * rng.gamma(0.7, 1, (75, 8))).astype(float)
    held = (counts > 0).sum(0)
    wanted = Wanted(counts, (counts > 0).astype(float), np.array([0.7, 0.2, 0.1]), np.stack([held >= 1, held >= 3, held >= 2]))
    random = min(score(rng.choice(3, 75, p=wanted.shares), wanted) for _ in range(2000))
    assert score(search(wanted, 200, np.random.default_rng(0)), wanted) < random


def test_a_class_at_one_place_is_trained_on_and_noted_as_absent_elsewhere(store: Store) -> None:
    rows = [*island(10), *(("isle/lonely", "owl", f"isle/o{i}", f"o{i}") for i in range(9))]
    splits = split_by_location(crops_step(store, rows), SplitsPlan(), (*CLASSES, "owl"), store)
    assert splits.counts.noted["no_owl_in_test"] == 1
    assert splits.counts.noted["no_owl_in_val"] == 1
    assert "no_owl_in_train" not in splits.counts.noted


def test_unknown_places_are_dropped_and_counted_or_trained_on_by_the_plans_word(store: Store) -> None:
    crops = crops_step(store, [*island(9), ("", "fox", "", "u1"), ("", "fox", "", "0-0")])
    assert split_by_location(crops, SplitsPlan(), CLASSES, store).counts.dropped == {"unknown_place": 2}
    trained = split_by_location(crops, SplitsPlan(unknown_place="train"), CLASSES, store)
    assert trained.counts.dropped == {"unknown_place": 1}  # the other is a picture of a known place


def test_two_places_do_not_suffice_and_the_line_says_so(store: Store) -> None:
    with pytest.raises(SplitsError, match=r"at least 3 places .* found 2"):
        split_by_location(crops_step(store, island(2)), SplitsPlan(), CLASSES, store)

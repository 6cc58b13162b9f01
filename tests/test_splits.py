"""Splits: a place, a burst or a picture is never on two sides, and the shares come near what was asked."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from animl_pipeline.errors import SplitsError, StoreError
from animl_pipeline.plan import SplitsPlan
from animl_pipeline.records import Artifact, Counts
from animl_pipeline.settings import Settings
from animl_pipeline.splits import Wanted, groups_of, leaks, score, search, split_by_location
from animl_pipeline.store import Made, Store, Workspace, open_store, write_table

CLASSES = ("fox", "bird", "rat")
NO_LEAKS = {"places": 0, "sequences": 0, "pictures": 0, "once_tested": 0}


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
    splits = split_by_location(crops, SplitsPlan(val=0.2, test=0.2), CLASSES, store, "isle-model")
    t = store.table(splits, "splits.parquet").merge(store.table(crops, "crops.parquet"), on="crop_id")
    assert t.groupby("place")["split"].nunique().max() == 1
    share = t["split"].value_counts(normalize=True)
    assert share["val"] == pytest.approx(0.2, abs=0.03)
    assert share["test"] == pytest.approx(0.2, abs=0.03)
    assert json.loads(store.path(splits, "leakage.json").read_text()) == NO_LEAKS
    assert sum(store.table(splits, "places.parquet")["crops"]) == len(t)


def test_the_same_seed_gives_the_same_split(store: Store) -> None:
    crops = crops_step(store, island(25))
    one = split_by_location(crops, SplitsPlan(seed=1, tries=50), CLASSES, store, "isle-model")
    store.depot.delete(f"steps/splits/{one.key}/manifest.json")
    assert split_by_location(crops, SplitsPlan(seed=1, tries=50), CLASSES, store, "isle-model").digest == one.digest


def test_places_that_share_a_burst_or_a_picture_stay_together(store: Store) -> None:
    rows = [*island(12), ("isle/p0", "fox", "isle/shared", "x"), ("isle/p1", "fox", "isle/shared", "y")]
    rows += [("isle/p2", "fox", "", "same"), ("isle/p3", "fox", "", "same")]
    crops = crops_step(store, rows)
    t = store.table(split_by_location(crops, SplitsPlan(), CLASSES, store, "isle-model"), "splits.parquet").merge(
        store.table(crops, "crops.parquet"), on="crop_id"
    )
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
    assert leaks(t) == NO_LEAKS


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(4, 14), st.integers(0, 5), st.data())
def test_every_class_with_places_enough_is_on_every_side(groups: int, seed: int, data: st.DataObject) -> None:
    counts = np.array(data.draw(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=groups, max_size=groups)), float)
    held = (counts > 0).sum(0)
    if counts.sum() == 0:
        return
    wanted = Wanted(
        counts, (counts > 0).astype(float), np.array([0.6, 0.2, 0.2]), np.stack([held >= 1, held >= 3, held >= 2]), np.ones((len(counts), 3), bool)
    )
    sides = search(wanted, 200, np.random.default_rng(seed))
    for c in range(3):
        if held[c] >= 1:
            assert counts[sides == 0, c].sum() > 0


def test_the_search_beats_the_best_of_many_random_splits() -> None:
    rng = np.random.default_rng(3)
    counts = rng.poisson(rng.lognormal(1, 1, (75, 1)) * rng.gamma(0.7, 1, (75, 8))).astype(float)
    held = (counts > 0).sum(0)
    wanted = Wanted(
        counts, (counts > 0).astype(float), np.array([0.7, 0.2, 0.1]), np.stack([held >= 1, held >= 3, held >= 2]), np.ones((len(counts), 3), bool)
    )
    random = min(score(rng.choice(3, 75, p=wanted.shares), wanted) for _ in range(2000))
    assert score(search(wanted, 200, np.random.default_rng(0)), wanted) < random


def test_a_class_at_one_place_is_trained_on_and_noted_as_absent_elsewhere(store: Store) -> None:
    rows = [*island(10), *(("isle/lonely", "owl", f"isle/o{i}", f"o{i}") for i in range(9))]
    splits = split_by_location(crops_step(store, rows), SplitsPlan(), (*CLASSES, "owl"), store, "isle-model")
    assert splits.counts.noted["no_owl_in_test"] == 1
    assert splits.counts.noted["no_owl_in_val"] == 1
    assert "no_owl_in_train" not in splits.counts.noted


def test_unknown_places_are_dropped_and_counted_or_trained_on_by_the_plans_word(store: Store) -> None:
    crops = crops_step(store, [*island(9), ("", "fox", "", "u1"), ("", "fox", "", "0-0")])
    assert split_by_location(crops, SplitsPlan(), CLASSES, store, "isle-model").counts.dropped == {"unknown_place": 2}
    trained = split_by_location(crops, SplitsPlan(unknown_place="train"), CLASSES, store, "isle-model")
    assert trained.counts.dropped == {"unknown_place": 1}  # the other is a picture of a known place


def test_two_places_do_not_suffice_and_the_line_says_so(store: Store) -> None:
    with pytest.raises(SplitsError, match=r"at least 3 places .* found 2"):
        split_by_location(crops_step(store, island(2)), SplitsPlan(), CLASSES, store, "isle-model")


def sides_of(store: Store, crops: Artifact, splits: Artifact) -> pd.DataFrame:
    return store.table(crops, "crops.parquet").merge(store.table(splits, "splits.parquet"), on="crop_id")


def test_a_second_call_with_the_same_crops_is_cached_though_the_register_has_grown(store: Store) -> None:
    crops = crops_step(store, island(12))
    first = split_by_location(crops, SplitsPlan(), CLASSES, store, "m")
    assert split_by_location(crops, SplitsPlan(), CLASSES, store, "m").cached
    split_by_location(crops_step(store, [*island(12), *island(20)[200:]]), SplitsPlan(), CLASSES, store, "m")
    again = split_by_location(crops, SplitsPlan(), CLASSES, store, "m")
    assert again.digest == first.digest


@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_over_five_retrainings_of_growing_data_nothing_once_tested_is_ever_learnt_from(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = open_store(Settings(store=str(tmp_path_factory.mktemp("grow"))))
    rows = island(6, per_place=6)
    tested: set[str] = set()
    for generation in range(5):
        crops = crops_step(store, rows)
        t = sides_of(store, crops, split_by_location(crops, SplitsPlan(tries=30, seed=generation), CLASSES, store, "m"))
        learnt = t[t["split"] != "test"]
        assert tested & (set(learnt["place"]) | set(learnt["picture"])) == set()
        assert t.groupby("place")["split"].nunique().max() == 1
        test = t[t["split"] == "test"]
        tested |= set(test["place"]) | set(test["picture"])
        assert set(t["split"]) == {"train", "val", "test"}
        for new in range(data.draw(st.integers(0, 3))):  # new places, more of known places, an old picture under a new name
            rows = [*rows, *((f"isle/g{generation}-{new}", CLASSES[i % 3], "", f"g{generation}-{new}-{i}") for i in range(5))]
        known = data.draw(st.sampled_from(sorted({r[0] for r in rows})))
        rows = [*rows, (known, "fox", "", f"more-{generation}")]
        if data.draw(st.booleans()):
            rows = [*rows, (f"isle/renamed{generation}", "fox", "", data.draw(st.sampled_from(sorted({r[3] for r in rows}))))]


def test_a_renamed_test_place_is_known_by_its_pictures(store: Store) -> None:
    rows = island(12)
    first = sides_of(store, crops := crops_step(store, rows), split_by_location(crops, SplitsPlan(), CLASSES, store, "m"))
    place = first.loc[first["split"] == "test", "place"].iloc[0]
    renamed = [("isle/new name" if r[0] == place else r[0], *r[1:]) for r in rows]
    crops = crops_step(store, renamed)
    t = sides_of(store, crops, split_by_location(crops, SplitsPlan(seed=3), CLASSES, store, "m"))
    assert set(t.loc[t["place"] == "isle/new name", "split"]) == {"test"}


def test_places_keep_the_side_that_the_plan_gives_them_unless_they_were_tested_on(store: Store) -> None:
    crops = crops_step(store, island(12))
    spec = SplitsPlan(train_only=("isle/p3",), test_only=("isle/p5",))
    side = sides_of(store, crops, split_by_location(crops, spec, CLASSES, store, "m")).groupby("place")["split"].first()
    assert (side["isle/p3"], side["isle/p5"]) == ("train", "test")
    with pytest.raises(SplitsError, match=r"train_only names 'isle/p5', which was tested on before"):
        split_by_location(crops, SplitsPlan(train_only=("isle/p5",)), CLASSES, store, "m")


def test_when_all_places_must_be_in_test_the_line_says_so(store: Store) -> None:
    crops = crops_step(store, island(4))
    with pytest.raises(SplitsError, match=r"leave no place for another side; .*shorten splits\.test_only"):
        split_by_location(crops, SplitsPlan(test_only=tuple(f"isle/p{i}" for i in range(4))), CLASSES, store, "m")


@pytest.mark.parametrize("shard", [b'["isle/p1",{"side":"test"}]\n', b"torn ["], ids=["another shape", "torn"])
def test_a_register_that_cannot_be_read_ends_the_run_instead_of_thawing_the_test_set(store: Store, shard: bytes) -> None:
    crops = crops_step(store, island(12))
    store.depot.put("memory/splits/m/1.jsonl", shard)
    with pytest.raises(StoreError, match="restore "):
        split_by_location(crops, SplitsPlan(), CLASSES, store, "m")
    assert store.depot.read("memory/splits/m/1.jsonl") == shard

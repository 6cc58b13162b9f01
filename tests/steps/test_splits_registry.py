"""The registry of the frozen test set: two runs at once, damaged and missing files, stored splits that disagree with it."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pandas as pd
import pytest

from animl_pipeline.config import SplitsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import DamagedError, StoreError
from animl_pipeline.core.table_schemas import SPLITS
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.splits import split_by_location
from animl_pipeline.steps.splits.step import UNFINISHED
from animl_pipeline.steps.splits.test_set_registry import read_registry, record_split
from animl_pipeline.storage.manifest import describe_file, digest_of_files, manifest_name
from animl_pipeline.storage.store import Store, open_store
from tests.support.crops_to_split import CLASSES, Row, crops_step, island, split, split_of_locations
from tests.support.stored_steps import make_step, release, report

FIRST = "index/splits/m/00000001.json"
ROUNDS = 2


def used_locations(store: Store, crops: Artifact, seed: int) -> tuple[set[str], set[str]]:
    """The locations that a run tests, and those that it trains on."""
    made = split_by_location(crops, SplitsConfig(seed=seed, max_rounds=2), CLASSES, store, "m")
    table = store.table(crops, "crops.parquet").merge(store.table(made, "splits.parquet"), on="crop_id")
    test = table["split"] == "test"
    return set(table.loc[test, "location"]), set(table.loc[~test, "location"])


def run_of_a_pair(address: str, number: int, cache: str, barrier: Any) -> list[tuple[set[str], set[str]]]:
    """One of two runs of a model at the same moment, several times with more locations; the store is first new and then grown."""
    store = open_store(Settings(store=address, cache=Path(cache)))
    found = []
    for round_ in range(ROUNDS):
        crops = crops_step(store, [*island(9 + 3 * round_), ("isle/p0", "fox", "", f"own {number} {round_}")])
        barrier.wait(60)
        found.append(used_locations(store, crops, seed=2 * round_ + number))
    return found


def check_pair(one: list[tuple[set[str], set[str]]], other: list[tuple[set[str], set[str]]]) -> None:
    """No location that any run tested was trained on by any run."""
    tested = set().union(*(t for t, _ in [*one, *other]))
    trained = set().union(*(t for _, t in [*one, *other]))
    assert len(one) == len(other) == ROUNDS
    assert len(tested) > 1
    assert len(trained) > 1
    assert tested & trained == set()


def test_two_runs_at_once_on_a_store_in_s3_never_train_on_what_the_other_tests(bucket: str, tmp_path: Path) -> None:
    barrier = Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run_of_a_pair, f"s3://{bucket}/store", i, str(tmp_path / f"cache{i}"), barrier) for i in range(2)]
        check_pair(*(run.result() for run in runs))


def test_two_processes_at_once_never_train_on_what_the_other_tests(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        runs = [pool.apply_async(run_of_a_pair, (str(tmp_path / "store"), i, str(tmp_path / "cache"), barrier)) for i in range(2)]
        check_pair(*(run.get(120) for run in runs))


def test_a_split_is_not_recorded_if_the_registry_has_grown_since_it_was_read(store: Store) -> None:
    crops = pd.DataFrame({"location": ["isle/a", "isle/b"], "image": ["1", "2"], "split": ["test", "train"]})
    before = read_registry(store, "m", 1)
    assert record_split(store, before, "run 1", crops)
    assert not record_split(store, before, "run 2", crops.assign(split=["train", "test"]))
    after = read_registry(store, "m", 1)
    assert (after.files, after.entries["isle/a"]) == (1, {"as": "tested", "run": "run 1"})


def split_and_wait(address: str, cache: str, recorded: Any) -> None:
    """A training that divides its locations and is then killed."""
    split(open_store(Settings(store=address, cache=Path(cache))), island(9))
    recorded.set()
    signal.pause()


def test_a_training_that_was_killed_keeps_its_locations_says_so_and_a_new_test_set_releases_them(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    context = multiprocessing.get_context("spawn")
    recorded = context.Event()
    killed = context.Process(target=split_and_wait, args=(str(tmp_path / "store"), str(tmp_path / "cache"), recorded))
    killed.start()
    assert recorded.wait(120)
    killed.kill()
    killed.join()
    store = open_store(Settings(store=str(tmp_path / "store"), cache=tmp_path / "cache"))
    frozen = {name: e["as"] for name, e in read_registry(store, "m", 1).entries.items() if "images" not in e}

    def unfinished() -> list[object]:
        return [r.args for r in caplog.records if r.msg == UNFINISHED]

    split(store, island(9))
    assert unfinished() == []  # the same training goes on
    split(store, island(12))
    assert unfinished() == [(9, 12, "m", 2)]
    after = {name: e["as"] for name, e in read_registry(store, "m", 1).entries.items() if "images" not in e}
    assert frozen.items() <= after.items()
    split(store, island(12), SplitsConfig(test_set=2))
    assert read_registry(store, "m", 2).files == 1
    report(store, "m", crops_step(store, island(9)))  # a model was judged on it
    split(store, island(15))
    assert len(unfinished()) == 1


# -- damaged and missing files -----------------------------------------------------------------------------------------


def grow(store: Store) -> None:
    """A registry with two files."""
    split(store, island(9))
    split(store, island(12))


def emptied(store: Store) -> None:
    store.object_store.put(FIRST, b"")


def changed(store: Store) -> None:
    store.object_store.put(FIRST, (store.object_store.read(FIRST) or b"").replace(b"isle/p1", b"isle/p7", 1))


def last_changed(store: Store) -> None:
    last = "index/splits/m/00000002.json"
    store.object_store.put(last, (store.object_store.read(last) or b"").replace(b"learnt", b"tested", 1))


def first_deleted(store: Store) -> None:
    store.object_store.delete(FIRST)


def last_deleted(store: Store) -> None:
    store.object_store.delete("index/splits/m/00000002.json")


def all_deleted(store: Store) -> None:
    store.object_store.delete_many(list(store.object_store.names("index/splits/m/")))


def count_changed(store: Store) -> None:
    all_deleted(store)
    store.object_store.put("reports/m/test_set_1.json", b"{}")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (emptied, "damaged_registry"),
        (changed, "damaged_registry"),
        (last_changed, "damaged_registry"),
        (first_deleted, "damaged_registry"),
        (last_deleted, "missing_registry"),
        (all_deleted, "missing_registry"),
        (count_changed, "damaged_registry"),
    ],
)
def test_a_damaged_registry_is_refused_and_a_new_test_set_can_be_started(store: Store, damage: Callable[[Store], None], code: str) -> None:
    grow(store)
    damage(store)
    left = {name: store.object_store.read(name) for name in store.object_store.names("index/splits/m/")}
    with pytest.raises(StoreError) as caught:
        split(store, island(15))
    assert caught.value.code == code
    assert not caught.value.retryable
    assert {name: store.object_store.read(name) for name in store.object_store.names("index/splits/m/")} == left
    split(store, island(15), SplitsConfig(test_set=2))


def test_a_registry_of_an_earlier_version_is_refused_once_it_has_changed(store: Store) -> None:
    store.add_to_index("splits/m", {f"isle/p{i}": {"as": "tested" if i == 1 else "learnt", "run": "earlier"} for i in range(9)})
    (shard,) = store.object_store.names("index/splits/m/")
    whole = store.object_store.read(shard) or b""
    for damaged in (b"", whole.replace(b"isle/p1", b"isle/p9")):
        store.object_store.put(shard, damaged)
        with pytest.raises(StoreError) as caught:
            split(store, island(9))
        assert caught.value.code == "damaged_registry"
    store.object_store.put(shard, whole)
    assert split_of_locations(split(store, island(12))[0])["isle/p1"] == "test"
    store.object_store.delete(shard)
    with pytest.raises(StoreError) as caught:
        split(store, island(12))
    assert caught.value.code == "damaged_registry"


@pytest.mark.parametrize("evidence", ["report", "release"])
def test_a_missing_registry_is_refused_where_an_earlier_version_left_a_report_or_a_release(store: Store, evidence: str) -> None:
    package = make_step(store, "package", {})
    if evidence == "report":
        report(store, "m", package)
    else:
        release(store, package, "1", model="m")
    with pytest.raises(StoreError) as caught:
        split(store, island(9))
    assert caught.value.code == "missing_registry"
    split(store, island(9), SplitsConfig(test_set=2))


# -- stored splits -----------------------------------------------------------------------------------------------------


def forge(store: Store, made: Artifact, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change the stored splits, and their manifest with them."""
    folder = store.local / "steps/splits" / made.key
    write_table(folder, SPLITS, change(pd.read_parquet(folder / "splits.parquet")))
    manifest = store.manifest(made)
    files = manifest.files | {"splits.parquet": describe_file(folder / "splits.parquet")}
    content = json.loads(manifest.model_dump_json()) | {
        "files": {name: json.loads(entry.model_dump_json()) for name, entry in files.items()}, "digest": digest_of_files(files), "checksum": "",
    }  # fmt: skip
    store.object_store.put(manifest_name("splits", made.key), json.dumps(content).encode())


@pytest.mark.parametrize("direction", [("test", "train"), ("train", "test")])
def test_stored_splits_that_were_changed_with_their_manifest_are_made_again(store: Store, direction: tuple[str, str]) -> None:
    rows: list[Row] = island(9)
    crops = crops_step(store, rows)
    made = split_by_location(crops, SplitsConfig(), CLASSES, store, "m")
    table = store.table(crops, "crops.parquet").merge(store.table(made, "splits.parquet"), on="crop_id")
    location = table.loc[table["split"] == direction[0], "location"].iloc[0]
    moved = set(table.loc[table["location"] == location, "crop_id"])
    forge(store, made, lambda t: t.assign(split=t["split"].where(~t["crop_id"].isin(moved), direction[1])))
    with pytest.raises(DamagedError) as caught:
        split_by_location(crops, SplitsConfig(), CLASSES, store, "m")
    assert (caught.value.code, caught.value.details["crops"]) == ("splits_against_registry", len(moved))
    assert split_by_location(crops, SplitsConfig(), CLASSES, store, "m").digest == made.digest

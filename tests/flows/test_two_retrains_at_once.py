"""Two retrains of one model at once, in real processes: no location that one tests is trained on by the other.

``ANIML_TEST_PAIRS`` is the number of pairs for each kind of store (3 if it is not set).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.table_schemas import CROPS, SPLITS
from animl_pipeline.steps.splits.test_set_registry import read_registry
from animl_pipeline.storage.manifest import Manifest
from animl_pipeline.storage.store import Store, open_store
from tests.support.command_line import COMMAND
from tests.support.paths import ROOT
from tests.support.tiny_project import write_plan, write_project

PAIRS = int(os.environ.get("ANIML_TEST_PAIRS", "3"))
MODEL = "tiny-island"


def write_plans(folder: Path, locations: int, seed: int) -> tuple[Path, Path]:
    """Two plans for the same data, which divide it in different ways."""
    write_project(folder, locations)
    plans = []
    for i in range(2):
        splits = {"val": 0.2, "test": 0.25, "max_rounds": 5, "seed": seed + i}
        plans.append(write_plan(folder, splits=splits).rename(folder / f"plan-{i}.yaml"))
    return plans[0], plans[1]


def retrain_at_once(plans: tuple[Path, Path], address: str, folder: Path) -> None:
    """Run both plans at the same time, each as on a machine of its own."""
    running = []
    for i, plan in enumerate(plans):
        own = {
            "ANIML_STORE": address,
            "ANIML_CACHE": str(folder / f"cache-{i}"),
            "PREFECT_HOME": str(folder / f"prefect-{i}"),
            "OMP_NUM_THREADS": "1",
        }
        line = [*COMMAND, "retrain", str(plan)]
        running.append(subprocess.Popen(line, cwd=ROOT, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for process in running:
        shown = process.communicate(timeout=1200)[0]
        assert process.returncode == 0, shown


def manifests(store: Store, step: str) -> Iterator[Manifest]:
    for name in store.object_store.names(f"steps/{step}/"):
        if name.endswith("/manifest.json"):
            yield Manifest.model_validate_json(store.object_store.read(name) or b"")


def used(store: Store) -> tuple[set[str], set[str], int]:
    """The locations and images that any training was tested with, those that any learnt from, and the number of splits that were used."""
    crops = {m.digest: m for m in manifests(store, "crops")}
    splits = {m.digest: m for m in manifests(store, "splits")}
    tested: set[str] = set()
    trained: set[str] = set()
    chosen = {m.inputs["splits"] for m in manifests(store, "training")}
    for digest in chosen:
        rows = store.table(crops[splits[digest].inputs["crops"]].artifact(cached=True), CROPS)
        rows = rows.merge(store.table(splits[digest].artifact(cached=True), SPLITS), on="crop_id")
        for is_test, into in ((True, tested), (False, trained)):
            into |= {v for name in ("location", "image") for v in rows.loc[(rows["split"] == "test") == is_test, name]}
    return tested, trained, len(chosen)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("pair", range(PAIRS))
@pytest.mark.parametrize("kind", ["folder", "S3"])
def test_two_retrains_at_once_keep_the_test_set_frozen_on_a_new_and_on_a_grown_store(
    kind: str, pair: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    address = f"s3://{request.getfixturevalue('bucket')}/store" if kind == "S3" else str(tmp_path / "store")
    for locations in (8, 12):
        retrain_at_once(write_plans(tmp_path / "island", locations, seed=100 * pair + locations), address, tmp_path)
        store = open_store(Settings(store=address, cache=tmp_path / "cache"))
        tested, trained, splits = used(store)
        assert splits >= 2
        assert tested
        assert tested & trained == set()
        words = {name: entry["as"] for name, entry in read_registry(store, MODEL, 1).entries.items() if "images" not in entry}
        assert {name for name in tested if name.startswith("isle/")} == {name for name, word in words.items() if word == "tested"}

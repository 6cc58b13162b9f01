"""What plan init takes as a class gets through the gate's minimum, and a plan that will not is said to end as NeedMoreData."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from animl_pipeline.cli.init_plan import init
from animl_pipeline.config import GateConfig, SplitsConfig, load_plan
from animl_pipeline.plan_init.expected_test_set import (
    ENOUGH_ANNOTATIONS,
    ENOUGH_LOCATIONS,
    ClassSize,
    drafted_splits,
    forecast_need_more_data,
)
from animl_pipeline.storage.store import Store
from tests.support.coco_export import Export
from tests.support.command_line import run_command
from tests.support.crops_to_split import CLASSES, Row, split


def smallest_classes(seed: int) -> list[Row]:
    """Classes that are just large enough for plan init, at locations of their own or shared ones, with uneven crops."""
    rng, rows = np.random.default_rng(seed), []
    for c in CLASSES:
        locations = rng.choice(12, ENOUGH_LOCATIONS, replace=False)
        each = [*locations, *rng.choice(locations, ENOUGH_ANNOTATIONS - ENOUGH_LOCATIONS)]
        rows += [(f"isle/p{p}", c, f"isle/{c}-{p}-{i}", f"{c}-{p}-{i}") for i, p in enumerate(each)]
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_classes_that_plan_init_takes_reach_the_gates_minimum(store: Store, seed: int) -> None:
    gate, crops = GateConfig(), split(store, smallest_classes(seed), drafted_splits([ENOUGH_ANNOTATIONS] * 3))[0]
    test = crops[crops["split"] == "test"]
    assert test.groupby("class_id")["location"].nunique().reindex(CLASSES, fill_value=0).min() >= gate.min_locations
    assert test.groupby("class_id").size().reindex(CLASSES, fill_value=0).min() >= gate.min_examples


@pytest.mark.parametrize(
    ("annotations", "locations", "expected"),
    [
        (40, 5, ""),
        (5000, 60, ""),
        (5000, 3, "will probably end as NeedMoreData"),
        (30, 30, "will probably end as NeedMoreData"),
        (5000, 2, "will end as NeedMoreData"),
        (10, 30, "will end as NeedMoreData"),
        (0, 0, "will end as NeedMoreData"),
    ],
)
def test_a_plan_with_too_little_for_the_gate_is_known_before(annotations: int, locations: int, expected: str) -> None:
    forecast = forecast_need_more_data(
        [ClassSize("fox", annotations, locations), ClassSize("rat", 900, 40)], GateConfig(), drafted_splits([annotations, 900])
    )
    assert (expected in forecast, bool(forecast), "rat" in forecast) == (True, bool(expected), False)


def test_the_draft_leaves_more_to_test_only_where_a_class_is_small() -> None:
    usual, small = drafted_splits([500, 60]), drafted_splits([500, ENOUGH_ANNOTATIONS])
    assert usual.test == SplitsConfig().test < small.test
    assert usual.test * 60 >= GateConfig().min_examples <= small.test * ENOUGH_ANNOTATIONS


def test_a_gate_that_asks_for_less_is_followed() -> None:
    fox = [ClassSize("fox", 30, 3)]
    assert forecast_need_more_data(fox, GateConfig(), SplitsConfig())
    assert forecast_need_more_data(fox, GateConfig(min_examples=5, min_locations=1), SplitsConfig()) == ""


def test_the_draft_and_the_preview_say_why_a_plan_will_end_as_need_more_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIML_DATA", str(tmp_path))
    monkeypatch.setenv("ANIML_STORE", str(tmp_path / "store"))
    e = Export()
    for i in range(180):
        e.annotation(e.image(f"p{i % 9 if i % 2 else i % 4}"), 1 + i % 2, [4, 4, 20, 20])
    e.write(tmp_path)
    init(["export.json"], output=tmp_path / "few.yaml", min_locations=1)
    assert [line for line in (tmp_path / "few.yaml").read_text().splitlines() if "NeedMoreData" in line]
    plan = load_plan(tmp_path / "few.yaml")
    assert (plan.gate.min_locations, plan.splits.min_locations_per_class) == (GateConfig().min_locations,) * 2
    done = run_command("plan", "preview", tmp_path / "few.yaml", "--data", tmp_path, "--store", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert "as NeedMoreData, because" in done.stdout
    enough = yaml.safe_load((tmp_path / "few.yaml").read_text()) | {"gate": {"min_examples": 1, "min_locations": 1}}
    (tmp_path / "enough.yaml").write_text(yaml.safe_dump(enough))
    assert "NeedMoreData" not in run_command("plan", "preview", tmp_path / "enough.yaml", "--data", tmp_path, "--store", tmp_path / "store").stdout

"""The versions of a model: trials are kept apart from what a release and a prediction take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from animl_pipeline.cli.main import app
from animl_pipeline.config import Overrides, Plan
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.deploy.release_history import close_record, new_record, write_record
from animl_pipeline.deploy.trained_versions import (
    TrainedVersion,
    find_version,
    read_latest_report,
    read_report,
    save_report,
    save_version,
    trained_versions,
)
from animl_pipeline.storage.store import Store
from tests.support.packaged_model import colour_plan_data, make_package, make_report


def add(store: Store, folder: Path, version: str, *changes: str, at: str = "2026-01-01T00:00:00+00:00") -> Artifact:
    """A package whose training is listed; without changes, its report is the latest."""
    package = make_package(store, folder, version, temperature=float(len(list(folder.iterdir())) + 1))
    report = make_report(package, store, verdict="promote")
    save_version(TrainedVersion(report=report, trained_at=at, changes=changes), store)
    if not changes:
        save_report(report, store)
    return package


def test_a_trial_is_found_by_its_version_only(store: Store, tmp_path: Path, plan: Plan) -> None:
    add(store, tmp_path, "aaaa1111", at="2026-01-01T00:00:00+00:00")
    add(store, tmp_path, "bbbb2222", "train.epochs 3", at="2026-01-02T00:00:00+00:00")
    assert read_report(plan.model, "", store).version == "aaaa1111"
    assert read_report(plan.model, "bbbb2222", store).version == "bbbb2222"
    assert read_report(plan.model, "bbbb", store).version == "bbbb2222"
    assert [(v.report.version, v.is_trial()) for v in trained_versions(plan.model, store)] == [("aaaa1111", False), ("bbbb2222", True)]


@pytest.mark.parametrize(("version", "code"), [("cccc", "unknown_version"), ("a", "unknown_version"), ("aaaa", "several_versions")])
def test_a_version_that_is_not_one_is_refused_with_the_known_ones(store: Store, tmp_path: Path, plan: Plan, version: str, code: str) -> None:
    add(store, tmp_path, "aaaa1111")
    add(store, tmp_path, "aaaa2222", "train.seed 2")
    with pytest.raises(EvaluationError) as refused:
        find_version(plan.model, version, store)
    assert refused.value.code == code
    assert "aaaa1111" in str(refused.value)


def test_where_only_a_trial_was_made_there_is_no_latest_report(store: Store, tmp_path: Path, plan: Plan) -> None:
    add(store, tmp_path, "aaaa1111", "train.epochs 3")
    with pytest.raises(EvaluationError) as refused:
        read_latest_report(plan.model, store)
    assert refused.value.code == "no_report"
    assert "aaaa1111" in str(refused.value)


def test_a_trial_never_hides_that_the_plan_made_the_same_package(store: Store, tmp_path: Path, plan: Plan) -> None:
    package = add(store, tmp_path, "aaaa1111")
    save_version(TrainedVersion(report=make_report(package, store), changes=("train.seed 0",)), store)
    assert [v.is_trial() for v in trained_versions(plan.model, store)] == [False]


def test_changes_that_repeat_the_plan_are_no_trial(plan: Plan) -> None:
    assert Overrides(epochs=plan.train.epochs).changes(plan) == []
    assert Overrides(epochs=plan.train.epochs + 1, max_per_location=3).changes(plan) == [
        f"train.epochs {plan.train.epochs + 1}",
        "labels.max_per_location 3",
    ]


def test_versions_lists_what_was_trained_judged_and_released(store: Store, tmp_path: Path, plan: Plan) -> None:
    file = tmp_path / "colours.yaml"
    file.write_text(yaml.safe_dump(colour_plan_data()), encoding="utf-8")
    old = add(store, tmp_path, "aaaa1111", at="2026-01-01T10:00:00+00:00")
    add(store, tmp_path, "bbbb2222", "train.epochs 3", at="2026-01-02T00:00:00+00:00")
    add(store, tmp_path, "cccc3333", at="2026-01-03T00:00:00+00:00")
    names = {"base_name": "colours", "endpoint": "colours", "endpoint_config": "c", "previous_config": None, "sagemaker_model": "m"}
    close_record(write_record(new_record("release", **names, model=plan.model, version="aaaa1111", package=old), store), "done", store)
    line = ["versions", str(file), "--store", str(store.object_store)]
    rows = json.loads(CliRunner().invoke(app, [*line, "--json"], catch_exceptions=False).output)
    assert [(r["version"], r["verdict"], bool(r["changes"]), bool(r["released_at"]), r["serves"], r["next_release"]) for r in rows] == [
        ("aaaa1111", "promote", False, True, True, False),
        ("bbbb2222", "promote", True, False, False, False),
        ("cccc3333", "promote", False, False, False, True),
    ]
    assert all(0 <= r["macro_f1"] <= 1 for r in rows)
    shown = CliRunner().invoke(app, line, catch_exceptions=False).output
    assert [version for version in ("aaaa1111", "bbbb2222", "cccc3333") if version in shown] == ["aaaa1111", "bbbb2222", "cccc3333"]
    assert "train.epochs 3" in shown


def test_a_report_that_cannot_be_read_is_an_evaluation_error(store: Store) -> None:
    store.object_store.put("reports/isle/newest.json", b'{"model": "isle"')
    with pytest.raises(EvaluationError):
        read_latest_report("isle", store)

"""`animl-pipeline plan check` fails if an export, a folder of images or the labels of a class are missing; plans are found by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from animl_pipeline.cli.plan_check import find_source_problems
from animl_pipeline.config import find_plan, load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PlanError
from tests.support.command_line import run_command
from tests.support.tiny_project import COLOURS, write_plan, write_project

CLASSES: dict[str, Any] = {c: [c] for c in COLOURS}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, locations=3, each=1)
    return folder


def source(folder: Path, **changes: str) -> list[dict[str, str]]:
    return [{"name": "isle", "export": str(folder / "export.json"), "images": str(folder / "images")} | changes]


@pytest.mark.parametrize(
    ("change", "missing", "word"),
    [
        ({}, 0, ""),
        ({"export": "none.json"}, 1, "none.json"),
        ({"images": "imagez"}, 1, "imagez"),
        ({"classes": CLASSES | {"fox": ["fxo"]}}, 1, "the nearest is 'fox'"),
        ({"classes": CLASSES | {"goat": ["goat"], "pig": ["pig"]}}, 2, "'goat'"),
        ({"images": "imagez", "classes": CLASSES | {"goat": ["goat"]}}, 2, "'goat'"),
    ],
)
def test_what_is_missing_is_named(project: Path, change: dict[str, Any], missing: int, word: str) -> None:
    classes = change.pop("classes", CLASSES)
    plan = load_plan(write_plan(project, sources=source(project, **change), labels={"classes": classes}))
    settings = Settings(data=project, store=str(project / "store"))
    found = find_source_problems(plan, settings).missing
    assert len(found) == missing, found
    assert word in " ".join(found)
    assert not (project / "store").exists()


def test_a_label_that_only_one_class_lacks_is_a_note_and_exports_elsewhere_are_not_compared(project: Path) -> None:
    settings = Settings(data=project, store=str(project / "store"))
    plan = load_plan(write_plan(project, labels={"classes": CLASSES | {"fox": ["fox", "foxx"]}}))
    problems = find_source_problems(plan, settings)
    assert (problems.missing, len(problems.notes)) == ([], 1)
    elsewhere = [*source(project), {"name": "far", "export": "https://example.org/x.json", "images": "https://example.org/"}]
    plan = load_plan(write_plan(project, sources=elsewhere, labels={"classes": CLASSES | {"goat": ["goat"]}}))
    problems = find_source_problems(plan, settings)
    assert (problems.missing, len(problems.notes)) == ([], 1)


def test_plan_check_ends_with_status_1_and_shows_the_plan_all_the_same(project: Path) -> None:
    plan = write_plan(project, sources=source(project, images="imagez"), labels={"classes": CLASSES | {"goat": ["goat"]}})
    done = run_command("plan", "check", plan, "--data", project)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 2
    assert "goat: goat" in done.stdout


def test_a_plan_is_found_by_its_name_or_path_with_and_without_its_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans, here = tmp_path / "plans", tmp_path / "here"
    for folder, name in ((plans, "island"), (here, "plan"), (here / "sub", "other")):
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").write_text("model: x")
    monkeypatch.chdir(here)
    for given, file in {
        "island": plans / "island.yaml",
        "island.yaml": plans / "island.yaml",
        "plan": Path("plan.yaml"),
        "plan.yaml": Path("plan.yaml"),
        "sub/other": Path("sub/other.yaml"),
        str(here / "plan"): here / "plan.yaml",
    }.items():
        assert find_plan(given, plans) == file
    with pytest.raises(PlanError) as caught:
        find_plan("iland", plans)
    assert caught.value.code == "unknown_plan"
    assert "the nearest is 'island'" in str(caught.value)

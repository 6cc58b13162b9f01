"""Commands that only read make no store, what the demo advises can be typed, and a folder of exports is a valid EXPORT."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from animl_pipeline.cli.demo import commands_to_go_on
from animl_pipeline.cli.doctor import NEEDED_GB, rate_disk
from animl_pipeline.cli.prefect_deployments import deployments_of_plans
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import StoreError
from animl_pipeline.plan_init.find_exports_and_images import find_exports_inside
from animl_pipeline.storage.open_existing_or_temporary_store import open_existing_store
from animl_pipeline.storage.store import open_store
from tests.support.coco_export import Export
from tests.support.command_line import COMMAND
from tests.support.paths import ROOT


def run_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder, with the usual store: runs/store there."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ANIML_")} | {"PYTHONPATH": str(ROOT), "PIP_NO_INDEX": "1"}
    return subprocess.run([*COMMAND, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_mistyped_store_is_refused_and_not_made(tmp_path: Path) -> None:
    done = run_in(tmp_path, "store", "show", "--store", "stroe")
    assert done.returncode == 1
    assert str(tmp_path / "stroe") in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [False, True])
def test_only_a_store_that_exists_is_opened_for_reading(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "s"
    if there:
        folder.mkdir()
        (folder / "a photo.jpg").write_bytes(b"")
    settings = Settings(store=str(folder))
    with pytest.raises(StoreError) as refused:
        open_existing_store(settings)
    assert refused.value.code == "no_store"
    assert folder.exists() == there
    open_store(settings)
    assert open_existing_store(settings).local == folder


def test_a_plan_can_be_drafted_and_previewed_without_a_store_in_the_folder(tmp_path: Path) -> None:
    data, here = tmp_path / "data", tmp_path / "here"
    here.mkdir()
    for name in ("north", "south"):
        e = Export()
        for i in range(16):
            e.annotation(e.image(f"{name}{i % 4}"), 1 + i % 2, [4, 4, 20, 20])
        e.write(data / name)
        (data / name / "export.json").rename(data / name / "cct.json")
    done = run_in(here, "plan", "init", str(data), "--min-annotations", "4", "--min-locations", "2")
    assert done.returncode == 0, done.stderr
    assert [Path(s["export"]).parent.name for s in yaml.safe_load((here / "plan.yaml").read_text())["sources"]] == ["north", "south"]
    done = run_in(here, "plan", "preview", "plan")
    assert done.returncode == 0
    assert str(here / "runs" / "store") in "".join(done.stdout.split("\n"))  # the disk of the store, not of a temporary one
    assert [p.name for p in here.iterdir()] == ["plan.yaml"]


def test_other_folders_are_exports_themselves(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    classes, package, results = tmp_path / "classes", tmp_path / "dp", tmp_path / "md"
    for folder, name, text in (
        (classes / "fox", "notes.json", "{}"),
        (package, "datapackage.json", '{"resources": []}'),
        (results, "md.json", '{"images": [{"file": "a.jpg"}]}'),
    ):
        folder.mkdir(parents=True)
        (folder / name).write_text(text)
    for export in (str(classes), "classes", str(package), str(results), "animl://p", "https://h/x.json", "none"):
        assert find_exports_inside(export, settings) == [export]


def test_what_the_demo_advises_at_its_end_can_be_typed(tmp_path: Path) -> None:
    folder = tmp_path / "my demo"
    open_store(Settings(store=str(folder / "store")))
    lines = commands_to_go_on(folder)
    typed = "\n".join(lines).replace("animl-pipeline", shlex.join([sys.executable, "-m", "animl_pipeline.cli"]))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["/bin/bash", "-ec", typed], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "sample-island" in done.stdout


def test_a_full_disk_is_an_error() -> None:
    assert [rate_disk(free) for free in (0.0, 0.9, 2.0, NEEDED_GB)] == ["error", "error", "note", "ok"]


def test_every_plan_has_its_deployments_and_no_schedule_is_on(tmp_path: Path) -> None:
    plans = tmp_path / "plans"
    plans.mkdir()
    for name in ("isle", "coast"):
        (plans / f"{name}.yaml").write_text("model: m", encoding="utf-8")
    shipped = ROOT / "deployments" / "prefect.yaml"
    made = deployments_of_plans(shipped, plans)["deployments"]
    of_plans = [(d["entrypoint"].rpartition(".")[2], d["name"], d["parameters"]["plan"]) for d in made if d["name"] != "on-event"]
    assert sorted(of_plans) == sorted((flow, p, p) for p in ("isle", "coast") for flow in ("retrain", "release", "rollback", "watch", "monitor"))
    assert [s for d in made for s in d.get("schedules", []) if s["active"]] == []
    content = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    own = content["deployments"][0] | {"name": "isle", "parameters": {"plan": "isle"}, "schedules": []}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(content | {"deployments": [own, *content["deployments"]]}), encoding="utf-8")
    with_own = deployments_of_plans(tmp_path / "prefect.yaml", plans)["deployments"]
    assert len(with_own) == len(made)
    assert [d["schedules"] for d in with_own if (d["entrypoint"], d["name"]) == (own["entrypoint"], "isle")] == [[]]

"""What commands print in a terminal of 60 or 80 columns: no word is cut, no line is longer than the terminal; and JSON for programs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from animl_pipeline.cli import console
from animl_pipeline.cli.release import history
from animl_pipeline.cli.report_and_versions import versions
from animl_pipeline.cli.store import gc, show
from animl_pipeline.cli.weights import list_weights
from animl_pipeline.config.settings import Settings
from animl_pipeline.deploy.release_history import close_record, new_record, write_record
from animl_pipeline.deploy.trained_versions import TrainedVersion, save_report, save_version
from animl_pipeline.storage.store import open_store
from tests.support.packaged_model import colour_plan_data, make_package, make_report
from tests.support.terminal import run_in_terminal


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A plan and a store with a version, a trial and a forced release."""
    folder = tmp_path_factory.mktemp("narrow")
    store = open_store(Settings(store=str(folder / "s")))
    plan = folder / "p.yaml"
    plan.write_text(yaml.safe_dump(colour_plan_data()), encoding="utf-8")
    for version, changes in (("0a1b2c3d4e5f", ()), ("5f4e3d2c1b0a", ("train.epochs 3", "labels.max_per_location 20"))):
        package = make_package(store, folder, version, temperature=1.0 + len(changes))
        report = make_report(package, store, verdict="need_more_data")
        save_version(TrainedVersion(report=report, trained_at="2026-01-01T10:00:00+00:00", changes=changes), store)
        save_report(report, store)
    config = "colours-0a1b2c3d4e5f-3072-5-0123456789ab"
    names = {"base_name": "colours", "endpoint": "colours", "endpoint_config": config, "previous_config": None, "sagemaker_model": config}
    reason = "forced because the rangers need a first model before the season of nesting birds begins"
    record = write_record(new_record("release", **names, model="colours", version="0a1b2c3d4e5f", package=package, forced=reason), store)
    close_record(record, "done", store)
    return plan, folder / "s"


COMMANDS: dict[str, Callable[[str, str], None]] = {
    "versions": lambda plan, store: versions(plan, store=store),
    "history": lambda plan, store: history(plan, store=store),
    "show": lambda _, store: show(store=store),
    "gc": lambda _, store: gc(store=store),
    "weights": lambda _plan, _store: list_weights(),
}
JSON: dict[str, Callable[[str, str], None]] = {
    "versions": lambda plan, store: versions(plan, as_json=True, store=store),
    "history": lambda plan, store: history(plan, as_json=True, store=store),
    "show": lambda _, store: show(as_json=True, store=store),
    "weights": lambda _plan, _store: list_weights(as_json=True),
}


@pytest.fixture
def shown(project: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, str], None], int], str]:
    """What a command prints on a terminal of a width."""

    def run(command: Callable[[str, str], None], columns: int) -> str:
        screen = io.StringIO()
        terminal = console.WordWrapConsole(
            file=screen, width=columns, force_terminal=True, no_color=True, color_system=None, soft_wrap=True, highlight=False, markup=False
        )
        monkeypatch.setattr(console, "out", terminal)
        command(*map(str, project))
        return screen.getvalue()

    return run


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [60, 80])
def test_no_word_is_cut_and_no_line_is_too_long(shown: Callable[..., str], name: str, columns: int) -> None:
    words = {word.strip(",:") for word in shown(COMMANDS[name], 300).split()}
    lines = [line.rstrip() for line in shown(COMMANDS[name], columns).splitlines() if not line.startswith("not shown")]
    assert {word.strip(",:") for line in lines for word in line.split()} <= words
    assert [line for line in lines if len(line) > columns and len(line.split()) > 1] == []


@pytest.mark.parametrize("name", JSON)
def test_programs_get_json(shown: Callable[..., str], name: str) -> None:
    assert json.loads(shown(JSON[name], 60))


def test_a_narrow_terminal_is_recognised() -> None:
    lines = run_in_terminal(60, "weights", "list")
    assert "megadetector-v1000-redwood" in {line.split(maxsplit=1)[0] for line in lines if line}
    assert max(map(len, lines)) <= 60

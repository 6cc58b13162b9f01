"""The docs hold: every command that they show exists, and is run by a test or said not to be; the site builds with its links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from animl_pipeline.cli.main import app
from tests.support.paths import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])

RUN_BY = {
    "animl-pipeline --help": "cli/test_cli.py::test_help_names_every_command_and_what_it_is_for",
    "animl-pipeline deploy": "cli/test_worker.py::test_deploying_puts_every_deployment_and_automation_on_the_server",
    "animl-pipeline doctor": "cli/test_demo.py::test_the_doctor_finds_every_package_and_says_what_to_change_in_the_plan",
    "animl-pipeline monitor": "flows/test_monitor.py::test_the_command_prints_the_state_and_the_page",
    "animl-pipeline notify": "cli/test_team_server.py::test_each_way_to_start_a_training_that_the_docs_show_starts_it_once",
    "animl-pipeline plan check": "cli/test_cli.py::test_plan_check_says_what_a_shipped_plan_would_do",
    "animl-pipeline plan init": "plan_init/test_plan_init.py::test_",
    "animl-pipeline plan preview": "cli/test_plan_preview.py::test_a_class_without_annotations_is_refused_with_exit_code_1",
    "animl-pipeline predict": "cli/test_retrain_and_release.py::test_",
    "animl-pipeline reinfer": "deploy/test_reinfer.py::test_old_images_are_asked_about_once_within_the_limits_and_an_invader_comes_first",
    "animl-pipeline review-next": "review/test_review_next.py::test_the_command_",
    "animl-pipeline detectors compare": "steps/test_compare_detectors.py::test_the_command_prints_the_scores_of_each_detector",
    "animl-pipeline evaluate": "cli/test_evaluate_package.py::test_a_package_of_other_classes_and_another_size_is_scored_on_all_crops_or_on_a_split",
    "animl-pipeline weights convert": "integrations/test_camera_trap_weights.py::test_the_command_runs_no_code_of_a_file_with_another_sha256",
    "animl-pipeline compare": "cli/test_compare_other_models.py::test_the_command_prints",
    "animl-pipeline release gc": "cli/test_release.py::test_status_history_and_gc_show_what_is_deployed",
    "animl-pipeline release history": "cli/test_release.py::test_status_history_and_gc_show_what_is_deployed",
    "animl-pipeline release register": "cli/test_release.py::test_the_registration_is_in_the_store_and_in_the_folder_of_the_option",
    "animl-pipeline release rollback": "deploy/test_storm.py::test_a_killed_release_leaves",
    "animl-pipeline release run": "cli/test_release.py::test_a_dry_run_shows_a_diff_and_what_prevents_a_release",
    "animl-pipeline release status": "cli/test_release.py::test_status_history_and_gc_show_what_is_deployed",
    "animl-pipeline report": "reports_server/test_report_server.py::test_the_command_prints_where_the_checked_report_of_a_version_is",
    "animl-pipeline report-server": "reports_server/test_report_server.py::test_",
    "animl-pipeline retrain": "cli/test_retrain_and_release.py::test_",
    "animl-pipeline rollback": "deploy/test_storm.py::test_a_killed_release_leaves",
    "animl-pipeline server": "cli/test_team_server.py::test_a_server_killed_in_the_middle_of_a_training_loses_nothing",
    "animl-pipeline sagemaker-local": "dev/test_sagemaker_local.py::test_",
    "animl-pipeline store gc": "storage/test_gc_interrupted.py::test_the_command_deletes_only_with_yes_and_shows_what_and_why",
    "animl-pipeline store show": "storage/test_gc_interrupted.py::test_the_command_deletes_only_with_yes_and_shows_what_and_why",
    "animl-pipeline up": "flows/test_browser.py::test_a_person_trains_and_approves_in_the_browser_and_the_endpoint_serves_the_new_version",
    "animl-pipeline versions": "deploy/test_trained_versions.py::test_versions_lists_what_was_trained_judged_and_released",
    "animl-pipeline weights fetch": "integrations/test_weights.py::test_the_command_lists_every_name_and_fetches_one",
    "animl-pipeline weights list": "integrations/test_weights.py::test_the_command_lists_every_name_and_fetches_one",
    "animl-pipeline worker": "cli/test_team_server.py::test_a_server_killed_in_the_middle_of_a_training_loses_nothing",
    "createdb": "cli/test_team_server.py::test_a_lost_database_comes_back_from_its_dump",
    "curl -X POST http://127.0.0.1:4200/api/deployments": "cli/test_team_server.py::test_each_way_to_start_a_training",
    "curl -X POST http://127.0.0.1:4200/api/events": "cli/test_team_server.py::test_each_way_to_start_a_training_that_the_docs_show_starts_it_once",
    "curl -X POST http://127.0.0.1:4200/api/flow_runs": "flows/test_approval.py::test_a_release_waits_suspended_until_a_person_approves_it",
    "curl -d": "dev/test_sagemaker_local.py::test_",
    "curl http://127.0.0.1:4200": "cli/test_team_server.py::test_each_way_to_start_a_training_that_the_docs_show_starts_it_once",
    "curl localhost:8080": "serve/test_endpoint.py::test_",
    "dropdb": "cli/test_team_server.py::test_a_lost_database_comes_back_from_its_dump",
    "pg_dump": "cli/test_team_server.py::test_a_lost_database_comes_back_from_its_dump",
    "psql": "cli/test_team_server.py::test_a_lost_database_comes_back_from_its_dump",
    "python -m animl_pipeline.serve": "serve/test_endpoint.py::test_",
}
"""The beginning of a command, and the test that runs it (or, where a file is about nothing else, the beginning of its tests' names)."""

NOT_RUN = {
    ". .venv/bin/activate": "a person's shell",
    ".venv/bin/pre-commit": "a person's git",
    ".venv/bin/python -m pytest": "needs the real pictures",
    "ANIML_MLFLOW_TRACKING_URI=https": "needs an MLflow server; tracking is tested in test_tracking.py with MLflow's own database",
    "ANIML_TASK_RUNNER=dask": "needs a cluster; flows/test_distributed.py tests the task runner with workers of its own",
    "aws": "needs an AWS account",
    "cd docker": "fills in secrets",
    "docker": "needs a Docker engine",
    "export": "a person's shell",
    "make": "runs these tests, or takes minutes and gigabytes",
    "mkdir -p model": "unpacks what a release uploaded",
    "pip install": "needs a package index",
    "rclone": "copies a store; tried by hand (docs/operate.md)",
    "rsync": "copies a store; tried by hand (docs/operate.md)",
}
"""The beginning of a command, and why no test runs it."""


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without comments; continued lines and quotes over several lines as one."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        rest = ""
        for line in block.replace("\\\n", " ").splitlines():
            rest = f"{rest}\n{line}" if rest else line
            try:
                words = shlex.split(rest, comments=True)
            except ValueError:  # an open quote
                continue
            if words:
                found.append(re.sub(r"\s+#\s.*$", "", rest))
            rest = ""
        assert not rest, f"{page.name}: a quote is never closed in {rest[:60]!r}"
    return found


def without_variables(command: str) -> str:
    return re.sub(r"^(?:[A-Z_]+=\S+\s+)+", "", command)


SHOWN = [(page, command) for page in PAGES for command in commands(page)]
OURS = [(page, command) for page, command in SHOWN if without_variables(command).startswith("animl-pipeline ")]


def resolved(words: list[str]) -> tuple[str, set[str]]:
    """The command's whole name and its options; ``release PLAN`` is ``release run PLAN``."""
    command: Any = typer.main.get_command(app)
    name = ["animl-pipeline"]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands and "run" in command.commands:
            words = ["run", *words]
        assert words[0] in command.commands, f"no command {' '.join([*name, words[0]])}"
        name.append(words[0])
        command, words = command.get_command(None, words[0]), words[1:]
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    return " ".join(name if len(name) > 1 else [*name, *words]), options


def test_pages_show_commands() -> None:
    assert len(OURS) > 25
    assert len(SHOWN) > 50


@pytest.mark.parametrize(("page", "command"), OURS, ids=lambda v: v.name if isinstance(v, Path) else v[:60])
def test_every_command_of_ours_that_is_shown_exists_with_its_options(page: Path, command: str) -> None:
    words = shlex.split(without_variables(command), comments=True)[1:]
    _, options = resolved(words)
    assert {w.partition("=")[0] for w in words if w.startswith("--")} <= options, page


@pytest.mark.parametrize(("page", "command"), SHOWN, ids=lambda v: v.name if isinstance(v, Path) else v[:60])
def test_every_command_that_is_shown_is_run_by_a_test_or_said_not_to_be(page: Path, command: str) -> None:
    bare = without_variables(command)
    name = resolved(shlex.split(bare, comments=True)[1:])[0] if bare.startswith("animl-pipeline ") else bare
    by = [test for begin, test in RUN_BY.items() if name.startswith(begin)]
    if by:
        file, _, test = by[0].partition("::")
        assert f"def {test}" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{page.name} shows {command!r}; {by[0]} is not there"
    else:
        assert any(text.startswith(begin) for begin in NOT_RUN for text in (bare, command)), f"{page.name} shows {command!r}: no test runs it"


def test_the_site_builds_and_no_link_leads_nowhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {p.stem for p in (tmp_path / "site").glob("*.html")}
    assert {p.stem for p in (ROOT / "docs").glob("*.md")} <= pages
    fetched = [a for p in (tmp_path / "site").glob("*.html") for a in re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', p.read_text("utf-8"))]
    assert fetched == [], "the site fetches nothing from elsewhere"


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page.name} links to {target}"

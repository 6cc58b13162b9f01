"""The files for GitHub: workflows that run the project's own commands with few rights, issue templates, the citation."""

from __future__ import annotations

import tomllib
from typing import Any

import yaml

from tests.support.paths import ROOT


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_workflows_run_the_projects_own_commands_with_few_rights() -> None:
    commands = {}
    for name in ("check", "slow", "release"):
        workflow = read(f".github/workflows/{name}.yaml")
        assert workflow["permissions"] == {"contents": "read"}
        commands[name] = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
        assert not [run for run in commands[name] if "${{ github.event" in run or "${{ github.head" in run]  # text of strangers is no command
    assert ".ci/run" in commands["check"]
    assert "make test-slow" in commands["slow"]
    assert [run for run in commands["release"] if "make images IMAGES=" in run]
    assert read(".github/workflows/release.yaml")["jobs"]["images"]["strategy"]["matrix"]["image"] == ["endpoint", "pipeline"]


def test_issue_templates_are_forms_and_the_citation_names_this_version() -> None:
    for form in ("fault", "wish"):
        body = read(f".github/ISSUE_TEMPLATE/{form}.yaml")["body"]
        assert any(part.get("validations", {}).get("required") for part in body)
    citation = read("CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["title"], citation["version"], citation["license"]) == (project["name"], project["version"], project["license"])

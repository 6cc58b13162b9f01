"""The architecture: every package has its layer, imports point downwards, importing is cheap, modules have a readable size."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LAYERS: dict[str, int] = {
    "cli": 6,
    "flows": 5,
    "tasks": 4,
    "steps": 3,
    "deploy": 3,
    "reports_server": 3,
    "review": 3,
    "plan_init": 3,
    "inference": 2,
    "storage": 2,
    "integrations": 2,
    "dev": 2,
    "serve": 2,
    "core": 1,
    "config": 1,
}
"""Package → its layer. A package imports packages of its own layer or of a lower one; an unlisted package fails the test."""

ALLOWED_PACKAGES = {
    "prefect": {"flows", "tasks", "cli"},
    "prefect_dask": {"flows"},
    "prefect_ray": {"flows"},
    "torch": {"steps.training", "steps.detections", "steps.embeddings", "integrations.frozen_networks", "integrations.convert_weights"},
    "torchvision": {"steps.training", "steps.detections"},
    "timm": {"steps.training", "integrations.frozen_networks", "integrations.convert_weights"},
    "lightning": {"steps.training"},
    "ultralytics": {"steps.detections"},
    "yolox": {"steps.detections", "integrations.frozen_networks", "integrations.convert_weights"},
    "yolov5": {"steps.detections"},
    "onnxruntime": {"inference", "steps.detections"},
    "pycognito": {"integrations.animl"},
    "moto": {"dev.sagemaker_local"},
    "mlflow": {"integrations.mlflow"},
    "typer": {"cli"},
    "rich": {"cli"},
}
"""Library → the packages that may import it."""

ENVIRONMENT_READERS = {"animl_pipeline/config/settings.py", "animl_pipeline/cli/prefect_connection.py"}
"""Modules that may read or write the process environment, besides programs (__main__.py)."""


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """Every module of the product: dotted name without ``animl_pipeline.``, path, syntax tree."""
    for top in ("animl_pipeline", "tasks", "flows"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[1:] if top == "animl_pipeline" else parts).removesuffix("__init__").removesuffix(".")
            yield name, path, parsed(path)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module imports, at its top or inside its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{a.name}" for a in node.names)


def own(name: str) -> str | None:
    """The product module that an import names, without ``animl_pipeline.``; None for a library."""
    if name.startswith("animl_pipeline."):
        return name.removeprefix("animl_pipeline.")
    return name if name.split(".", maxsplit=1)[0] in {"flows", "tasks"} else None


def test_every_package_has_a_layer() -> None:
    assert {name.split(".")[0] for name, _, _ in modules() if name} == set(LAYERS)


def test_imports_point_downwards() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, _, tree in modules()
        for target in map(own, imported(tree))
        if name and target and LAYERS[target.split(".")[0]] > LAYERS[name.split(".")[0]]
    ]
    assert wrong == []


def test_no_step_imports_another_step() -> None:
    steps = [(name.split(".")[1], name, tree) for name, _, tree in modules() if name.startswith("steps.")]
    wrong = [
        f"{name} imports {target}"
        for step, name, tree in steps
        for target in map(own, imported(tree))
        if target and target.startswith("steps.") and target.split(".")[1] != step
    ]
    assert wrong == []


def test_config_imports_core_and_nothing_else_of_the_product() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, _, tree in modules()
        for target in map(own, imported(tree))
        if name.startswith("config") and target and target.split(".")[0] not in {"config", "core"}
    ]
    assert wrong == []


def test_flows_are_imported_by_the_command_line_only_and_lazily() -> None:
    at_top = [
        f"{name} imports {node.module}"
        for name, _, tree in modules()
        if not name.startswith("flows")
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flows"
    ]
    assert at_top == []


def test_libraries_are_imported_only_where_they_belong() -> None:
    wrong = [
        f"{name} imports {library}"
        for name, _, tree in modules()
        for library in imported(tree)
        if library.split(".")[0] in ALLOWED_PACKAGES
        and not any(f"{name}.".startswith(f"{package}.") for package in ALLOWED_PACKAGES[library.split(".")[0]])
    ]
    assert wrong == []


def test_only_settings_and_programs_use_the_environment() -> None:
    wrong = []
    for name, path, tree in modules():
        if str(path.relative_to(ROOT)) in ENVIRONMENT_READERS or path.name == "__main__.py":
            continue
        uses = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in {"environ", "getenv"} and ast.unparse(n.value) == "os"]
        for_children = [n for n in ast.walk(tree) if isinstance(n, ast.BinOp) and "os.environ" in ast.unparse(n)]
        if len(uses) > len(for_children):
            wrong.append(name)
    assert wrong == []


def loaded_after(statement: str) -> set[str]:
    """The top-level packages in memory after a statement, in a fresh process."""
    script = f"{statement}\nimport sys\nprint(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | {"ANIML_STORE": "/nonexistent"}
    )
    return set(done.stdout.split())


def test_importing_any_package_loads_no_heavy_library() -> None:
    packages = sorted({name for name, path, _ in modules() if path.name == "__init__.py" and name and name.split(".")[0] not in {"flows", "tasks"}})
    heavy = {"torch", "torchvision", "timm", "lightning", "ultralytics", "yolox", "prefect", "matplotlib", "moto", "mlflow"}
    assert loaded_after("; ".join(f"import animl_pipeline.{p}" for p in packages)) & heavy == set()


def test_the_endpoint_program_imports_few_libraries() -> None:
    heavy = {"torch", "prefect", "boto3", "botocore", "pandas", "pyarrow", "requests", "moto", "sklearn"}
    assert loaded_after("import animl_pipeline.serve.app") & heavy == set()


def test_a_release_never_loads_torch() -> None:
    assert loaded_after("import flows.release") & {"torch", "torchvision", "timm", "lightning", "ultralytics"} == set()


def test_no_module_is_longer_than_400_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for _, p, _ in modules() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert long == {}


def test_no_two_modules_of_the_library_share_a_name() -> None:
    """Except step.py and __main__.py. A command, a flow, its tasks and its section of the plan may share the name of their subject."""
    by_name: dict[str, list[str]] = {}
    for name, path, _ in modules():
        if name.split(".")[0] not in {"cli", "flows", "tasks", "config"}:
            by_name.setdefault(path.stem, []).append(name)
    shared = {stem: names for stem, names in by_name.items() if len(names) > 1 and stem not in {"__init__", "__main__", "step"}}
    assert shared == {}


def test_the_readme_names_every_package_and_no_other() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("```text\n", 1)[1].split("```", 1)[0]
    named = set(re.findall(r"^\s*([a-z_/]+)/ ", tree, flags=re.MULTILINE))
    folders = {str(p.parent.relative_to(ROOT)) for _, p, _ in modules() if p.name == "__init__.py"}
    packages = {f.removeprefix("animl_pipeline/") for f in folders if f.count("/") <= 2}
    assert packages - named == set(), "packages that the README does not name"
    others = {"deployments", "docker", "docs", "tests", "benchmarks"}
    assert named - packages - others == set(), "packages of the README that do not exist"


@pytest.mark.parametrize("word", ["find" + "-links", "index" + "-url", "TODO", "FIXME"])
def test_the_product_holds_no_registry_address_and_no_unfinished_work(word: str) -> None:
    kinds = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".Dockerfile", ".j2"}
    files = [p for p in ROOT.rglob("*") if p.suffix in kinds and not set(p.parts) & {".venv", "runs", ".git", "site"} and p != Path(__file__)]
    assert [str(p.relative_to(ROOT)) for p in files if word in p.read_text(encoding="utf-8")] == []

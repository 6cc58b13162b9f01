"""The house's rules: arrows go down, heavy packages stay in their rooms, importing does nothing, the README's tree is true."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

CELLAR = {
    "animl", "champions", "classifier", "corner", "decoding", "object_store", "errors", "geography", "memory", "pixels", "plan",
    "progress", "records", "remote", "reports", "scoring", "settings", "sources", "store", "turns", "weights",
}  # fmt: skip
STEPS = {"export", "images", "labels", "detections", "crops", "splits", "model", "calibration", "evaluation", "package", "endpoint"}
AT_HOME = {
    "prefect": {"flows", "tasks"},
    "torch": {"model", "detections"},
    "torchvision": {"model", "detections"},
    "timm": {"model"},
    "lightning": {"model"},
    "ultralytics": {"detections"},
    "yolox": {"detections"},
    "onnxruntime": {"classifier", "detections"},
    "megadetector": {"detections"},
    "yolov5": {"detections"},
    "boto3": {"detections", "object_store", "remote", "export", "images", "endpoint", "sagemaker_local", "weights", "flows", "animl", "training_job"},
    "pycognito": {"animl"},
    "moto": {"sagemaker_local"},
}


def code() -> Iterator[tuple[str, Path, ast.Module]]:
    """Every module of the product: its room (or flows, tasks), its path, its tree."""
    for top in ("animl_pipeline", "tasks", "flows"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            yield (parts[0] if top == "animl_pipeline" else top), path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            if node.module == "animl_pipeline":
                yield from (f"animl_pipeline.{a.name}" for a in node.names)


def test_arrows_go_down_and_no_step_imports_a_step() -> None:
    wrong = []
    for room, path, tree in code():
        for name in imported(tree):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            up = (room in CELLAR | STEPS and top in {"flows", "tasks"}) or (room == "tasks" and top == "flows")
            sideways = room in STEPS and top == "animl_pipeline" and target in STEPS - {room}
            climbing = room in CELLAR and top == "animl_pipeline" and target not in CELLAR and target != ""
            if up or sideways or climbing:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_heavy_packages_stay_in_their_rooms() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room, path, tree in code()
        for name in imported(tree)
        if name.split(".")[0] in AT_HOME and room not in AT_HOME[name.split(".")[0]]
    ]
    assert wrong == []


def test_only_settings_and_the_endpoint_programs_read_the_environment() -> None:
    wrong = []
    for room, path, tree in code():
        if room == "settings" or path.name == "__main__.py":
            continue
        reads = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in {"environ", "getenv"} and ast.unparse(n.value) == "os"]
        passes_on = [n for n in ast.walk(tree) if isinstance(n, ast.BinOp) and "os.environ" in ast.unparse(n)]  # a child's environment
        if len(reads) > len(passes_on):
            wrong.append(str(path.relative_to(ROOT)))
    assert wrong == []


def loaded_after(statement: str) -> set[str]:
    """The top-level packages in memory after a statement, in a fresh process."""
    script = f"{statement}\nimport sys\nprint(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | {"ANIML_STORE": "/nonexistent"}
    )
    return set(done.stdout.split())


def test_importing_every_room_loads_no_heavy_package() -> None:
    rooms = sorted({room for room, path, _ in code() if "animl_pipeline" in path.parts} - {"__init__"})
    heavy = {"torch", "torchvision", "timm", "lightning", "ultralytics", "yolox", "prefect", "matplotlib", "moto"}
    assert loaded_after("; ".join(f"import animl_pipeline.{r}" for r in rooms)) & heavy == set()


def test_the_endpoint_program_is_small() -> None:
    assert (
        loaded_after("import animl_pipeline.serve.app")
        & {"torch", "prefect", "boto3", "botocore", "pandas", "pyarrow", "requests", "moto", "sklearn"}
        == set()
    )


def test_a_release_never_loads_torch() -> None:
    assert loaded_after("import flows.release") & {"torch", "torchvision", "timm", "lightning", "ultralytics"} == set()


def test_no_module_is_longer_than_a_room() -> None:
    long = {str(p.relative_to(ROOT)): n for _, p, _ in code() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 380}
    assert long == {}


def test_the_readmes_tree_names_every_room_and_no_other() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("```text\n", 1)[1].split("```", 1)[0]
    named = set(re.findall(r"^\s+([a-z_]+)(?:\.py|/)", tree, flags=re.MULTILINE))
    there = {room for room, path, _ in code() if "animl_pipeline" in path.parts} - {"__init__"}
    there |= {p.stem for top in ("tasks", "flows") for p in (ROOT / top).iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    there -= {"__init__"}
    assert there - named == set(), "rooms that the README's tree does not name"
    assert named - there - {"plans"} == set(), "names in the README's tree that are not there"


@pytest.mark.parametrize("word", ["find" + "-links", "index" + "-url", "TODO", "FIXME"])
def test_the_product_speaks_of_itself_alone(word: str) -> None:
    """No registry's address, nothing left for later."""
    kinds = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".Dockerfile", ".j2"}
    files = [p for p in ROOT.rglob("*") if p.suffix in kinds and not set(p.parts) & {".venv", "runs", ".git", "site"} and p != Path(__file__)]
    assert [str(p.relative_to(ROOT)) for p in files if word in p.read_text(encoding="utf-8")] == []

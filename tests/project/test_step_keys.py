"""Which edits change a step's key, and so make a store's artifacts outdated: five that must, and five that must not.

Each edit is made on a copy of the package, and the keys are computed by the product in a fresh process.
``python -m tests.project.test_step_keys`` prints the table.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.support.paths import ROOT

COMPUTE_KEYS = """
import importlib.metadata, json, sys
from pathlib import Path

request = json.loads(sys.argv[1])
real_version = importlib.metadata.version
importlib.metadata.version = lambda name: request["versions"].get(name) or real_version(name)

import animl_pipeline
from animl_pipeline.config import load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.steps.crops.step import extract_crops
from animl_pipeline.steps.training.step import train_classifier
from animl_pipeline.storage.object_store import FolderObjectStore
from animl_pipeline.storage.store import Store

class KeyFoundError(Exception):
    pass

class KeyStore(Store):
    def _complete_manifest(self, step, key):
        raise KeyFoundError(key)

def artifact(step):
    return Artifact(step=step, key="0" * 64, digest=request["digests"].get(step, "1" * 64), counts=Counts(kept=1))

def key(make, *arguments):
    try:
        make(*arguments)
    except KeyFoundError as e:
        return str(e)

folder = Path(request["folder"])
assert Path(animl_pipeline.__file__).is_relative_to(folder), animl_pipeline.__file__
plan, settings = load_plan(folder / "plan.yaml"), Settings(store=str(folder / "store"), data=folder)
store = KeyStore(FolderObjectStore(folder / "store"), folder / "store")
print(json.dumps({
    "crops": key(extract_crops, artifact("labels"), artifact("detections"), plan.crops, plan.model_input, store, settings),
    "training": key(train_classifier, artifact("crops"), artifact("splits"), plan, store, settings),
}))
"""
PLAN = {
    "model": "isle",
    "sources": [{"name": "isle", "export": "export.json", "images": "images"}],
    "labels": {"classes": {"pig": ["pig"], "fox": ["fox"]}},
    "train": {"weights": "none"},
}
CROPS = "animl_pipeline/steps/crops"


class Copy(NamedTuple):
    """A copy of the package with a plan, and the arguments of the process that computes the keys."""

    folder: Path
    versions: dict[str, str]
    digests: dict[str, str]

    def edit(self, file: str, pattern: str, replacement: str) -> None:
        path = self.folder / file
        text, count = re.subn(pattern, replacement, path.read_text(encoding="utf-8"))
        assert count, f"{pattern} is not in {file}"
        path.write_text(text, encoding="utf-8")

    def set(self, section: str, key: str, value: object) -> None:
        path = self.folder / "plan.yaml"
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
        plan.setdefault(section, {})[key] = value
        path.write_text(yaml.safe_dump(plan), encoding="utf-8")

    def keys(self) -> dict[str, str]:
        request = {"folder": str(self.folder), "versions": self.versions, "digests": self.digests}
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        run = subprocess.run(
            [sys.executable, "-c", COMPUTE_KEYS, json.dumps(request)], check=True, capture_output=True, text=True, env=environment, cwd=self.folder
        )
        keys: dict[str, str] = json.loads(run.stdout)
        return keys


class Edit(NamedTuple):
    """An edit, the step whose key is compared, and whether it must change."""

    what: str
    step: str
    changes: bool
    apply: Callable[[Copy], object]


def bump(version: str, part: int) -> str:
    """A version with one of its parts raised."""
    numbers = [int(n) for n in re.findall(r"\d+", version)[:3]]
    numbers[part] += 1
    return ".".join(map(str, numbers))


def raise_library(copy: Copy, name: str, part: int) -> None:
    import importlib.metadata

    copy.versions[name] = bump(importlib.metadata.version(name), part)


def move_module(copy: Copy) -> None:
    (copy.folder / CROPS / "match_labels.py").rename(copy.folder / CROPS / "pairing.py")
    for path in (copy.folder / "animl_pipeline").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("steps.crops.match_labels", "steps.crops.pairing"), encoding="utf-8")


EDITS = (
    Edit("VERSION of the step raised", "crops", True, lambda c: c.edit(f"{CROPS}/step.py", r"version=(\d+)\b", "version=1\\1")),
    Edit("another value in the step's section of the plan", "crops", True, lambda c: c.set("crops", "min_pixels", 9)),
    Edit("an input with another digest", "crops", True, lambda c: c.digests.update(labels="2" * 64)),
    Edit("another minor version of Pillow", "crops", True, lambda c: raise_library(c, "pillow", 1)),
    Edit("another minor version of torch", "training", True, lambda c: raise_library(c, "torch", 1)),
    Edit("a function renamed", "crops", False, lambda c: c.edit(f"{CROPS}/step.py", r"\b_match\b", "_pair_with_labels")),
    Edit(
        "the message of an error reworded",
        "crops",
        False,
        lambda c: c.edit("animl_pipeline/core/decode_image.py", "the image does not decode", "broken image"),
    ),
    Edit("a module moved", "crops", False, move_module),
    Edit("another section of the plan changed", "crops", False, lambda c: c.set("splits", "val", 0.2)),
    Edit("a patch version of Pillow", "crops", False, lambda c: raise_library(c, "pillow", 2)),
)


def copy_package(folder: Path) -> Copy:
    shutil.copytree(ROOT / "animl_pipeline", folder / "animl_pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN), encoding="utf-8")
    return Copy(folder, {}, {})


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return copy_package(tmp_path_factory.mktemp("unchanged")).keys()


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.what)
def test_an_edit_changes_the_key_only_if_it_changes_the_artifact(edit: Edit, unchanged: dict[str, str], tmp_path: Path) -> None:
    copy = copy_package(tmp_path)
    edit.apply(copy)
    assert (copy.keys()[edit.step] != unchanged[edit.step]) is edit.changes


def print_table() -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = copy_package(Path(folder) / "unchanged").keys()
        sys.stdout.write(f"{'edit':48} {'step':9} {'key before':13} {'key after':13} changed\n")
        for number, edit in enumerate(EDITS):
            copy = copy_package(Path(folder) / str(number))
            edit.apply(copy)
            old, new = before[edit.step], copy.keys()[edit.step]
            wrong = "" if (old != new) is edit.changes else "  WRONG"
            sys.stdout.write(f"{edit.what:48} {edit.step:9} {old[:12]}  {new[:12]}  {'yes' if old != new else 'no'}{wrong}\n")


if __name__ == "__main__":
    print_table()

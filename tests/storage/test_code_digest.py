"""A room's code as a digest: it covers what the room imports, not comments, docstrings or the passive cellar."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import animl_pipeline

HERE = Path(animl_pipeline.__file__).parent


def digest(package: Path, room: str) -> str:
    """The digest as a fresh process sees a copy of the package."""
    script = f"from animl_pipeline.storage.code_digest import code_digest; print(code_digest({room!r}))"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=package.parent, env={"PYTHONPATH": "."}
    ).stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(HERE, tmp_path / "animl_pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "animl_pipeline"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_comments_docstrings_and_the_passive_cellar_do_not_count(copy: Path) -> None:
    before = digest(copy, "images")
    edit(copy / "images" / "step.py", '"""', '"""Another first sentence. ')
    (copy / "errors.py").write_text((copy / "errors.py").read_text(encoding="utf-8") + "\nMORE = 1\n", encoding="utf-8")
    assert digest(copy, "images") == before


def test_the_room_and_what_it_imports_count(copy: Path) -> None:
    before = digest(copy, "images")
    edit(copy / "pixels.py", "np.float32(255)", "np.float32(256)")
    after = digest(copy, "images")
    assert after != before
    edit(copy / "images" / "step.py", "from __future__ import annotations", "from __future__ import annotations\nMORE = 1")
    assert digest(copy, "images") != after


def test_a_packages_template_counts(copy: Path) -> None:
    before = digest(copy, "evaluation")
    edit(copy / "evaluation" / "report.html.j2", "<", "<!-- more --><")
    assert digest(copy, "evaluation") != before


def test_one_room_does_not_know_of_another() -> None:
    module = importlib.import_module("animl_pipeline.storage.code_digest")
    assert module.code_digest("labels") != module.code_digest("splits")

"""What a step does changes only with a decision about its version; and the digest that guards this ignores mere rewording."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.project.step_digests import COMMITTED, PACKAGE, PASSIVE, ROOT, Code, current, step_digests

STEP = '''
"""The step."""
import logging
from animl_pipeline.core.errors import CropsError
from animl_pipeline.core.tables import Column, Table
from animl_pipeline.config.crops import CropsConfig
from animl_pipeline.steps.crops import cut
from animl_pipeline.steps.crops.cut import Box

log = logging.getLogger(__name__)
STEP = Step("crops", version=1)
TABLE = Table("crops.parquet", "one crop", (Column("blob", "string", "its file"),))

def extract(labels, config: CropsConfig, store):
    """Extract crops."""
    def build(space):
        found = [b for b in labels if config.is_large(b)]
        if not found:
            raise CropsError(f"no crop of {len(labels)} labels")
        log.info("crops: %d", len(found))
        return _write([cut.extract(Box(b, size=config.size)) for b in found], TABLE)
    return store.make(STEP, build=build)

def _write(rows, table):
    return table, rows  # sorted

def preview(labels):
    return len(labels)
'''
CUT = """
MARGIN = 2

class Box(NamedTuple):
    value: int
    size: int = 1

    def area(self) -> int:
        return self.size * self.size

def extract(box):
    return box.area() + MARGIN
"""
CONFIG = """
class CropsConfig(Record):
    size: int = Field(default=8, ge=1, description="side")

    def is_large(self, box):
        return box > self.size
"""


def write_package(folder: Path, step: str = STEP, cut: str = CUT, config: str = CONFIG) -> Path:
    tables = "class Column(NamedTuple):\n    name: str\n\nclass Table(NamedTuple):\n    file: str\n"
    files = {"steps/crops/step.py": step, "steps/crops/cut.py": cut, "config/crops.py": config, "core/tables.py": tables, "core/errors.py": ""}
    for name, text in files.items():
        path = folder / "animl_pipeline" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


SAME = {
    "docstring": {"step": replaced(STEP, ("Extract crops.", "Cut out animals."))},
    "comment": {"step": replaced(STEP, ("# sorted", "# in order"))},
    "log line": {"step": replaced(STEP, ('"crops: %d", len(found)', '"%d crops of %s", len(found), labels'))},
    "message of an exception": {"step": replaced(STEP, ("no crop of {len(labels)} labels", "not one crop"))},
    "description of a table": {"step": replaced(STEP, ('"one crop"', '"a crop"'), ('"its file"', '"the file"'))},
    "description of a field": {"config": replaced(CONFIG, ('"side"', '"side in pixels"'))},
    "names of functions": {"step": replaced(STEP, ("_write", "_save"), ("extract(labels", "crop(labels"))},
    "name of a variable": {"step": replaced(STEP, ("found", "boxes"))},
    "name of a method": {"step": replaced(STEP, ("is_large", "is_big")), "config": replaced(CONFIG, ("is_large", "is_big"))},
    "name of a class": {"step": replaced(STEP, ("Box", "Rectangle")), "cut": replaced(CUT, ("Box", "Rectangle"))},
    "order of definitions": {
        "cut": "def extract(box):\n    return box.area() + MARGIN\n" + CUT.replace("def extract(box):\n    return box.area() + MARGIN\n", "")
    },
    "type hint": {"step": replaced(STEP, ("def _write(rows, table)", "def _write(rows: list[int], table: object) -> object"))},
    "code that the step does not use": {"step": replaced(STEP, ("return len(labels)", "return 2 * len(labels)"))},
    "version": {"step": replaced(STEP, ("version=1", "version=2"))},
}
OTHER = {
    "constant": {"cut": replaced(CUT, ("MARGIN = 2", "MARGIN = 3"))},
    "method of another module": {"cut": replaced(CUT, ("self.size * self.size", "self.size * self.value"))},
    "logic of the config": {"config": replaced(CONFIG, ("box > self.size", "box >= self.size"))},
    "default of the config": {"config": replaced(CONFIG, ("default=8", "default=9"))},
    "column of a table": {"step": replaced(STEP, ('"blob"', '"sha256"'))},
    "condition": {"step": replaced(STEP, ("if not found", "if found"))},
    "argument": {"step": replaced(STEP, ("size=config.size", "size=2"))},
}


@pytest.mark.parametrize("edit", SAME.values(), ids=SAME)
def test_rewording_and_renaming_keep_the_digest(edit: dict[str, str], tmp_path: Path) -> None:
    before = step_digests(write_package(tmp_path / "before"))
    assert step_digests(write_package(tmp_path / "after", **edit)) == before


def test_a_moved_definition_keeps_the_digest(tmp_path: Path) -> None:
    before = step_digests(write_package(tmp_path / "before"))
    step = STEP.replace("from animl_pipeline.steps.crops import cut\n", "from animl_pipeline.steps.crops import boxes\n")
    step = step.replace("crops.cut import Box", "crops.boxes import Box").replace("cut.extract", "boxes.extract")
    folder = write_package(tmp_path / "after", step=step)
    (folder / "animl_pipeline/steps/crops/cut.py").rename(folder / "animl_pipeline/steps/crops/boxes.py")
    assert step_digests(folder) == before


@pytest.mark.parametrize("edit", OTHER.values(), ids=OTHER)
def test_another_behaviour_changes_the_digest(edit: dict[str, str], tmp_path: Path) -> None:
    before = step_digests(write_package(tmp_path / "before"))
    assert step_digests(write_package(tmp_path / "after", **edit)) != before


@pytest.mark.parametrize("module", PASSIVE)
def test_every_module_that_does_not_count_exists(module: str) -> None:
    assert f"{PACKAGE}.{module}" in Code(ROOT).modules


def test_every_change_of_a_step_was_accepted() -> None:
    committed, found = json.loads(COMMITTED.read_text(encoding="utf-8")), current()
    changed = [name for name in found if committed.get(name) != found[name]] + [name for name in committed if name not in found]
    assert not changed, (
        f"the code of these steps changed: {', '.join(changed)}. If a step now makes something else from the same inputs, raise the version in its "
        "STEP, so that stores make it again. Then run `make accept-step-changes` and commit tests/project/step_digests.json."
    )

"""The command compare: other models' answers to the test images, scored as in production beside the plan's model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from animl_pipeline.cli.compare_other_models import ModelsCompared, compare_models
from animl_pipeline.config import Plan, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.errors import PipelineError
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.deploy.trained_versions import save_report
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.steps.test_production_score import CLASSES, run_steps
from tests.support.command_line import run_command
from tests.support.packaged_model import make_package, make_report

RED, GREEN, OTHER = "1;mammalia;rodentia;muridae;rattus;rattus;black rat", "2;mammalia;carnivora;canidae;vulpes;vulpes;red fox", "deer"
CATEGORIES = {"0": "black rat", "1": "red fox", "2": OTHER, "3": "blank"}
DESCRIPTIONS = {"0": RED, "1": GREEN}


class Project(NamedTuple):
    """A plan, the report of its model, and the detector's boxes in the test images as a results file."""

    plan: Plan
    report: Report
    boxes: dict[str, Any]


@pytest.fixture
def project(tmp_path: Path, store: Store, settings: Settings) -> Project:
    """The nine test images of the score's own tests: red is a rat, green a fox."""
    steps = run_steps(tmp_path, store, settings)
    package = make_package(store, tmp_path, thresholds=dict.fromkeys(CLASSES, 0.7))
    named = {"test_images": steps.images, "test_detections": steps.detections}

    def build(space: Workspace) -> StepOutput:
        (space.out / "metrics.json").write_text("{}")
        return StepOutput(Counts(kept=1))

    evaluation = store.make(Step("evaluation", version=1), inputs=named, build=build)
    report = make_report(package, store, evaluation=evaluation)
    save_report(report, store)
    table = tmp_path / "lila.csv"
    table.write_text("dataset_name,query,kingdom,class,order,family,genus,species\nx,vole,animalia,mammalia,rodentia,cricetidae,microtus,\n")
    classes = {"red": {"from": ["red"], "taxa": [{"level": "genus", "name": "rattus"}]}, "green": ["green", "red fox"], "blue": ["blue"]}
    data = {
        "model": "colours",
        "sources": [{"name": "isle", "export": str(tmp_path / "export.json"), "images": str(tmp_path / "images")}],
        "labels": {"classes": classes, "taxonomy": {"table": str(table)}},
        "production": {"detector_confidence": 0.1},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(data))
    return Project(check_plan(data), report, json.loads((tmp_path / "boxes.json").read_text()))


def classified(project: Project, folder: Path, answers: dict[int, tuple[str, float]], name: str = "speciesnet.json", **changes: Any) -> Path:
    """A results file of the test images' boxes; ``answers`` gives the class of the box in the n-th image."""
    images = [dict(image) for image in project.boxes["images"]]
    for i, (category, confidence) in answers.items():
        box = {"category": "1", "conf": 0.3, "bbox": [0.25, 0.25, 0.5, 0.5], "classifications": [[category, confidence]]}
        images[i] = images[i] | {"detections": [box]}
    content = project.boxes | {"images": images, "classification_categories": CATEGORIES} | changes
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def run(project: Project, files: list[Path], store: Store, settings: Settings, confidence: float = 0.5) -> ModelsCompared:
    return compare_models(project.plan, project.report, files, confidence, store, settings)


def scores_of(compared: ModelsCompared, model: int) -> dict[str, tuple[float, float, float]]:
    """Class → sequences, found, false alarms."""
    return {c.id: (c.sequences, c.hits, c.false_alarms()) for c in compared.scores[model].classes}


def test_another_model_is_scored_by_the_same_rules_with_its_names_mapped_by_the_plan(
    project: Project, tmp_path: Path, store: Store, settings: Settings
) -> None:
    answers = {0: ("0", 0.9), 2: ("0", 0.8), 3: ("0", 0.4), 4: ("2", 0.9), 6: ("0", 0.9), 8: ("1", 0.6), 9: ("3", 0.9)}
    file = classified(project, tmp_path, answers, classification_category_descriptions=DESCRIPTIONS)
    compared = run(project, [file], store, settings)
    assert scores_of(compared, 0) == {"red": (5, 2, 0), "green": (0, 0, 3), "blue": (0, 0, 0)}
    assert scores_of(compared, 1) == {"red": (5, 3, 0), "green": (0, 0, 1), "blue": (0, 0, 0)}
    assert compared.files[0].unmapped == {"deer": 1}
    assert (len(compared.files[0].results.images), compared.files[0].results.not_in_test_set) == (9, 3)
    assert scores_of(run(project, [file], store, settings, confidence=0.3), 1)["red"] == (5, 4, 0)


def test_models_are_compared_on_the_images_that_all_files_answer(project: Project, tmp_path: Path, store: Store, settings: Settings) -> None:
    whole = classified(project, tmp_path, {0: ("0", 0.9)}, classification_category_descriptions=DESCRIPTIONS)
    images = [*project.boxes["images"][:2], {"file": project.boxes["images"][2]["file"], "failure": "broken"}]
    box = {"category": "1", "conf": 0.3, "bbox": [0.25, 0.25, 0.5, 0.5], "classifications": [["1", 0.9]]}
    images[0] = images[0] | {"detections": [box]}
    part = tmp_path / "part.json"
    part.write_text(json.dumps(project.boxes | {"images": images, "classification_categories": CATEGORIES}))
    compared = run(project, [whole, part], store, settings)
    assert [score.images for score in compared.scores] == [2, 2, 2]
    assert [scores_of(compared, i)["red"] for i in range(3)] == [(1, 1, 0), (1, 1, 0), (1, 0, 0)]
    assert scores_of(compared, 2)["green"] == (0, 0, 1)
    assert compared.files[1].results.dropped == {"failed_in_results": 1, "not_in_results": 6}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("[]", "wrong_format"),
        ('{"predictions": []}', "wrong_format"),
        ('{"images": [], "detection_categories": {"1": "animal"}}', "no_classes"),
        (None, "file_missing"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    project: Project, tmp_path: Path, store: Store, settings: Settings, content: str | None, code: str
) -> None:
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(PipelineError) as caught:
        run(project, [file], store, settings)
    assert caught.value.code == code
    assert str(file) in str(caught.value)


def test_a_file_of_other_images_and_an_unknown_class_are_refused(project: Project, tmp_path: Path, store: Store, settings: Settings) -> None:
    box = {"category": "1", "conf": 0.9, "bbox": [0, 0, 1, 1], "classifications": [["0", 0.9]]}
    other = tmp_path / "other.json"
    content = project.boxes | {"classification_categories": CATEGORIES, "images": [{"file": "elsewhere/1.jpg", "detections": [box]}]}
    other.write_text(json.dumps(content))
    for file, code in ((other, "other_images"), (classified(project, tmp_path, {0: ("7", 0.9)}), "wrong_format")):
        with pytest.raises(PipelineError) as caught:
            run(project, [file], store, settings)
        assert caught.value.code == code


def test_a_report_without_a_score_of_production_is_refused(project: Project, tmp_path: Path, store: Store, settings: Settings) -> None:
    file = classified(project, tmp_path, {0: ("0", 0.9)})
    without = project._replace(report=project.report.model_copy(update={"evaluation": project.report.package}))
    for wrong in (without, project._replace(plan=project.plan.model_copy(update={"production": None}))):
        with pytest.raises(PipelineError) as caught:
            run(wrong, [file], store, settings)
        assert caught.value.code == "no_production"


def test_the_command_prints_a_table_of_80_columns_or_json(project: Project, tmp_path: Path, store: Store) -> None:
    file = classified(project, tmp_path, {0: ("0", 0.9), 4: ("2", 0.9)}, classification_category_descriptions=DESCRIPTIONS)
    command = ("compare", tmp_path / "plan.yaml", file, "--store", str(store.object_store))
    done = run_command(*command, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("\n\n")[0].splitlines()[:8]
    assert all(len(line) <= 80 for line in table)
    assert "deer 1" in done.stdout
    found = json.loads(run_command(*command, "--json").stdout)
    assert [model["name"] for model in found["models"]] == ["colours", "speciesnet"]
    assert found["files"][0]["names_without_a_class"] == {"deer": 1}

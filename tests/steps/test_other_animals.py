"""The class for animals of no class of the plan: from labels that the plan does not name to report, registration and endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from animl_pipeline.config import LabelsConfig, Plan, SourceConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import LABELS
from animl_pipeline.deploy.animl_registration import category_config
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.steps.calibration import calibrate_classifier
from animl_pipeline.steps.evaluation import production_score, read_metrics
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.labels import SourceArtifacts, resolve_labels, wanted_labels, wanted_samples
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.steps.test_production_score import GREEN, RED, Scene, run_steps
from tests.support.coco_export import Export
from tests.support.colour_models import CropSpec, ReportPage, colour_model, make_data_steps, plan_of, read_report, run_evaluation_steps

CLASSES = ("red", "green")
BLUE = (5, 5, 250)
NAMES = ("empty", *CLASSES, "cow", "horse", "mammal", "unknown", "person")


def labels_of(**other: Any) -> LabelsConfig:
    return LabelsConfig.model_validate({"classes": {c: [c] for c in CLASSES}, "other_animal": {"exclude": ["mammal"], **other}, "nothing": {}})


def test_reviewed_animals_outside_the_plan_become_the_class_spread_over_names_and_locations(tmp_path: Path, store: Store, settings: Settings) -> None:
    export = Export()
    export.categories = [{"id": i, "name": n} for i, n in enumerate(NAMES)]

    def add(label: str, location: str, number: int = 1, **annotation: Any) -> list[str]:
        images = [export.image(location) for _ in range(number)]
        for image in images:
            export.annotation(image, NAMES.index(label), [1, 1, 8, 8], **annotation)
        return images

    for location in ("cove", "hill"):
        for label in CLASSES:
            add(label, location, 2)
    cows, horses = [*add("cow", "cove", 5), *add("cow", "hill")], add("horse", "hill")
    for label in ("mammal", "unknown", "person", "empty"):
        add(label, "cove")
    add("horse", "cove", validated=False)
    export.write(tmp_path)
    source = SourceConfig(name="isle", export=str(tmp_path / "export.json"), images=str(tmp_path / "images"))

    def run(config: LabelsConfig) -> tuple[dict[str, int], set[str], set[str]]:
        """What the step images notes, the images of other animals, and the names outside of the plan."""
        exported = export_annotations(source, store, settings)
        samples = wanted_samples(config, "isle", settings)
        images = download_images(source, exported, wanted_labels(config, "isle", settings), store, settings, samples=samples)
        labels = resolve_labels([SourceArtifacts(source, exported, images)], config, store, settings)
        table = store.table(labels, LABELS)
        outside = {note.removeprefix("unlisted_label: ") for note in labels.counts.notes if note.startswith("unlisted_label")}
        return images.counts.notes, set(table.loc[table["class_id"] == "other_animal", "image_id"]), outside

    notes, chosen, outside = run(labels_of(max_per_location=2))
    assert notes["images_of_other_animals"] == len(chosen) == 4
    assert (len(chosen & set(cows)), chosen & set(horses)) == (3, set(horses))
    assert {"cow", "horse", "mammal"} <= outside, "a new species is named although it became a class"
    notes, chosen, _ = run(labels_of(max_images=3))
    assert len(chosen) == 3
    assert set(horses) < chosen


SPECS = [
    CropSpec(name, colour, f"island/{split}{i % 2}", split)
    for split in ("train", "val", "test")
    for name, colour in (("red", (250, 5, 5)), ("green", (5, 250, 5)), ("other_animal", BLUE))
    for i in range(4)
] + [CropSpec("red", BLUE, "island/test0"), CropSpec("other_animal", (250, 5, 5), "island/test1")]


def plan_with_others(*, register: bool) -> Plan:
    labels = {"classes": {c: [c] for c in CLASSES}, "other_animal": {"register": register}}
    changes = {"labels": labels, "gate": {"min_examples": 5, "min_locations": 1}, "thresholds": {"invasive": ["red"]}, "release": {"register": {}}}
    return check_plan(json.loads(plan_of(CLASSES).model_dump_json(by_alias=True)) | changes)


def write_model(folder: Path, **card: Any) -> Path:
    colour_model(folder, (*CLASSES, "other_animal"))
    changed = json.loads((folder / "card.json").read_bytes()) | {"other_animal": "other_animal"} | card
    (folder / "card.json").write_text(ModelCard.model_validate(changed).model_dump_json())
    return folder


def make_model(store: Store) -> Any:
    def build(space: Workspace) -> StepOutput:
        write_model(space.out)
        return StepOutput(Counts(kept=1))

    return store.make(Step("training", version=3), build=build)


def test_no_score_counts_it_and_the_report_shows_what_other_animals_are_called(store: Store) -> None:
    plan = plan_with_others(register=False)
    done = run_evaluation_steps(store, make_model(store), make_data_steps(store, SPECS, plan, plan.labels.class_ids()), plan)
    metrics = read_metrics(done.evaluation, store)
    assert metrics.confusion == ((4, 0, 1), (0, 4, 0))
    assert (metrics.examples, [c.id for c in metrics.classes]) == (9, list(CLASSES))
    others = metrics.other_animal
    assert others is not None
    assert (others.examples, others.recognised, others.animals, others.called) == (5, 4, 1, {"red": 1})
    assert metrics.thresholds[0].test is not None
    assert metrics.thresholds[0].test.precision == 4 / 5, "an other animal that is called red is a false alarm"
    assert metrics.verdict == "need_more_data", "for green; five examples of other animals are not asked for"
    assert "other_animal" not in metrics.reasons[0]
    page = ReportPage(read_report(done.evaluation, store)).text
    assert "red (1)" in page
    assert json.loads(store.path(done.calibrated, "category_config.json").read_text())["other_animal"] == {"confThreshold": 1.0, "disabled": True}


@pytest.mark.parametrize("register", [False, True])
def test_it_is_registered_as_the_plan_says(store: Store, tmp_path: Path, *, register: bool) -> None:
    plan = plan_with_others(register=register)
    steps = make_data_steps(store, SPECS, plan, plan.labels.class_ids())
    calibrated = calibrate_classifier(make_model(store), steps.crops, steps.splits, plan.thresholds, store, register_other_animal=register)
    card = ModelCard.model_validate_json(store.path(calibrated, "card.json").read_bytes())
    assert category_config(card, plan)["other_animal"]["disabled"] is not register
    assert ("other_animal" in card.thresholds) is register
    classifier = Classifier.load(write_model(tmp_path, thresholds=card.thresholds))
    answer = classifier.classify_crop(Image.new("RGB", (32, 32), BLUE))
    assert ("other_animal" in answer) is register


def test_in_production_it_keeps_other_animals_from_being_called_a_class_of_the_plan(tmp_path: Path, store: Store, settings: Settings) -> None:
    scenes = (Scene("cove", 0, "red", True, RED, True), Scene("hill", 0, "green", True, GREEN, True), Scene("hill", 200, "empty", False, BLUE, True))
    steps = run_steps(tmp_path, store, settings, scenes)
    classifier = Classifier.load(write_model(tmp_path / "model", thresholds={"red": 0.4, "green": 0.4, "other_animal": 0.4}))
    data = production_score.read_sequences(steps.images, steps.detections, store)
    score = production_score.score_classifier(data, classifier, {}, 0.1, store, classifier.card.model_input, "boxes")
    assert [c.id for c in score.classes] == list(CLASSES)
    assert [(c.recall, c.precision) for c in score.classes] == [(1, 1), (1, 1)]
    assert score.false_alarms_per_1000_empty == 0

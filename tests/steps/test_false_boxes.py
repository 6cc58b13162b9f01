"""The class for false boxes: which empty images give its crops, and that it counts as an animal nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from animl_pipeline.config import CropsConfig, DetectionsConfig, LabelsConfig, Plan, ProductionConfig, SourceConfig, SplitsConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import PlanError
from animl_pipeline.core.evaluation_results import FalseBoxScores, Metrics, ProductionChange, ProductionComparison, ProductionScore
from animl_pipeline.core.model_card import ModelCard, ModelInput
from animl_pipeline.core.sample_limit_and_false_box_types import FalseBoxClass, spread_over_locations
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, DETECTIONS, LABELS
from animl_pipeline.deploy.animl_registration import category_config, ml_model_document
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.steps.crops import extract_crops
from animl_pipeline.steps.detections import detect_animals
from animl_pipeline.steps.evaluation import production_score, read_metrics
from animl_pipeline.steps.evaluation.gate import decide_verdict
from animl_pipeline.steps.evaluation.report_wording import describe_nothing
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.labels import SourceArtifacts, resolve_labels, wanted_labels, wanted_samples
from animl_pipeline.steps.splits import split_by_location
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.store import StepOutput, Store, Workspace, open_store
from tests.conftest import colour_model, jpeg
from tests.steps.test_production_score import GREEN, RED, Scene, run_steps
from tests.support.coco_export import Export
from tests.support.colour_models import CropSpec, EvaluatedModel, ReportPage, make_data_steps, plan_of, read_report, run_evaluation_steps
from tests.support.training_crops import crops_and_splits, plan_with, settings_at

BLUE = (20, 20, 230)
BOX = [16.0, 12.0, 32.0, 24.0]
FOUND = {"category": "1", "bbox": [0.25, 0.25, 0.5, 0.5]}
ANIMALS = ("red", "green")
LABELS_CONFIG = LabelsConfig.model_validate({"classes": {c: [c] for c in ANIMALS}, "nothing": {"max_images": 5, "max_per_location": 2}})
FALSE_BOXES = FalseBoxClass("nothing", 0.1)


# -- from empty images to crops ----------------------------------------------------------------------------------------


class Project:
    """An export, its images, and a results file with the detector's boxes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.export, self.results = folder, Export(), list[dict[str, Any]]()
        self.export.categories = [{"id": i, "name": n} for i, n in enumerate(("empty", *ANIMALS))]

    def add(self, location: str, label: str, *confidences: float, box: bool = False, data: bytes | None = None, **annotation: Any) -> str:
        """An image with one label, and the boxes that the detector finds in it."""
        image = self.export.image(location, data=data)
        self.export.annotation(image, ["empty", *ANIMALS].index(label), BOX if box else None, **annotation)
        self.results.append({"file": self.export.images[-1]["file_name"], "detections": [FOUND | {"conf": c} for c in confidences]})
        return image

    def run(self, store: Store, settings: Settings, labels: LabelsConfig = LABELS_CONFIG) -> Steps:
        """The steps from export to splits."""
        self.export.write(self.folder)
        info = {"format_version": "1.4", "detector": "planted"}
        results = {"images": self.results, "detection_categories": {"1": "animal"}, "info": info}
        (self.folder / "boxes.json").write_text(json.dumps(results))
        source = SourceConfig(name="isle", export=str(self.folder / "export.json"), images=str(self.folder / "images"))
        export = export_annotations(source, store, settings)
        wanted, samples = wanted_labels(labels, "isle", settings), wanted_samples(labels, "isle", settings)
        images = download_images(source, export, wanted, store, settings, samples=samples)
        resolved = resolve_labels([SourceArtifacts(source, export, images)], labels, store, settings)
        config = DetectionsConfig(source="results", results=str(self.folder / "boxes.json"), confidence=0.2)
        detections = detect_animals(resolved, config, store, settings, false_boxes=FALSE_BOXES if labels.nothing else None)
        crops = extract_crops(resolved, detections, CropsConfig(min_pixels=1), ModelInput(size=32), store, settings, labels.nothing_id)
        splits = split_by_location(crops, SplitsConfig(max_rounds=2), labels.class_ids(), store, "isle")
        return Steps(images, resolved, detections, crops, splits)


class Steps(NamedTuple):
    images: Artifact
    labels: Artifact
    detections: Artifact
    crops: Artifact
    splits: Artifact


def project_with_animals(folder: Path) -> Project:
    """A project with red and green animals at three locations."""
    project = Project(folder)
    for location in ("cove", "hill", "barn"):
        for label in ANIMALS:
            project.add(location, label, 0.9, box=True)
    return project


def empty_images(steps: Steps, store: Store) -> set[str]:
    table = store.table(steps.labels, LABELS)
    return set(table.loc[table["class_id"] == "nothing", "image_id"])


def test_reviewed_empty_images_are_spread_over_locations_within_the_plans_limits(tmp_path: Path, store: Store, settings: Settings) -> None:
    project = project_with_animals(tmp_path)
    of = {name: [project.add(name, "empty", 0.5) for _ in range(n)] for name, n in (("cove", 6), ("hill", 1), ("barn", 4), ("cliff", 1))}
    steps = project.run(store, settings)
    chosen = empty_images(steps, store)
    assert sorted(len(chosen & set(images)) for images in of.values()) == [1, 1, 1, 2]
    assert steps.images.counts.notes["empty_images"] == steps.labels.counts.notes["nothing"] == 5
    assert steps.images.counts.kept == 6 + 5
    assert steps.splits.counts.kept == steps.crops.counts.kept == 6 + 5


def test_images_with_any_other_label_and_unreviewed_ones_give_no_false_box(tmp_path: Path, store: Store, settings: Settings) -> None:
    project = project_with_animals(tmp_path)
    good = project.add("cove", "empty", 0.5)
    project.add("cove", "empty", 0.5, validated=False)
    with_animal = project.add("hill", "empty", 0.5)
    project.export.annotation(with_animal, 1)
    same = jpeg(seed=77)
    project.add("barn", "empty", 0.5, data=same)
    project.export.images[-1]["id"] = project.export.annotations[-1]["image_id"] = "isle:copy"
    project.export.images[-1]["file_name"] = project.results[-1]["file"] = "copies/empty.jpg"
    project.export.files["copies/empty.jpg"] = same
    project.add("barn", "red", 0.5, data=same)  # the same picture, in which a person saw an animal
    steps = project.run(store, settings)
    assert empty_images(steps, store) == {good}
    crops = store.table(steps.crops, CROPS)
    assert list(crops.loc[crops["class_id"] == "nothing", "image_id"]) == [good]
    assert (crops["class_id"] == "red").sum() == 5  # no animal is lost to a contradiction


def test_every_box_of_an_empty_image_counts_from_the_confidence_of_production(tmp_path: Path, store: Store, settings: Settings) -> None:
    project = project_with_animals(tmp_path)
    project.results[0]["detections"].append(FOUND | {"conf": 0.15, "bbox": [0, 0, 0.2, 0.2]})
    several = project.add("cove", "empty", 0.05)
    project.results[-1]["detections"] += [FOUND | {"conf": 0.12, "bbox": [0.1 * i, 0, 0.1, 0.2]} for i in range(7)]
    nothing_found = project.add("hill", "empty")
    steps = project.run(store, settings)
    boxes, crops = store.table(steps.detections, DETECTIONS), store.table(steps.crops, CROPS)
    assert (boxes["image_id"] == several).sum() == 7
    assert (boxes["confidence"] < 0.2).sum() == 7  # none in images of animals
    assert (crops["class_id"] == "nothing").sum() == 7
    assert steps.crops.counts.dropped == {"no_false_box": 1}
    assert steps.detections.counts.notes["empty_images_without_box"] == 1
    assert nothing_found not in set(crops["image_id"])


def test_a_full_frame_box_that_people_called_empty_is_no_animal(tmp_path: Path, store: Store, settings: Settings) -> None:
    project = project_with_animals(tmp_path)
    image = project.add("cove", "empty", 0.5, box=True)  # in Animl the box of an object that people called empty
    boxes = store.table(project.run(store, settings).detections, DETECTIONS)
    assert list(boxes.loc[boxes["image_id"] == image, "origin"]) == ["detector"]


def test_a_results_file_without_the_empty_images_does_not_stop_the_plan(tmp_path: Path, store: Store, settings: Settings) -> None:
    project = project_with_animals(tmp_path)
    project.add("cove", "red", 0.9)
    project.add("cove", "empty", 0.9)
    project.results.pop()
    steps = project.run(store, settings)
    assert steps.crops.counts.dropped == {"not_in_results": 1}
    assert steps.splits.counts.kept == 7


def test_without_the_section_no_key_changes_and_no_empty_image_is_used(tmp_path: Path, store: Store, settings: Settings) -> None:
    project = project_with_animals(tmp_path)
    project.add("cove", "empty", 0.5)
    labels = LabelsConfig.model_validate({"classes": {c: [c] for c in ANIMALS}})
    assert "nothing" not in labels.model_dump() | json.loads(labels.model_dump_json())
    assert LabelsConfig.model_validate(labels.model_dump(by_alias=True) | {"nothing": None}) == labels
    without = project.run(store, settings, labels)
    assert (without.images.counts.kept, without.crops.counts.kept) == (6, 6)
    assert project.run(store, settings).labels.key != without.labels.key


@pytest.mark.parametrize(("limit", "per_location", "expected"), [(100, 2, 5), (3, 2, 3), (100, 100, 9), (1, 1, 1)])
def test_locations_take_turns(limit: int, per_location: int, expected: int) -> None:
    locations = ["a"] * 5 + ["b"] * 3 + ["c"] + [""]
    taken = spread_over_locations([f"i{n}" for n in range(10)], locations, limit, per_location)
    counts = [int(taken[np.array(locations) == name].sum()) for name in "abc"]
    assert (sum(counts), taken[-1]) == (expected, False)
    assert max(counts) - min(counts) <= max(1, per_location - 1)
    assert (min(counts) == 1) == (limit >= 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"classes": {"red": ["red"], "nothing": ["n"]}, "nothing": {}}},
        {"labels": {"classes": {"red": ["red"], "green": ["green"]}, "nothing": {"id": "1"}}},
        {"labels": {"classes": {"red": ["red"], "green": ["green"]}, "nothing": {}}, "detections": {"source": "annotations"}},
        {"labels": {"classes": {"red": ["red"], "green": ["green"]}, "nothing": {}}, "thresholds": {"invasive": ["nothing"]}},
        {"labels": {"classes": {"red": ["red"], "green": ["green"]}, "nothing": {}}, "release": {"register": {"thresholds": {"nothing": 0.5}}}},
    ],
    ids=["name_of_a_class", "a_number", "no_detector", "invasive", "threshold"],
)
def test_a_plan_that_treats_it_as_an_animal_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        check_plan({"model": "isle", "sources": [{"name": "isle", "export": "e.json", "images": "images"}]} | changes)


# -- the model with the class --------------------------------------------------------------------------------------------


def plan_with_nothing() -> Plan:
    plan = plan_of(ANIMALS)
    labels = plan.labels.model_dump(by_alias=True) | {"nothing": {}}
    gate, thresholds = {"min_examples": 1, "min_locations": 1}, {"invasive": ["red"]}
    return check_plan(json.loads(plan.model_dump_json(by_alias=True)) | {"labels": labels, "gate": gate, "thresholds": thresholds})


def model_with_nothing(folder: Path, **card: Any) -> Path:
    """A model that calls red and green boxes animals, and blue ones false."""
    colour_model(folder, (*ANIMALS, "nothing"))
    changed = json.loads((folder / "card.json").read_bytes()) | {"nothing": "nothing"} | card
    (folder / "card.json").write_text(ModelCard.model_validate(changed).model_dump_json())
    return folder


SPECS = [
    CropSpec(name, colour, f"island/{split}{i % 2}", split)
    for split in ("train", "val", "test")
    for name, colour in (("red", (250, 5, 5)), ("green", (5, 250, 5)), ("nothing", (5, 5, 250)))
    for i in range(4)
] + [CropSpec("red", (5, 5, 250), "island/test0"), CropSpec("nothing", (250, 5, 5), "island/test1")]
"""Crops that the model names rightly; then an animal that looks like a false box, and a false box that looks like an animal."""


class Evaluated(NamedTuple):
    """The steps calibration, evaluation and package of a model with the class."""

    steps: EvaluatedModel
    store: Store

    def read(self, step: str, file: str) -> Any:
        """A JSON file of one of the steps."""
        return json.loads(self.store.path(getattr(self.steps, step), file).read_bytes())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    store, plan = open_store(Settings(store=str(tmp_path_factory.mktemp("evaluated") / "store"))), plan_with_nothing()
    steps = make_data_steps(store, SPECS, plan, plan.labels.class_ids())

    def build(space: Workspace) -> StepOutput:
        model_with_nothing(space.out)
        return StepOutput(Counts(kept=1))

    return Evaluated(run_evaluation_steps(store, store.make(Step("training", version=2), build=build), steps, plan), store)


def test_it_has_no_threshold_and_is_disabled_in_animl(evaluated: Evaluated) -> None:
    card = ModelCard.model_validate(evaluated.read("package", "card.json"))
    assert (card.nothing, set(card.thresholds)) == ("nothing", set(ANIMALS))
    plan = check_plan(json.loads(plan_with_nothing().model_dump_json(by_alias=True)) | {"release": {"register": {}}})
    never = {"confThreshold": 1.0, "disabled": True}
    assert category_config(card, plan)["nothing"] == never
    assert evaluated.read("calibrated", "category_config.json")["nothing"] == never
    assert [c["_id"] for c in ml_model_document(card, plan)["categories"]] == ["red", "green", "nothing"]


def test_no_score_counts_it_as_an_animal(evaluated: Evaluated) -> None:
    metrics = read_metrics(evaluated.steps.evaluation, evaluated.store)
    assert [c.id for c in metrics.classes] == list(ANIMALS)
    assert metrics.confusion == ((4, 0, 1), (0, 4, 0))
    assert (metrics.examples, metrics.accuracy) == (9, 8 / 9)
    assert metrics.macro_f1 == pytest.approx((8 / 9 + 1) / 2)  # the false box that is called red is no example
    assert metrics.nothing is not None
    assert (metrics.nothing.examples, metrics.nothing.recognised, metrics.nothing.animals) == (5, 4, 1)
    assert [t.id for t in metrics.thresholds] == list(ANIMALS)
    red = metrics.thresholds[0].test
    assert red is not None
    assert red.precision == 4 / 5  # at the threshold, the false box is a false alarm
    assert metrics.verdict == decide_verdict(metrics, plan_with_nothing().gate, ("red",))[0] == "promote"


def test_the_endpoint_and_the_reference_predictions_do_not_answer_it(evaluated: Evaluated, tmp_path: Path) -> None:
    answers = [p["probabilities"] for p in evaluated.read("package", "reference_predictions.json")]
    assert {tuple(a) for a in answers} == {ANIMALS}
    classifier = Classifier.load(model_with_nothing(tmp_path))
    answer = classifier.classify_crop(Image.new("RGB", (32, 32), BLUE))
    assert set(answer) == set(ANIMALS)
    assert sum(answer.values()) < 0.1


def test_the_report_says_what_it_does(evaluated: Evaluated) -> None:
    page = ReportPage(read_report(evaluated.steps.evaluation, evaluated.store)).text
    assert "The class for false boxes" in page
    assert "Of 5 false boxes in the test set, 4 are recognised; of 9 animals, 1 is taken for one." in page


SCENES = (
    Scene("cove", 0, "red", True, RED, True),
    Scene("cove", 100, "red", True, (90, 90, 110), True),  # an animal that hardly looks like one
    Scene("hill", 0, "green", True, GREEN, True),
    Scene("hill", 200, "empty", False, (60, 100, 140), True),  # a false box that looks a little green
    Scene("hill", 300, "empty", False, BLUE, True),
    Scene("hill", 400, "empty", False, GREEN, True),
)


def test_what_it_saves_and_costs_is_measured_against_the_same_model_without_it(tmp_path: Path, store: Store, settings: Settings) -> None:
    steps = run_steps(tmp_path, store, settings, SCENES)
    classifier = Classifier.load(model_with_nothing(tmp_path / "model", thresholds={"red": 0.4, "green": 0.5}))
    data = production_score.read_sequences(steps.images, steps.detections, store)
    probability = production_score.score_boxes(data, classifier, store, classifier.card.model_input, "boxes")
    without = production_score.without_nothing(probability, classifier.card)
    assert without.sum(axis=1) == pytest.approx(1)
    labels = [production_score.label_by_thresholds(data, p, classifier.card) for p in (without, probability)]
    assert labels[1].likeliest.min() == -1
    both = tuple(production_score.find_outcomes_of(data, found, ANIMALS, {}) for found in labels)
    effect = production_score.compare_production(data, (both[0], both[1]), (ANIMALS, ANIMALS))
    assert effect.false_alarms_per_1000_empty == pytest.approx((1000, 1000 / 3))
    assert {c.id: c.recall for c in effect.classes} == {"red": (1.0, 0.5), "green": (1.0, 1.0)}


def test_a_plan_records_at_which_confidence_boxes_on_empty_images_count() -> None:
    plan = plan_with_nothing()
    assert plan.false_box_class() == FalseBoxClass("nothing", ProductionConfig().detector_confidence)
    assert plan.model_copy(update={"production": None}).false_box_class() == FalseBoxClass("nothing", None)
    assert plan_of(ANIMALS).false_box_class() is None


@pytest.mark.parametrize(("crops", "changes"), [(5, {}), (0, {"loss": "class_balanced", "sampling": "natural"})])
def test_a_model_trains_with_the_class_and_without_a_single_crop_of_it(tmp_path: Path, crops: int, changes: dict[str, Any]) -> None:
    settings = settings_at(tmp_path)
    store, plan = open_store(settings), plan_with(epochs=1, **changes)
    labels = {"classes": {"fox": ["fox"], "bird": ["bird"]}, "nothing": {"id": "skunk"}}
    plan = check_plan(json.loads(plan.model_dump_json(by_alias=True)) | {"labels": labels})
    steps = crops_and_splits(store, {"fox": 8, "bird": 8} | ({"skunk": crops} if crops else {}), val=3)
    card = json.loads(store.path(train_classifier(*steps, plan, store, settings), "card.json").read_bytes())
    assert ([c["id"] for c in card["classes"]], card["nothing"]) == (["fox", "bird", "skunk"], "skunk")


def test_the_report_says_what_it_saves_and_costs() -> None:
    alarms = ProductionComparison(macro_f1=(0.8, 0.9), false_alarms_per_1000_empty=(90, 40), false_alarms_interval=(-70.0, -30.0), classes=())
    red = ProductionChange(id="red", sequences=20, locations=3, recall=(0.95, 0.9), false_alarms_per_1000_empty=(60, 30))
    green = red.model_copy(update={"id": "green"})
    production = ProductionScore.model_construct(nothing=alarms.model_copy(update={"classes": (red, green)}))
    metrics = Metrics.model_construct(
        examples=9, production=production, nothing=FalseBoxScores(id="n", examples=5, locations=2, recognised=4, animals=1)
    )
    _, saves, costs = describe_nothing(metrics, ("red",))
    assert all(number in saves for number in ("40", "90", "-50", "-70 to -30"))
    assert all(text in costs for text in ("red", "0.95", "0.90", "-0.05"))
    assert "green" not in costs
    assert len(describe_nothing(metrics.model_copy(update={"production": None}), ())) == 1
    assert describe_nothing(metrics.model_copy(update={"nothing": None}), ()) == ()

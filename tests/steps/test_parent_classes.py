"""A parent class from its threshold to the report: calibration, evaluation, package and the score of production."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pytest

from animl_pipeline.config import GateConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.evaluation_results import Metrics, OperatingPoint, ProductionScore, SequenceScores, Threshold
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.steps.calibration import calibrate_classifier
from animl_pipeline.steps.evaluation import evaluate_classifier, production_score, read_metrics
from animl_pipeline.steps.evaluation.auto_accept import images_of_crops
from animl_pipeline.steps.evaluation.csv_tables_beside_report import false_alarms, missed_invaders
from animl_pipeline.steps.evaluation.gate import decide_verdict
from animl_pipeline.steps.evaluation.report_wording import describe_production
from animl_pipeline.steps.evaluation.step import SequenceArtifacts
from animl_pipeline.steps.labels import class_taxa
from animl_pipeline.steps.package import package_model
from animl_pipeline.storage.store import Store, open_store
from tests.conftest import colour_model
from tests.steps.test_class_taxa import labels_of
from tests.steps.test_production_score import CLASSES, RED, Scene, run_steps
from tests.support.colour_models import (
    ISLAND,
    CropSpec,
    EvaluatedModel,
    ReportPage,
    fit_linear,
    island_crops,
    island_plan,
    make_data_steps,
    make_linear_model,
    plan_of,
    read_report,
    run_evaluation_steps,
)
from tests.support.packaged_model import with_card

PARENTS = {"beast": ["rat", "fox"]}


class Island:
    """The island, evaluated with a parent of its rat and fox."""

    def __init__(self, folder: Path) -> None:
        self.store, crops = open_store(Settings(store=str(folder / "store"))), island_crops(seed=4, each=6, noise=75)
        self.plan = island_plan(labels={"classes": {c: [c] for c in ISLAND}, "parents": PARENTS}, package={"reference_predictions": 12})
        self.data = make_data_steps(self.store, crops, self.plan, tuple(ISLAND))
        self.model = make_linear_model(self.store, fit_linear(crops))
        self.steps: EvaluatedModel = run_evaluation_steps(self.store, self.model, self.data, self.plan)

    def read(self, step: str, file: str) -> Any:
        """A JSON file of one of the steps."""
        return json.loads(self.store.path(getattr(self.steps, step), file).read_bytes())


@pytest.fixture(scope="module")
def island(tmp_path_factory: pytest.TempPathFactory) -> Island:
    return Island(tmp_path_factory.mktemp("island"))


def test_its_threshold_is_chosen_on_the_sums_for_crops_of_any_child(island: Island) -> None:
    *classes, beast = island.read("calibrated", "thresholds.json")
    assert [t["id"] for t in classes] == list(ISLAND)
    assert all("children" not in t for t in classes)
    assert (beast["id"], beast["children"], beast["group"], beast["met_on_val"]) == ("beast", PARENTS["beast"], "invasive", True)
    val = pd.read_parquet(island.store.path(island.steps.calibrated, "val.parquet"))
    is_beast, reaches = val["class_id"].isin(PARENTS["beast"]), val["p_rat"] + val["p_fox"] >= beast["value"]
    assert beast["val"]["examples"] == is_beast.sum() > 0
    assert beast["val"]["recall"] == reaches[is_beast].mean() >= 0.95
    card = ModelCard.model_validate(island.read("package", "card.json"))
    assert card.parents == {"beast": ("rat", "fox")}
    assert card.thresholds["beast"] == beast["value"]
    assert island.read("calibrated", "category_config.json")["beast"] == {"confThreshold": beast["value"], "disabled": False}


def test_test_scores_errors_and_reference_predictions_have_it_but_no_score_of_classes_does(island: Island) -> None:
    metrics = read_metrics(island.steps.evaluation, island.store)
    assert [c.id for c in metrics.classes] == list(ISLAND)
    beast = metrics.thresholds[-1]
    assert beast.test is not None
    test = pd.read_parquet(island.store.path(island.steps.evaluation, "predictions.parquet"))
    assert beast.test.examples == test["class_id"].isin(PARENTS["beast"]).sum()
    answers = [p["probabilities"] for p in island.read("package", "reference_predictions.json")]
    limits = ModelCard.model_validate(island.read("package", "card.json")).thresholds
    assert {tuple(a) for a in answers} == {(*ISLAND, "beast")}
    assert {a["beast"] == 0 for a in answers} == {True, False}
    assert all((a["beast"] == 0) == any(a[c] >= limits[c] for c in PARENTS["beast"]) for a in answers)
    missed = pd.read_csv(island.store.path(island.steps.evaluation, "missed_invaders.csv"))
    assert set(missed["class_id"]) <= {"rat"}


def test_without_parents_the_steps_are_those_of_before_and_with_them_calibration_runs_again(island: Island) -> None:
    plan, store = island_plan(), island.store
    before = calibrate_classifier(island.model, island.data.crops, island.data.splits, plan.thresholds, store)
    assert before.key != island.steps.calibrated.key
    assert calibrate_classifier(island.model, island.data.crops, island.data.splits, plan.thresholds, store, {}).cached
    assert "parents" not in store.path(before, "card.json").read_text()
    done = run_evaluation_steps(store, island.model, island.data, plan)
    texts = [store.path(done.evaluation, name).read_text() for name in ("metrics.json", "thresholds.json") if name in store.files(done.evaluation)]
    assert not any(word in text for text in texts for word in ('"parent', '"noticed', '"children'))


# -- production ------------------------------------------------------------------------------------------------------------------

YELLOW, BLUE = (200, 200, 20), (20, 20, 230)
SCENES = (
    Scene("cove", 0, "red", True, RED, True),  # a hit by itself
    Scene("cove", 100, "red", True, YELLOW, True),  # noticed as warm
    Scene("cove", 200, "green", True, YELLOW, True),  # noticed as warm
    Scene("hill", 0, "red", True, BLUE, True),  # missed
    Scene("hill", 100, "red", True, YELLOW, False),  # missed by the detector
    Scene("hill", 200, "empty", False, YELLOW, True),  # a false alarm of warm alone
    Scene("hill", 300, "hare", True, YELLOW, True),  # another
    Scene("hill", 400, "empty", False, RED, True),  # a false alarm of red, and so of warm
)
WARM = {"warm": ("red", "green")}
THRESHOLDS = {**dict.fromkeys(CLASSES, 0.7), "warm": 0.6}


@pytest.fixture
def scores(tmp_path: Path, store: Store, settings: Settings) -> tuple[dict[str, SequenceScores], ProductionScore, Any]:
    """The scores of classes and parents, the whole score, and the comparison with the same model without the parent."""
    steps = run_steps(tmp_path, store, settings, SCENES)
    data = production_score.read_sequences(steps.images, steps.detections, store)
    classifier = Classifier.load(with_card(colour_model(tmp_path / "model"), thresholds=THRESHOLDS, parents=WARM))
    probability = production_score.score_boxes(data, classifier, store, classifier.card.model_input, "boxes")
    outcomes = []
    for parents in ({}, WARM):
        labels = production_score.label_by_thresholds(data, probability, classifier.card.model_copy(update={"parents": parents}))
        outcomes.append(production_score.find_outcomes_of(data, labels, CLASSES, {}, parents))
    score = production_score.score_production(data, outcomes[1], CLASSES, 0.1, WARM)
    compared = production_score.compare_production(data, (outcomes[0], outcomes[1]), (CLASSES, CLASSES))
    listed = production_score.list_sequences(data, outcomes[1], classifier.card.answered_ids())
    assert (listed["class"] == "warm").sum() == 2 + 3  # misses and false alarms
    return {c.id: c for c in (*score.classes, *score.parents)}, score.model_copy(update={"comparison": compared}), compared


def test_a_child_that_got_the_label_of_its_parent_was_noticed(scores: Any) -> None:
    of, score, compared = scores
    red, green, warm = of["red"], of["green"], of["warm"]
    assert (red.sequences, red.hits, red.noticed, red.parent, red.missed_by_detector) == (4, 1, 2, "warm", 1)
    assert (green.hits, green.noticed, of["blue"].noticed, of["blue"].parent) == (0, 1, None, None)
    assert (warm.sequences, warm.hits, warm.false_alarms_on_empty, warm.false_alarms_on_others) == (5, 3, 2, 1)
    assert (red.false_alarms_on_empty, red.false_alarms_on_others) == (1, 0)
    assert score.false_alarms_per_1000_empty == 1000
    change = {c.id: c for c in compared.classes}["red"]
    assert ({c.id for c in compared.classes}, change.recall, change.noticed) == (set(CLASSES), (0.25, 0.25), (0.25, 0.5))
    assert "2 were noticed, of which 1 only as warm" in describe_production(red)
    assert "warm" not in describe_production(of["blue"].model_copy(update={"sequences": 3.0}))


def verdict_of(score: ProductionScore, gate: GateConfig) -> str:
    values: dict[str, Any] = {"production": score, "comparison": None, "classes": (), "macro_f1": 0.9, "locations": 2, "thresholds": ()}
    return decide_verdict(Metrics.model_construct(**values), gate, ("red",))[0]


def test_the_gate_counts_what_was_noticed(scores: Any) -> None:
    _, score, compared = scores
    alone = score.model_copy(update={"comparison": None})
    assert verdict_of(alone, GateConfig(min_invasive_sequence_recall=0.5)) == "promote"
    assert verdict_of(alone, GateConfig(min_invasive_sequence_recall=0.6)) == "hold"
    lenient = GateConfig(max_false_alarm_rise_per_1000_empty=1000, max_macro_f1_drop=1)
    lost = [c.model_copy(update={"noticed": c.noticed and c.noticed[::-1]}) for c in compared.classes]
    for classes, verdict in ((compared.classes, "promote"), (tuple(lost), "hold")):
        changed = compared.model_copy(update={"classes": classes})
        assert verdict_of(score.model_copy(update={"comparison": changed}), lenient) == verdict


def test_the_whole_evaluation_scores_and_reports_the_parent(tmp_path: Path, store: Store, settings: Settings) -> None:
    clear = {"red": RED, "green": (20, 230, 20), "blue": BLUE}
    specs = [CropSpec(c, clear[c], f"island/{s}{i % 2}", s) for s in ("train", "val", "test") for c in CLASSES for i in range(4)]
    specs += [CropSpec("blue", colour, "island/val0", "val") for colour in ((230, 170, 20), (170, 230, 20))]
    aims = {c: {"precision": least} for c, least in (("red", 0.99), ("green", 0.99), ("blue", 0.8), ("warm", 0.8))}
    data = plan_of(CLASSES).model_dump(mode="json", by_alias=True, include={"model", "sources", "labels", "model_input"})
    plan = check_plan(data | {"labels": data["labels"] | {"parents": WARM}, "thresholds": {"invasive": ["red"], "aims": aims}})
    made = make_data_steps(store, specs, plan)
    calibrated = calibrate_classifier(made.model, made.crops, made.splits, plan.thresholds, store, plan.labels.parents)
    sequences = SequenceArtifacts(*run_steps(tmp_path, store, settings, SCENES))
    evaluation = evaluate_classifier(calibrated, made.crops, made.splits, plan, store, sequences=sequences, image_url="https://animl.test/{image}")
    production = read_metrics(evaluation, store).production
    assert production is not None
    assert [c.noticed for c in production.classes] == [2, 1, None]
    assert [(c.id, c.hits) for c in production.parents] == [("warm", 3)]
    page = ReportPage(read_report(evaluation, store)).text
    assert "of which 1 only as warm" in page
    assert "cannot tell red from green" in page
    files = [pd.read_csv(store.path(evaluation, name)) for name in ("animl.csv", "sequences.csv")]
    assert all("warm" in set(table[column]) for table, column in zip(files, ("targetClass", "class"), strict=True))
    package = package_model(calibrated, evaluation, plan.package, store)
    again = read_metrics(evaluate_classifier(calibrated, made.crops, made.splits, plan, store, sequences=sequences, champion=package), store)
    assert again.comparison is not None
    assert again.production is not None
    assert again.production.comparison is not None
    assert {c.noticed for c in again.production.comparison.classes} == {(0.5, 0.5), (1, 1), None}  # the champion is the same model
    assert files[1]["link"].tolist() == [f"https://animl.test/{quote(i, safe='')}" for i in files[1]["image_id"]]


def test_false_alarms_of_a_parent_are_those_of_its_answer() -> None:
    rows = [("bird", 0.3, 0.4), ("bird", 0.6, 0.1), ("bird", 0.2, 0.2), ("rat", 0.3, 0.4), ("fox", 0.3, 0.4)]
    crops = pd.DataFrame(rows, columns=["class_id", "p_rat", "p_fox"]).assign(location="x", source="isle", image_id="i", link="")
    crops["crop_id"] = [f"c{i}" for i in range(len(crops))]
    point = OperatingPoint(examples=1, locations=1, recall=1, precision=1, false_alarms_per_1000=0)
    of_class = Threshold(id="rat", group="invasive", aim="", value=0.5, aim_met=True, val=point)
    thresholds = [
        of_class,
        of_class.model_copy(update={"id": "fox", "group": "native"}),
        of_class.model_copy(update={"id": "beast", "children": ("rat", "fox")}),
    ]
    found = false_alarms(crops, thresholds)
    assert sorted(zip(found["class"], found["crop_id"], strict=True)) == [("beast", "c0"), ("rat", "c1")]
    assert found.loc[found["class"] == "beast", "probability"].tolist() == pytest.approx([0.7])
    assert set(missed_invaders(crops.assign(predicted="fox", probability=0.4), thresholds)["class_id"]) == {"rat"}


def test_an_image_that_also_shows_a_parent_is_reviewed() -> None:
    crops = pd.DataFrame({"class_id": ["blue"] * 2, "source": "isle", "image_id": ["a", "b"], "location": ["x", "y"]})
    crops = crops.assign(p_red=[0.25, 0.0], p_green=[0.25, 0.0], p_blue=[0.5, 1.0])
    thresholds = {"red": 0.5, "green": 0.5, "blue": 0.5, "warm": 0.5}
    assert images_of_crops(crops, CLASSES, thresholds, ("red",)).called.tolist() == [2, 2]
    assert images_of_crops(crops, CLASSES, thresholds, ("red",), WARM).called.tolist() == [-1, 2]


def test_the_report_and_the_model_card_name_it(island: Island) -> None:
    page = ReportPage(read_report(island.steps.evaluation, island.store)).text
    assert "The threshold of beast is for the sum" in page
    assert "beast" in island.store.path(island.steps.package, "MODEL_CARD.md").read_text()


def test_it_has_the_narrowest_taxon_of_its_children(tmp_path: Path, settings: Settings) -> None:
    classes = {"rat": ["black rat"], "mouse": ["mouse"], "fox": ["island fox"], "bird": ["bird"]}
    parents = {"rodent": ["rat", "mouse"], "unlisted": ["fox", "bird"]}
    taxa = class_taxa(labels_of(tmp_path, classes, parents=parents), ["isle"], settings)
    assert (taxa["rodent"], "unlisted" in taxa, list(taxa)[:1]) == ("mammalia;rodentia;;;", False, ["rat"])

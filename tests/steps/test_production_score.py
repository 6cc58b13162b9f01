"""The model scored as in production: detector, classifier and thresholds together, on sequences with known truth."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from animl_pipeline.config import DetectionsConfig, GateConfig, ImagesConfig, LabelsConfig, ProductionConfig, SourceConfig, SplitsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.evaluation_results import ClassComparison, ClassScores, Comparison, Metrics, ProductionScore, SequenceScores
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import LATE_IMAGES_LEFT_OUT, SPLIT_LOCATIONS, TEST_IMAGES
from animl_pipeline.core.tables import write_table
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.inference.sequence_outcomes import SequenceOutcomes
from animl_pipeline.steps.detections import detect_in_test_images
from animl_pipeline.steps.evaluation import production_score, write_headline
from animl_pipeline.steps.evaluation.csv_tables_beside_report import sequence_table
from animl_pipeline.steps.evaluation.gate import decide_verdict
from animl_pipeline.steps.evaluation.score_test_set_and_later_images import score_later_images
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_test_images
from animl_pipeline.steps.labels import SourceArtifacts, choose_test_images
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.conftest import colour_model, jpeg
from tests.support.coco_export import Export

CLASSES = ("red", "green", "blue")
RED, GREEN, REDDISH = (230, 20, 20), (20, 230, 20), (140, 110, 110)
BOX = [16.0, 12.0, 32.0, 24.0]
"""x, y, width and height in an image of 64 x 48 pixels."""


class Scene(NamedTuple):
    """One image: where, which second, what people called it, whether with a box, its colour, and whether the detector finds a box."""

    location: str
    second: int
    label: str
    boxed: bool
    colour: tuple[int, int, int]
    detected: bool
    validated: bool = True


SCENES = (
    Scene("cove", 0, "red", True, RED, True),
    Scene("cove", 3, "red", True, GREEN, False),  # the same sequence
    Scene("cove", 100, "red", True, GREEN, True),  # missed by the classifier, false alarm for green
    Scene("cove", 200, "red", False, RED, True),  # a label of the whole image
    Scene("cove", 300, "hare", True, GREEN, True),  # another animal: false alarm for green
    Scene("cove", 400, "red", True, RED, True, validated=False),  # does not count
    Scene("hill", 0, "red", True, RED, False),  # missed by the detector
    Scene("hill", 100, "red", True, REDDISH, True),  # missed by the threshold
    Scene("hill", 200, "empty", False, GREEN, True),  # false alarm on an empty sequence
    Scene("hill", 300, "empty", False, RED, False),
    Scene("cam-default", 0, "empty", False, GREEN, True),  # no deployment: does not count
    Scene("barn", 0, "red", True, RED, True),  # a location of train: does not count
)
LABELS = {"classes": {c: [c] for c in CLASSES}}


class Steps(NamedTuple):
    images: Artifact
    detections: Artifact


def run_steps(
    folder: Path,
    store: Store,
    settings: Settings,
    scenes: tuple[Scene, ...] = SCENES,
    limit: int | None = None,
    dates: SplitsConfig | None = None,
    left_out: tuple[str, ...] = (),
) -> Steps:
    """The real steps from an export and a results file to the detector's boxes in the test images."""
    export, results = Export(), []
    export.categories = [{"id": i, "name": n} for i, n in enumerate(("empty", *CLASSES, "hare", "unknown"))]
    names = [c["name"] for c in export.categories]
    for i, scene in enumerate(scenes):
        taken = pd.Timestamp("2026-03-01T23:59:59") + pd.Timedelta(seconds=scene.second)
        image = export.image(scene.location, data=jpeg(colour=scene.colour, seed=i), datetime=taken.isoformat())
        export.annotation(image, names.index(scene.label), BOX if scene.boxed else None, validated=scene.validated)
        box = {"category": "1", "conf": 0.2, "bbox": [0.25, 0.25, 0.5, 0.5]}
        results.append({"file": export.images[-1]["file_name"], "detections": [box] if scene.detected else []})
    export.write(folder)
    info = {"format_version": "1.4", "detector": "planted"}
    (folder / "boxes.json").write_text(json.dumps({"images": results, "detection_categories": {"1": "animal"}, "info": info}))
    source = SourceConfig(name="isle", export=str(folder / "export.json"), images=str(folder / "images"))
    exported = export_annotations(source, store, settings)
    production = ProductionConfig(max_sequences_per_location=limit)
    labels = LabelsConfig.model_validate(LABELS)
    images = choose_test_images(
        [SourceArtifacts(source, exported)], splits_of(store, left_out), labels, production, dates or SplitsConfig(), store, settings
    )
    downloads = download_test_images(source, images, store, settings, ImagesConfig())
    config = DetectionsConfig(source="results", results=str(folder / "boxes.json"))
    return Steps(images, detect_in_test_images(images, {"isle": downloads}, config, production, store, settings))


def splits_of(store: Store, left_out: tuple[str, ...] = ()) -> Artifact:
    rows = [("isle/cove", "test", 3), ("isle/hill", "test", 3), ("isle/cam-default", "test", 3), ("isle/barn", "train", 3)]

    def build(space: Workspace) -> StepOutput:
        write_table(space.out, SPLIT_LOCATIONS, pd.DataFrame(rows, columns=SPLIT_LOCATIONS.names()))
        late = [("isle", image_id, "used_for_training") for image_id in left_out]
        write_table(space.out, LATE_IMAGES_LEFT_OUT, pd.DataFrame(late, columns=LATE_IMAGES_LEFT_OUT.names()))
        return StepOutput(Counts(kept=len(rows)))

    return store.make(Step("splits", version=1), config={"left_out": left_out}, build=build)


def classifier_of(folder: Path, threshold: float = 0.7) -> Classifier:
    """A model that classifies by colour, with thresholds on its card."""
    colour_model(folder, CLASSES)
    card = ModelCard.model_validate_json((folder / "card.json").read_bytes()).model_copy(update={"thresholds": dict.fromkeys(CLASSES, threshold)})
    (folder / "card.json").write_text(card.model_dump_json())
    return Classifier.load(folder)


class Scored(NamedTuple):
    data: production_score.SequenceData
    outcomes: SequenceOutcomes
    score: ProductionScore

    def of(self, class_id: str) -> SequenceScores:
        return next(c for c in self.score.classes if c.id == class_id)


def score(steps: Steps, classifier: Classifier, store: Store) -> Scored:
    data = production_score.read_sequences(*steps, store)
    labels = production_score.label_boxes(data, classifier, store, classifier.card.model_input, "boxes")
    outcomes = production_score.find_outcomes_of(data, labels, CLASSES, {})
    return Scored(data, outcomes, production_score.score_production(data, outcomes, CLASSES, 0.1))


@pytest.fixture
def scored(tmp_path: Path, store: Store, settings: Settings) -> Scored:
    return score(run_steps(tmp_path, store, settings), classifier_of(tmp_path / "model"), store)


def test_hits_misses_with_their_causes_and_false_alarms_are_counted(scored: Scored) -> None:
    red, green = scored.of("red"), scored.of("green")
    assert (red.sequences, red.hits, red.missed_by_detector, red.missed_by_threshold, red.missed_by_classifier) == (5, 2, 1, 1, 1)
    assert (red.recall, red.precision, red.locations) == (2 / 5, 1.0, 2)
    assert (green.false_alarms_on_empty, green.false_alarms_on_others, green.recall) == (1, 2, None)
    assert green.false_alarms_per_1000_empty == 500
    assert (scored.score.images, scored.score.sequences, scored.score.empty_sequences) == (9, 8, 2)


def test_each_miss_and_false_alarm_is_listed_with_its_first_image(scored: Scored) -> None:
    listed = production_score.list_sequences(scored.data, scored.outcomes, CLASSES)
    assert sorted(zip(listed["class"], listed["outcome"], listed["location"], strict=True)) == [
        ("green", "false_alarm_on_empty", "isle/hill"),
        ("green", "false_alarm_on_others", "isle/cove"),
        ("green", "false_alarm_on_others", "isle/cove"),
        ("red", "missed_by_classifier", "isle/cove"),
        ("red", "missed_by_detector", "isle/hill"),
        ("red", "missed_by_threshold", "isle/hill"),
    ]
    assert listed["taken"].str.startswith("2026-03-0").all()


def test_animls_table_counts_sequences_by_location(scored: Scored) -> None:
    table = sequence_table(scored.data, scored.outcomes, CLASSES).set_index(["deploymentName", "targetClass"])
    counts = table[["TP", "FP", "FN"]].apply(tuple, axis=1).to_dict()
    assert counts["cove", "red"] == (2, 0, 1)
    assert counts["hill", "red"] == (0, 0, 2)
    assert counts["ALL", "green"] == (0, 3, 0)


def test_a_sampled_location_counts_by_its_weight(tmp_path: Path, store: Store, settings: Settings) -> None:
    empties = [Scene("cove", 100 * i, "empty", False, GREEN, True) for i in range(6)]
    scenes = (*empties, Scene("cove", 900, "red", True, RED, True))
    steps = run_steps(tmp_path, store, settings, scenes, limit=2)
    images = store.table(steps.images, TEST_IMAGES)
    assert sorted(images["weight"]) == [1.0, 3.0, 3.0]
    assert steps.images.counts.dropped["not_sampled"] == 4
    found = score(steps, classifier_of(tmp_path / "model"), store)
    assert (found.score.empty_sequences, found.of("green").false_alarms_on_empty, found.of("red").hits) == (6, 6, 1)


def test_an_image_with_an_unknown_animal_does_not_count(tmp_path: Path, store: Store, settings: Settings) -> None:
    steps = run_steps(tmp_path, store, settings, (*SCENES, Scene("cove", 900, "unknown", True, RED, True)))
    assert steps.images.counts.dropped == {
        "other_location": 1,
        "not_completely_reviewed": 1,
        "default_deployment": 1,
        "unknown_animal": 1,
    }


BARN = (
    Scene("barn", 0, "red", True, RED, True),  # before the day
    Scene("barn", 3, "red", True, RED, True),  # its sequence begins before the day
    Scene("barn", 100, "red", True, GREEN, True),  # missed by the classifier
    Scene("barn", 200, "red", True, RED, True),
    Scene("barn", 300, "empty", False, GREEN, True),  # false alarm
    Scene("barn", 400, "red", True, RED, True),  # learnt from by an earlier run
    Scene("barn", 402, "empty", False, RED, False),  # of the same sequence
    Scene("cove", 500, "red", True, RED, True),
)


def test_later_images_of_known_cameras_are_a_test_of_their_own(tmp_path: Path, store: Store, settings: Settings) -> None:
    dates, classifier = SplitsConfig(test_after=date(2026, 3, 2)), classifier_of(tmp_path / "model")
    image_id = str(read_image_ids(tmp_path, store, settings)[("barn", 400)])
    steps = run_steps(tmp_path, store, settings, BARN, dates=dates, left_out=(image_id,))
    assert steps.images.counts.dropped == {"other_location": 1, "later_image_learnt_from": 3}
    assert steps.images.counts.notes["later_images"] == 3
    split = pd.DataFrame({"split": [], "class_id": [], "taken": []})
    data = production_score.read_sequences(*steps, store, later=True)
    found = score_later_images(split, data, classifier, {}, 0.1, store, classifier.card.model_input)
    assert found is not None
    assert (found.first_day, found.examples, found.macro_f1) == ("2026-03-02", 0, None)
    assert found.production is not None
    red, green, _ = found.production.classes
    assert (red.sequences, red.hits, red.missed_by_classifier, green.false_alarms_on_empty) == (2, 1, 1, 1)
    assert score(steps, classifier, store).of("red").sequences == 1


def read_image_ids(folder: Path, store: Store, settings: Settings) -> dict[tuple[str, int], str]:
    """Location and second → id of the image in the export of BARN."""
    images = store.table(run_steps(folder, store, settings, BARN, dates=SplitsConfig(test_after=date(2026, 3, 2))).images, TEST_IMAGES)
    start = pd.Timestamp("2026-03-01T23:59:59")
    return {
        (loc.split("/")[1], int((pd.Timestamp(t) - start).total_seconds())): i
        for loc, t, i in zip(images["location"], images["taken"], images["image_id"], strict=True)
    }


def test_a_plan_without_the_day_scores_no_later_images(tmp_path: Path, store: Store, settings: Settings) -> None:
    steps = run_steps(tmp_path, store, settings, BARN)
    assert steps.images.counts.dropped == {"other_location": 7}
    assert not len(production_score.read_sequences(*steps, store, later=True).images)


def test_changes_beside_the_champion_are_paired(tmp_path: Path, store: Store, settings: Settings) -> None:
    steps = run_steps(tmp_path, store, settings)
    champion = score(steps, classifier_of(tmp_path / "old", threshold=0.999), store)
    challenger = score(steps, classifier_of(tmp_path / "new"), store)
    compared = production_score.compare_production(challenger.data, (champion.outcomes, challenger.outcomes), (CLASSES, CLASSES))
    recall = {c.id: c.recall for c in compared.classes}
    alarms = {c.id: c.false_alarms_per_1000_empty for c in compared.classes}
    assert recall == {"red": (0, 2 / 5), "green": None, "blue": None}
    assert alarms["green"] == compared.false_alarms_per_1000_empty == (0, 500)
    assert list(compared.macro_f1) == pytest.approx([0, 4 / 7])


def metrics_of(production: ProductionScore, crops_f1: tuple[float, float]) -> Metrics:
    """Scores of a model with enough test crops: ``crops_f1`` is the champion's and the model's mean F1 on crops."""
    classes = [ClassScores(id=c, examples=50, locations=5, precision=0.9, recall=0.9, f1=0.9, average_precision=0.9) for c in CLASSES]
    pair = {"macro_f1": crops_f1, "macro_f1_change": crops_f1[1] - crops_f1[0], "macro_f1_interval": None}
    precision = {"macro_average_precision": (0.9, 0.9), "macro_average_precision_change": 0.0, "macro_average_precision_interval": None}
    compared = ClassComparison(
        id="red", examples=50, locations=5, recall=crops_f1, f1=crops_f1, recall_change=crops_f1[1] - crops_f1[0], recall_interval=None,
        f1_change=crops_f1[1] - crops_f1[0], f1_interval=None, average_precision_change=0, average_precision_interval=None,
    )  # fmt: skip
    comparison = Comparison(
        champion="1", package="0" * 64, examples=150, locations=5, left_out=0, added_classes=(), removed_classes=(), own_model_input=False,
        classes=(compared,), **pair, **precision,
    )  # fmt: skip
    mean = {f"macro_{name}": crops_f1[1] for name in ("precision", "recall", "f1", "average_precision")}
    return Metrics(
        examples=150, locations=5, accuracy=0.9, classes=tuple(classes), confusion=((50, 0, 0),) * 3, comparison=comparison, production=production,
        **mean,
    )  # fmt: skip


def compared_scores(folder: Path, store: Store, settings: Settings, champion: float, challenger: float) -> ProductionScore:
    """The challenger's production score beside the champion's; both classify by colour, with these thresholds."""
    steps = run_steps(folder, store, settings)
    old, new = (score(steps, classifier_of(folder / str(t), t), store) for t in (champion, challenger))
    comparison = production_score.compare_production(new.data, (old.outcomes, new.outcomes), (CLASSES, CLASSES))
    return new.score.model_copy(update={"comparison": comparison})


def test_a_model_that_is_better_on_crops_and_misses_more_in_production_is_held(tmp_path: Path, store: Store, settings: Settings) -> None:
    production = compared_scores(tmp_path, store, settings, champion=0.7, challenger=0.999)
    verdict, reasons = decide_verdict(metrics_of(production, (0.8, 0.95)), GateConfig(), ("red",))
    assert verdict == "hold"
    assert "finds none of 5 sequences with the invasive class red" in reasons[0]
    assert any(r.startswith("it misses more of the invasive class red") for r in reasons)


def test_a_model_that_labels_more_empty_sequences_is_held(tmp_path: Path, store: Store, settings: Settings) -> None:
    production = compared_scores(tmp_path, store, settings, champion=0.999, challenger=0.7)
    verdict, reasons = decide_verdict(metrics_of(production, (0.8, 0.95)), GateConfig(), ("red",))
    assert verdict == "hold"
    assert reasons[0].startswith("it labels more empty sequences")


def test_a_model_that_is_worse_on_crops_and_better_in_production_is_promoted(tmp_path: Path, store: Store, settings: Settings) -> None:
    production = compared_scores(tmp_path, store, settings, champion=0.999, challenger=0.7)
    gate = GateConfig(max_false_alarm_rise_per_1000_empty=500)
    assert decide_verdict(metrics_of(production, (0.95, 0.8)), gate, ("red",))[0] == "promote"


@pytest.mark.parametrize("rule", [{"min_invasive_sequence_recall": 0.5}, {"max_false_alarms_per_1000_empty": 100}], ids=lambda r: next(iter(r)))
def test_the_plan_bounds_misses_and_false_alarms(scored: Scored, rule: dict[str, float]) -> None:
    metrics = first_model(scored.score)
    assert decide_verdict(metrics, GateConfig(), ("red",))[0] == "promote"
    assert decide_verdict(metrics, GateConfig.model_validate(rule), ("red",))[0] == "hold"


def first_model(production: ProductionScore) -> Metrics:
    """A model that is good on crops, without a champion."""
    return metrics_of(production, (0.9, 0.98)).model_copy(update={"comparison": None})


def test_a_first_model_that_fails_in_production_is_held_although_its_crops_are_good(tmp_path: Path, store: Store, settings: Settings) -> None:
    steps = run_steps(tmp_path, store, settings)
    failing = first_model(score(steps, classifier_of(tmp_path / "strict", threshold=0.999), store).score)
    for invasive in (("red",), ()):  # the class is never found; the mean F1 is 0
        for gate in (GateConfig(), GateConfig(first_model="island")):
            verdict, reasons = decide_verdict(failing, gate, invasive)
            assert verdict == "hold"
            held = write_headline(failing.model_copy(update={"verdict": verdict, "reasons": reasons})).split(". ")[0]
            assert "scored as in production" in held
            assert ("class red" in held) == bool(invasive)
    good = first_model(score(steps, classifier_of(tmp_path / "good"), store).score)
    assert decide_verdict(good, GateConfig(), ("red",))[0] == "promote"
    assert decide_verdict(good, GateConfig(min_macro_f1=0.6), ("red",))[0] == "hold", "its mean F1 in production is 4/7"
    allowed = GateConfig(min_macro_f1=0, min_invasive_sequence_recall=0)
    assert decide_verdict(failing, allowed, ("red",))[0] == "promote"


def test_a_model_whose_sequences_show_no_animal_needs_more_data(tmp_path: Path, store: Store, settings: Settings) -> None:
    steps = run_steps(tmp_path, store, settings, tuple(s for s in SCENES if s.label != "red"))
    found = score(steps, classifier_of(tmp_path / "model"), store).score
    assert (found.sequences, found.macro_f1()) == (3, None)
    assert decide_verdict(first_model(found), GateConfig(), ("red",))[0] == "need_more_data"


def test_a_project_without_deployments_needs_more_data(tmp_path: Path, store: Store, settings: Settings) -> None:
    scenes = tuple(scene for scene in SCENES if scene.location in {"cam-default", "barn"})
    steps = run_steps(tmp_path, store, settings, scenes)
    assert (steps.images.counts.kept, steps.detections.counts.kept) == (0, 0)
    found = score(steps, classifier_of(tmp_path / "model"), store)
    assert (found.score.sequences, found.score.macro_f1()) == (0, None)
    both = (found.outcomes, found.outcomes)
    assert production_score.compare_production(found.data, both, (CLASSES, CLASSES)).macro_f1 == (0, 0)
    verdict, reasons = decide_verdict(first_model(found.score), GateConfig(), ("red",))
    assert verdict == "need_more_data"
    assert "none is completely reviewed" in reasons[0]


def test_the_mean_f1_is_over_the_classes_that_the_sequences_show(scored: Scored) -> None:
    assert scored.of("green").f1 == 0, "green is only called falsely"
    assert scored.score.macro_f1() == scored.of("red").f1 == pytest.approx(4 / 7)


def test_a_model_without_any_scored_sequence_needs_more_data(scored: Scored) -> None:
    nothing = scored.score.model_copy(update={"sequences": 0.0, "classes": ()})
    assert decide_verdict(first_model(nothing), GateConfig(), ())[0] == "need_more_data"

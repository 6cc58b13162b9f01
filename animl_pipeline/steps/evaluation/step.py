"""The evaluation step: score the packaged model on the test split, decide the verdict, write scores, tables and the report."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from animl_pipeline.core.artifacts import CURVES_FILE, Artifact, Counts
from animl_pipeline.core.errors import DamagedError, PipelineError
from animl_pipeline.core.evaluation_results import AutoAccept, Comparison, LaterScores, Metrics, ProductionScore, Threshold
from animl_pipeline.core.report_formats import format_count, image_link
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import (
    CROPS,
    SEARCHED_TEST_IMAGES,
    SPLITS,
    TEST_DETECTIONS,
    TEST_IMAGES,
    TEST_OBJECTS,
    TEST_PREDICTIONS,
    VAL_PREDICTIONS,
)
from animl_pipeline.core.tables import write_table
from animl_pipeline.core.untrusted_text import write_csv
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.inference.score_crops import score_crops
from animl_pipeline.steps.evaluation import (
    auto_accept,
    csv_tables_beside_report,
    find_strangers,
    metrics,
    production_score,
    report_wording,
    slices_and_equivalents,
)
from animl_pipeline.steps.evaluation.compare_champion import compare_with_champion, load_champion
from animl_pipeline.steps.evaluation.gate import decide_verdict
from animl_pipeline.steps.evaluation.label_audit import HELD_OUT, SUSPECT_COLUMNS, find_suspect_labels
from animl_pipeline.steps.evaluation.metrics import measure_calibration, score_thresholds
from animl_pipeline.steps.evaluation.plots import confusion_matrix_png
from animl_pipeline.steps.evaluation.reference_predictions import choose_reference_predictions
from animl_pipeline.steps.evaluation.report import ReportData, render_report
from animl_pipeline.steps.evaluation.report_images import classes_of_people
from animl_pipeline.steps.evaluation.score_test_set_and_later_images import (
    join_splits,
    load_classifier,
    score_later_images,
    score_test_crops,
    select_columns,
)
from animl_pipeline.storage.store import StepOutput, Store, Workspace

if TYPE_CHECKING:
    from animl_pipeline.config import Plan
    from animl_pipeline.inference.classifier import Classifier

log = logging.getLogger(__name__)

STEP = Step(
    "evaluation",
    version=3,
    sections=("labels", "model_input", "thresholds", "production", "gate", "auto_accept", "audit", "package"),
    reads=(CROPS, SPLITS, TEST_IMAGES, TEST_OBJECTS, TEST_DETECTIONS, SEARCHED_TEST_IMAGES, VAL_PREDICTIONS),
    writes=(TEST_PREDICTIONS,),
    libraries=("onnxruntime", "matplotlib"),
)
METRICS_FILE = "metrics.json"
THRESHOLDS_FILE = "thresholds.json"
REFERENCE_FILE = "reference_predictions.json"


class Fold(NamedTuple):
    """A model of the label audit: trained without the crops that its splits hold out."""

    model: Artifact
    splits: Artifact


class SequenceArtifacts(NamedTuple):
    """The steps test_images and test_detections: the sequences on which production is scored."""

    images: Artifact
    detections: Artifact


class _Inputs(NamedTuple):
    """Everything that an evaluation depends on."""

    model: Artifact
    crops: Artifact
    splits: Artifact
    plan: Plan
    store: Store
    champion: Artifact | None
    champion_problem: str
    folds: tuple[Fold, ...]
    step_counts: tuple[tuple[str, Counts], ...]
    image_url: str
    sequences: SequenceArtifacts | None
    training: Artifact | None

    def artifacts(self) -> dict[str, Artifact]:
        folds = {f"{what}_{i}": a for i, fold in enumerate(self.folds) for what, a in (("fold_model", fold.model), ("fold_splits", fold.splits))}
        champion = {"champion": self.champion} if self.champion else {}
        sequences = {"test_images": self.sequences.images, "test_detections": self.sequences.detections} if self.sequences else {}
        training = {"training": self.training} if self.training else {}
        return {"model": self.model, "crops": self.crops, "splits": self.splits} | training | champion | folds | sequences

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Class → the labels that people give it."""
        return {c: spec.labels() for c, spec in self.plan.labels.classes.items()}

    def config(self) -> dict[str, Any]:
        """The values that are part of the cache key."""
        plan = self.plan
        return {
            "classes": self.labels(),
            **{key: extra.id for key in ("nothing", "other_animal") if (extra := getattr(plan.labels, key))},
            "equivalents": plan.labels.equivalents,
            "model_input": plan.model_input.model_dump(mode="json"),
            "reference_predictions": plan.package.reference_predictions,
            "invasive": plan.thresholds.invasive,
            "gate": plan.gate.model_dump(mode="json"),
            "detector_confidence": plan.production.detector_confidence if plan.production else None,
            "auto_accept": plan.auto_accept.model_dump(mode="json") if plan.auto_accept else None,
            "audit": plan.audit.model_dump(mode="json"),
            "step_counts": [(name, counts.model_dump(mode="json")) for name, counts in self.step_counts],
            "image_url": self.image_url,
            "champion_problem": self.champion_problem,
        }


def evaluate_classifier(
    model: Artifact,
    crops: Artifact,
    splits: Artifact,
    plan: Plan,
    store: Store,
    *,
    champion: Artifact | None = None,
    champion_problem: str = "",
    folds: Sequence[Fold] = (),
    step_counts: Sequence[tuple[str, Counts]] = (),
    image_url: str = "",
    sequences: SequenceArtifacts | None = None,
    training: Artifact | None = None,
) -> Artifact:
    """Score the packaged model on the test split only, and decide the verdict.

    The artifact has metrics.json (``evaluation_results.Metrics``), predictions.parquet (one row per test crop),
    reference_predictions.json, confusion.png, report.html, animl.csv, false_alarms.csv, missed_invaders.csv and suspect_labels.csv.

    ``model``: the calibration step, with model.onnx, card.json and thresholds.json; or the training step, which has no thresholds.
    ``champion_problem``: why it is not certain which model is released; "" if it is certain. The verdict is then to hold. ``image_url``:
    address of an image in Animl, with {project} and {image}, for links in the report; "" for no links. ``training``: the training step, whose
    learning curves the report shows; None: it shows none.

    Raises:
        EvaluationError: there is nothing to score; crops, splits, plan and model do not match; a location is in the test split and in another;
            probabilities are not finite, or differ between stored crop and whole image.
    """
    inputs = _Inputs(model, crops, splits, plan, store, champion, champion_problem, tuple(folds), tuple(step_counts), image_url, sequences, training)
    return store.make(
        STEP, inputs=inputs.artifacts(), config=inputs.config(),
        build=lambda space: _evaluate(space, inputs, load_classifier(model, plan, store)),
    )  # fmt: skip


def read_metrics(evaluation: Artifact, store: Store) -> Metrics:
    """The scores of an evaluation.

    Raises:
        DamagedError: the file is missing or of another version.
    """
    try:
        return Metrics.model_validate_json(store.path(evaluation, METRICS_FILE).read_bytes())
    except ValidationError as e:
        raise DamagedError(f"{METRICS_FILE} of the step evaluation does not fit this version; run the step 'evaluation' again") from e


def _evaluate(space: Workspace, inputs: _Inputs, classifier: Classifier) -> StepOutput:
    store, plan, card = inputs.store, inputs.plan, classifier.card
    split = join_splits(store.table(inputs.crops, CROPS), store.table(inputs.splits, SPLITS))
    scored = score_test_crops(split, classifier, store, plan.model_input)
    scored["link"] = [image_link(inputs.image_url, image) for image in scored["image_id"]]
    test = scored[scored["class_id"].isin(card.animal_ids())].reset_index(drop=True)  # the plan's own classes only
    champion = _load_champion(inputs)
    production = _score_production(classifier, champion.classifier, inputs)
    found, final = _compute_metrics(test, scored, classifier, champion, production, inputs)
    found = found.model_copy(update={"later": _score_later_images(split, classifier, inputs)})
    log.info("evaluation: %s", report_wording.write_headline(found))

    write_table(space.out, TEST_PREDICTIONS, select_columns(scored, card.class_ids()))
    (space.out / METRICS_FILE).write_text(found.model_dump_json(indent=1), encoding="utf-8")
    reference = choose_reference_predictions(test, classifier, store, plan.package.reference_predictions)
    (space.out / REFERENCE_FILE).write_text(json.dumps(reference, indent=1), encoding="utf-8")
    (space.out / "confusion.png").write_bytes(confusion_matrix_png(found))
    suspects, audited = _audit_labels(scored, split, classifier, inputs)
    tables = {
        "animl.csv": csv_tables_beside_report.animl_table(
            test, slices_and_equivalents.apply_equivalents(test, plan.labels.equivalents), card.animal_ids()
        ),
        "false_alarms.csv": csv_tables_beside_report.false_alarms(scored, found.thresholds),
        "missed_invaders.csv": csv_tables_beside_report.missed_invaders(test, found.thresholds),
        "suspect_labels.csv": suspects[SUSPECT_COLUMNS],
    }
    if production is not None:
        links = [image_link(inputs.image_url, image) for image in production.sequences["image_id"]]
        tables |= {"animl.csv": production.animl_table, "sequences.csv": production.sequences.assign(link=links)}
        if production.strangers is not None:
            tables["strangers.csv"] = production.strangers[find_strangers.CSV_COLUMNS]
    for name, table in tables.items():
        write_csv(space.out / name, table)
    digests = {name: artifact.digest for name, artifact in inputs.artifacts().items()}
    curves = store.path(inputs.training, CURVES_FILE).read_bytes() if inputs.training else b""
    data = ReportData(card, found, test, scored, split, suspects, audited, inputs.step_counts, digests, tuple(tables), curves)
    if production is not None:
        data = data._replace(strangers=production.strangers, boxes=production.boxes)
    page = render_report(data, classes_of_people(inputs.labels()), plan.audit.show, store)
    (space.out / "report.html").write_text(page, encoding="utf-8")
    return StepOutput(_counts(found, len(suspects)), final=final, blob_digests=tuple(sorted({str(r["image"]) for r in reference})))


class _Champion(NamedTuple):
    """The released model, or why it cannot be used; both are empty if there is none."""

    classifier: Classifier | None = None
    error: str = ""


def _load_champion(inputs: _Inputs) -> _Champion:
    if inputs.champion is None:
        return _Champion()
    try:
        return _Champion(load_champion(inputs.champion, inputs.store))
    except PipelineError as e:
        log.warning("the released model cannot be compared: %s", e)
        return _Champion(error=str(e))


class _Production(NamedTuple):
    """The score of production, the answers to its images, Animl's own table of it, missed sequences and false alarms, and suspected strangers.

    ``strangers`` is None if the model has no embedding reference; ``boxes`` is the number of all boxes.
    """

    score: ProductionScore
    answers: auto_accept.AnsweredImages
    animl_table: pd.DataFrame
    sequences: pd.DataFrame
    strangers: pd.DataFrame | None
    boxes: int


def _score_production(classifier: Classifier, champion: Classifier | None, inputs: _Inputs) -> _Production | None:
    """The model, and the champion if there is one, on the sequences of the test locations; None if the plan does not want it."""
    plan, store = inputs.plan, inputs.store
    if inputs.sequences is None or plan.production is None:
        return None
    data = production_score.read_sequences(inputs.sequences.images, inputs.sequences.detections, store)
    equivalents, ids, parents = plan.labels.equivalents, classifier.card.animal_ids(), classifier.card.parents
    probability, embeddings = production_score.score_and_embed_boxes(data, classifier, store, plan.model_input, "boxes of test images")
    labels = production_score.label_by_thresholds(data, probability, classifier.card)
    outcomes = production_score.find_outcomes_of(data, labels, ids, equivalents, parents)
    score = production_score.score_production(data, outcomes, ids, plan.production.detector_confidence, parents)
    if classifier.card.nothing is not None:
        other = production_score.label_by_thresholds(data, production_score.without_nothing(probability, classifier.card), classifier.card)
        both = (production_score.find_outcomes_of(data, other, ids, equivalents, parents), outcomes)
        score = score.model_copy(update={"nothing": production_score.compare_production(data, both, (ids, ids))})
    if champion is not None:
        theirs = production_score.label_boxes(data, champion, store, plan.model_input, "boxes of test images, champion")
        known = champion.card.animal_ids()
        both = (production_score.find_outcomes_of(data, theirs, known, equivalents, champion.card.parents), outcomes)
        score = score.model_copy(update={"comparison": production_score.compare_production(data, both, (known, ids))})
    table = csv_tables_beside_report.sequence_table(data, outcomes, classifier.card.answered_ids())
    answers = auto_accept.images_of_sequences(data, labels, plan.thresholds.invasive)
    sequences = production_score.list_sequences(data, outcomes, classifier.card.answered_ids())
    reference, found = find_strangers.load_reference(inputs.model, classifier.card, store), None
    if reference is not None:
        found = find_strangers.find_strangers(data, probability, embeddings, reference, classifier.card, inputs.image_url)
    return _Production(score, answers, table, sequences, found, len(data.boxes))


def _score_later_images(split: pd.DataFrame, classifier: Classifier, inputs: _Inputs) -> LaterScores | None:
    """The model on later images of known cameras; None if the plan has no such test."""
    plan, data = inputs.plan, None
    if inputs.sequences is not None and plan.production is not None:
        data = production_score.read_sequences(inputs.sequences.images, inputs.sequences.detections, inputs.store, later=True)
    confidence = plan.production.detector_confidence if plan.production else 0.0
    return score_later_images(split, data, classifier, plan.labels.equivalents, confidence, inputs.store, plan.model_input)


def _compute_metrics(
    test: pd.DataFrame, scored: pd.DataFrame, classifier: Classifier, champion: _Champion, production: _Production | None, inputs: _Inputs
) -> tuple[Metrics, bool]:
    """All scores and the verdict. False beside them if the champion could not be compared, so that the next run tries again.

    ``test`` are the test crops of the plan's own classes, ``scored`` also those of other animals and false boxes.
    """
    card, equivalents = classifier.card, inputs.plan.labels.equivalents
    comparison, comparison_error = _compare(test, classifier, champion, inputs)
    found = metrics.compute_metrics(test, card.animal_ids(), card.unscored_ids()).model_copy(
        update={
            "calibration": measure_calibration(test, card),
            "thresholds": score_thresholds(_read_thresholds(inputs.model, inputs.store), scored),
            "slices": slices_and_equivalents.score_slices(test, card.class_ids()),
            "with_equivalents": slices_and_equivalents.score_with_equivalents(test, card.animal_ids(), equivalents) if equivalents else None,
            "comparison": comparison,
            "nothing": metrics.score_false_boxes(scored, card.nothing) if card.nothing else None,
            "other_animal": metrics.score_other_animals(scored, card.other_animal, card.nothing) if card.other_animal else None,
            "production": production.score if production else None,
            "auto_accept": _bound_auto_accept(test, classifier, production, inputs),
        }
    )
    verdict, reasons = decide_verdict(found, inputs.plan.gate, inputs.plan.thresholds.invasive, comparison_error, inputs.champion_problem)
    reasons = (*reasons, *report_wording.describe_many_false_alarms(found.thresholds))
    return found.model_copy(update={"verdict": verdict, "reasons": reasons}), not comparison_error


def _bound_auto_accept(test: pd.DataFrame, classifier: Classifier, production: _Production | None, inputs: _Inputs) -> AutoAccept | None:
    """Which images may go without review, from the images of production where it is scored, else from the test crops."""
    config, invasive, card = inputs.plan.auto_accept, inputs.plan.thresholds.invasive, classifier.card
    if config is None or not invasive:
        return None
    ids, limit = card.animal_ids(), config.max_invasive_per_1000
    if production is not None:
        return auto_accept.find_thresholds(production.answers, ids, card.thresholds, invasive, limit, "sequences")
    images = auto_accept.images_of_crops(test, ids, card.thresholds, invasive, card.parents)
    return auto_accept.find_thresholds(images, ids, card.thresholds, invasive, limit, "crops")


def _compare(test: pd.DataFrame, classifier: Classifier, champion: _Champion, inputs: _Inputs) -> tuple[Comparison | None, str]:
    """The comparison with the champion, or why it is not possible."""
    if inputs.champion is None or champion.classifier is None:
        return None, champion.error
    card, plan = classifier.card, inputs.plan
    try:
        return compare_with_champion(
            test, card.animal_ids(), card.thresholds, inputs.champion, champion.classifier, plan.model_input, inputs.store
        ), ""
    except PipelineError as e:
        log.warning("the released model cannot be compared: %s", e)
        return None, str(e)


def _read_thresholds(model: Artifact, store: Store) -> list[Threshold]:
    """The thresholds of the calibration step; none if ``model`` is the training step."""
    if THRESHOLDS_FILE not in store.files(model):
        return []
    return TypeAdapter(list[Threshold]).validate_json(store.path(model, THRESHOLDS_FILE).read_bytes())


def _audit_labels(scored_test: pd.DataFrame, split: pd.DataFrame, classifier: Classifier, inputs: _Inputs) -> tuple[pd.DataFrame, str]:
    """The suspect labels with the probabilities of the model that audited them, and which crops were audited."""
    if classifier.card.out_of_fold:  # the model itself learnt from val
        answered = inputs.store.table(inputs.model, VAL_PREDICTIONS)
        columns = ["crop_id", "predicted", "probability", *map(probability_column, classifier.card.class_ids())]
        scored = pd.concat([scored_test, split.merge(answered[columns], on="crop_id")], ignore_index=True)
        splits = "test and the folds of train and val"
    else:
        val = score_crops(split[split["split"] == "val"], classifier, inputs.store, inputs.plan.model_input, "val crops")
        scored = pd.concat([scored_test, val, *(_score_held_out(split, fold, inputs) for fold in inputs.folds)], ignore_index=True)
        splits = "val, test and the folds of train" if inputs.folds else "val and test"
    audited = f"{format_count(len(scored), 'crop')} of {len(split):,}, from {splits}"
    return find_suspect_labels(scored, classifier.card.class_ids(), inputs.image_url), audited


def _score_held_out(split: pd.DataFrame, fold: Fold, inputs: _Inputs) -> pd.DataFrame:
    """The crops that a fold holds out, scored by the fold's model."""
    split_of_crop = inputs.store.table(fold.splits, SPLITS).set_index("crop_id")["split"]
    rows = split[split["crop_id"].map(split_of_crop) == HELD_OUT]
    classifier = load_classifier(fold.model, inputs.plan, inputs.store)
    return score_crops(rows, classifier, inputs.store, inputs.plan.model_input, "held-out crops")


def _counts(found: Metrics, suspects: int) -> Counts:
    right = sum(found.confusion[i][i] for i in range(len(found.classes)))
    notes = {
        "named_wrongly": found.examples - right,
        "classes_without_test_crops": len(report_wording.classes_without_examples(found)),
        "classes_with_few_test_crops_or_locations": len(report_wording.classes_with_few_examples(found)),
        "suspect_labels": suspects,
    }
    return Counts(kept=found.examples, notes={k: n for k, n in notes.items() if n}, unit="test crops")

"""The verb: score the model that ships on the test split, judge it, and write what it did as figures, pictures and words."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from animl_pipeline.core.errors import DamagedError, EvaluationError, PipelineError
from animl_pipeline.core.records import Artifact, Comparison, Counts, Metrics, Threshold
from animl_pipeline.core.step import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS, TEST_PREDICTIONS, VAL_PREDICTIONS
from animl_pipeline.core.tables import write_table
from animl_pipeline.inference.scoring import score_crops
from animl_pipeline.steps.evaluation import (
    audit_folds,
    calibration_metrics,
    compare_champion,
    error_tables,
    gate,
    label_audit,
    plots,
    predictions,
    reference_predictions,
    report,
    slices,
)
from animl_pipeline.steps.evaluation import metrics as scores
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace

if TYPE_CHECKING:
    from animl_pipeline.config import Plan
    from animl_pipeline.inference.classifier import Classifier

log = logging.getLogger(__name__)

STEP = Step(
    "evaluation",
    version=1,
    sections=("gate", "thresholds", "audit", "labels"),
    reads=(CROPS, SPLITS, VAL_PREDICTIONS),
    writes=(TEST_PREDICTIONS,),
    libraries=("onnxruntime", "matplotlib"),
)


METRICS_FILE = "metrics.json"
THRESHOLDS_FILE = "thresholds.json"


class Fold(NamedTuple):
    """A model that was trained without the crops that its splits call ``held``."""

    model: Artifact
    splits: Artifact


class _Case(NamedTuple):
    """All that a judgement is made from."""

    model: Artifact
    crops: Artifact
    splits: Artifact
    plan: Plan
    store: Store
    champion: Artifact | None
    folds: tuple[Fold, ...]
    story: tuple[tuple[str, Counts], ...]
    image_url: str

    def inputs(self) -> dict[str, Artifact]:
        """Every artifact that is read."""
        held = {f"{what}_{i}": a for i, fold in enumerate(self.folds) for what, a in (("fold_model", fold.model), ("fold_splits", fold.splits))}
        champion = {"champion": self.champion} if self.champion else {}
        return {"model": self.model, "crops": self.crops, "splits": self.splits} | champion | held

    def config(self) -> dict[str, Any]:
        """The parts of the plan that count."""
        plan = self.plan
        return {
            "classes": {c: list(spec.names()) for c, spec in plan.labels.classes.items()},
            "equivalents": equivalents_of(plan),
            "model_input": plan.model_input.model_dump(mode="json"),
            "reference": plan.package.reference_predictions,
            "invasive": list(plan.thresholds.invasive),
            "gate": plan.gate.model_dump(mode="json"),
            "audit": plan.audit.model_dump(mode="json"),
            "story": [[name, counts.model_dump(mode="json")] for name, counts in self.story],
            "image_url": self.image_url,
        }


def evaluate_classifier(
    model: Artifact,
    crops: Artifact,
    splits: Artifact,
    plan: Plan,
    store: Store,
    *,
    champion: Artifact | None = None,
    folds: Sequence[Fold] = (),
    story: Sequence[tuple[str, Counts]] = (),
    image_url: str = "",
) -> Artifact:
    """The packaged model's judgement on the test split and on nothing else, and the gate's verdict.

    It holds metrics.json (``records.Metrics``), predictions.parquet (one row a test crop), golden.json (offline answers that
    a release checks), confusion.png, report.html (one self-contained page), and as CSV: animl.csv (Animl's own columns),
    false_alarms.csv, missed_invaders.csv, suspect_labels.csv.

    Args:
        model: the step calibration, with model.onnx, card.json and thresholds.json; or the step model, which has no thresholds.
        crops: the crops step.
        splits: the splits step.
        plan: gives classes, view, gate, what the audit shows, and the number of golden crops.
        store: where the steps are.
        champion: the package that was released last; None: there is none.
        folds: models for the label audit of train crops.
        story: name and counts of each earlier step, shown in the report as what was kept and dropped.
        image_url: an address with {project} and {image}, under which a person finds an image of Animl's.

    Raises:
        EvaluationError: nothing to score; crops, splits, plan and model do not fit together; a place is in the test split
            and in another; the model's answers are no probabilities, or differ between stored crop and whole picture.
    """
    case = _Case(model, crops, splits, plan, store, champion, tuple(folds), tuple(story), image_url)
    return store.make(
        STEP, inputs=case.inputs(), config=case.config(),
        build=lambda space: _judge(space, case, _load_classifier(model, plan, store)),
    )  # fmt: skip


def read_metrics(evaluation: Artifact, store: Store) -> Metrics:
    """The scores of an evaluation.

    Raises:
        DamagedError: they are not there or not of this version.
    """
    try:
        return Metrics.model_validate_json(store.path(evaluation, METRICS_FILE).read_bytes())
    except ValidationError as e:
        raise DamagedError(f"{METRICS_FILE} of the step evaluation does not fit this version; run the step 'evaluation' again") from e


def equivalents_of(plan: Plan) -> dict[str, list[str]]:
    """Class → the classes whose name for it counts as right, by the plan."""
    return {class_id: list(names) for class_id, names in plan.labels.equivalents.items()}


def _judge(space: Workspace, case: _Case, classifier: Classifier) -> StepOutput:
    store, ids = case.store, classifier.card.class_ids()
    split = predictions.join_splits(store.table(case.crops, "crops.parquet"), store.table(case.splits, "splits.parquet"))
    test = predictions.score_test_crops(split, classifier, store, case.plan.model_input)
    metrics, whole = _judged(test, classifier, case)
    log.info("evaluation: %s", scores.headline(metrics))

    write_table(space.out, TEST_PREDICTIONS, predictions.public_columns(test, ids))
    (space.out / METRICS_FILE).write_text(metrics.model_dump_json(indent=1), encoding="utf-8")
    answers = reference_predictions.reference_answers(test, classifier, store, case.plan.package.reference_predictions)
    (space.out / "reference.json").write_text(json.dumps(answers, indent=1), encoding="utf-8")
    (space.out / "confusion.png").write_bytes(plots.confusion_png(metrics))
    suspects, audited = _audited(test, split, classifier, case)
    _write_tables(space, test, metrics, suspects, ids, case.plan)
    done = report.Scored(classifier.card, metrics, test, split, suspects, audited)
    digests = {name: artifact.digest for name, artifact in case.inputs().items()}
    (space.out / "report.html").write_text(report.render(done, digests, case.plan, store, case.story), encoding="utf-8")
    return StepOutput(_counts(metrics, len(suspects)), final=whole)


def _judged(test: pd.DataFrame, classifier: Classifier, case: _Case) -> tuple[Metrics, bool]:
    """All figures, and the verdict on them; False beside them where the champion could not be asked, but may be another time."""
    card = classifier.card
    equivalents = equivalents_of(case.plan)
    comparison, unreadable = _compared(test, classifier, case)
    metrics = scores.metrics_of(test, card.class_ids()).model_copy(
        update={
            "calibration": calibration_metrics.calibration_of(test, card),
            "thresholds": calibration_metrics.tested_thresholds(_thresholds(case), test),
            "parts": slices.parts_of(test, card.class_ids()),
            "credited": slices.credited(test, card.class_ids(), equivalents) if equivalents else None,
            "comparison": comparison,
        }
    )
    verdict, reasons = gate.judged(metrics, case.plan.gate, case.plan.thresholds.invasive, unreadable)
    return metrics.model_copy(update={"verdict": verdict, "reasons": reasons}), not unreadable


def _compared(test: pd.DataFrame, classifier: Classifier, case: _Case) -> tuple[Comparison | None, str]:
    """The comparison with the champion, or why there could be none."""
    if case.champion is None:
        return None, ""
    try:
        card = classifier.card
        return compare_champion.compare(test, card.class_ids(), card.thresholds, case.champion, case.plan.model_input, case.store)[0], ""
    except PipelineError as e:
        log.warning("the released model cannot be asked: %s", e)
        return None, str(e)


def _thresholds(case: _Case) -> list[Threshold]:
    """The thresholds that the step calibration chose; none where there was no such step."""
    if THRESHOLDS_FILE not in case.store.files(case.model):
        return []
    return TypeAdapter(list[Threshold]).validate_json(case.store.path(case.model, THRESHOLDS_FILE).read_bytes())


def _audited(test: pd.DataFrame, split: pd.DataFrame, classifier: Classifier, case: _Case) -> tuple[pd.DataFrame, str]:
    """The suspect labels with the answers that make them so, and which crops were looked at."""
    ids = classifier.card.class_ids()
    val = score_crops(split[split["split"] == "val"], classifier, case.store, case.plan.model_input, "val crops")
    held = [_held(split, fold, case) for fold in case.folds]
    looked = pd.concat([test, val, *held], ignore_index=True)
    found = label_audit.suspects(looked, ids, case.image_url)
    answers = looked.drop(columns=[c for c in found.columns if c in looked and c != "crop_id"])
    words = f"{scores.count(len(looked), 'crop')} of {len(split):,}: val and test{' and the train locations of each fold' if held else ''}"
    return found.merge(answers, on="crop_id", how="left", validate="one_to_one"), words


def _held(split: pd.DataFrame, fold: Fold, case: _Case) -> pd.DataFrame:
    """The crops that a fold's model did not see, with its answers."""
    sides = case.store.table(fold.splits, "splits.parquet").set_index("crop_id")["split"]
    rows = split[split["crop_id"].map(sides) == audit_folds.HELD]
    return score_crops(rows, _load_classifier(fold.model, case.plan, case.store), case.store, case.plan.model_input, "held crops")


def _write_tables(space: Workspace, test: pd.DataFrame, metrics: Metrics, suspects: pd.DataFrame, ids: tuple[str, ...], plan: Plan) -> None:
    named = slices.credited_names(test, equivalents_of(plan))
    tables = {
        "animl.csv": error_tables.animl_table(test, named, ids),
        "false_alarms.csv": error_tables.false_alarms(test, metrics.thresholds),
        "missed_invaders.csv": error_tables.missed_invaders(test, metrics.thresholds),
        "suspect_labels.csv": suspects[label_audit.COLUMNS],
    }
    for name, table in tables.items():
        table.to_csv(space.out / name, index=False, float_format="%.4f", lineterminator="\n")


def _counts(metrics: Metrics, suspects: int) -> Counts:
    right = sum(metrics.confusion[i][i] for i in range(len(metrics.classes)))
    noted = {
        "named_wrongly": metrics.examples - right,
        "classes_without_test_crops": sum(c.examples == 0 for c in metrics.classes),
        "classes_with_few_test_crops_or_locations": len(scores.thin_classes(metrics)),
        "labels_to_look_at_again": suspects,
    }
    return Counts(kept=metrics.examples, noted={k: n for k, n in noted.items() if n}, unit="test crops")


def _load_classifier(model: Artifact, plan: Plan, store: Store) -> Classifier:
    """The model step's classifier, which must be one of this plan's classes and view."""
    from animl_pipeline.inference.classifier import CARD_FILE, MODEL_FILE, Classifier

    store.path(model, CARD_FILE)
    classifier = Classifier.load(store.path(model, MODEL_FILE).parent)
    card = classifier.card
    if card.class_ids() != tuple(plan.labels.classes):
        wanted, found = ", ".join(plan.labels.classes), ", ".join(card.class_ids())
        raise EvaluationError(f"expected a model of the plan's classes {wanted}, found one of {found}; run the step 'training' again")
    if card.model_input != plan.model_input:
        raise EvaluationError(
            f"expected a model that sees what the plan's view says ({plan.model_input}), found one that sees {card.model_input}; run the step 'training' again"
        )
    return classifier

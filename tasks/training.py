"""Training, scoring and packaging as Prefect tasks."""

from __future__ import annotations

from typing import Any

from prefect import task

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.records import Artifact, Counts, Report
from animl_pipeline.deploy.released_model import champion_of
from animl_pipeline.inference.classifier import CARD_FILE, read_card
from animl_pipeline.integrations import mlflow as tracking_room
from animl_pipeline.integrations import sagemaker_training
from animl_pipeline.steps import calibration as calibration_room
from animl_pipeline.steps import detections as detections_room
from animl_pipeline.steps import evaluation as evaluation_room
from animl_pipeline.steps import package as package_room
from animl_pipeline.steps import training as model_room
from animl_pipeline.storage.step_cache import open_store
from tasks.policies import ONCE, PATIENT, shown


def check_ready(plan: Plan) -> None:
    """See that training can run where the plan says, from a backbone and weights that there are, that there is such a detector, and
    that MLflow is one where it is set, before hours are spent on the data.

    Raises:
        SettingsError: not so.
        DetectionsError: the plan names no detector that there is.
        TrainingError: timm has no such backbone, or such weights are not for it.
        WeightsError: the detector or the weights are not there, or are a file that a training elsewhere cannot see.
    """
    settings = load_settings()
    tracking_room.check_ready(settings)
    if plan.train.on == "sagemaker":
        sagemaker_training.check_ready(plan, settings)
    detections_room.check_ready(plan.detections, settings)
    model_room.check_ready(plan, settings)


@task(name="training", task_run_name="training", **PATIENT)
def train_classifier(crops: Artifact, splits: Artifact, plan: Plan) -> Any:
    """Train the classifier and export it to ONNX, here or where ``train.on`` says; a killed training goes on from its last checkpoint."""
    settings = load_settings()
    train = sagemaker_training.train_elsewhere if plan.train.on == "sagemaker" else model_room.train_classifier
    return shown(train(crops, splits, plan, open_store(settings), settings))


@task(name="calibration", task_run_name="calibration", **ONCE)
def calibrate_classifier(model: Artifact, crops: Artifact, splits: Artifact, plan: Plan) -> Any:
    """Find temperature and thresholds on val."""
    return shown(calibration_room.calibrate_classifier(model, crops, splits, plan, open_store(load_settings())))


@task(name="fold", task_run_name="fold {fold}", **ONCE)
def fold_splits(crops: Artifact, splits: Artifact, folds: int, fold: int) -> Any:
    """Leave a part of the train places out, so that their labels can be audited."""
    return shown(evaluation_room.fold_splits(crops, splits, folds, fold, open_store(load_settings())))


@task(name="evaluation", task_run_name="evaluation", **ONCE)
def evaluate_classifier(
    model: Artifact, crops: Artifact, splits: Artifact, plan: Plan, story: tuple[tuple[str, Counts], ...], folds: list[evaluation_room.Fold]
) -> Any:
    """Score the ONNX model on the test places, compare it with the model released last, judge it and write the report."""
    settings = load_settings()
    store = open_store(settings)
    champion = champion_of(plan.endpoint_name(), read_card(store.path(model, CARD_FILE)), store)
    return shown(
        evaluation_room.evaluate_classifier(
            model, crops, splits, plan, store, champion=champion, folds=folds, story=story, image_url=settings.image_url
        )
    )


@task(name="package", task_run_name="package", **ONCE)
def package_model(model: Artifact, evaluation: Artifact, plan: Plan) -> Any:
    """Pack the scored model and its card into model.tar.gz."""
    return shown(package_room.package_model(model, evaluation, plan, open_store(load_settings())))


@task(name="tracking", task_run_name="tracking", **ONCE)
def track_training(report: Report, plan: Plan) -> str | None:
    """Tell MLflow of a retraining; its run comes back, None where MLflow does not answer."""
    settings = load_settings()
    return tracking_room.track_training(report, plan, open_store(settings), settings)

"""Tasks that train, score and package a model, and that record what came of it."""

from __future__ import annotations

from datetime import datetime

from prefect import task

from animl_pipeline.config import Plan
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.deploy.released_model import find_champion_for_step
from animl_pipeline.deploy.trained_versions import TrainingOutcome, record_training
from animl_pipeline.integrations import mlflow, sagemaker_training
from animl_pipeline.steps import calibration as calibration_step
from animl_pipeline.steps import detections as detections_step
from animl_pipeline.steps import evaluation as evaluation_step
from animl_pipeline.steps import package as package_step
from animl_pipeline.steps import training as training_step
from tasks.step_tasks_and_retries import REMOTE_WORK, step_task
from tasks.store_and_data_paths import RunPaths


@task(name="preflight", task_run_name="preflight", **REMOTE_WORK)
def check_training_preconditions(plan: Plan, paths: RunPaths) -> None:
    """Check what the plan names besides its data, before hours are spent on the data: detector, backbone, weights, SageMaker, MLflow.

    Raises:
        SettingsError: a setting for SageMaker or MLflow is missing or wrong.
        DetectionsError: there is no such detector.
        TrainingError: timm has no such backbone, or the weights do not fit it.
        WeightsError: the weights of the detector or of the training are missing, or a training elsewhere cannot see them.
    """
    settings = paths.settings()
    mlflow.check_tracking_uri(settings)
    if plan.train.run_on == "sagemaker":
        sagemaker_training.check_job_settings(plan, settings)
    detections_step.check_ready(plan.detections, settings, for_production=plan.production is not None)
    training_step.check_backbone_and_weights(plan, settings)


@step_task("training")
def train_classifier(crops: Artifact, splits: Artifact, plan: Plan, embeddings: Artifact | None, paths: RunPaths) -> Artifact:
    """Train the classifier and export it to ONNX, on this machine or on SageMaker (``train.run_on``).

    A killed training continues from its last checkpoint. ``embeddings`` is the step embeddings, if the plan has it.
    """
    store, settings = paths.open_store(), paths.settings()
    build_with = sagemaker_training.build_in_job(crops, splits, plan, store, settings, embeddings) if plan.train.run_on == "sagemaker" else None
    return training_step.train_classifier(crops, splits, plan, store, settings, embeddings=embeddings, build_with=build_with)


@step_task("calibration")
def calibrate_classifier(model: Artifact, crops: Artifact, splits: Artifact, plan: Plan, paths: RunPaths) -> Artifact:
    """Choose the temperature and the classes' thresholds on val."""
    register = plan.labels.other_animal is not None and plan.labels.other_animal.register_
    return calibration_step.calibrate_classifier(
        model, crops, splits, plan.thresholds, paths.open_store(), plan.labels.parents, register_other_animal=register
    )


@step_task("fold", "fold {fold}")
def fold_splits(crops: Artifact, splits: Artifact, folds: int, fold: int, paths: RunPaths) -> Artifact:
    """Leave a part of the train locations out, so that a model that never saw them can audit their labels."""
    return evaluation_step.fold_splits(crops, splits, folds, fold, paths.open_store())


@step_task("evaluation")
def evaluate_classifier(
    model: Artifact,
    crops: Artifact,
    splits: Artifact,
    plan: Plan,
    history: list[tuple[str, Artifact]],
    folds: list[tuple[Artifact, Artifact]],
    sequences: list[Artifact],
    paths: RunPaths,
) -> Artifact:
    """Score the ONNX model on the test locations, compare it with the released model, and write the report.

    ``history``: title and artifact of each earlier step, for the report's table of what was kept and dropped. ``folds``: trained model and
    splits of each fold of the label audit. ``sequences``: the steps test_images and test_detections; empty where production is not scored.
    """
    store = paths.open_store()
    champion = find_champion_for_step(plan, model, store)
    return evaluation_step.evaluate_classifier(
        model,
        crops,
        splits,
        plan,
        store,
        champion=champion.package,
        champion_problem=champion.problem,
        folds=[evaluation_step.Fold(*fold) for fold in folds],
        step_counts=_counts(history),
        image_url=paths.settings().image_url,
        sequences=evaluation_step.SequenceArtifacts(*sequences) if sequences else None,
        training=dict(history).get("training"),
    )


@step_task("package")
def package_model(model: Artifact, evaluation: Artifact, plan: Plan, paths: RunPaths) -> Artifact:
    """Pack the scored model and its card into model.tar.gz."""
    return package_step.package_model(model, evaluation, plan.package, paths.open_store(), description=plan.description)


@task(name="report", task_run_name="report", **REMOTE_WORK)
def write_report(plan: Plan, history: list[tuple[str, Artifact]], begun: datetime, changes: list[str], paths: RunPaths) -> TrainingOutcome:
    """Make the training's report the latest of its model, unless it is a trial, and say what came of it.

    ``changes``: what the run changed of the plan; with any, the training is a trial.
    """
    steps = {artifact.step: artifact for title, artifact in history if title == artifact.step}
    return record_training(plan, steps["training"], steps["evaluation"], steps["package"], _counts(history), begun, paths.open_store(), changes)


@task(name="mlflow", task_run_name="mlflow", **REMOTE_WORK)
def track_training(report: Report, plan: Plan, paths: RunPaths) -> str | None:
    """Copy the training's report to MLflow. Returns the MLflow run's id, or None if MLflow is not set or does not answer."""
    return mlflow.track_training(report, plan, paths.open_store(), paths.settings())


def _counts(history: list[tuple[str, Artifact]]) -> tuple[tuple[str, Counts], ...]:
    return tuple((title, artifact.counts) for title, artifact in history)

"""Training, scoring and packaging as Prefect tasks."""

from __future__ import annotations

from typing import Any

from prefect import task

from animl_pipeline import evaluation as evaluation_room
from animl_pipeline import model as model_room
from animl_pipeline import package as package_room
from animl_pipeline.plan import Plan
from animl_pipeline.records import Artifact, Counts
from animl_pipeline.settings import load_settings
from animl_pipeline.store import open_store
from tasks.policies import ONCE, PATIENT, shown


@task(name="model", **PATIENT)
def train_classifier(crops: Artifact, splits: Artifact, plan: Plan) -> Any:
    """Train the classifier and export it to ONNX; a killed training goes on from its last checkpoint."""
    settings = load_settings()
    return shown(model_room.train_classifier(crops, splits, plan, open_store(settings), settings))


@task(name="evaluation", **ONCE)
def evaluate_classifier(model: Artifact, crops: Artifact, splits: Artifact, plan: Plan, story: tuple[tuple[str, Counts], ...]) -> Any:
    """Score the ONNX model on the test places and write the report."""
    return shown(evaluation_room.evaluate_classifier(model, crops, splits, plan, open_store(load_settings()), story=story))


@task(name="package", **ONCE)
def package_model(model: Artifact, evaluation: Artifact, plan: Plan) -> Any:
    """Pack the scored model and its card into model.tar.gz."""
    return shown(package_room.package_model(model, evaluation, plan, open_store(load_settings())))

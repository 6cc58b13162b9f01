"""The result of a training run: its report becomes the latest one of its model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from animl_pipeline.config import Plan
from animl_pipeline.core.artifacts import Artifact, Counts, Record
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.deploy.latest_report import latest_package_digest, record_training_start, save_report
from animl_pipeline.deploy.release_gate import needs_approval
from animl_pipeline.inference.classifier import CARD_FILE, read_card
from animl_pipeline.steps.evaluation import read_metrics, write_headline
from animl_pipeline.storage.step_cache import Store


class TrainingOutcome(Record):
    """A training's report, and what it means for the next steps.

    Attributes:
        report: the report.
        unchanged: whether the latest report before it was of the same package.
        needs_approval: whether a person must approve the package before its release.
    """

    report: Report
    unchanged: bool
    needs_approval: bool


def record_training(
    plan: Plan, model: Artifact, evaluation: Artifact, package: Artifact, step_counts: Sequence[tuple[str, Counts]], begun: datetime, store: Store
) -> TrainingOutcome:
    """Make a training's report the latest of its model, and note when the training began.

    Args:
        plan: the plan that was trained by.
        model: the step training.
        evaluation: the step evaluation.
        package: the step package.
        step_counts: title and counts of every step.
        begun: when the run began; what was validated before counts as learnt.
        store: keeps the report.
    """
    metrics = read_metrics(evaluation, store)
    report = Report(
        model=plan.model,
        version=read_card(store.path(package, CARD_FILE)).version,
        headline=write_headline(metrics),
        metrics=metrics,
        model_artifact=model,
        evaluation=evaluation,
        package=package,
        step_counts=tuple(step_counts),
        verdict=metrics.verdict,
        reasons=metrics.reasons,
    )
    unchanged = latest_package_digest(plan.model, store) == package.digest
    save_report(report, store)
    record_training_start(plan.model, begun, store)
    return TrainingOutcome(report=report, unchanged=unchanged, needs_approval=needs_approval(package, plan, store))

"""The whole street up to the report: from exports of validated labels to a packaged, scored classifier."""

from __future__ import annotations

import base64
import logging
from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from animl_pipeline.classifier import read_card
from animl_pipeline.evaluation import Fold, headline, read_metrics
from animl_pipeline.labels import SourceSteps, wanted_names
from animl_pipeline.plan import Overrides, Plan, find_plan, load_plan
from animl_pipeline.records import Artifact, Counts, Report
from animl_pipeline.reports import keep_report, note_training
from animl_pipeline.settings import load_settings
from animl_pipeline.store import open_store
from flows.bars import bars_in_ui
from flows.ending import take_charge
from flows.spread import cut_everywhere, look_everywhere
from tasks import dataset, training

log = logging.getLogger("animl_pipeline.flows.retrain")

Story = list[tuple[str, Counts]]


@flow(name="retrain", flow_run_name="retrain {plan}", description=__doc__, persist_result=False)
def retrain(plan: str, overrides: Overrides = Overrides()) -> Report:  # noqa: B008 - frozen
    """Train, score and package a classifier by a plan.

    Every step is reused while its inputs, its part of the plan and its code are unchanged.

    Args:
        plan: name of a plan in deployments/plans, such as sample, or the path of its YAML file.
        overrides: what this run changes of the plan; leave it empty to train by the plan as it is.
    """
    take_charge()
    begun = datetime.now(UTC)
    checked = overrides.applied(load_plan(find_plan(plan, load_settings().plans)))
    story: Story = []
    with bars_in_ui():
        crops, splits = _data(checked, story)
        report = _judged(checked, crops, splits, story)
    keep_report(report, open_store(load_settings()))
    note_training(checked.model, begun, open_store(load_settings()))
    _show(report)
    return report


def _data(plan: Plan, story: Story) -> tuple[Artifact, Artifact]:
    """The crops and how they are split."""
    exports = {s.name: dataset.export_annotations.submit(s) for s in plan.sources}
    wanted = {s.name: wanted_names(plan.labels, s.name, load_settings()) for s in plan.sources}
    images = {s.name: dataset.fetch_images.submit(s, exports[s.name].result(), wanted[s.name], plan.images) for s in plan.sources}
    steps = [SourceSteps(s, _told(story, exports[s.name], s.name), _told(story, images[s.name], s.name)) for s in plan.sources]
    labels = _told(story, dataset.resolve_labels.submit(steps, plan.labels))
    look_everywhere(labels, plan)
    detections = _told(story, dataset.detect_animals.submit(labels, plan.detections))
    cut_everywhere(labels, detections, plan)
    crops = _told(story, dataset.cut_crops.submit(labels, detections, plan.crops, plan.view))
    classes = tuple(plan.labels.classes)
    return crops, _told(story, dataset.split_by_location.submit(crops, plan.splits, classes, plan.model))


def _judged(plan: Plan, crops: Artifact, splits: Artifact, story: Story) -> Report:
    """The trained model, calibrated, scored, judged and packaged."""
    model = _told(story, training.train_classifier.submit(crops, splits, plan))
    calibrated = _told(story, training.calibrate_classifier.submit(model, crops, splits, plan))
    folds = _audit_folds(plan, crops, splits)
    evaluation = _told(story, training.evaluate_classifier.submit(calibrated, crops, splits, plan, tuple(story), folds))
    package = _told(story, training.package_model.submit(calibrated, evaluation, plan))
    store = open_store(load_settings())
    metrics = read_metrics(evaluation, store)
    return Report(
        model=plan.model,
        version=read_card(store.path(package, "card.json")).version,
        headline=headline(metrics),
        metrics=metrics,
        model_artifact=model,
        evaluation=evaluation,
        package=package,
        story=tuple(story),
        verdict=metrics.verdict,
        reasons=metrics.reasons,
    )


def _audit_folds(plan: Plan, crops: Artifact, splits: Artifact) -> list[Fold]:
    """Models that have each not seen a part of the train places, where the plan wants the labels of train audited, too."""
    held = [training.fold_splits.submit(crops, splits, plan.audit.folds, i) for i in range(plan.audit.folds)]
    splits_of = [h.result() for h in held]
    models = [training.train_classifier.submit(crops, s, plan) for s in splits_of]
    return [Fold(model.result(), s) for model, s in zip(models, splits_of, strict=True)]


def _told(story: Story, future: Any, of: str = "") -> Artifact:
    """A task's artifact; its counts, of a source where it is of one, become part of the story that report and UI tell."""
    artifact: Artifact = future.result()
    story.append((f"{artifact.step} {of}".strip(), artifact.counts))
    return artifact


def _show(report: Report) -> None:
    """Put into Prefect's UI what a person wants to see of this run."""
    rows = [
        {"step": step, "kept": c.kept, "unit": c.unit, "dropped": sum(c.dropped.values()), "why": ", ".join(f"{n} {r}" for r, n in c.dropped.items())}
        for step, c in report.story
    ]
    create_table_artifact(key="kept-and-dropped", table=rows, description="What each step kept and dropped")
    scores: list[dict[str, Any]] = [c.model_dump(mode="json") for c in report.metrics.classes]
    create_table_artifact(key="scores", table=scores, description=f"{report.model} {report.version} on the test places")
    thresholds = [{"class": t.id, "aim": t.aim, "threshold": t.value, "reached on val": t.met} for t in report.metrics.thresholds]
    create_table_artifact(key="thresholds", table=thresholds, description="From which probability on each class is named")
    reasons = "\n".join(f"- {reason}" for reason in report.reasons)
    create_markdown_artifact(key="verdict", markdown=f"## {report.model} {report.version}\n\n{report.headline}\n\n{reasons}")
    confusion = open_store(load_settings()).path(report.evaluation, "confusion.png").read_bytes()
    picture = f"data:image/png;base64,{base64.b64encode(confusion).decode()}"
    create_image_artifact(key="confusion", image_url=picture, description="What is taken for what, on the test places")

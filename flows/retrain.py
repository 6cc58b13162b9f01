"""The whole street up to the report: from exports of validated labels to a packaged, scored classifier."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from animl_pipeline.classifier import read_card
from animl_pipeline.evaluation import headline, read_metrics
from animl_pipeline.labels import SourceSteps, wanted_names
from animl_pipeline.plan import Plan, load_plan
from animl_pipeline.records import Artifact, Counts, Report
from animl_pipeline.reports import keep_report
from animl_pipeline.settings import load_settings
from animl_pipeline.store import open_store
from flows.ending import take_charge
from tasks import dataset, training

log = logging.getLogger("animl_pipeline.flows.retrain")

Story = list[tuple[str, Counts]]


@flow(name="retrain", flow_run_name="retrain {plan}", description=__doc__, persist_result=False)
def retrain(plan: str) -> Report:
    """Train, score and package a classifier by a plan.

    Every step is reused while its inputs, its part of the plan and its code are unchanged.

    Args:
        plan: path of the plan's YAML file, such as deployments/plans/sample.yaml.
    """
    take_charge()
    checked = load_plan(plan)
    story: Story = []
    crops, splits = _data(checked, story)
    report = _judged(checked, crops, splits, story)
    keep_report(report, open_store(load_settings()))
    _show(report)
    return report


def _data(plan: Plan, story: Story) -> tuple[Artifact, Artifact]:
    """The crops and how they are split."""
    exports = {s.name: dataset.export_annotations.submit(s) for s in plan.sources}
    wanted = wanted_names(plan.labels)
    images = {s.name: dataset.fetch_images.submit(s, exports[s.name].result(), wanted) for s in plan.sources}
    steps = [SourceSteps(s, _told(story, exports[s.name], s.name), _told(story, images[s.name], s.name)) for s in plan.sources]
    labels = _told(story, dataset.resolve_labels.submit(steps, plan.labels))
    detections = _told(story, dataset.detect_animals.submit(labels, plan.detections))
    crops = _told(story, dataset.cut_crops.submit(labels, detections, plan.crops, plan.view))
    classes = tuple(plan.labels.classes)
    return crops, _told(story, dataset.split_by_location.submit(crops, plan.splits, classes, plan.model))


def _judged(plan: Plan, crops: Artifact, splits: Artifact, story: Story) -> Report:
    """The trained model, scored and packaged."""
    model = _told(story, training.train_classifier.submit(crops, splits, plan))
    evaluation = _told(story, training.evaluate_classifier.submit(model, crops, splits, plan, tuple(story)))
    package = _told(story, training.package_model.submit(model, evaluation, plan))
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
    )


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
    scores: list[dict[str, Any]] = [c.model_dump() for c in report.metrics.classes]
    create_table_artifact(key="scores", table=scores, description=f"{report.model} {report.version} on the test places")
    create_markdown_artifact(key="verdict", markdown=f"## {report.model} {report.version}\n\n{report.headline}")

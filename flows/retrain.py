"""The whole street up to the report: from exports of validated labels to a packaged, scored classifier."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from prefect import flow, runtime

from animl_pipeline.config import Overrides, Plan, find_plan, load_plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.records import Artifact, Counts, Report
from animl_pipeline.deploy import lacks_approval
from animl_pipeline.deploy.latest_report import keep_report, newest_package, note_training
from animl_pipeline.inference.classifier import read_card
from animl_pipeline.steps.evaluation import Fold, headline, read_metrics
from animl_pipeline.steps.labels import SourceSteps, wanted_names
from animl_pipeline.storage.step_cache import open_store
from flows.approval import start_release
from flows.artifacts import show_training
from flows.distributed import extract_crops_on_cluster, run_detector_on_cluster
from flows.lifecycle import cancel_on_stop, install_signal_handlers
from flows.progress_artifacts import bars_in_ui
from flows.run_states import STATE_OF_VERDICT, ended
from tasks import dataset, training

log = logging.getLogger("animl_pipeline.flows.retrain")

Story = list[tuple[str, Counts]]


def _run_name() -> str:
    """What a run is called: after its plan, and what it changes of it."""
    given = runtime.flow_run.parameters
    changes = Overrides.model_validate(given.get("overrides") or {}).model_dump(exclude_none=True)
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changes.items())
    return f"retrain {given['plan']}{f' ({said})' if said else ''}"


@flow(name="retrain", flow_run_name=_run_name, description=__doc__, persist_result=False)
def retrain(plan: str, overrides: Overrides = Overrides()) -> Report:  # noqa: B008 - frozen
    """Train, score and package a classifier by a plan.

    Every step is reused while its inputs, its part of the plan and its code are unchanged. The run ends as Promoted, Held or
    NeedMoreData by the report's verdict, as AwaitingApproval where a person must say yes before the release, or as NothingNew
    where the newest report was of the same package already.

    Args:
        plan: name of a plan in deployments/plans, such as sample, or the path of its YAML file.
        overrides: what this run changes of the plan; leave it empty to train by the plan as it is.
    """
    install_signal_handlers()
    begun = datetime.now(UTC)
    checked = overrides.applied(load_plan(find_plan(plan, load_settings().plans)))
    training.check_ready(checked)
    before = newest_package(checked.model, open_store(load_settings()))
    story: Story = []
    with bars_in_ui(), cancel_on_stop():
        crops, splits = _data(checked, story)
        report = _judged(checked, crops, splits, story)
    keep_report(report, open_store(load_settings()))
    note_training(checked.model, begun, open_store(load_settings()))
    show_training(report, splits)
    if load_settings().mlflow_tracking_uri.get_secret_value():
        training.track_training(report, checked)
    return _ended(report, checked, "" if overrides != Overrides() else plan, again=before == report.package.digest)


def _ended(report: Report, plan: Plan, name: str, *, again: bool) -> Report:
    """The report, in a state that says what came of it; the release is started where the plan says so.

    Args:
        report: of this run.
        plan: with the run's changes.
        name: the plan's name, "" where the run has changed something, which is then tried out and not released by itself.
        again: whether the newest report was of the same package before.
    """
    named, said = STATE_OF_VERDICT[report.verdict], report.headline
    if report.verdict == "promote" and lacks_approval(report.package, plan, open_store(load_settings())):
        named, said = "AwaitingApproval", f"{said}; a person must approve its release"
    if report.verdict == "promote" and plan.release.start == "after_retrain":
        said += f"; {start_release(name, report) if name else 'its release was not started, since this run has changed the plan'}"
    return ended(*(("NothingNew", f"the same package as before: {said}") if again else (named, said)), report)


def _data(plan: Plan, story: Story) -> tuple[Artifact, Artifact]:
    """The crops and how they are split."""
    exports = {s.name: dataset.export_annotations.submit(s) for s in plan.sources}
    wanted = {s.name: wanted_names(plan.labels, s.name, load_settings()) for s in plan.sources}
    images = {s.name: dataset.fetch_images.submit(s, exports[s.name].result(), wanted[s.name], plan.images) for s in plan.sources}
    steps = [SourceSteps(s, _told(story, exports[s.name], s.name), _told(story, images[s.name], s.name)) for s in plan.sources]
    labels = _told(story, dataset.resolve_labels.submit(steps, plan.labels))
    run_detector_on_cluster(labels, plan)
    detections = _told(story, dataset.detect_animals.submit(labels, plan.detections))
    extract_crops_on_cluster(labels, detections, plan)
    crops = _told(story, dataset.cut_crops.submit(labels, detections, plan.crops, plan.model_input))
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
    fresh = plan.model_copy(update={"train": plan.train.fresh()})
    models = [training.train_classifier.submit(crops, s, fresh) for s in splits_of]
    return [Fold(model.result(), s) for model, s in zip(models, splits_of, strict=True)]


def _told(story: Story, future: Any, of: str = "") -> Artifact:
    """A task's artifact; its counts, of a source where it is of one, become part of the story that report and UI tell."""
    artifact: Artifact = future.result()
    story.append((f"{artifact.step} {of}".strip(), artifact.counts))
    return artifact

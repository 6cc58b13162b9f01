"""Retrain: from exports of validated labels to a packaged, scored classifier."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from prefect import flow, runtime
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL

from animl_pipeline.config import Overrides, Plan, find_plan, load_plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.evaluation_results import Report
from flows.detect_and_crop_on_cluster import extract_crops_on_cluster, run_detector_on_cluster
from flows.end_states import STATE_OF_VERDICT, end_as
from flows.progress_artifacts import show_progress
from flows.start_training_when_validated import deployment_name
from flows.stop_signals import exit_on_cancel, prepare_run
from flows.ui_artifacts import show_training
from tasks import dataset, training
from tasks.store_and_data_paths import RunPaths, resolve_run_paths

log = logging.getLogger(__name__)

Step = tuple[str, PrefectFuture[Artifact]]
"""A step's title, with the source's name where each source has such a step, and its task. Steps of the label audit have no title."""


def _run_name() -> str:
    """The plan's name, and what the run changes of the plan."""
    given = runtime.flow_run.parameters
    changes = Overrides.model_validate(given.get("overrides") or {}).model_dump(exclude_none=True)
    shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in changes.items())
    return f"retrain {given['plan']}{f' ({shown})' if shown else ''}"


@flow(name="retrain", flow_run_name=_run_name, description=__doc__, persist_result=False)
def retrain(plan: str, overrides: Overrides = Overrides(), store: str = "", data: str = "") -> Report:  # noqa: B008 - frozen
    """Train, score and package a classifier.

    A step is reused while its inputs, its part of the plan and its version are unchanged. The run ends as Promoted, Held or
    NeedMoreData by the report's verdict; as AwaitingApproval if a person must approve the release first; or as NothingNew if
    the latest report was of the same package already. A run that changes the plan is a trial: it does not become the version that a
    release, a prediction and `watch` go by, and only a release of its version takes it.

    Args:
        plan: name of a plan in deployments/plans, such as sample, or the path of its YAML file.
        overrides: what this run changes of the plan; leave it empty to train by the plan.
        store: folder or s3://bucket/prefix for all that steps make; empty: ANIML_STORE of the worker.
        data: folder where relative paths of the plan start; empty: ANIML_DATA of the worker.
    """
    prepare_run()
    begun, paths = datetime.now(UTC), resolve_run_paths(store, data)
    unchanged = load_plan(find_plan(plan, load_settings().plans))
    checked, changes = overrides.applied(unchanged), overrides.changes(unchanged)
    training.check_training_preconditions.submit(checked, paths).result()
    with show_progress(), exit_on_cancel():
        steps = _submit_steps(checked, paths)
        made = [(title, step.result()) for title, step in steps]  # in their order: the first failure is a cause and no consequence
        outcome = training.write_report.submit(checked, [step for step in made if step[0]], begun, changes, paths).result()
    show_training.submit(outcome.report, dict(made)["splits"], paths).result()
    if load_settings().mlflow_tracking_uri.get_secret_value():
        training.track_training.submit(outcome.report, checked, paths).result()
    state, message = STATE_OF_VERDICT[outcome.report.verdict], outcome.report.headline
    address = outcome.report.page_address(load_settings().reports_url)
    if changes:
        message += f"; a trial, because this run changed the plan ({', '.join(changes)}): only a release of version {outcome.report.version} takes it"
    elif outcome.report.verdict == "promote":
        if outcome.needs_approval:
            state, message = "AwaitingApproval", f"{message}; a person must approve its release"
        if checked.release.start == "after_retrain":
            message += f"; {start_release(plan, outcome.report, store)}"
    if outcome.unchanged:
        state, message = "NothingNew", f"the same package as before: {message}"
    if address:
        message += f"; the report: {address}"
    return end_as(state, message, outcome.report)


def _submit_steps(plan: Plan, paths: RunPaths) -> list[Step]:
    """Submit all steps at once; each starts as soon as the steps that it reads have ended. They come back in their order."""
    exports = [dataset.export_annotations.submit(s, paths) for s in plan.sources]
    images = [dataset.download_images.submit(s, e, plan.labels, plan.images, paths) for s, e in zip(plan.sources, exports, strict=True)]
    labels = dataset.resolve_labels.submit(plan.sources, exports, images, plan.labels, paths)
    run_detector_on_cluster(labels, plan, paths)
    detections = dataset.detect_animals.submit(labels, plan.detections, plan.sources, plan.false_box_class(), paths)
    extract_crops_on_cluster(labels, detections, plan, paths)
    crops = dataset.extract_crops.submit(labels, detections, plan.crops, plan.model_input, plan.labels.nothing_id, paths)
    splits = dataset.split_by_location.submit(crops, plan.splits, plan.labels.class_ids(), plan.model, paths)
    test = _submit_test_sequences(plan, exports, images, splits, paths)
    embeddings = None
    if plan.train.needs_embeddings():
        embeddings = dataset.embed_crops.submit(crops, splits, plan.train.networks, plan.model_input.size, paths)
    model = training.train_classifier.submit(crops, splits, plan, embeddings, paths)
    calibrated = training.calibrate_classifier.submit(model, crops, splits, plan, paths)
    folds = _train_audit_folds(plan, crops, splits, embeddings, model, paths)
    steps: list[Step] = [(f"export {s.name}", task) for s, task in zip(plan.sources, exports, strict=True)]
    steps += [(f"images {s.name}", task) for s, task in zip(plan.sources, images, strict=True)]
    steps += [("labels", labels), ("detections", detections), ("crops", crops), ("splits", splits), *test]
    steps += [*([("embeddings", embeddings)] if embeddings else []), ("training", model), ("calibration", calibrated)]
    sequences = [step for title, step in test if title in {"test_images", "test_detections"}]
    evaluation = training.evaluate_classifier.submit(calibrated, crops, splits, plan, steps, folds, sequences, paths)
    package = training.package_model.submit(calibrated, evaluation, plan, paths)
    return [*steps, *(("", task) for fold in folds for task in fold), ("evaluation", evaluation), ("package", package)]


def _submit_test_sequences(
    plan: Plan, exports: list[PrefectFuture[Artifact]], images: list[PrefectFuture[Artifact]], splits: PrefectFuture[Artifact], paths: RunPaths
) -> list[Step]:
    """The steps that give the sequences on which production is scored, if the plan wants that."""
    if plan.production is None:
        return []
    chosen = dataset.choose_test_images.submit(plan.sources, exports, images, splits, plan.labels, plan.production, plan.splits, paths)
    downloads = [dataset.download_test_images.submit(s, chosen, plan.images, paths) for s in plan.sources]
    detections = dataset.detect_in_test_images.submit(chosen, plan.sources, downloads, plan.detections, plan.production, paths)
    return [
        ("test_images", chosen),
        *((f"test_downloads {s.name}", task) for s, task in zip(plan.sources, downloads, strict=True)),
        ("test_detections", detections),
    ]


def _train_audit_folds(
    plan: Plan,
    crops: PrefectFuture[Artifact],
    splits: PrefectFuture[Artifact],
    embeddings: PrefectFuture[Artifact] | None,
    model: PrefectFuture[Artifact],
    paths: RunPaths,
) -> list[tuple[PrefectFuture[Artifact], PrefectFuture[Artifact]]]:
    """Models that each have not seen a part of the train locations, with their splits, if the plan audits the labels of train.

    Where cross-validation chooses the model, its own folds audit the labels, and nothing more is trained.
    """
    if plan.train.always_by_folds():
        return []
    fresh = plan.model_copy(update={"train": plan.train.without_released_weights().model_copy(update={"select": "validation"})})
    held_out = [training.fold_splits.submit(crops, splits, plan.audit.folds, fold, paths) for fold in range(plan.audit.folds)]
    return [(training.train_classifier.submit(crops, s, fresh, embeddings, paths, wait_for=[model]), s) for s in held_out]


def start_release(plan: str, report: Report, store: str = "") -> str:
    """Start the release of the very package that was judged, once for each package. Returns a line that says what came of it.

    ``plan``: the plan's name, as a run takes it. It must be deployed as `release/<name of its file>`.
    """
    if not PREFECT_API_URL.value():
        return "its release was not started, because no Prefect server is set; release it by hand"
    deployment = f"release/{deployment_name(plan)}"
    key = f"{deployment}/{report.model}/{report.package.digest}"  # plans may share a model, but not their endpoints
    parameters = {"plan": plan, "version": report.package.digest} | ({"store": store} if store else {})
    try:
        run = run_deployment(deployment, parameters=parameters, timeout=0, as_subflow=False, idempotency_key=key, tags=["after-retrain"])
    except ObjectNotFound:
        log.warning("the Prefect server has no deployment %r; `animl-pipeline deploy` puts it there", deployment)
        return f"its release was not started: the server has no deployment {deployment!r}"
    return f"its release is the run {run.name!r}"  # type: ignore[union-attr]  # a coroutine only in async code

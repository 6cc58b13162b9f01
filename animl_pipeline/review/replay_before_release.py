"""Before a release: run the new model on the last images that the model in service answered, and say what would change."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import StoreError
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.deploy.animl_registration import kept_by_animl
from animl_pipeline.deploy.release_history import release_records
from animl_pipeline.deploy.resource_names import read_package_card, slug
from animl_pipeline.inference.classifier import load_package
from animl_pipeline.review.answers_in_service import answers_in_service, latest_images
from animl_pipeline.review.model_in_service import served_model, versions_in_service
from animl_pipeline.steps.monitor import read_service_labels
from animl_pipeline.steps.replay import InService, describe_replay, estimate_seconds, read_replay, replay_model
from animl_pipeline.storage.store import Store, digest_of

log = logging.getLogger(__name__)


class ReplayNote(Record):
    """What a replay found, in sentences without markup, and the artifact with its page; None where there was nothing to replay."""

    text: str
    artifact: Artifact | None = None
    made_at: datetime | None = None


def replay_before_release(report: Report, plan: Plan, store: Store, settings: Settings) -> ReplayNote:
    """Replay the report's package on the plan's ``release.replay.images`` last images.

    The result is kept for as long as a release waits for its approval, so that a run that is resumed does not make it again.

    Raises:
        ExportError, ImagesError: Animl or the host of the images refuses, or does not answer.
        PackageError, LabelsError, SettingsError: what they say.
    """
    served = versions_in_service(plan, store)
    projects = [source for source in plan.sources if source.project() is not None]
    if not served:
        return ReplayNote(text="No replay: this store knows no model in service.")
    if not projects:
        return ReplayNote(text="No replay: the plan names no Animl project, so the answers of the model in service are not known.")
    done = [r for r in release_records(plan, store) if r.state == "done"]
    if done and done[-1].package is not None and done[-1].package.digest == report.package.digest:
        return ReplayNote(text=f"No replay: {report.version} is in service already.")
    count, version = plan.release.replay.images, served[-1][1]
    kept_from = kept_by_animl(read_package_card(report.package, store), plan)
    name = f"replays/{plan.model}/{report.package.digest[:16]}-{slug(version)}-{count}-{digest_of(kept_from)[:8]}.json"
    known = _read_known(name, timedelta(days=plan.release.approval_timeout_days), store)
    if known is not None:
        return known
    labels = [read_service_labels(source, served[0][0], plan.monitor.random_tag, store, settings) for source in projects]
    model = served_model(plan, [source.name for source in projects], served, settings)
    chosen, animals = latest_images(labels, model, count, store)
    if chosen.empty:
        return ReplayNote(text=f"No replay: Animl has no image with an animal that {version} answered since {served[-1][0]:%Y-%m-%d}.")
    seconds = estimate_seconds(load_package(store.path(report.package, "model.tar.gz")), animals)
    log.info("replay: the last %d images, downloaded unless the store has them; about %.0f s for their %d animals", len(chosen), seconds, animals)
    answers = answers_in_service(plan, chosen, model, store, settings)
    before = InService(version, answers.objects, answers.images, answers.not_readable, model.own_classes(), model.equivalents, model.parents)
    artifact = replay_model(report.package, before, plan.thresholds.invasive, kept_from, settings.image_url, store)
    note = ReplayNote(text=describe_replay(read_replay(artifact, store)), artifact=artifact, made_at=datetime.now(UTC))
    store.object_store.put(name, note.model_dump_json().encode())
    return note


def _read_known(name: str, lasts: timedelta, store: Store) -> ReplayNote | None:
    """The note of an earlier replay, if it is young enough and its artifact is still there."""
    try:
        note = ReplayNote.model_validate_json(store.object_store.read(name) or b"")
        if note.artifact is None or note.made_at is None or datetime.now(UTC) - note.made_at > lasts:
            return None
        read_replay(note.artifact, store)
    except (ValidationError, StoreError):
        return None
    return note

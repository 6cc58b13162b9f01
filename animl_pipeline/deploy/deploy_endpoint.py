"""A package goes behind the plan's endpoints, is checked there, and is undone when it does not hold.

::

    may it be released? · settle what a killed release left · look ahead (bucket, role, image, quotas, Animl's categories)
    upload, model, config (immutable, idempotent)  →  realtime: change, see through  →  batch: change, see through
    one endpoint does not hold: both as before     →  tell Animl, where the plan says so
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PipelineError, ReleaseError
from animl_pipeline.core.progress import track
from animl_pipeline.core.records import Approval, Artifact, Release, Report
from animl_pipeline.deploy.endpoint_names import Target, targets_of
from animl_pipeline.deploy.history import ReleaseRecord, all_at_rest, begin, close, new_record, records_of, released
from animl_pipeline.deploy.live_check import reference_crops
from animl_pipeline.deploy.preflight import look_ahead
from animl_pipeline.deploy.release_gate import approved, refuse
from animl_pipeline.deploy.sagemaker_api import Aws
from animl_pipeline.deploy.update import Changer, as_release
from animl_pipeline.storage.step_cache import Store, sha256_of

log = logging.getLogger(__name__)


class Why(NamedTuple):
    """What lets a release happen, for its record."""

    forced: str
    approval: Approval | None


def deploy_endpoint(
    package: Artifact,
    plan: Plan,
    store: Store,
    settings: Settings,
    *,
    report: Report | None = None,
    force: str = "",
    approval: Approval | None = None,
) -> Release:
    """Put a package behind the plan's endpoints and check it there; nothing changes where they serve this package already.

    Args:
        package: what the step 'package' made.
        plan: names the endpoints and their sizes.
        store: holds package and history.
        settings: role, image, bucket, and where Animl is.
        report: the package's report; its verdict decides.
        force: why to release although the verdict is not to promote; it is kept in the history. It is no approval.
        approval: a person's yes to this package, where the plan asks for one; it is kept in the history.

    Raises:
        SettingsError: the role or the image is not set.
        ReleaseError: the report says no; nobody has approved it, and the plan asks for that; AWS refused; or an endpoint
            did not come up or answered unlike offline, and all endpoints are as they were.
    """
    targets = targets_of(package, plan, store, settings)
    forced = refuse(package, targets[0].version, report, force, records_of(targets[0].where.line, store))
    why = Why(forced, approved(package, plan, store, approval))
    changer = Changer(Aws(), plan, store)
    with all_at_rest([t.where.line for t in targets], store, plan.release.timeout_s), track(f"releasing to {targets[0].endpoint}", 3) as step:
        log.info("releasing %s %s to %s", plan.model, targets[0].version, " and ".join(t.endpoint for t in targets))
        for target in targets:
            changer.settle(target.where.line)
        step(1)
        look_ahead(changer.aws, targets, plan, settings)
        step(1)
        records = _all_or_none(changer, targets, package, why)
        step(1)
    done = [as_release(record, changed=changed) for record, changed in records]
    return done[0].model_copy(update={"batch": done[1] if len(done) > 1 else None})


def _all_or_none(changer: Changer, targets: tuple[Target, ...], package: Artifact, why: Why) -> list[tuple[ReleaseRecord, bool]]:
    """Each endpoint's record and whether it changed; when one does not hold, those before it go back as well."""
    done: list[tuple[ReleaseRecord, bool]] = []
    for target in targets:
        try:
            done.append(_released_to(changer, target, package, why))
        except PipelineError as e:
            for record in (r for r, changed in done if changed):
                _take_back(changer, record, f"{target.endpoint} did not take it: {e}")
            raise
    return done


def _released_to(changer: Changer, target: Target, package: Artifact, why: Why) -> tuple[ReleaseRecord, bool]:
    aws, patience_s = changer.aws, changer.patience_s
    state = aws.settled(target.endpoint, patience_s)
    before = aws.parameter(target.parameter) if target.parameter else None
    if state is not None and state.serves(target.endpoint_config) and (target.parameter is None or before == target.endpoint):
        return _already_there(changer, target, package, why), False
    if state is not None and state.status == "Failed":
        log.warning("%s has failed earlier (%s); it is deleted and created anew", target.endpoint, state.failure_reason)
        aws.remove(target.endpoint, patience_s)
        state = None
    _make_ready(aws, target, package, changer.store)
    record = _record_of(target, state.endpoint_config if state else None, before, package, why)
    return changer.carry_out(record), True


def _make_ready(aws: Aws, target: Target, package: Artifact, store: Store) -> None:
    """All that the endpoint and its check need, made and looked at before it is touched."""
    reference_crops(package, store)
    archive = store.path(package, "model.tar.gz")
    aws.upload(archive, target, sha256_of(archive))
    aws.ensure_model(target)
    aws.ensure_config(target)


def _already_there(changer: Changer, target: Target, package: Artifact, why: Why) -> ReleaseRecord:
    """The endpoint serves this package; check it, and see that the history knows it."""
    try:
        checked = changer.check(target.endpoint, package)
    except ReleaseError as e:
        raise ReleaseError(
            f"{e}; it serves this package already, so nothing was changed; `animl-pipeline rollback` puts the one before behind it"
        ) from e
    record = released(target.endpoint_config, records_of(target.where.line, changer.store))
    if record is None:
        record = _record_of(target, None, None, package, why)
        record = close(begin(record, changer.store), "done", changer.store, checked=checked, reason="found in service")
    return record.model_copy(update={"checked": checked.crops, "max_difference": checked.max_difference, "latency": checked.latency})


def _take_back(changer: Changer, record: ReleaseRecord, reason: str) -> None:
    """What an endpoint served before this release, where it served something."""
    config = record.previous_config
    if record.parameter is not None:
        state = changer.aws.endpoint(record.previous_endpoint) if record.previous_endpoint else None
        config = state.endpoint_config if state else None
    if config is None:
        log.warning("%s stays on %s: it served nothing before; %s", record.endpoint, record.endpoint_config, reason)
        return
    log.warning("%s goes back to %s: %s", record.endpoint, config, reason)
    known = released(config, records_of(record.line, changer.store))
    changer.carry_out(
        new_record(
            "rollback",
            line=record.line,
            endpoint=record.previous_endpoint or record.endpoint,
            endpoint_config=config,
            previous_config=None if record.parameter else record.endpoint_config,
            parameter=record.parameter,
            previous_endpoint=record.endpoint if record.parameter else None,
            sagemaker_model=known.sagemaker_model if known else changer.aws.model_of(config) or "unknown",
            version=known.version if known else "unknown",
            package=known.package if known else None,
        )
    )


def _record_of(target: Target, previous: str | None, before: str | None, package: Artifact, why: Why) -> ReleaseRecord:
    return new_record(
        "release",
        line=target.where.line,
        endpoint=target.endpoint,
        endpoint_config=target.endpoint_config,
        previous_config=previous,
        parameter=target.parameter,
        previous_endpoint=before,
        sagemaker_model=target.sagemaker_model,
        version=target.version,
        package=package,
        forced=why.forced,
        approval=why.approval,
    )

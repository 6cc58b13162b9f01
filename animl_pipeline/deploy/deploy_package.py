"""Deploy a package to the plan's endpoints and check it live; undo the release if a check fails.

::

    check verdict and approval · finish or undo killed releases · preflight (bucket, role, image, quotas, Animl's categories)
    upload, SageMaker model, endpoint config (immutable)  →  realtime: update, live check  →  batch: update, live check
    one endpoint fails: restore both
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PipelineError, ReleaseError
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.progress import track
from animl_pipeline.core.release_and_reference_types import Approval, Release
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.live_check import read_reference_predictions
from animl_pipeline.deploy.preflight import require_preflight
from animl_pipeline.deploy.release_gate_and_approval import check_report, require_approval
from animl_pipeline.deploy.release_history import ReleaseRecord, close_record, new_record, new_rollback_record, read_records, release_of_config
from animl_pipeline.deploy.resource_names import ReleaseTarget, release_targets
from animl_pipeline.deploy.update_or_undo import EndpointUpdater
from animl_pipeline.storage.local_locks import release_locks
from animl_pipeline.storage.store import Store, sha256_of

log = logging.getLogger(__name__)


class _Permission(NamedTuple):
    """What allows the release; both are kept in its record."""

    forced: str
    approval: Approval | None


def deploy_package(
    package: Artifact,
    plan: Plan,
    store: Store,
    settings: Settings,
    *,
    report: Report | None = None,
    force: str = "",
    approval: Approval | None = None,
) -> Release:
    """Deploy a package to the plan's endpoints and check it there. Endpoints that already serve it are only checked.

    ``report``: the package's report; its verdict decides. ``force``: why to release although the verdict is not to promote; the history keeps
    it. It does not replace an approval. ``approval``: a person's approval of this package, if the plan requires one; the history keeps it.

    Raises:
        SettingsError: the role or the image is not set.
        ReleaseError: the report or a missing approval forbids the release; AWS refused it; or an endpoint did not start or failed its live check, and
            all endpoints are as they were. AwsUnreachableError if another try may succeed.
    """
    targets = release_targets(package, plan, store, settings)
    forced = check_report(package, targets[0].version, report, force, plan, store)
    permission = _Permission(forced, require_approval(package, plan, store, approval))
    updater = EndpointUpdater(AwsApi(), plan, store)
    base_names = [t.planned.base_name for t in targets]
    with release_locks(base_names, store, plan.release.timeout_s), track(f"releasing to {targets[0].endpoint}", 3) as progress:
        log.info("releasing %s %s to %s", plan.model, targets[0].version, " and ".join(t.endpoint for t in targets))
        for base_name in base_names:
            updater.finish_interrupted(base_name)
        progress(1)
        require_preflight(updater.aws, targets, plan, settings)
        progress(1)
        records = _deploy_to_all(updater, targets, package, permission)
        progress(1)
    releases = [record.to_release(changed=changed) for record, changed in records]
    return releases[0].model_copy(update={"batch": releases[1] if len(releases) > 1 else None})


def _deploy_to_all(
    updater: EndpointUpdater, targets: tuple[ReleaseTarget, ...], package: Artifact, permission: _Permission
) -> list[tuple[ReleaseRecord, bool]]:
    """Each endpoint's record, and whether the endpoint changed. If one fails, those before it are restored, too."""
    done: list[tuple[ReleaseRecord, bool]] = []
    for target in targets:
        try:
            done.append(_deploy_to(updater, target, package, permission))
        except PipelineError as e:
            for record in (r for r, changed in done if changed):
                _restore_previous(updater, record, f"the release to {target.endpoint} failed: {e}")
            raise
    return done


def _deploy_to(updater: EndpointUpdater, target: ReleaseTarget, package: Artifact, permission: _Permission) -> tuple[ReleaseRecord, bool]:
    aws, timeout_s = updater.aws, updater.timeout_s
    state = aws.wait_until_stable(target.endpoint, timeout_s)
    previous_endpoint = aws.parameter(target.parameter) if target.parameter else None
    if state is not None and state.serves(target.endpoint_config) and (target.parameter is None or previous_endpoint == target.endpoint):
        return _check_deployed(updater, target, package, permission), False
    if state is not None and state.status == "Failed":
        log.warning("%s failed earlier (%s); it is deleted and created again", target.endpoint, state.failure_reason)
        aws.delete_endpoint(target.endpoint, timeout_s)
        state = None
    _prepare(aws, target, package, updater.store)
    record = _new_release_record(target, state.endpoint_config if state else None, previous_endpoint, package, permission)
    return updater.apply(record), True


def _prepare(aws: AwsApi, target: ReleaseTarget, package: Artifact, store: Store) -> None:
    """Create everything that the endpoint and its check need, before the endpoint changes."""
    read_reference_predictions(package, store)
    _upload(aws, target, package, store)
    aws.ensure_model(target)
    aws.ensure_config(target)


def _upload(aws: AwsApi, target: ReleaseTarget, package: Artifact, store: Store) -> None:
    archive = store.path(package, "model.tar.gz")
    aws.upload_package(archive, target, sha256_of(archive))


def _check_deployed(updater: EndpointUpdater, target: ReleaseTarget, package: Artifact, permission: _Permission) -> ReleaseRecord:
    """Check an endpoint that already serves this package, and add it to the history if it is missing there."""
    _upload(updater.aws, target, package, updater.store)  # SageMaker reads it again when it starts another instance
    try:
        check = updater.check(target.endpoint, package)
    except ReleaseError as e:
        raise type(e)(
            f"{e}; the endpoint already serves this package, so nothing was changed; `animl-pipeline rollback` restores the version before it",
            code=e.code,
        ) from e
    record = release_of_config(target.endpoint_config, read_records(target.planned.base_name, updater.store))
    if record is None:
        record = updater.begin(_new_release_record(target, None, None, package, permission))
        record = close_record(record, "done", updater.store, check=check, reason="found in service")
    return record.model_copy(update=check.as_dict())


def _restore_previous(updater: EndpointUpdater, record: ReleaseRecord, reason: str) -> None:
    """Roll an endpoint back to what it served before this release, if it served anything."""
    config = record.previous_config
    if record.parameter is not None:
        state = updater.aws.endpoint_state(record.previous_endpoint) if record.previous_endpoint else None
        config = state.endpoint_config if state else None
    if config is None:
        log.warning("%s keeps %s, because it served nothing before; %s", record.endpoint, record.endpoint_config, reason)
        return
    log.warning("%s is rolled back to %s: %s", record.endpoint, config, reason)
    release = release_of_config(config, read_records(record.base_name, updater.store))
    model = release.sagemaker_model if release else updater.aws.model_of_config(config) or "unknown"
    now, target = (record.endpoint, record.endpoint_config), (record.previous_endpoint or record.endpoint, config)
    updater.apply(new_rollback_record(record.base_name, now, target, release, model, record.parameter))


def _new_release_record(
    target: ReleaseTarget, previous_config: str | None, previous_endpoint: str | None, package: Artifact, permission: _Permission
) -> ReleaseRecord:
    return new_record(
        "release",
        base_name=target.planned.base_name,
        endpoint=target.endpoint,
        endpoint_config=target.endpoint_config,
        previous_config=previous_config,
        parameter=target.parameter,
        previous_endpoint=previous_endpoint,
        sagemaker_model=target.sagemaker_model,
        version=target.version,
        package=package,
        forced=permission.forced,
        approval=permission.approval,
    )

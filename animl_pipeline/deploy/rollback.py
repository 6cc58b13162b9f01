"""Roll the plan's endpoints back to an earlier version.

Everything that the rollback needs is looked up before any endpoint changes: the version in the history, its endpoint config
in SageMaker, and its package in the store, with which the live check runs.
"""

from __future__ import annotations

import logging
import re

from animl_pipeline.config import Plan, PlannedEndpoint
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PipelineError, ReleaseError
from animl_pipeline.core.release_and_reference_types import Release
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.endpoint_status import current_endpoint
from animl_pipeline.deploy.live_check import read_reference_predictions
from animl_pipeline.deploy.release_history import History, ReleaseRecord, new_rollback_record, read_records, release_of_config
from animl_pipeline.deploy.resource_names import switched_parameter
from animl_pipeline.deploy.update_or_undo import EndpointUpdater
from animl_pipeline.storage.local_locks import release_locks
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)

CONFIG_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
"""Valid names of SageMaker endpoint configs."""
MAX_LISTED = 8
"""Versions that a message names at most, the newest first."""


def roll_back(plan: Plan, store: Store, settings: Settings, to: str | None = None) -> Release:
    """Put an earlier config behind the plan's endpoints, and check it live if this pipeline released it.

    ``to``: the name of a config, or a version; None: the config before the present one, or what a rollback that was killed was to bring back.

    Raises:
        ReleaseError: there is no earlier version, or something that it needs is missing, and no endpoint was changed (codes "nothing_earlier",
            "already_served", "unknown_version", "was_undone", "config_missing", "package_missing", "no_endpoint"); or the live check failed, and the
            endpoint is as it was. AwsUnreachableError if another try may succeed.
    """
    updater = EndpointUpdater(AwsApi(), plan, store)
    realtime, *others = plan.release.endpoints(plan.model)
    with release_locks([p.base_name for p in (realtime, *others)], store, plan.release.timeout_s):
        finished = [record for planned in (realtime, *others) for record in updater.finish_interrupted(planned.base_name)]
        completed = [r for r in finished if r.kind == "rollback" and r.base_name == realtime.base_name] if to is None else []
        first = completed[-1] if completed else _rollback_record(updater, realtime, to, settings)
        following = [_same_version(updater, planned, first, settings) for planned in others]
        done = (first if first.state == "done" else updater.apply(first)).to_release(changed=True)
        for record in following:
            done = done.model_copy(update={"batch": _apply_following(updater, record, done)})
    return done


def _same_version(updater: EndpointUpdater, planned: PlannedEndpoint, first: ReleaseRecord, settings: Settings) -> ReleaseRecord | None:
    """The rollback of the batch endpoint to the same version, so that Animl's labels name one version.

    A version may have been released several times, with other thresholds or another image: the same model of SageMaker, which is named by
    package, image, bucket and role, counts before the same version.

    A record in the state "done" means that the endpoint already serves it; None, that it never served this version.
    """
    history = read_records(planned.base_name, updater.store)
    released = [r for r in history if r.state == "done" and r.kind == "release"]
    same = [r for r in released if r.sagemaker_model == first.sagemaker_model] or [r for r in released if r.version == first.version]
    if not same:
        log.warning(
            "%s never served %s and is not changed; release that version to it, so that both serve the same", planned.base_name, first.version
        )
        return None
    _, state = current_endpoint(updater.aws, planned, tuple(same), switched_parameter(updater.plan, planned, settings), updater.timeout_s)
    if state is not None and state.endpoint_config == same[-1].endpoint_config:
        return same[-1]
    return _rollback_record(updater, planned, same[-1].endpoint_config, settings)


def _apply_following(updater: EndpointUpdater, record: ReleaseRecord | None, first: Release) -> Release | None:
    if record is None:
        return None
    if record.state == "done":
        return record.to_release(changed=False)
    try:
        return updater.apply(record).to_release(changed=True)
    except ReleaseError as e:
        raise type(e)(f"{first.endpoint} serves {first.version} again, but {record.endpoint} does not: {e}", code=e.code) from e


def _rollback_record(updater: EndpointUpdater, planned: PlannedEndpoint, to: str | None, settings: Settings) -> ReleaseRecord:
    """The record of a rollback, not yet written, after everything that it needs was found."""
    history = read_records(planned.base_name, updater.store)
    parameter = switched_parameter(updater.plan, planned, settings)
    endpoint, state = current_endpoint(updater.aws, planned, history, parameter, updater.timeout_s)
    if state is None:
        raise ReleaseError(f"expected the endpoint {endpoint} in SageMaker, found none; `animl-pipeline release PLAN` creates it", code="no_endpoint")
    config = _earlier_config(state.endpoint_config, to, history)
    release = release_of_config(config, history)
    model = _require_config(config, state.endpoint_config, history, updater.aws)
    if release is not None and release.package is not None:
        _require_package(release.package, release.version, state.endpoint_config, history, updater.store)
    else:
        log.warning("this pipeline did not release %s, so the endpoint's answers are not checked", config)
    target = release.endpoint if release and parameter else endpoint
    return new_rollback_record(planned.base_name, (endpoint, state.endpoint_config), (target, config), release, model, parameter)


def _earlier_config(now: str, to: str | None, history: History) -> str:
    """The config to roll back to: the one that ``to`` names, or the one before the present config ``now``."""
    done = [r for r in history if r.state == "done"]
    if to is not None:
        config = _named_config(to, done, history)
        if config == now:
            raise ReleaseError(f"the endpoint already serves {to}, so nothing was changed; {_list_others(history, now)}", code="already_served")
        return config
    before = [config for config in (_config_before(r, done) for r in done if r.kind == "release" and r.endpoint_config == now) if config]
    if not before:
        raise ReleaseError(f"the history has no config before {now}, so nothing was changed; {_list_others(history, now)}", code="nothing_earlier")
    return before[-1]


def _named_config(to: str, done: list[ReleaseRecord], history: History) -> str:
    """The config that a person names directly or by its version."""
    named = [r.endpoint_config for r in done if to in {r.version, r.endpoint_config}]
    undone = [r for r in history if r.state == "rolled_back" and r.kind == "release" and to in {r.version, r.endpoint_config}]
    if not named and undone:
        raise ReleaseError(
            f"the release of {to} was undone ({undone[-1].reason}), so the endpoint cannot go back to it; nothing was changed; release it again",
            code="was_undone",
        )
    return named[-1] if named else to


def _config_before(record: ReleaseRecord, done: list[ReleaseRecord]) -> str | None:
    """The config served before a release: under the same endpoint name, or under the name that the SSM parameter held."""
    if record.previous_endpoint is None or record.previous_endpoint == record.endpoint:
        return record.previous_config
    return next((r.endpoint_config for r in reversed(done) if r.endpoint == record.previous_endpoint and r.id < record.id), None)


def _require_config(config: str, now: str, history: History, aws: AwsApi) -> str:
    """The SageMaker model of a config, which must exist."""
    model = aws.model_of_config(config) if CONFIG_NAME.fullmatch(config) else None
    if model is not None:
        return model
    others = f"nothing was changed; {_list_others(tuple(r for r in history if r.endpoint_config != config), now)}"
    version = next((r.version for r in reversed(history) if r.endpoint_config == config), None)
    if version is not None:
        raise ReleaseError(
            f"expected the endpoint config {config} (version {version}) in SageMaker, found none (`animl-pipeline release gc` deletes old ones); "
            f"{others}",
            code="config_missing",
        )
    raise ReleaseError(f"expected a version or an endpoint config that was released before, found {config!r}; {others}", code="unknown_version")


def _require_package(package: Artifact, version: str, now: str, history: History, store: Store) -> None:
    """Check that the store has the package, so that the endpoint can be checked after the rollback."""
    if _is_complete(package, store):
        return
    available = tuple(r for r in history if r.package is not None and _is_complete(r.package, store))
    raise ReleaseError(
        f"the live check needs the package of {version}, but in the store at {store.object_store} it is missing or damaged "
        f"(`animl-pipeline store gc` deletes old ones); nothing was changed; restore steps/package/{package.key} from a copy of the store, "
        f"or choose another version: {_list_others(available, now)}",
        code="package_missing",
    )


def _is_complete(package: Artifact, store: Store) -> bool:
    try:
        read_reference_predictions(package, store)
    except PipelineError:
        return False
    return True


def _list_others(history: History, now: str) -> str:
    """The versions that were released successfully, the newest first, without the present one."""
    known = list(dict.fromkeys(r.version for r in reversed(history) if r.kind == "release" and r.state == "done" and r.endpoint_config != now))
    if not known:
        return "no other version was released from here; `animl-pipeline release PLAN` releases the latest package"
    return f"--to takes {', '.join(known[:MAX_LISTED])}{', …' if len(known) > MAX_LISTED else ''} (animl-pipeline release history PLAN)"

"""A package goes behind the endpoint, is checked there, and is undone when it does not hold; also after a kill.

::

    settle what a killed release left   →  upload, model, config (immutable, idempotent)
    write the record "begun"            →  create or update the endpoint, wait, ask all golden crops
    all answers as offline: "done"      →  else back to the previous config: "rolled_back", and ReleaseError
"""

from __future__ import annotations

import logging

from animl_pipeline.endpoint.aws import Aws
from animl_pipeline.endpoint.check import Checked, check_endpoint
from animl_pipeline.endpoint.history import ReleaseRecord, begin, close, new_record, one_at_a_time, records_of, release_history
from animl_pipeline.endpoint.names import Target, target_of
from animl_pipeline.errors import PipelineError, ReleaseError
from animl_pipeline.plan import Plan
from animl_pipeline.progress import track
from animl_pipeline.records import Artifact, Record, Release
from animl_pipeline.settings import Settings
from animl_pipeline.store import Store, sha256_of

log = logging.getLogger(__name__)


class EndpointStatus(Record):
    """An endpoint as SageMaker and the history know it. ``status`` is "absent" where there is none."""

    endpoint: str
    status: str
    endpoint_config: str | None
    failure_reason: str
    version: str | None
    unfinished: bool


def deploy_endpoint(package: Artifact, plan: Plan, store: Store, settings: Settings) -> Release:
    """Put a package behind the plan's endpoint and check it there; nothing changes when it serves this package already.

    Raises:
        SettingsError: the role or the image is not set.
        ReleaseError: AWS refused, or the endpoint did not come up or answered unlike offline; it was rolled back then.
    """
    target = target_of(package, plan, store, settings)
    aws = Aws()
    with one_at_a_time(target.endpoint, store, plan.release.timeout_s), track(f"releasing to {target.endpoint}", 4) as step:
        _settle(aws, plan, store)
        state = aws.settled(target.endpoint, plan.release.timeout_s)
        step(1)
        if state is not None and state.serves(target.endpoint_config):
            release = _already_there(aws, target, package, plan, store)
            step(3)
            return release
        if state is not None and state.status == "Failed":
            log.warning("%s has failed earlier (%s); it is deleted and created anew", target.endpoint, state.failure_reason)
            aws.remove(target.endpoint, plan.release.timeout_s)
            state = None
        _make_ready(aws, target, package, store)
        step(1)
        previous = state.endpoint_config if state else None
        record = _record_of(target, previous, package)
        record = _carry_out(aws, begin(record, store), plan, store, target.tags)
        step(2)
        return _as_release(record, changed=True)


def rollback_endpoint(plan: Plan, store: Store, settings: Settings, to: str | None = None) -> Release:
    """Put an earlier config behind the plan's endpoint and check it there, if its package is known; what it serves now comes back.

    Args:
        plan: names the endpoint.
        store: holds the history and the earlier packages.
        settings: not read yet; here so that all release verbs are called alike.
        to: a config's name or a version; without it, the config before the present one.

    Raises:
        ReleaseError: there is nothing to go back to, or the earlier config did not hold (then nothing has changed).
    """
    aws, endpoint = Aws(), plan.endpoint_name()
    with one_at_a_time(endpoint, store, plan.release.timeout_s):
        _settle(aws, plan, store)
        state = aws.settled(endpoint, plan.release.timeout_s)
        if state is None:
            raise ReleaseError(f"there is no endpoint {endpoint} to roll back; release something first")
        config = _earlier_config(state.endpoint_config, to, release_history(plan, store))
        known = _released(config, release_history(plan, store))
        model = known.sagemaker_model if known else aws.model_of(config)
        if model is None:
            raise ReleaseError(
                f"expected the endpoint config {config!r} in SageMaker, found none; `to` takes one of the history's configs or versions"
            )
        version, package = (known.version, known.package) if known else ("unknown", None)
        record = new_record("rollback", endpoint, config, state.endpoint_config, model, version, package)
        return _as_release(_carry_out(aws, begin(record, store), plan, store, {}), changed=True)


def endpoint_status(plan: Plan, store: Store, settings: Settings) -> EndpointStatus:
    """How the plan's endpoint is now, and whether a release of it is unfinished."""
    endpoint = plan.endpoint_name()
    state = Aws().endpoint(endpoint)
    history = release_history(plan, store)
    known = _released(state.endpoint_config, history) if state else None
    return EndpointStatus(
        endpoint=endpoint,
        status=state.status if state else "absent",
        endpoint_config=state.endpoint_config if state else None,
        failure_reason=state.failure_reason if state else "",
        version=known.version if known else None,
        unfinished=any(r.state == "begun" for r in history),
    )


def _make_ready(aws: Aws, target: Target, package: Artifact, store: Store) -> None:
    """All that the endpoint needs, made before it is touched."""
    archive = store.path(package, "model.tar.gz")
    aws.upload(archive, target, sha256_of(archive))
    aws.ensure_model(target)
    aws.ensure_config(target)


def _carry_out(aws: Aws, record: ReleaseRecord, plan: Plan, store: Store, tags: dict[str, str]) -> ReleaseRecord:
    """Point the endpoint at the record's config and see it through: the record, done.

    Raises:
        ReleaseError: it did not hold and was undone.
    """
    try:
        aws.point(record.endpoint, record.endpoint_config, tags)
        return _see_through(aws, record, plan, store)
    except PipelineError as e:
        _undo(aws, record, plan, store, str(e))
        now = f"rolled back to {record.previous_config}" if record.previous_config else "the endpoint was removed, it had no earlier config"
        raise ReleaseError(f"{e}; {now}") from e


def _see_through(aws: Aws, record: ReleaseRecord, plan: Plan, store: Store) -> ReleaseRecord:
    """Wait until the endpoint serves the record's config, check it there, and close the record."""
    state = aws.settled(record.endpoint, plan.release.timeout_s)
    if state is None or not state.serves(record.endpoint_config):
        said = f"{state.status}: {state.failure_reason or 'no reason given'}" if state else "it is gone"
        raise ReleaseError(f"the endpoint {record.endpoint} did not come up on {record.endpoint_config} ({said})")
    checked = Checked(0, 0.0)
    if record.package is not None:
        checked = check_endpoint(aws, record.endpoint, record.package, store, plan.release.tolerance, plan.release.timeout_s)
    log.info("%s serves %s; %d golden crops differ by %.2g at most", record.endpoint, record.endpoint_config, checked.crops, checked.max_difference)
    return close(record, "done", store, checked=checked.crops, max_difference=checked.max_difference)


def _undo(aws: Aws, record: ReleaseRecord, plan: Plan, store: Store, reason: str) -> None:
    """Make the endpoint what it was before the record, and close the record. Idempotent.

    Raises:
        ReleaseError: it cannot be undone now; the record stays open, so that the next call tries again.
    """
    log.warning("%s: undoing %s: %s", record.endpoint, record.endpoint_config, reason)
    state = aws.settled(record.endpoint, plan.release.timeout_s)
    if state is not None and state.endpoint_config == record.endpoint_config:
        if record.previous_config is None:
            aws.remove(record.endpoint, plan.release.timeout_s)
        else:
            aws.point(record.endpoint, record.previous_config, {})
            state = aws.settled(record.endpoint, plan.release.timeout_s)
    if record.previous_config is not None and (state is None or not state.serves(record.previous_config)):
        raise ReleaseError(
            f"{reason}; AND the endpoint {record.endpoint} could not be rolled back to {record.previous_config} ({state}); act by hand"
        )
    close(record, "rolled_back", store, reason=reason)


def _settle(aws: Aws, plan: Plan, store: Store) -> None:
    """Finish or undo what killed releases left half done; what cannot be undone stays open and stops nobody."""
    for record in records_of(plan.endpoint_name(), store):
        if record.state != "begun":
            continue
        log.warning("found a half-done %s of %s from %s", record.kind, record.endpoint_config, record.begun_at)
        state = aws.settled(record.endpoint, plan.release.timeout_s)
        if state is None or state.endpoint_config != record.endpoint_config:
            close(record, "rolled_back", store, reason="it was broken off before the endpoint served it")
            continue
        try:
            _see_through(aws, record, plan, store)
        except PipelineError as e:
            _try_to_undo(aws, record, plan, store, f"it was broken off before its check, which failed: {e}")


def _try_to_undo(aws: Aws, record: ReleaseRecord, plan: Plan, store: Store, reason: str) -> None:
    try:
        _undo(aws, record, plan, store, reason)
    except ReleaseError as e:
        log.warning("%s", e)


def _already_there(aws: Aws, target: Target, package: Artifact, plan: Plan, store: Store) -> Release:
    """The endpoint serves this package; check it, and see that the history knows it."""
    try:
        checked = check_endpoint(aws, target.endpoint, package, store, plan.release.tolerance, plan.release.timeout_s)
    except ReleaseError as e:
        raise ReleaseError(
            f"{e}; it serves this package already, so nothing was changed; `animl-pipeline rollback` puts the one before behind it"
        ) from e
    record = _released(target.endpoint_config, release_history(plan, store))
    if record is None:
        record = _record_of(target, None, package)
        record = close(record, "done", store, checked=checked.crops, max_difference=checked.max_difference, reason="found in service")
    return _as_release(record.model_copy(update={"checked": checked.crops, "max_difference": checked.max_difference}), changed=False)


def _earlier_config(present: str, to: str | None, history: tuple[ReleaseRecord, ...]) -> str:
    """The config to go back to."""
    done = [r for r in history if r.state == "done"]
    if to is not None:
        meant = [r.endpoint_config for r in done if to in {r.version, r.endpoint_config}]
        config = meant[-1] if meant else to
        if config == present:
            raise ReleaseError(f"the endpoint serves {config} already; `to` takes another config or version of the history")
        return config
    before = [r.previous_config for r in done if r.kind == "release" and r.endpoint_config == present and r.previous_config]
    if not before:
        raise ReleaseError(f"the history knows no config before {present}; name one with `to`")
    return before[-1]


def _released(config: str, history: tuple[ReleaseRecord, ...]) -> ReleaseRecord | None:
    """The latest release that put a config behind the endpoint and held."""
    found = [r for r in history if r.endpoint_config == config and r.kind == "release" and r.state == "done"]
    return found[-1] if found else None


def _record_of(target: Target, previous: str | None, package: Artifact) -> ReleaseRecord:
    return new_record("release", target.endpoint, target.endpoint_config, previous, target.sagemaker_model, target.version, package)


def _as_release(record: ReleaseRecord, *, changed: bool) -> Release:
    return Release(
        endpoint=record.endpoint,
        endpoint_config=record.endpoint_config,
        sagemaker_model=record.sagemaker_model,
        version=record.version,
        package_digest=record.package.digest if record.package else None,
        previous_config=record.previous_config,
        checked=record.checked,
        max_difference=record.max_difference,
        changed=changed,
    )

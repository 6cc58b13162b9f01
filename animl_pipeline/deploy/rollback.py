"""An earlier version back behind the plan's endpoints, checked there like a release."""

from __future__ import annotations

import logging

from animl_pipeline.config import EndpointConfig, Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.records import Release
from animl_pipeline.deploy.endpoint_names import switched_parameter
from animl_pipeline.deploy.history import ReleaseRecord, all_at_rest, new_record, records_of, released
from animl_pipeline.deploy.rollback_target import earlier_config, need_config, need_package
from animl_pipeline.deploy.sagemaker_api import Aws, EndpointState
from animl_pipeline.deploy.update import Changer, as_release
from animl_pipeline.storage.step_cache import Store

log = logging.getLogger(__name__)


def rollback_endpoint(plan: Plan, store: Store, settings: Settings, to: str | None = None) -> Release:
    """Put an earlier config behind the plan's endpoints and check it there, where it was released from here.

    Args:
        plan: names the endpoints.
        store: holds the history and the earlier packages.
        settings: Animl's stage, where SSM's value is what is switched.
        to: a config's name or a version; without it, the config before the present one.

    Raises:
        ReleaseError: there is nothing to go back to, or what the check needs is not in the store (then no endpoint was touched);
            or the earlier config did not hold (then its endpoint is as it was).
    """
    changer = Changer(Aws(), plan, store)
    wheres = plan.release.endpoints(plan.model)
    with all_at_rest([w.line for w in wheres], store, plan.release.timeout_s):
        for where in wheres:
            changer.settle(where.line)
        first = _way_back(changer, wheres[0], to, settings)
        followers = [_following(changer, where, first, settings) for where in wheres[1:]]
        done = as_release(changer.carry_out(first), changed=True)
        for follower in followers:
            done = done.model_copy(update={"batch": _followed(changer, follower, done)})
    return done


def _following(changer: Changer, where: EndpointConfig, first: ReleaseRecord, settings: Settings) -> ReleaseRecord | None:
    """The endpoint for batches goes to the same version, so that Animl's labels name one version. A record that is done is there already."""
    same = [r for r in records_of(where.line, changer.store) if r.state == "done" and r.kind == "release" and r.version == first.version]
    if not same:
        log.warning("%s never served %s and stays as it is; release it, so that both endpoints serve one version", where.line, first.version)
        return None
    _, state = present(changer.aws, where, same, switched_parameter(changer.plan, where, settings), changer.patience_s)
    if state is not None and state.endpoint_config == same[-1].endpoint_config:
        return same[-1]
    return _way_back(changer, where, same[-1].endpoint_config, settings)


def _followed(changer: Changer, record: ReleaseRecord | None, first: Release) -> Release | None:
    if record is None:
        return None
    if record.state == "done":
        return as_release(record, changed=False)
    try:
        return as_release(changer.carry_out(record), changed=True)
    except ReleaseError as e:
        raise ReleaseError(f"{first.endpoint} serves {first.version} again, but {record.endpoint} does not: {e}") from e


def _way_back(changer: Changer, where: EndpointConfig, to: str | None, settings: Settings) -> ReleaseRecord:
    """The rollback as a record that is not written down yet, once all that it needs was found."""
    history = records_of(where.line, changer.store)
    parameter = switched_parameter(changer.plan, where, settings)
    endpoint, state = present(changer.aws, where, list(history), parameter, changer.patience_s)
    if state is None:
        raise ReleaseError(f"expected the endpoint {endpoint} in SageMaker, found none; `animl-pipeline release PLAN` makes it")
    config = earlier_config(state.endpoint_config, to, history)
    known = released(config, history)
    model = need_config(config, state.endpoint_config, history, changer.aws)
    if known is not None and known.package is not None:
        need_package(known.package, known.version, state.endpoint_config, history, changer.store)
    else:
        log.warning("%s was not released from here: what the endpoint then answers is not checked", config)
    back_to = known.endpoint if known and parameter else endpoint
    return new_record(
        "rollback",
        line=where.line,
        endpoint=back_to,
        endpoint_config=config,
        previous_config=state.endpoint_config if back_to == endpoint else None,
        parameter=parameter,
        previous_endpoint=endpoint if parameter else None,
        sagemaker_model=model,
        version=known.version if known else "unknown",
        package=known.package if known else None,
    )


def present(
    aws: Aws, where: EndpointConfig, history: list[ReleaseRecord], parameter: str | None, patience_s: float = 0
) -> tuple[str, EndpointState | None]:
    """The name of the endpoint that is asked now, and how it is (once nothing is under way there, where there is patience)."""
    name = where.endpoint
    if parameter is not None:
        name = aws.parameter(parameter) or next((r.endpoint for r in reversed(history) if r.state == "done"), name)
    return name, aws.settled(name, patience_s) if patience_s else aws.endpoint(name)

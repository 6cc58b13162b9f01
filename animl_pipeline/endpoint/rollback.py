"""An earlier version back behind the plan's endpoints, checked there like a release."""

from __future__ import annotations

import logging

from animl_pipeline.endpoint.aws import Aws, EndpointState
from animl_pipeline.endpoint.change import Changer, as_release
from animl_pipeline.endpoint.history import ReleaseRecord, all_at_rest, new_record, records_of, released
from animl_pipeline.endpoint.names import switched_parameter
from animl_pipeline.errors import ReleaseError
from animl_pipeline.plan import EndpointPlan, Plan
from animl_pipeline.records import Release
from animl_pipeline.settings import Settings
from animl_pipeline.store import Store

log = logging.getLogger(__name__)


def rollback_endpoint(plan: Plan, store: Store, settings: Settings, to: str | None = None) -> Release:
    """Put an earlier config behind the plan's endpoints and check it there, if its package is known; else what they serve now comes back.

    Args:
        plan: names the endpoints.
        store: holds the history and the earlier packages.
        settings: Animl's stage, where SSM's value is what is switched.
        to: a config's name or a version; without it, the config before the present one.

    Raises:
        ReleaseError: there is nothing to go back to, or the earlier config did not hold (then nothing has changed).
    """
    changer = Changer(Aws(), plan, store)
    wheres = plan.release.endpoints(plan.model)
    with all_at_rest([w.line for w in wheres], store, plan.release.timeout_s):
        for where in wheres:
            changer.settle(where.line)
        first = changer.carry_out(_way_back(changer, wheres[0], to, settings))
        done = as_release(first, changed=True)
        for where in wheres[1:]:
            done = done.model_copy(update={"batch": _follow(changer, where, first, settings)})
    return done


def _follow(changer: Changer, where: EndpointPlan, first: ReleaseRecord, settings: Settings) -> Release | None:
    """The endpoint for batches goes to the same version, so that Animl's labels name one version."""
    same = [r for r in records_of(where.line, changer.store) if r.state == "done" and r.kind == "release" and r.version == first.version]
    if not same:
        log.warning("%s never served %s and stays as it is; release it, so that both endpoints serve one version", where.line, first.version)
        return None
    _, state = present(changer.aws, where, same, switched_parameter(changer.plan, where, settings), changer.patience_s)
    if state is not None and state.endpoint_config == same[-1].endpoint_config:
        return as_release(same[-1], changed=False)
    return as_release(changer.carry_out(_way_back(changer, where, same[-1].endpoint_config, settings)), changed=True)


def _way_back(changer: Changer, where: EndpointPlan, to: str | None, settings: Settings) -> ReleaseRecord:
    """The rollback as a record that is not written down yet."""
    history = records_of(where.line, changer.store)
    parameter = switched_parameter(changer.plan, where, settings)
    endpoint, state = present(changer.aws, where, list(history), parameter, changer.patience_s)
    if state is None:
        raise ReleaseError(f"there is no endpoint {endpoint} to roll back; release something first")
    config = _earlier_config(state.endpoint_config, to, history)
    known = released(config, history)
    model = changer.aws.model_of(config)
    if model is None:
        raise ReleaseError(f"expected the endpoint config {config!r} in SageMaker, found none; `to` takes one of the history's configs or versions")
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
    aws: Aws, where: EndpointPlan, history: list[ReleaseRecord], parameter: str | None, patience_s: float = 0
) -> tuple[str, EndpointState | None]:
    """The name of the endpoint that is asked now, and how it is (once nothing is under way there, where there is patience)."""
    name = where.endpoint
    if parameter is not None:
        name = aws.parameter(parameter) or next((r.endpoint for r in reversed(history) if r.state == "done"), name)
    return name, aws.settled(name, patience_s) if patience_s else aws.endpoint(name)


def _earlier_config(now: str, to: str | None, history: tuple[ReleaseRecord, ...]) -> str:
    """The config to go back to."""
    done = [r for r in history if r.state == "done"]
    if to is not None:
        meant = [r.endpoint_config for r in done if to in {r.version, r.endpoint_config}]
        config = meant[-1] if meant else to
        if config == now:
            raise ReleaseError(f"the endpoint serves {config} already; `to` takes another config or version of the history")
        return config
    before = [config for config in (_before(r, done) for r in done if r.kind == "release" and r.endpoint_config == now) if config]
    if not before:
        raise ReleaseError(f"the history knows no config before {now}; name one with `to`")
    return before[-1]


def _before(record: ReleaseRecord, done: list[ReleaseRecord]) -> str | None:
    """What was asked before a release: behind the same name, or behind the name that SSM held."""
    if record.previous_endpoint is None or record.previous_endpoint == record.endpoint:
        return record.previous_config
    return next((r.endpoint_config for r in reversed(done) if r.endpoint == record.previous_endpoint and r.id < record.id), None)

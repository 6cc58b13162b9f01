"""Start a training when enough was validated: by asking Animl on a schedule, or by an event. The same data starts one training only."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, cast

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed
from pydantic import Field, StringConstraints, ValidationError

from animl_pipeline.config import Overrides, Plan, find_plan, load_plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.errors import PlanError, SettingsError
from animl_pipeline.core.frozen_record import Record
from flows.stop_signals import prepare_run
from tasks.dataset import count_validated, last_training_start
from tasks.store_and_data_paths import resolve_run_paths

log = logging.getLogger("animl_pipeline.flows.watch")

UNFINISHED = [state for state in StateType if state not in TERMINAL_STATES]
NOT_BEGUN = [StateType.SCHEDULED, StateType.PENDING]
"""States of a run that will read what is validated by the time it begins."""


class ValidatedEvent(Record):
    """The payload of the event ``animl.images.validated``: the plan to train by, and what this one run changes of it."""

    plan: str = Field(min_length=1, description="name of a plan in deployments/plans, or a path")
    overrides: Overrides = Overrides()
    batch: Annotated[str, StringConstraints(strip_whitespace=True)] = Field(
        default="", max_length=200, description="an id of what was validated; the same id starts one run only"
    )


@flow(name="watch", flow_run_name="watch {plan}", persist_result=False)
def watch(plan: str, store: str = "") -> State[Any]:
    """Ask Animl how much was validated since the last training, and start `retrain` when it is enough.

    The run ends as NothingNew, AlreadyUnderWay, AlreadyTried or Started; none of them is a failure. The same data never starts
    a second training, however the first one ended, and two trainings never run at a time.

    Args:
        plan: name of a plan in deployments/plans, such as santa-cruz-island, or the path of its YAML file. It must be
            deployed as `retrain/<name of its file>`.
        store: folder or s3://bucket/prefix for all that steps make; empty: ANIML_STORE of the worker.
    """
    prepare_run()
    checked = load_plan(find_plan(plan, load_settings().plans))
    projects = [source for source in checked.sources if source.project() is not None]
    if not projects:
        raise PlanError(
            f"the plan of {checked.model}: expected a source with `export: animl://<project id>` to watch, found files only. Name the project "
            "in the plan, or start its trainings by hand and switch the schedule of watch off (docs/operate.md)",
            code="no_project",
        )
    paths = resolve_run_paths(store)
    since = last_training_start.submit(checked, paths).result()
    new = sum(count.result() for count in [count_validated.submit(source, since, paths) for source in projects])
    enough = checked.watch.new_images
    reason = f"{new:,} images validated {f'since {since:%Y-%m-%d %H:%M} UTC' if since else 'and no training yet'}; a training needs {enough:,}"
    log.info("%s", reason)
    if new < enough:
        return Completed(name="NothingNew", message=reason)
    key = _idempotency_key("watch", plan, checked, f"{since.isoformat() if since else 'ever'}/{new}")
    return _start_training(plan, Overrides(), key, reason, _runs_of(plan, UNFINISHED), store)


@flow(name="validated", flow_run_name="images validated", persist_result=False)
def validated(payload: dict[str, Any]) -> State[Any]:
    """Start `retrain` because the event `animl.images.validated` said that images were validated.

    Args:
        payload: `plan`, a name in deployments/plans; `overrides`, what this run changes; `batch`, an id of what was
            validated: of events with the same id only the first one starts a run.
    """
    prepare_run()
    event = parse_event(payload)
    checked = event.overrides.applied(load_plan(find_plan(event.plan, load_settings().plans)))
    key = _idempotency_key("event", event.plan, checked, event.batch or datetime.now(UTC).isoformat())
    reason = f"images were validated{f' ({event.batch})' if event.batch else ''}"
    # a training that runs already may have read its labels before, so only one that has not begun counts
    waiting = [run for run in _runs_of(event.plan, NOT_BEGUN) if _has_overrides(run, event.overrides)]
    return _start_training(event.plan, event.overrides, key, reason, waiting)


def parse_event(payload: Mapping[str, Any]) -> ValidatedEvent:
    """The event's payload, checked.

    Raises:
        PlanError: it is not valid; the message names the key.
    """
    try:
        return ValidatedEvent.model_validate(payload)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise PlanError(
            f"the event's payload: {key}: {first['msg']}; it holds plan, and may hold overrides and batch (docs/operate.md)",
            code="invalid_event",
            key=key,
        ) from e


def deployment_name(plan: str) -> str:
    """The name of a plan's deployment of `retrain`: that of its file."""
    return plan.rsplit("/", 1)[-1].removesuffix(".yaml").removesuffix(".yml")


def _idempotency_key(kind: str, plan: str, checked: Plan, what: str) -> str:
    """Of two runs with the same key Prefect makes only the first. All deployments of `retrain` share the keys, so it names the deployment."""
    return f"{kind}/{deployment_name(plan)}/{checked.model}/{what}"


def _start_training(plan: str, overrides: Overrides, key: str, reason: str, under_way: list[FlowRun], store: str = "") -> State[Any]:
    """Start a training, unless one is under way or the same data has started one before.

    ``key``: of two runs with the same key only the first is made. ``under_way``: trainings that will learn from the same data.
    """
    if under_way:
        return _already_under_way(under_way[0], reason)
    parameters = {"plan": plan, "overrides": overrides.model_dump(mode="json")} | ({"store": store} if store else {})
    asked_by = f"asked-by-{runtime.flow_run.id}"
    name, tags = f"retrain/{deployment_name(plan)}", ["new-validations", asked_by]
    started = run_deployment(name, parameters=parameters, timeout=0, as_subflow=False, idempotency_key=key, tags=tags)
    run = cast("FlowRun", started)  # a coroutine only in async code
    if asked_by in run.tags:
        return Completed(name="Started", message=f"{reason}; started {run.name!r}")
    if run.state_type not in TERMINAL_STATES:
        return _already_under_way(run, reason)
    same_data = f"{reason}; {run.name!r} for the same data ended as {run.state_name}"
    if run.state_type == StateType.COMPLETED:
        return Completed(name="NothingNew", message=f"{same_data}: there is nothing more to start")
    return Completed(name="AlreadyTried", message=f"{same_data}: fix the error that it reports, then start it by hand")


def start_training_once(plan: str, checked: Plan, what: str, reason: str, store: str = "") -> State[Any]:
    """Start a training for another reason than new validations, such as an alarm: once for each ``what``, and none while one is under way."""
    return _start_training(plan, Overrides(), _idempotency_key("monitor", plan, checked, what), reason, _runs_of(plan, UNFINISHED), store)


def _already_under_way(run: FlowRun, reason: str) -> State[Any]:
    return Completed(name="AlreadyUnderWay", message=f"{reason}; {run.name!r} is {str(run.state_name).lower()}")


def _has_overrides(run: FlowRun, overrides: Overrides) -> bool:
    return Overrides.model_validate(run.parameters.get("overrides") or {}) == overrides


def _runs_of(plan: str, states: list[StateType]) -> list[FlowRun]:
    """The runs of a plan's deployment of `retrain` in some states, without those that a schedule has planned for later.

    Raises:
        SettingsError: no Prefect server is set, or it has no such deployment.
    """
    if not PREFECT_API_URL.value():
        raise SettingsError("PREFECT_API_URL: expected a Prefect server that starts trainings, found none; see `animl-pipeline up`", code="no_server")
    name = deployment_name(plan)
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(f"retrain/{name}")
        except ObjectNotFound as e:
            raise SettingsError(
                f"expected the deployment 'retrain/{name}' on the Prefect server, found none; put the plan into the folder of plans, "
                "then run `animl-pipeline deploy`",
                code="no_deployment",
            ) from e
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["retrain"])),
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))),
        )
    return [run for run in runs if not _is_planned(run)]


def _is_planned(run: FlowRun) -> bool:
    """Whether a schedule has planned a run for later. One that is due or has begun counts like any other."""
    is_later = run.expected_start_time is not None and run.expected_start_time > datetime.now(UTC)
    return run.auto_scheduled and run.state_type == StateType.SCHEDULED and is_later

"""Whether a new training is worth it, asked of Animl or told by an event; then it is started, once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from prefect import flow, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed
from pydantic import Field, StringConstraints, ValidationError

from animl_pipeline.config import Overrides, Plan, find_plan, load_plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.errors import PlanError, SettingsError
from animl_pipeline.core.records import Record
from animl_pipeline.deploy.latest_report import last_training
from animl_pipeline.storage.step_cache import open_store
from tasks.watching import count_validated

log = logging.getLogger("animl_pipeline.flows.watch")

UNDER_WAY = [state for state in StateType if state not in TERMINAL_STATES]
WAITING = [StateType.SCHEDULED, StateType.PENDING]
"""A run that has not begun will read what is validated by then."""
ASKED_BY = "animl.asked-by"
"""A training's label: the run of `watch` or `validated` that started it."""


class Validated(Record):
    """What the event ``animl.images.validated`` tells: the plan to train by, and what this one run changes of it."""

    plan: str = Field(min_length=1, description="name of a plan in deployments/plans, or a path")
    overrides: Overrides = Overrides()
    batch: Annotated[str, StringConstraints(strip_whitespace=True)] = Field(
        default="", max_length=200, description="what was validated, such as a batch's id: the same batch starts one run only"
    )


@flow(name="watch", flow_run_name="watch {plan}", persist_result=False)
def watch(plan: str) -> State[Any]:
    """Ask Animl how much was validated since the last training, and start `retrain` when it is enough.

    The run ends as NothingNew, AlreadyUnderWay, AlreadyTried or Started; none of them is a failure. Of runs for the same
    data there is never a second one, however the first one ended, and never two at a time.

    Args:
        plan: name of a plan in deployments/plans, such as santa-cruz-island, or the path of its YAML file. It must be
            deployed as `retrain/<name of its file>`.
    """
    settings = load_settings()
    checked = load_plan(find_plan(plan, settings.plans))
    watched = [source for source in checked.sources if source.project() is not None]
    if not watched:
        raise PlanError(
            f"the plan of {checked.model}: expected a source with `export: animl://<project id>` to watch, found files only; "
            "name the project in the plan, or start its trainings by hand and switch the schedule of watch off (docs/operate.md)"
        )
    since = last_training(checked.model, open_store(settings))
    new = sum(future.result() for future in [count_validated.submit(source, since) for source in watched])
    enough = checked.watch.new_images
    fact = (
        f"{new:,} images validated {f'since {since:%Y-%m-%d %H:%M} UTC' if since else 'so far, none of them learnt'}; a training is worth {enough:,}"
    )
    log.info("%s", fact)
    if new < enough:
        return Completed(name="NothingNew", message=fact)
    key = _key("watch", plan, checked, f"{since.isoformat() if since else 'ever'}/{new}")
    return _begin(plan, Overrides(), key, fact, UNDER_WAY)


@flow(name="validated", flow_run_name="images validated", persist_result=False)
def validated(payload: dict[str, Any]) -> State[Any]:
    """Start `retrain` because somebody told us that images were validated (the event `animl.images.validated`).

    Args:
        payload: `plan`, a name in deployments/plans; `overrides`, what this run changes; `batch`, an id of what was
            validated: of events with the same id only the first one starts a run.
    """
    told = understood(payload)
    checked = told.overrides.applied(load_plan(find_plan(told.plan, load_settings().plans)))
    key = _key("event", told.plan, checked, told.batch or datetime.now(UTC).isoformat())
    return _begin(told.plan, told.overrides, key, f"images were validated{f' ({told.batch})' if told.batch else ''}", WAITING)


def understood(payload: Mapping[str, Any]) -> Validated:
    """What the event's payload tells.

    Raises:
        PlanError: it does not fit; the message names the key.
    """
    try:
        return Validated.model_validate(payload)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PlanError(f"the event's payload: {where}: {first['msg']}; it holds plan, and may hold overrides and batch (docs/operate.md)") from e


def _key(kind: str, name: str, plan: Plan, what: str) -> str:
    """Prefect's idempotency key of a training: it is one for all deployments of `retrain`, so it names the deployment, and the model."""
    return f"{kind}/{deployed_as(name)}/{plan.model}/{what}"


def _begin(name: str, overrides: Overrides, key: str, why: str, counts: list[StateType]) -> State[Any]:
    """Start a training unless the same is under way, was made or was tried before.

    Args:
        name: the plan's name, as a run takes it.
        overrides: what the run changes.
        key: of two runs with the same one only the first is made.
        why: the fact behind it.
        counts: states of a run that will have learnt what is asked for. `watch` asks again another day, so a training that
            runs counts for it; an event is told once, and a training that runs may have read its labels before.
    """
    if not PREFECT_API_URL.value():
        raise SettingsError("PREFECT_API_URL: expected a Prefect server that starts trainings, found none; see `animl-pipeline up`")
    with get_client(sync_client=True) as client:
        deployment = _deployment_of(name, client)
        of_it = FlowRunFilterDeploymentId(any_=[deployment])
        parameters = {"plan": name, "overrides": overrides.model_dump(mode="json")}
        under_way = _runs(client, FlowRunFilter(deployment_id=of_it, state=FlowRunFilterState(type=FlowRunFilterStateType(any_=counts))))
        if counts is WAITING:
            under_way = [run for run in under_way if _same(run, overrides)]
        if under_way:
            return _under_way(under_way[0], why)
        same = _runs(client, FlowRunFilter(deployment_id=of_it, idempotency_key=FlowRunFilterIdempotencyKey(any_=[key])))
        if same:
            return _answer_of(same[0], why)
        # of two that ask at the same moment the key makes one run, which is then labelled with who was first
        me: dict[str, bool | int | float | str] = {ASKED_BY: str(runtime.flow_run.id)}
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters, idempotency_key=key, tags=["new-validations"], labels=me)
    if run.labels.get(ASKED_BY) != me[ASKED_BY]:
        return _answer_of(run, f"{why}; somebody else asked for the same at the same moment, and it is one run")
    return Completed(name="Started", message=f"{why}; started {run.name!r}")


def _answer_of(run: FlowRun, why: str) -> State[Any]:
    """What the run for the same data says to being asked for it once more."""
    known = f"{why}; {run.name!r} for the same data"
    if run.state_type not in TERMINAL_STATES:
        return _under_way(run, why)
    if run.state_type == StateType.COMPLETED:
        return Completed(name="NothingNew", message=f"{known} has ended as {run.state_name}: there is nothing more to start")
    return Completed(name="AlreadyTried", message=f"{known} ended {run.state_name}: mend what it says, then start it by hand")


def _under_way(run: FlowRun, why: str) -> State[Any]:
    return Completed(name="AlreadyUnderWay", message=f"{why}; {run.name!r} is {str(run.state_name).lower()}")


def _same(run: FlowRun, overrides: Overrides) -> bool:
    """Whether a run of the plan's deployment changes the same of it."""
    return Overrides.model_validate(run.parameters.get("overrides") or {}) == overrides


def deployed_as(plan: str) -> str:
    """The name that a plan's deployment of `retrain` has: that of its file."""
    return plan.rsplit("/", 1)[-1].removesuffix(".yaml").removesuffix(".yml")


def _deployment_of(plan: str, client: SyncPrefectClient) -> UUID:
    name = f"retrain/{deployed_as(plan)}"
    try:
        return client.read_deployment_by_name(name).id
    except ObjectNotFound as e:
        raise SettingsError(
            f"expected the deployment {name!r} on the Prefect server, found none; add it to deployments/prefect.yaml, then deploy it"
        ) from e


def _runs(client: SyncPrefectClient, wanted: FlowRunFilter) -> list[FlowRun]:
    """Runs that somebody asked for, not those that a schedule has laid out for weeks ahead."""
    return [run for run in client.read_flow_runs(flow_run_filter=wanted) if not run.auto_scheduled]

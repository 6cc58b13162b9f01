"""How a run ends when nothing went wrong: a Completed state whose name says what came of it, for Prefect's UI and its automations."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from prefect.client.schemas.objects import State
from prefect.states import Completed

from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.records import Verdict

T = TypeVar("T")

NAMES = {
    "retrain": ("Promoted", "AwaitingApproval", "Held", "NeedMoreData", "NothingNew", "Unjudged"),
    "release": ("Released", "ServedAlready", "AwaitingApproval", "Refused", "Held", "NeedMoreData"),
    "rollback": ("RolledBack",),
    "watch": ("Started", "NothingNew", "AlreadyUnderWay", "AlreadyTried"),
}
"""Flow → the names that its runs end under; none of them is a failure."""

STATE_OF_VERDICT: dict[Verdict | None, str] = {"promote": "Promoted", "hold": "Held", "need_more_data": "NeedMoreData", None: "Unjudged"}


def ended(name: str, message: str, result: T) -> T:
    """What a flow returns to end as Completed under a name of its own; whoever calls the flow gets ``result``."""
    return cast("T", Completed(name=name, message=message, data=result))


def reached(state: State[Any]) -> Any:
    """The result of a run that ended.

    Raises:
        ReleaseError: it ended as it should, but without what was asked for (held, refused, not approved); its message says why.
    """
    result = state.result()  # raises what went wrong
    if result is None:
        raise ReleaseError(str(state.message))
    return result

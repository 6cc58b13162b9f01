"""The states in which runs end when nothing went wrong: Completed, under a name that Prefect's UI and automations can use."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from prefect.client.schemas.objects import State
from prefect.states import Completed

from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.evaluation_results import Verdict

T = TypeVar("T")

STATE_NAMES = {
    "retrain": ("Promoted", "AwaitingApproval", "Held", "NeedMoreData", "NothingNew", "Unjudged"),
    "release": ("Released", "ServedAlready", "AwaitingApproval", "Refused", "Held", "NeedMoreData"),
    "rollback": ("RolledBack",),
    "monitor": ("Healthy", "Degraded", "NotEnoughReviewed"),
    "watch": ("Started", "NothingNew", "AlreadyUnderWay", "AlreadyTried"),
}
"""Flow → the names under which its runs end. None of them is a failure."""

STATE_OF_VERDICT: dict[Verdict | None, str] = {"promote": "Promoted", "hold": "Held", "need_more_data": "NeedMoreData", None: "Unjudged"}


def end_as(name: str, message: str, result: T) -> T:
    """What a flow returns to end as Completed under a name of its own. The caller of the flow gets ``result``."""
    return cast("T", Completed(name=name, message=message, data=result))


def result_of(state: State[Any]) -> Any:
    """The result of a run that ended.

    Raises:
        ReleaseError: the run ended well but made no release (held, refused, not approved); its message says why.
    """
    result = state.result()  # raises the error of a run that failed
    if result is None:
        raise ReleaseError(str(state.message), code=str(state.name))
    return result

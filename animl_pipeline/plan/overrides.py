"""What a run may change of its plan without another file: the few numbers that people try out."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from animl_pipeline.plan.reading import check_plan
from animl_pipeline.plan.whole import Plan
from animl_pipeline.records import Record


class Overrides(Record):
    """Changes for one run; what is left empty stays as the plan says. The card records what was used."""

    epochs: int | None = Field(default=None, ge=1, le=10**6, title="Epochs", description="train.epochs: how often every crop is seen")
    batch_size: int | None = Field(default=None, ge=1, le=10**6, title="Batch size", description="train.batch_size: lower it when memory runs out")
    learning_rate: float | None = Field(default=None, gt=0, le=1, title="Learning rate", description="train.lr")
    seed: int | None = Field(default=None, ge=0, lt=2**63, title="Seed", description="train.seed: another draw of the same training")
    max_per_place: int | None = Field(
        default=None, ge=1, title="Most objects of one place", description="labels.max_per_place: for classes without their own"
    )

    def applied(self, plan: Plan) -> Plan:
        """The plan with these changes, checked as a whole.

        Raises:
            PlanError: a change does not fit the plan.
        """
        train = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.learning_rate, "seed": self.seed}
        changes: dict[str, dict[str, Any]] = {"train": train, "labels": {"max_per_place": self.max_per_place}}
        data = plan.model_dump(mode="json", by_alias=True)
        for section, values in changes.items():
            data[section] |= {key: value for key, value in values.items() if value is not None}
        return check_plan(data, f"the plan of {plan.model} with this run's changes") if self != Overrides() else plan

"""The plan's parent classes: what is refused, and what they do to thresholds and to the keys of steps."""

from __future__ import annotations

from typing import Any

import pytest

from animl_pipeline.config import AimConfig, Plan, check_plan
from animl_pipeline.core.errors import PlanError
from animl_pipeline.steps.training.step import key_config

RODENT = {"rodent": ["rat", "mouse"]}


def plan_with(parents: dict[str, Any], **sections: Any) -> Plan:
    classes = {c: [c] for c in ("rat", "mouse", "vole", "fox")}
    sources = [{"name": "isle", "export": "e.json", "images": "images"}]
    return check_plan({"model": "isle", "sources": sources, "labels": {"classes": classes, "parents": parents, "nothing": {}}} | sections)


@pytest.mark.parametrize(
    ("parents", "named"),
    [
        ({"rodent": ["rat", "moose"]}, "moose"),
        ({"rodent": ["rat", "nothing"]}, "nothing"),
        ({"fox": ["rat", "mouse"]}, "fox"),
        ({"nothing": ["rat", "mouse"]}, "nothing"),
        ({"rodent": ["rat", "mouse"], "small": ["mouse", "vole"]}, "mouse"),
        ({"rodent": ["rat", "rat"]}, "rat"),
        ({"rodent": ["rat", "mouse"], "small": ["rodent", "vole"]}, "rodent"),
        ({"rodent": ["rat"]}, "rodent"),
        ({"7": ["rat", "mouse"]}, "7"),
        ({"a.b": ["rat", "mouse"]}, "a.b"),
    ],
)
def test_parents_that_fit_no_classes_are_refused_and_named(parents: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanError, match=f"'{named}'|parents.{named}") as refused:
        plan_with(parents)
    assert "labels" in str(refused.value)


def test_only_aims_and_the_registration_may_name_a_parent() -> None:
    plan = plan_with(RODENT, thresholds={"aims": {"rodent": {"recall": 0.8}}}, release={"register": {"thresholds": {"rodent": 0.4}}})
    assert plan.thresholds.aim_of_parent("rodent", ("rat", "mouse")) == AimConfig(recall=0.8)
    for sections in ({"thresholds": {"invasive": ["rodent"]}}, {"thresholds": {"aims": {"bird": {"recall": 0.8}}}}):
        with pytest.raises(PlanError):
            plan_with(RODENT, **sections)


@pytest.mark.parametrize(
    ("thresholds", "group", "aim"),
    [
        ({}, "native", AimConfig(precision=0.9)),
        ({"invasive": ["rat"]}, "invasive", AimConfig(recall=0.95)),
        ({"invasive": ["rat"], "aims": {"mouse": {"recall": 0.99}}}, "invasive", AimConfig(recall=0.95)),
        ({"invasive": ["rat", "mouse"], "aims": {"mouse": {"recall": 0.99}}}, "invasive", AimConfig(recall=0.99)),
        ({"invasive": ["fox"], "aims": {"native": {"max_false_alarms_per_1000": 9}, "rat": {"max_false_alarms_per_1000": 2}}},
         "native", AimConfig(max_false_alarms_per_1000=2)),
    ],
)  # fmt: skip
def test_a_parent_has_the_aim_of_its_strictest_child(thresholds: dict[str, Any], group: str, aim: AimConfig) -> None:
    config = plan_with(RODENT, thresholds=thresholds).thresholds
    assert (config.group_of_parent(("rat", "mouse")), config.aim_of_parent("rodent", ("rat", "mouse"))) == (group, aim)


def test_parents_train_no_other_model_and_without_them_a_plan_is_recorded_as_before() -> None:
    assert key_config(plan_with(RODENT)) == key_config(plan_with({}))
    assert "parents" not in plan_with({}).model_dump(mode="json")["labels"]
    assert plan_with(RODENT).model_dump(mode="json")["labels"]["parents"] == RODENT

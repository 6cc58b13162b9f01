"""Automation rules with a new categoryConfig: what people set stays, classes that are gone go, everything else is untouched."""

from __future__ import annotations

from typing import Any

Rule = dict[str, Any]


def merged_rules(rules: list[Rule], model_id: str, config: dict[str, dict[str, Any]]) -> list[Rule]:
    """All of a project's rules, those that run ``model_id`` with thresholds for exactly the classes of ``config``.

    A class that a rule knows already keeps the rule's own threshold and switch: a person chose them for this project.
    """
    return [_merged(rule, config) if _runs(rule, model_id) else rule for rule in rules]


def _runs(rule: Rule, model_id: str) -> bool:
    action = rule.get("action") or {}
    return action.get("type") == "run-inference" and action.get("mlModel") == model_id


def _merged(rule: Rule, config: dict[str, dict[str, Any]]) -> Rule:
    own = rule["action"].get("categoryConfig") or {}
    return rule | {"action": rule["action"] | {"categoryConfig": {name: own.get(name, value) for name, value in config.items()}}}

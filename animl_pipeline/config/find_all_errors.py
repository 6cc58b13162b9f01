"""Find all errors of a plan. Pydantic checks what sections have to do with each other only if each section fits by itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from animl_pipeline.config.explain_errors import real_location
from animl_pipeline.config.plan import Plan

MAX_ROUNDS = 5
PLACEHOLDERS = {"export": "placeholder.json", "images": "placeholder", "name": "placeholder"}
"""Valid values for the keys that every source needs."""


def find_all_errors(data: dict[str, Any], first: ValidationError) -> list[Any]:
    """Pydantic's errors of a plan, and those that it finds once the wrong values are replaced by valid ones.

    Args:
        data: the plan file's content.
        first: the errors of the plan as it is.
    """
    errors: list[Any] = list(first.errors(include_url=False))
    latest, data = errors, copy.deepcopy(data)
    for _ in range(MAX_ROUNDS):
        if not all(_repair(data, real_location(error["loc"])) for error in latest):
            break
        try:
            Plan.model_validate(data)
            break
        except ValidationError as e:
            found = [error for error in e.errors(include_url=False) if error["type"] == "value_error"]
            latest = [error for error in found if not _is_known(error, errors)]
            errors += latest
            if not latest:
                break
    return errors


def _is_known(error: Any, errors: Sequence[Any]) -> bool:
    return any((error["loc"], error["msg"]) == (known["loc"], known["msg"]) for known in errors)


def _repair(data: dict[str, Any], location: tuple[Any, ...]) -> bool:
    """Remove a wrong value, or replace it where the plan needs one. False if that could make other errors, or hide them."""
    if location[:2] == ("labels", "classes") or location == ("labels",):
        return _repair_labels(data, location)
    if len(location) == 3 and location[0] == "sources" and location[2] in PLACEHOLDERS:
        data["sources"][location[1]][location[2]] = PLACEHOLDERS[location[2]] + ("" if location[2] != "name" else f"-{location[1]}")
        return True
    if not location or location[0] in {"model", "sources"}:
        return len(location) > 2 and _remove(data, location)
    return _remove(data, location)


def _repair_labels(data: dict[str, Any], location: tuple[Any, ...]) -> bool:
    """Keep the names of the classes, which other sections use, and give those that are wrong a label of their own."""
    labels = data.get("labels")
    classes = labels.get("classes") if isinstance(labels, dict) else None
    if not isinstance(classes, dict) or len(classes) < 2:
        return False
    wrong = [location[2]] if len(location) > 2 else list(classes)
    if any(name not in classes for name in wrong):
        return False
    classes |= {name: [f"placeholder {n}"] for n, name in enumerate(classes) if name in wrong}
    if location == ("labels",):
        data["labels"] = {"classes": classes}
    return True


def _remove(data: dict[str, Any], location: tuple[Any, ...]) -> bool:
    """Remove the value at a location; of a wrong entry of a list, the list. False if a whole source would go."""
    holder, key = data, location[0]
    for part in location[1:]:
        inner = holder.get(key)
        if isinstance(inner, list):
            inner = dict(enumerate(inner))  # of sections; an entry of any other list has no keys
            if not isinstance(inner.get(part), dict):
                break
        if not isinstance(inner, dict):
            break
        holder, key = inner, part
    if isinstance(key, int):
        return False
    holder.pop(key, None)  # an error before may have removed it
    return True

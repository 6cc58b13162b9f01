"""Find all errors of a plan, and say them in its own words: with the nearest valid value, or the new name of a renamed key."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from animl_pipeline.config.labels import ClassConfig
from animl_pipeline.config.plan import Plan
from animl_pipeline.config.value_types_and_messages import did_you_mean, join_or, shorten
from animl_pipeline.core.frozen_record import Record

_UNION_PART = re.compile(r"(literal|tuple|list|dict|function-\w+|constrained-\w+|lax-or-strict)\[.*|str|int|float|bool")
"""A part of a location that pydantic adds for one of several types that a value may have. No key of a plan is called so."""
_BOUNDS = {"greater_than": "more than", "greater_than_equal": "at least", "less_than": "less than", "less_than_equal": "at most"}
_KINDS = {
    "tuple": "a list",
    "list": "a list",
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "date": "a day such as 2026-05-31",
}
"""The beginning of a pydantic error's type → what was expected."""
SHOWN_KEYS = 8
MAX_ROUNDS = 5
PLACEHOLDERS = {"export": "placeholder.json", "images": "placeholder", "name": "placeholder"}
"""Valid values for the keys that every source needs."""
RENAMED = {
    "view": "model_input",
    "sources.key": "path_field",
    "sources.place_field": "location_field",
    "sources.places": "location_namespace",
    "sources.merge_places_within_m": "merge_locations_within_m",
    "sources.max_per_place": "max_per_location",
    "sources.animl.merge_places_within_m": "sources.merge_locations_within_m",
    "labels.max_per_place": "max_per_location",
    "labels.min_places": "min_locations",
    "labels.too_few": "on_too_few",
    "labels.conflicts": "on_conflict",
    "labels.classes.max_per_place": "max_per_location",
    "labels.classes.min_places": "min_locations",
    "detections.people": "images_with_people",
    "detections.repeat_occasions": "repeat_min_occasions",
    "detections.repeat_overlap": "repeat_iou",
    "crops.image_label": "image_level_label",
    "crops.max_per_image_label": "max_per_image_level_label",
    "splits.tries": "max_rounds",
    "splits.min_places_per_class": "min_locations_per_class",
    "splits.unknown_place": "unknown_location",
    "splits.burst_seconds": "sequence_gap_seconds",
    "train.on": "run_on",
    "train.weights_else": "fallback_weights",
    "train.accumulate": "accumulate_batches",
    "train.balance": "class_balance_beta",
    "train.focus": "focal_gamma",
    "thresholds.unknown.left_out": "held_out_classes",
    "gate.min_places": "min_locations",
    "gate.macro_f1_may_fall": "max_macro_f1_drop",
    "gate.invasive_recall_may_fall": "max_invasive_recall_drop",
    "package.golden": "reference_predictions",
    "release.batch": "batch_endpoint",
    "release.keep": "keep_versions",
    "release.approve_within_days": "approval_timeout_days",
    "release.register.rules_of": "rule_projects",
}
"""Old key with its section → new key. Positions in a list and names of classes are left out of the section."""


class ExplainedError(NamedTuple):
    """One error: its pydantic type, the key that it is about ("" for the plan as a whole), and one line for a person."""

    type: str
    key: str
    text: str


def explain_errors(errors: Sequence[Any]) -> list[ExplainedError]:
    """All of pydantic's errors, unknown keys first, since an unknown key is often a misspelt missing one."""
    parents = {error["loc"][:n] for error in errors for n in range(len(error["loc"]))}
    kept = [error for error in errors if error["type"] != "too_short" or error["loc"] not in parents]  # too short because of a wrong entry
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for error in sorted(kept, key=lambda e: e["type"] not in {"extra_forbidden", "invalid_key"}):
        groups.setdefault(_union_location(error["loc"]) or error["loc"], []).append(error)
    return [explained for location, group in groups.items() for explained in _explain_group(location, group)]


def real_location(location: Sequence[Any]) -> tuple[Any, ...]:
    """A location without the parts that pydantic adds."""
    return tuple(part for part in location if not (isinstance(part, str) and _UNION_PART.fullmatch(part)))


def _union_location(location: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The location of the value that may have several types, None if the error is about no such value."""
    found = next((i for i, part in enumerate(location) if isinstance(part, str) and _UNION_PART.fullmatch(part)), None)
    return None if found is None else location[:found]


def _explain_group(location: tuple[Any, ...], errors: list[Any]) -> list[ExplainedError]:
    """The errors of one value. If it may have several types, only those of the type that was meant."""
    if all(error["loc"] == location for error in errors):
        return [_explain(error) for error in errors]
    entries = [error for error in errors if len(real_location(error["loc"])) > len(location)]
    if entries:
        return [_explain(error) for error in entries]
    named = [option for error in errors for option in _options(error)]
    options = list(dict.fromkeys([*named, *(_expected(error) for error in errors if not _options(error))]))
    shown = f"expected {join_or([text for text in options if text])}, found {_found(errors[0]['input'])}"
    where = _name(location)
    return [ExplainedError(errors[0]["type"], where, f"{where}: {shown}{did_you_mean(errors[0]['input'], named)}")]


def _explain(error: Any) -> ExplainedError:
    location = real_location(error["loc"])
    where = _name(location)
    return ExplainedError(error["type"], where, _one_line(_text(error, location, where)))


def _text(error: Any, location: tuple[Any, ...], where: str) -> str:
    if error["type"] == "extra_forbidden":
        parts = [str(part) for part in location]
        new, known = renamed_key(parts), _keys_of(_section_at(location[:-1]))
        if new:
            return f"the key {where!r} is now called {new!r}"
        return f"the key {where!r} is not known{did_you_mean(parts[-1], known)}; known here are: {', '.join(known)}"
    if error["type"] == "missing":
        return f"the key {where!r} is missing, and every plan needs it"
    if error["type"] == "value_error":
        message = re.sub(r"^Value error, ", "", error["msg"])
        return f"{where}: {message}" if where else message
    expected = _expected(error, location)
    if expected:
        return f"{where or 'the plan'}: expected {expected}, found {_found(error['input'])}{did_you_mean(error['input'], _options(error))}"
    message = error["msg"].replace("tuple", "list").replace("Tuple", "List")
    return f"{where or 'the plan'}: {message[0].lower()}{message[1:]}, found {_found(error['input'])}"


def _expected(error: Any, location: tuple[Any, ...] = ()) -> str:
    """What was expected, in plain words; "" if pydantic's own message must do."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        return join_or(_options(error))
    if kind in _BOUNDS:
        return f"{_BOUNDS[kind]} {next(iter(context.values()))}"
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return _describe_section(location)
    if kind == "string_pattern_mismatch" and location[-1:] in {("model",), ("name",)}:
        return "at most 40 small letters, digits and hyphens"
    return _KINDS.get(kind.partition("_")[0], "") if kind.endswith(("_type", "_parsing", "_from_float", "_number")) else ""


def _describe_section(location: tuple[Any, ...]) -> str:
    section = _section_at(location)
    if section is ClassConfig:
        named = len(location) > 2
        return "a list of labels, or keys such as from and max_count" if named else "classes, such as fox: [fox, island fox]"
    keys = _keys_of(section)
    return f"keys such as {', '.join(keys[:SHOWN_KEYS])}"


def _options(error: Any) -> list[str]:
    """The values that a key may have, as a plan writes them; empty if they are not a short list."""
    if error["type"] != "literal_error":
        return []
    expected = str(error.get("ctx", {}).get("expected", ""))
    return re.findall(r"'([^']*)'", expected) or re.findall(r"-?\d+(?:\.\d+)?", expected)


def _found(value: Any) -> str:
    return "nothing" if value is None else shorten(value)


def _name(location: Sequence[Any]) -> str:
    return _one_line(".".join(map(str, real_location(location))))


def _one_line(text: str) -> str:
    """``text`` with line ends and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _section_at(location: Sequence[Any]) -> type[Record]:
    """The section of the plan that a location leads to; names of classes and positions in lists lead to no other."""
    section: Any = Plan
    for part in location:
        inner = section.model_fields.get(part) if isinstance(part, str) else None
        if inner is not None:
            section = _section_in(inner.annotation) or section
    return section  # type: ignore[no-any-return]


def _keys_of(section: type[Record]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_in(annotation: Any) -> type[Record] | None:
    """The section type inside an annotation such as ``tuple[SourceConfig, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    return next((found for inner in getattr(annotation, "__args__", ()) if (found := _section_in(inner))), None)


def find_all_errors(data: dict[str, Any], first: ValidationError) -> list[Any]:
    """Pydantic's errors of a plan, and those between sections, which it finds once the wrong values are replaced by valid ones.

    ``first``: the errors of the plan as it is.
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


def renamed_key(location: Sequence[str]) -> str | None:
    """The present name of an old key, None where the key was never known.

    ``location``: the key's path in the plan, such as ``("sources", "0", "place_field")``.
    """
    parts = [p for p in location if not p.isdigit()]
    if parts[:2] == ["labels", "classes"] and len(parts) == 4:
        del parts[2]
    return RENAMED.get(".".join(parts))

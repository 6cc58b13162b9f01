"""Say in the plan's own words what does not fit in a plan: every error, with the nearest valid value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from animl_pipeline.config.labels import ClassConfig
from animl_pipeline.config.plan import Plan
from animl_pipeline.config.renamed_keys import renamed_key
from animl_pipeline.config.value_types import did_you_mean, join_or, shorten
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

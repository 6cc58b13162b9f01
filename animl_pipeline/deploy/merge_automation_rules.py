"""Put a model's thresholds into the automation rules of an Animl project, and compare rules as Animl gives them back.

Animl's web client gives every class of a new rule the model's default threshold. So an entry that is there was not always chosen by a
person: one that equals a default, or what an earlier registration wrote, is replaced.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

Document = dict[str, Any]
Rule = dict[str, Any]


class KnownEntries(NamedTuple):
    """Entries of automation rules that no person chose.

    Attributes:
        defaults: the model's default thresholds, of its present and earlier versions.
        written: the entries that earlier registrations wrote, each as class name → entry.
    """

    defaults: tuple[float, ...] = ()
    written: tuple[Document, ...] = ()

    def include(self, name: str, entry: Document) -> bool:
        """Whether the entry of a class is one of these. A threshold of 0 or none means the model's default to Animl."""
        threshold = entry.get("confThreshold") or 0.0
        if not entry.get("disabled") and (threshold == 0 or any(math.isclose(threshold, d, abs_tol=1e-9) for d in self.defaults)):
            return True
        return any(name in config and _same_entry(entry, config[name]) for config in self.written)


class RuleChange(NamedTuple):
    """All automation rules of a project, before and after the registration.

    ``kept``: a line for each entry that a person chose and that stays.
    """

    before: list[Rule]
    after: list[Rule]
    kept: tuple[str, ...] = ()

    def changed(self) -> int:
        """How many rules change."""
        return sum(not same_rules([a], [b]) for a, b in zip(self.after, self.before, strict=True))


def merge_rules(rules: list[Rule], model_id: str, config: dict[str, Document], known: KnownEntries, *, replace: bool) -> RuleChange:
    """All rules of a project; those that run ``model_id`` get exactly the classes of ``config``.

    ``config``: class name → entry with the new threshold. ``known``: entries that are replaced in any case. ``replace``: also replace the
    entries that a person chose.
    """
    kept: list[str] = []
    after = []
    for rule in rules:
        if not _runs(rule, model_id):
            after.append(rule)
            continue
        own = rule["action"].get("categoryConfig") or {}
        entries = {}
        for name, value in config.items():
            entry = own.get(name)
            chosen = entry is not None and not _same_entry(entry, value) and not replace and not known.include(name, entry)
            entries[name] = entry if entry is not None and (chosen or _same_entry(entry, value)) else value
            kept += [f"{_name_of(rule)}: {name} stays {_describe(entry)}, the model's is {_describe(value)}"] if chosen else []
        after.append(rule | {"action": rule["action"] | {"categoryConfig": entries}})
    return RuleChange(rules, after, tuple(kept))


def same_rules(some: Iterable[Rule], others: Iterable[Rule]) -> bool:
    """Whether two lists of rules say the same. Animl's database adds an ``_id`` to each entry of a categoryConfig; they do not count."""
    return [without_entry_ids(rule) for rule in some] == [without_entry_ids(rule) for rule in others]


def without_entry_ids(rule: Rule) -> Rule:
    """A rule without the ids that Animl's database adds to the entries of its categoryConfig."""
    config = rule.get("action", {}).get("categoryConfig")
    if not isinstance(config, dict):
        return rule
    return rule | {"action": rule["action"] | {"categoryConfig": {name: _without_id(entry) for name, entry in config.items()}}}


def _without_id(entry: Any) -> Any:
    return {k: v for k, v in entry.items() if k != "_id"} if isinstance(entry, dict) else entry


def _same_entry(entry: Document, other: Document) -> bool:
    return bool(_without_id(entry) == _without_id(other))


def _runs(rule: Rule, model_id: str) -> bool:
    action = rule.get("action") or {}
    return action.get("type") == "run-inference" and action.get("mlModel") == model_id


def _name_of(rule: Rule) -> str:
    """A rule's name for a checklist in Markdown, without anything that could be markup."""
    return " ".join(re.sub(r"[^\w .,:-]", " ", str(rule.get("name") or rule.get("_id"))).split())[:60]


def _describe(entry: Document | None) -> str:
    entry = entry or {}
    return f"{entry.get('confThreshold')}{' (disabled)' if entry.get('disabled') else ''}"

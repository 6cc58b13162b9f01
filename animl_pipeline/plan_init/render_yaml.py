"""Write a suggested plan as YAML with comments."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from animl_pipeline.config import GateConfig, SourceConfig
from animl_pipeline.plan_init.expected_test_set import drafted_splits
from animl_pipeline.plan_init.suggest_classes import SuggestedClass, SuggestedPlan
from animl_pipeline.plan_init.survey import Survey

COMMENT_WIDTH = 118
MAX_TOO_FEW = 60
"""Labels with too few annotations that are listed one by one."""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 _()/.-]*")
_YAML_KEYWORDS = frozenset({"yes", "no", "on", "off", "true", "false", "null", "y", "n"})
_ESCAPED = '"\\'


def render_plan(model: str, surveys: Sequence[Survey], plan: SuggestedPlan, doubts: Mapping[str, str], invasive: Sequence[str] = ()) -> str:
    """The text of the plan file: valid YAML.

    ``doubts``: source → what is uncertain about the folder of its images; "" or absent if nothing is. ``invasive``: the classes that must not
    be missed.
    """
    names = ", ".join(s.source.name for s in surveys)
    warnings = ["# Warnings:", *(c for line in plan.warnings for c in _comment(line, "  - "))] if plan.warnings else ["# No warnings."]
    return "\n".join([
        *_comment(_summary(names, surveys)),
        "#",
        *_comment("Read the warnings, the sources and the classes, then run: animl-pipeline plan check"),
        *_comment("deployments/plans/sample.yaml explains all keys of a plan; docs/sources.md explains the kinds of sources."),
        "",
        *warnings,
        "",
        f"model: {yaml_scalar(model)}",
        f"description: {yaml_scalar(f'First plan, suggested from {names}.')}",
        "",
        "sources:",
        *(line for s in surveys for line in _source(s, doubts.get(s.source.name, ""))),
        "",
        "labels:",
        *_classes(plan.classes),
        *_other_labels(plan),
        "",
        _other_sections(plan.classes, invasive),
    ])  # fmt: skip


def _other_sections(classes: Sequence[SuggestedClass], invasive: Sequence[str]) -> str:
    """The sections that hardly depend on the exports."""
    splits, gate = drafted_splits(c.annotations for c in classes), GateConfig()
    return f"""\
model_input:                    # how a crop is made
  size: 224
  mean: [0.5, 0.5, 0.5]         # as the pretrained weights below need it
  std: [0.5, 0.5, 0.5]

detections:
  source: auto                  # reviewed boxes, and MegaDetector for images without any

splits:                         # whole locations, never single images
  val: {splits.val}
  test: {splits.test}
  min_locations_per_class: {splits.min_locations_per_class}    # in val and in test, as many as the gate wants

train:
  backbone: tf_efficientnet_lite0
  weights: efficientnet-lite0-imagenet
  epochs: 15
  lr: 0.0005
  patience: 4                   # stop after so many epochs without a better score on val

thresholds:
  invasive: {_yaml_list(invasive)}    # classes that must not be missed; of all others, the name must be right
  aims:
    invasive: {{recall: 0.95}}
    native: {{precision: 0.9}}

gate:                           # with less of any class in test, the verdict is need_more_data
  min_examples: {gate.min_examples}
  min_locations: {gate.min_locations}
  max_invasive_recall_drop: {gate.max_invasive_recall_drop}    # a larger drop of an invasive class from the released model: hold

release:
  memory_mb: 3072
  max_concurrency: 5
"""


def yaml_scalar(text: str) -> str:
    """Text as YAML, in quotes if needed."""
    if _PLAIN.fullmatch(text) and text == text.strip() and text.casefold() not in _YAML_KEYWORDS:
        return text
    return f'"{"".join(c if c.isprintable() and c not in _ESCAPED else _escape(c) for c in text)}"'


def _escape(c: str) -> str:
    return f"\\{c}" if c in _ESCAPED else f"\\U{ord(c):08x}"


def _yaml_list(texts: Iterable[str]) -> str:
    return f"[{', '.join(yaml_scalar(t) for t in texts)}]"


def _summary(names: str, surveys: Sequence[Survey]) -> str:
    days = sorted(d for s in surveys for d in (s.first, s.last) if d)
    locations = len(frozenset[str]().union(*(s.locations for s in surveys)))
    dates = f"taken {days[0]} to {days[-1]}" if days else "without dates"
    return (
        f"A first plan, suggested from {names}: {sum(s.images for s in surveys):,} images {dates} at {locations:,} known locations, "
        f"{sum(s.annotations for s in surveys):,} annotations, {sum(s.boxes for s in surveys):,} of them with a box."
    )


def _comment(text: str, bullet: str = "", margin: str = "") -> list[str]:
    """Text as comment lines. Characters that could end a comment are replaced, since an export may contain anything."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    lines = textwrap.wrap(shown, COMMENT_WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet))
    return [f"{margin}# {line}" for line in lines] or [f"{margin}#"]


def _source(survey: Survey, doubt: str) -> list[str]:
    """A source, with only the keys that differ from their defaults."""
    s = survey.source
    lines = [f"  - name: {yaml_scalar(s.name)}", f"    kind: {s.kind}", f"    export: {yaml_scalar(s.export)}"]
    if doubt:
        lines += _comment(doubt, margin="    ")
    if s.images != s.export:
        lines.append(f"    images: {yaml_scalar(s.images)}")
    for field in ("path_field", "location_field", "layout", "location_namespace"):
        value = getattr(s, field)
        if value != SourceConfig.model_fields[field].default:
            lines.append(f"    {field}: {yaml_scalar(value)}")
    if survey.unreviewed:
        lines.append(f"    unreviewed: {s.unreviewed}            # no person validated {survey.unreviewed:,} of {survey.annotations:,} labels")
    return lines


def _classes(classes: Sequence[SuggestedClass]) -> list[str]:
    lines = [f"    {yaml_scalar(c.id)}: {_yaml_list(c.labels)}" for c in classes]
    width = min(max(map(len, lines)), 60)
    return ["  classes:", *(f"{line.ljust(width)}  # {_counts(c)}" for line, c in zip(lines, classes, strict=True))]


def _counts(c: SuggestedClass) -> str:
    locations = f"{len(c.locations):,} location{'' if len(c.locations) == 1 else 's'}"
    return f"{c.annotations:,} annotations ({c.boxes:,} boxes) in {c.images:,} images at {locations}, {c.dates}"


def _other_labels(plan: SuggestedPlan) -> list[str]:
    """The keys empty and exclude, and the labels that are in no class as comments."""
    exclude = [label for role in ("people", "vehicle", "unknown") for label in plan.no_animals.get(role, ())]
    lines = [f"  empty: {_yaml_list(plan.no_animals.get('empty', ('empty',)))}", f"  exclude: {_yaml_list(exclude)}"]
    if plan.too_few:
        lines.append("  # Too few annotations or locations for a class. These labels are dropped, and counted, unless you add them to a class:")
        for c in plan.too_few[:MAX_TOO_FEW]:
            lines += _comment(f"{yaml_scalar(c.id)}: {_yaml_list(c.labels)}  {_counts(c)}", bullet="  ", margin="  ")
        more = len(plan.too_few) - MAX_TOO_FEW
        lines += [f"  #   … and {more:,} more labels"] if more > 0 else []
    return lines

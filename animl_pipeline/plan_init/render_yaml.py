"""A draft as the text of a plan: valid YAML, with what a person needs to know beside each line."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from animl_pipeline.config import SourceConfig
from animl_pipeline.plan_init.suggest import Draft, Suggested
from animl_pipeline.plan_init.survey import Survey

WIDTH = 118
MOST_FEW = 60
"""Names with too few objects that are listed one by one."""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 _()/.-]*")
_WORDS_OF_YAML = frozenset({"yes", "no", "on", "off", "true", "false", "null", "y", "n"})

QUOTED = '"\\'

REST = """\
view:                           # what the model sees of an animal
  size: 224
  mean: [0.5, 0.5, 0.5]         # as the pretrained weights below want it
  std: [0.5, 0.5, 0.5]

detections:
  source: auto                  # people's boxes where there are any, MegaDetector's elsewhere

splits:                         # whole places, never single pictures
  val: 0.15
  test: 0.2

train:
  backbone: tf_efficientnet_lite0
  weights: efficientnet-lite0-imagenet
  epochs: 15
  lr: 0.0005
  patience: 4                   # stop after so many epochs without a better val macro AP

release:
  memory_mb: 3072
  max_concurrency: 5
"""


def plan_text(model: str, surveys: Sequence[Survey], draft: Draft, guessed: Mapping[str, str]) -> str:
    """The plan, ready to be written to a file.

    Args:
        model: the model's name.
        surveys: the exports that it was drafted from.
        draft: what is suggested.
        guessed: source → what is not known of where its pictures lie, for sources of which it was guessed.
    """
    parts = [
        *_comment(_headline(surveys)),
        "#",
        *_comment("Look over what looks wrong, the sources, and which names became which class; then: animl-pipeline plan check"),
        *_comment("Every key that a plan can have is explained in deployments/plans/sample.yaml, kinds of sources in docs/sources.md."),
        "",
        *_wrong(draft.wrong),
        f"model: {scalar(model)}",
        f"description: {scalar(f'Drafted from {_names_of(surveys)}.')}",
        "",
        "sources:",
        *(line for s in surveys for line in _source(s, guessed.get(s.source.name, ""))),
        "",
        "labels:",
        *_classes(draft.classes),
        *_left_out(draft),
        "",
        REST,
    ]
    return "\n".join(parts)


def scalar(text: str) -> str:
    """Text as YAML that is read as the same text."""
    if _PLAIN.fullmatch(text) and text == text.strip() and text.casefold() not in _WORDS_OF_YAML:
        return text
    return f'"{"".join(c if c.isprintable() and c not in QUOTED else _escaped(c) for c in text)}"'


def _escaped(c: str) -> str:
    return f"\\{c}" if c in QUOTED else f"\\U{ord(c):08x}"


def _names(names: Iterable[str]) -> str:
    return f"[{', '.join(scalar(n) for n in names)}]"


def _names_of(surveys: Sequence[Survey]) -> str:
    return ", ".join(s.source.name for s in surveys)


def _headline(surveys: Sequence[Survey]) -> str:
    days = sorted(d for s in surveys for d in (s.first, s.last) if d)
    locations = len(frozenset[str]().union(*(s.locations for s in surveys)))
    dates = f"taken {days[0]} to {days[-1]}" if days else "of unknown dates"
    return (
        f"A first plan, drafted from {_names_of(surveys)}: {sum(s.images for s in surveys):,} pictures {dates} at {locations:,} known places, "
        f"{sum(s.objects for s in surveys):,} labels, {sum(s.boxes for s in surveys):,} of them with a box."
    )


def _wrong(lines: Sequence[str]) -> list[str]:
    if not lines:
        return ["# Nothing looks wrong.", ""]
    return ["# What looks wrong:", *(c for line in lines for c in _comment(line, "  - ")), ""]


def _comment(text: str, bullet: str = "") -> list[str]:
    """Text as comment lines; what an export says may hold anything, a comment may not."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    indent = " " * len(bullet)
    return [f"# {line}" for line in textwrap.wrap(shown, WIDTH, initial_indent=bullet, subsequent_indent=indent)] or ["#"]


def _source(survey: Survey, unknown: str) -> list[str]:
    """A source with what differs from the defaults."""
    s = survey.source
    lines = [f"  - name: {scalar(s.name)}", f"    kind: {s.kind}", f"    export: {scalar(s.export)}"]
    lines += [f"    # {line[2:]}" for line in _comment(unknown)] if unknown else []
    if s.images != s.export:
        lines.append(f"    images: {scalar(s.images)}")
    defaults = SourceConfig.model_fields
    for field in ("key", "location_field", "layout", "locations"):
        value = getattr(s, field)
        if value != defaults[field].default:
            lines.append(f"    {field}: {scalar(value)}")
    if survey.unreviewed:
        lines.append(f"    unreviewed: {s.unreviewed}            # {survey.unreviewed:,} of its {survey.objects:,} labels: no person validated them")
    return lines


def _classes(classes: Sequence[Suggested]) -> list[str]:
    lines = [f"{'    ' + scalar(c.id)}: {_names(c.names)}" for c in classes]
    wide = min(max(map(len, lines)), 60)
    return ["  classes:", *(f"{line.ljust(wide)}  # {_figures(c)}" for line, c in zip(lines, classes, strict=True))]


def _figures(c: Suggested) -> str:
    locations = f"{len(c.locations):,} place{'' if len(c.locations) == 1 else 's'}"
    return f"{c.objects:,} objects ({c.boxes:,} boxes) in {c.images:,} pictures at {locations}, {c.dates}"


def _left_out(draft: Draft) -> list[str]:
    empty = draft.asides.get("empty", ("empty",))
    exclude = [n for role in ("people", "vehicle", "unknown") for n in draft.asides.get(role, ())]
    lines = [f"  empty: {_names(empty)}", f"  exclude: {_names(exclude)}"]
    if draft.few:
        lines += ["  # Not suggested: too few objects or places. Their pictures are left out, and counted, unless a class names them:"]
        lines += [line for c in draft.few[:MOST_FEW] for line in _few(c)]
        more = len(draft.few) - MOST_FEW
        lines += [f"  #   … and {more:,} more names"] if more > 0 else []
    return lines


def _few(c: Suggested) -> list[str]:
    return [f"  #   {line[2:]}" for line in _comment(f"{scalar(c.id)}: {_names(c.names)}  {_figures(c)}")]

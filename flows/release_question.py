"""What a person reads before a release is approved: the verdict, what changes for each class, what is replaced, and until when to answer."""

from __future__ import annotations

from datetime import datetime, timedelta

from animl_pipeline.config import Plan
from animl_pipeline.core.evaluation_results import ClassScores, Report
from animl_pipeline.core.report_formats import format_count, format_range, format_score
from animl_pipeline.core.untrusted_text import escape_markdown
from animl_pipeline.deploy import ReleaseRecord
from animl_pipeline.steps.evaluation.report_wording import format_per_1000


def release_question(
    report: Report, plan: Plan, force: str, replaced: ReleaseRecord | None, asked: datetime, reports_url: str, replay: str = ""
) -> str:
    """The question as Markdown.

    ``force``: why it is released against the verdict; "" if it is not. ``replaced``: the last release of the endpoint; None if this store
    knows none. ``reports_url``: where people see the reports; "" if nowhere. ``replay``:
    what the new model does on the last images in service, as Markdown; "" if the plan wants no replay.
    """
    endpoints = " and ".join(f"`{e.endpoint}`" for e in plan.release.endpoints(plan.model, report.version))
    address, days = report.page_address(reports_url), plan.release.approval_timeout_days
    outside = {name: n for title, counts in report.step_counts if title == "labels" for name, n in counts.names_of("unlisted_label").items()}
    lines = [
        f"## Release {report.model} {report.version} to {endpoints}?",
        escape_markdown(report.headline),
        f"**The verdict is not to promote this model.** The release was forced: {escape_markdown(force)}" if force else "",
        "\n".join(f"- {escape_markdown(reason)}" for reason in report.reasons),
        f"**Read first:** [the whole report, with the images of the mistakes]({address})" if address else "",
        f"**It replaces** {_describe_replaced(replaced)}.",
        f"**Answer by** {asked + timedelta(days=days):%Y-%m-%d %H:%M} UTC, in {days:g} days. Without an answer nothing is released.",
        f"**Labels that the plan does not name:** {', '.join(f'{escape_markdown(name)} {n:,}' for name, n in outside.items())}" if outside else "",
        f"**Replay:** {replay}" if replay else "",
        _false_alarms(report),
        _describe_classes(report),
    ]
    return "\n\n".join(line for line in lines if line)


def _describe_replaced(record: ReleaseRecord | None) -> str:
    if record is None:
        return "nothing that this store knows of"
    by = f", approved by {escape_markdown(record.approval.by)}" if record.approval else ""
    return f"version {escape_markdown(record.version)}, deployed {record.ended_at[:10]}{by}"


def _describe_classes(report: Report) -> str:
    """A line for each class: recall, its change on the same test crops, and precision. A table would be too wide for Prefect's form."""
    comparison = report.metrics.comparison
    compared = comparison.classes if comparison else ()
    changes = {c.id: f", change {c.recall_change:+.2f}{_in_brackets(format_range(c.recall_interval, sign=True))}" for c in compared}
    changes |= dict.fromkeys(comparison.added_classes if comparison else (), ", new class")

    def line(c: ClassScores) -> str:
        recall = f"recall {format_score(c.recall)}{changes.get(c.id, '')}"
        return f"- **{c.id}**, {format_count(c.examples, 'crop')}: {recall}; precision {format_score(c.precision)}"

    lines = map(line, report.metrics.classes)
    removed = f"It no longer knows: {', '.join(comparison.removed_classes)}." if comparison and comparison.removed_classes else ""
    heading = "**On the test locations**" + (f", beside {escape_markdown(comparison.champion)} (95 % interval of the change)" if comparison else "")
    return "\n\n".join(part for part in (heading, "\n".join(lines), removed) if part)


def _false_alarms(report: Report) -> str:
    """The false alarms of the invasive classes as a line; "" without such a class."""
    found = ", ".join(f"{class_id} {alarms}" for class_id, alarms in _invasive_false_alarms(report).items())
    of_what = "empty sequences" if report.metrics.production else "test crops of other classes"
    return f"**False alarms of invasive classes**, of 1,000 {of_what} (95 % interval): {found}" if found else ""


def _invasive_false_alarms(report: Report) -> dict[str, str]:
    """Invasive class → its false alarms: on empty sequences as in production (and the released model's), or on crops of other classes."""
    metrics = report.metrics
    invasive = {t.id: t for t in metrics.thresholds if t.group == "invasive"}
    if metrics.production is None:
        return {id_: format_per_1000(t.test.false_alarms_per_1000) for id_, t in invasive.items() if t.test}
    compared = metrics.production.comparison
    before = {c.id: c.false_alarms_per_1000_empty for c in compared.classes} if compared else {}
    found = {}
    for c in metrics.production.classes:
        if c.id in invasive and c.false_alarms_per_1000_empty is not None:
            pair = before.get(c.id)
            interval = " to ".join(map(format_per_1000, c.false_alarms_interval)) if c.false_alarms_interval else ""
            released = f", before {format_per_1000(pair[0])}" if pair else ""
            found[c.id] = f"{format_per_1000(c.false_alarms_per_1000_empty)}{_in_brackets(interval)}{released}"
    return found


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""

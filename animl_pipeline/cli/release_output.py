"""What the release commands print: plain lines and small tables, with colours in a terminal only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from animl_pipeline.cli import console
from animl_pipeline.cli.tables import print_table
from animl_pipeline.core.release_and_reference_types import Release

if TYPE_CHECKING:
    from animl_pipeline.deploy import CleanupResult, DryRun, EndpointStatus, ReleaseRecord

MARKS = {"ok": "ok   ", "warning": "warn ", "error": "ERROR"}
STYLES = {"error": "red", "warning": "yellow"}
STATES = {"begun": "unfinished", "done": "done", "rolled_back": "undone"}


def show_release(done: Release, verb: str) -> None:
    """One line for each endpoint, with the result of its live check."""
    for release in (done, done.batch):
        if release is None:
            continue
        line = f"{release.endpoint} {verb} {release.version}"
        if release.checked:
            line += f"; {release.checked} reference predictions agree within {release.max_difference:.1e}"
        if release.latency is not None:
            line += f"; first answer {release.latency.first_ms:.0f} ms, p50 {release.latency.p50_ms:.0f} ms, p95 {release.latency.p95_ms:.0f} ms"
        if release.approval is not None:
            line += f"; {release.approval}"
        console.out.print(line)


def show_status(states: tuple[EndpointStatus, ...]) -> None:
    """What each endpoint serves."""
    for s in states:
        version = f", {s.version or 'a version that this pipeline did not release'}" if s.endpoint_config else ""
        console.out.print(f"{s.endpoint}  {s.status}{version}")
        if s.endpoint_config:
            console.out.print(f"  configuration  {s.endpoint_config}")
        if s.pending_config:
            console.out.print(f"  updating to    {s.pending_config}")
        if s.failure_reason:
            console.out.print(f"  AWS says       {s.failure_reason}")
        if s.unfinished:
            console.out.print("  a release is running or was killed; if none is running, `animl-pipeline release PLAN` finishes or undoes it")


def show_history(endpoint: str, records: tuple[ReleaseRecord, ...]) -> None:
    """Every change of an endpoint."""
    if not records:
        console.out.print(f"{endpoint}: no release yet")
        return
    numbers = ("checked", "difference", "p95 ms")
    rows = []
    for r in records:
        difference = f"{r.max_difference:.1e}" if r.checked else "-"
        p95 = f"{r.latency.p95_ms:.0f}" if r.latency else "-"
        why = "; ".join(t for t in (f"forced: {r.forced}" if r.forced else "", str(r.approval or ""), r.reason) if t)
        begun = r.begun_at[:16].replace("T", " ")
        rows.append((begun, r.kind, r.version, STATES[r.state], str(r.checked), difference, p95, r.endpoint_config, why))
    columns = ("begun", "what", "version", "result", *numbers, "configuration", "why")
    print_table(endpoint, columns, rows, right=numbers, less_important=("configuration", "difference", "checked", "p95 ms"))


def show_dry_run(dry_run: DryRun, title: str) -> int:
    """A release that was not made, as a diff. Returns the number of errors that would prevent it."""
    console.out.print(f"dry run: nothing is changed. What a release of {title} would do:")
    for section in dry_run.sections:
        console.out.print(f"\n{section.title}")
        width = max((len(change.name) for change in section.changes), default=0)
        for change in section.changes:
            if not change.differs:
                console.out.print(f"    {change.name:<{width}}  {change.then}")
                continue
            if change.now is not None:
                console.out.print(f"  - {change.name:<{width}}  {change.now}", style="red")
            console.out.print(f"  + {change.name:<{width}}  {change.then}", style="green")
        if section.note:
            console.out.print(f"    {section.note}")
    console.out.print("\nchecked beforehand")
    for check in dry_run.checks:
        console.out.print(f"  {MARKS[check.state]} {check.name:<10} {check.message}", style=STYLES.get(check.state))
    if dry_run.refused:
        console.out.print(f"  ERROR verdict    {dry_run.refused}", style="red")
    errors = sum(check.state == "error" for check in dry_run.checks) + bool(dry_run.refused)
    result = f"{errors} error{'s' if errors > 1 else ''} would stop the release" if errors else "nothing would stop the release"
    console.out.print(f"\n{dry_run.change_count} values would change; {result}")
    return errors


def show_cleanup(result: CleanupResult, *, dry_run: bool) -> None:
    """What was deleted, and why the rest stays."""
    verb = "would delete" if dry_run else "deleted"
    for kind, names in (("endpoint", result.endpoints), ("config", result.configs), ("model", result.models), ("package", result.packages)):
        for name in names:
            console.out.print(f"{verb} {kind:<8} {name}")
    if not result.all():
        console.out.print("nothing to delete")
    for name, why in sorted(result.kept.items()):
        console.out.print(f"kept {name}: {why}")

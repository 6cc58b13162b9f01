"""What the commands around a release show: plain lines and small tables, colours only in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from animl_pipeline.cli import console
from animl_pipeline.core.records import Release

if TYPE_CHECKING:
    from animl_pipeline.deploy import Cleared, EndpointStatus, Outlook, ReleaseRecord

SIGN = {"good": "ok   ", "warning": "warn ", "fault": "FAULT"}


def show_release(done: Release, what: str) -> None:
    """One line an endpoint, with what its check saw."""
    for release in (done, done.batch):
        if release is None:
            continue
        line = f"{release.endpoint} {what} {release.version}"
        if release.checked:
            line += f"; {release.checked} golden crops agree within {release.max_difference:.1e}"
        if release.latency is not None:
            line += f"; first answer {release.latency.first_ms:.0f} ms, p50 {release.latency.p50_ms:.0f} ms, p95 {release.latency.p95_ms:.0f} ms"
        if release.approval is not None:
            line += f"; {release.approval}"
        console.out.print(line)


def show_status(states: tuple[EndpointStatus, ...]) -> None:
    """What each endpoint serves."""
    for s in states:
        console.out.print(
            f"{s.endpoint}  {s.status}" + (f", {s.version or 'a version that was not released from here'}" if s.endpoint_config else "")
        )
        if s.endpoint_config:
            console.out.print(f"  configuration  {s.endpoint_config}")
        if s.coming:
            console.out.print(f"  updating to    {s.coming}")
        if s.failure_reason:
            console.out.print(f"  AWS says       {s.failure_reason}")
        if s.unfinished:
            console.out.print("  a release is under way or was broken off; if nobody is at it, `animl-pipeline release PLAN` settles it")


def show_history(line: str, records: tuple[ReleaseRecord, ...]) -> None:
    """Every change of an endpoint."""
    if not records:
        console.out.print(f"{line}: nothing was released yet")
        return
    table = Table(title=line, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in ("begun", "what", "version", "ended", "checked", "difference", "p95 ms", "configuration"):
        table.add_column(name, justify="right" if name in {"checked", "difference", "p95 ms"} else "left", overflow="fold")
    table.add_column("why", overflow="fold")
    for r in records:
        difference = f"{r.max_difference:.1e}" if r.checked else "-"
        p95 = f"{r.latency.p95_ms:.0f}" if r.latency else "-"
        why = "; ".join(t for t in (f"forced: {r.forced}" if r.forced else "", str(r.approval or ""), r.reason) if t)
        ended = {"begun": "under way", "done": "done", "rolled_back": "undone"}[r.state]
        table.add_row(r.begun_at, r.kind, r.version, ended, str(r.checked), difference, p95, r.endpoint_config, why)
    console.out.print(table)


def show_outlook(outlook: Outlook, title: str) -> None:
    """A release that was not made, as a diff."""
    console.out.print(f"dry run: nothing is changed by this. What releasing {title} would do:")
    for part in outlook.parts:
        console.out.print(f"\n{part.title}")
        width = max((len(line.what) for line in part.lines), default=0)
        for line in part.lines:
            if not line.changes:
                console.out.print(f"    {line.what:<{width}}  {line.then}")
                continue
            if line.now is not None:
                console.out.print(f"  - {line.what:<{width}}  {line.now}", style="red")
            console.out.print(f"  + {line.what:<{width}}  {line.then}", style="green")
        if part.note:
            console.out.print(f"    {part.note}")
    console.out.print("\nlooked at ahead")
    for finding in outlook.findings:
        console.out.print(
            f"  {SIGN[finding.state]} {finding.what:<10} {finding.said}", style={"fault": "red", "warning": "yellow"}.get(finding.state)
        )
    if outlook.refused:
        console.out.print(f"  FAULT verdict    {outlook.refused}", style="red")
    faults = sum(f.state == "fault" for f in outlook.findings) + bool(outlook.refused)
    stands = f"{faults} thing{'s' if faults > 1 else ''} in the way" if faults else "nothing in the way"
    console.out.print(f"\n{outlook.changes} things would change; {stands}")


def show_cleared(cleared: Cleared, *, look_only: bool) -> None:
    """What went, and what stays why."""
    verb = "would delete" if look_only else "deleted"
    for kind, names in (("endpoint", cleared.endpoints), ("config", cleared.configs), ("model", cleared.models), ("package", cleared.packages)):
        for name in names:
            console.out.print(f"{verb} {kind:<8} {name}")
    if not cleared.all():
        console.out.print("nothing to delete")
    for name, why in sorted(cleared.kept.items()):
        console.out.print(f"kept {name}: {why}")

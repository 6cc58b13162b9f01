"""`animl-pipeline reinfer`: what the released model says of old, unreviewed images."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import DataOption, Debug, JsonOption, PlanArgument, StoreOption, open_plan, settings_with
from animl_pipeline.storage.open_existing_or_temporary_store import open_existing_store


def reinfer(
    plan: PlanArgument,
    since: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="first day of capture, such as 2026-01-01")],
    execute: Annotated[bool, typer.Option("--execute", help="ask the endpoint; without it, only say what would be asked")] = False,
    out: Annotated[Path, typer.Option(help="folder for reinferred.json and changed.csv")] = Path("reinferred"),
    as_json: JsonOption = False,
    store: StoreOption = None,
    data: DataOption = None,
) -> None:
    """Ask the released model of PLAN about the unreviewed images of its exports, through its batch endpoint.

    Without --execute it says how many boxes, how long, and how many GB-seconds. Changed answers are written to Animl if the plan says so
    (review.write_back).
    """
    from animl_pipeline.review import reinfer as review
    from animl_pipeline.review.write_back import write_back

    settings = settings_with(store, data)
    checked, opened = open_plan(plan, settings), open_existing_store(settings)
    with console.show_progress(debug=Debug.on):
        work = review.plan_reinference(checked, since.date(), opened, settings)
        changed, failed = review.execute(work, checked, out, opened, settings) if execute else (None, 0)
        written = None
        if changed is not None and checked.review.write_back:
            written = write_back(changed, work.version, checked, opened, settings)
    shown = {
        "endpoint": work.endpoint, "version": work.version, "images": work.images, "boxes": len(work.objects), "answered_before": work.answered,
        "without_image_size": work.without_size, "seconds": work.seconds, "gb_seconds": work.gb_seconds,
    }  # fmt: skip
    if changed is not None:
        shown |= {"changed": len(changed), "invasive": int(changed["invasive"].sum()), "images_failed": failed, "out": str(out)}
        shown |= {"write_back": written} if written is not None else {}
    if as_json:
        console.print_json(shown)
        return
    console.out.print(f"{work.endpoint} serves {work.version}: {len(work.objects):,} boxes in {work.images:,} unreviewed images")
    console.out.print(f"{work.answered:,} boxes have an answer of this version already; {work.without_size:,} have no image size and are left out")
    if work.seconds is not None and work.gb_seconds is not None:
        console.out.print(
            f"the others take about {work.seconds / 60:,.0f} minutes and {work.gb_seconds:,.0f} GB-seconds at the endpoint's measured time"
        )
    if changed is None:
        later = ", and writes changed answers to Animl (review.write_back)" if checked.review.write_back else ""
        console.out.print(f"nothing was asked; --execute asks{later}")
        return
    console.out.print(
        f"{len(changed):,} answers changed, {int(changed['invasive'].sum()):,} to an invasive class; {failed:,} images could not be read"
    )
    console.out.print(f"written: {out / review.RESULTS_FILE}, {out / review.CHANGED_FILE}")
    if written is not None:
        others = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in written.items() if reason != "written")
        console.out.print(f"{written.get('written', 0):,} labels written to Animl{f'; {others}' if others else ''}")

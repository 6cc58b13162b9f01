"""`animl-pipeline store …`: show what the store holds, and delete what is not needed any more."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import Debug, JsonOption, StoreOption, settings_with
from animl_pipeline.cli.tables import print_table
from animl_pipeline.config import ReleaseConfig, load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PlanError
from animl_pipeline.storage.gc import GcGroup, GcRules, Inventory, InventoryRow, collect_garbage, read_inventory
from animl_pipeline.storage.open_existing_or_temporary_store import open_existing_store

stores = typer.Typer(
    help="Look after the store (ANIML_STORE): show what it holds, and delete what is not needed any more.",
    epilog="Begin with: animl-pipeline store show. docs/operate.md says what is kept, and how to copy and restore a store.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
KeepOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100,
        help="released versions of each endpoint to keep for a rollback; without it, the plans' largest release.keep_versions",
        show_default=False,
    ),
]
DAY_S = 86_400


@stores.command()
def show(keep: KeepOption = None, as_json: JsonOption = False, store: StoreOption = None) -> None:
    """List what the store holds: steps by name, images and the image index, with their size and when they were used.

    `needed` counts the steps that the latest report of each model and the releases kept for a rollback were made from.
    """
    settings = settings_with(store)
    opened = open_existing_store(settings)
    inventory = read_inventory(opened, _versions_to_keep(keep, settings))
    if as_json:
        console.print_json({"store": str(opened.object_store), "bytes": inventory.bytes} | _as_json(inventory))
        return
    numbers = ("number", "needed", "size", "oldest", "last used")
    rows = [*(_cells(row, "step ") for row in inventory.steps), *(_cells(row) for row in inventory.others)]
    rows.append(("total", "", "", console.format_bytes(inventory.bytes), "", ""))
    print_table(str(opened.object_store), ("what", *numbers), rows, right=numbers, less_important=("oldest",))
    console.out.print("next: animl-pipeline store gc shows what can be deleted")


@stores.command()
def gc(
    older_than: Annotated[
        int, typer.Option(metavar="DAYS", min=1, max=36_500, help="what was made or used in the last DAYS stays, even if it is not needed")
    ] = 30,
    images: Annotated[
        bool, typer.Option("--images", help="also delete downloaded images that no step names any more; they are downloaded again when needed")
    ] = False,
    keep: KeepOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it, only show what would be deleted")] = False,
    store: StoreOption = None,
) -> None:
    """Delete what is not needed any more; without --yes, show what would be deleted, what stays, and why.

    What stays: the steps, with all their images, that the latest report of each model and the releases kept for a rollback were
    made from; what was used lately; the register of test locations, which freezes the test set; downloaded images (unless
    --images). A deleted step is made again when it is needed, with the same content. Run it when no run is under way; on this
    machine it refuses otherwise.
    """
    settings = settings_with(store)
    rules = GcRules(older_than=older_than, keep=_versions_to_keep(keep, settings), images=images)
    with console.show_progress(debug=Debug.on):
        report = collect_garbage(open_existing_store(settings), rules, dry_run=not yes)
    if report.kept:
        _show_groups("kept", report.kept)
    if report.deleted:
        _show_groups("deleted" if yes else "would be deleted", report.deleted)
    for root in report.missing:
        console.out.print(f"missing: {root.id}, which the {root.why} names, is not in the store")
    if not report.deleted:
        console.out.print("nothing to delete")
    elif yes:
        console.out.print(f"{console.format_bytes(report.bytes)} freed")
    else:
        console.out.print(f"dry run: nothing was deleted. With --yes this would free {console.format_bytes(report.bytes)}")


def _versions_to_keep(keep: int | None, settings: Settings) -> int:
    """The number of released versions to keep: as given, or that of the plan that keeps most."""
    if keep is not None:
        return keep
    try:
        plans = [load_plan(path) for path in sorted(settings.plans.glob("*.yaml"))]
    except PlanError as e:
        raise PlanError(f"{e}; its release.keep_versions is needed here: correct the plan, or give --keep N", code=e.code) from e
    return max([ReleaseConfig().keep_versions, *(plan.release.keep_versions for plan in plans)])


def _show_groups(title: str, groups: tuple[GcGroup, ...]) -> None:
    rows = [(group.what, f"{group.number:,}", console.format_bytes(group.bytes), group.why) for group in groups]
    print_table(title, ("what", "number", "size", "why"), rows, right=("number", "size"))
    console.out.print()


def _cells(row: InventoryRow, prefix: str = "") -> tuple[str, ...]:
    needed = "" if row.needed is None else f"{row.needed:,}"
    return (f"{prefix}{row.kind}", f"{row.number:,}", needed, console.format_bytes(row.bytes), _days_ago(row.oldest), _days_ago(row.newest))


def _as_json(inventory: Inventory) -> dict[str, list[dict[str, object]]]:
    """The rows with numbers of bytes and times in seconds since 1970."""
    return {"steps": [row._asdict() for row in inventory.steps], "others": [row._asdict() for row in inventory.others]}


def _days_ago(time_s: float | None) -> str:
    if time_s is None:
        return ""
    days = int((time.time() - time_s) / DAY_S)
    return f"{days:,} days ago" if days > 1 else ("yesterday" if days == 1 else "today")

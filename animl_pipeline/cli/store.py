"""`animl-pipeline store …`: what lies in the store, and the way out for what nobody needs."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table

from animl_pipeline.cli import console
from animl_pipeline.cli.options import StoreOption
from animl_pipeline.cli.run_flow import Debug
from animl_pipeline.config import ReleaseConfig, load_plan
from animl_pipeline.config.settings import load_settings, remember
from animl_pipeline.core.errors import PlanError
from animl_pipeline.storage.gc import Holding, Pile, Rules, clear_store, take_inventory
from animl_pipeline.storage.step_cache import open_store

stores = typer.Typer(
    help="Look after the store (ANIML_STORE): what lies there, and what of it nobody needs any more.",
    epilog="Begin with: animl-pipeline store show. docs/operate.md tells what is kept, and how to copy and restore a store.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
KeepOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=100, help="released versions of each endpoint to go back to; without it, the plans' largest release.keep", show_default=False
    ),
]
DAY = 86_400


@stores.command()
def show(keep: KeepOption = None, store: StoreOption = None) -> None:
    """List what lies in the store: steps by room, pictures and memory, how much room they take and when they were used.

    `needed` counts the steps that the newest report of each model and the releases to go back to were made from.
    """
    remember(store=store)
    opened = open_store(load_settings())
    found = take_inventory(opened, _kept_versions(keep))
    table = _table(str(opened.object_store), "what", "things", "needed", "size", "oldest", "used last")
    for holding in (*found.steps, *found.rest):
        table.add_row(*_row(holding, "step " if holding in found.steps else ""))
    table.add_row("in all", "", "", console.in_bytes(found.bytes))
    console.out.print(table)
    console.out.print("next: animl-pipeline store gc tells what could go")


@stores.command()
def gc(
    older_than: Annotated[int, typer.Option(metavar="DAYS", min=1, max=36_500, help="what was made or used since then stays, whoever needs it")] = 30,
    images: Annotated[
        bool, typer.Option("--pictures", help="let fetched pictures go that no step names any more; who needs them again fetches them again")
    ] = False,
    keep: KeepOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it, only say what would go")] = False,
    store: StoreOption = None,
) -> None:
    """Delete what nobody needs any more; without --yes, say what would go, what stays, and why.

    What stays: the steps, with all their pictures, that the newest report of each model and the releases to go back to were
    made from; what was used lately; the register of places once tested on, which freezes the test set; fetched pictures
    (unless --pictures). A step that went is made anew when it is needed again, with the same content. Run it when no run is
    under way; on this machine it refuses else.
    """
    remember(store=store)
    opened = open_store(load_settings())
    rules = Rules(older_than=older_than, keep=_kept_versions(keep), images=images)
    with console.watched(debug=Debug.on):
        cleared = clear_store(opened, rules, look_only=not yes)
    if cleared.stays:
        _show_piles("stays", cleared.stays)
    if cleared.goes:
        _show_piles("deleted" if yes else "would be deleted", cleared.goes)
    for root in cleared.lacking:
        console.out.print(f"lacking: {root.id}, which the {root.why} names, is not in the store")
    if not cleared.goes:
        console.out.print("nothing to delete")
    elif yes:
        console.out.print(f"{console.in_bytes(cleared.bytes)} freed")
    else:
        console.out.print(f"dry run: nothing was deleted. With --yes this would free {console.in_bytes(cleared.bytes)}")


def _kept_versions(keep: int | None) -> int:
    """How many released versions are kept: as asked, else what the plan that keeps most of them says."""
    if keep is not None:
        return keep
    try:
        plans = [load_plan(path) for path in sorted(load_settings().plans.glob("*.yaml"))]
    except PlanError as e:
        raise PlanError(f"{e}; its release.keep is needed here: mend the plan, or say --keep N") from e
    return max([ReleaseConfig().keep, *(plan.release.keep for plan in plans)])


def _show_piles(title: str, piles: tuple[Pile, ...]) -> None:
    table = _table(title, "what", "things", "size", "why")
    for pile in piles:
        table.add_row(pile.what, f"{pile.things:,}", console.in_bytes(pile.bytes), pile.why)
    console.out.print(table)
    console.out.print()


def _row(holding: Holding, prefix: str) -> tuple[str, ...]:
    needed = "" if holding.needed is None else f"{holding.needed:,}"
    return (f"{prefix}{holding.kind}", f"{holding.things:,}", needed, console.in_bytes(holding.bytes), _ago(holding.oldest), _ago(holding.newest))


def _ago(moment: float | None) -> str:
    if moment is None:
        return ""
    days = int((time.time() - moment) / DAY)
    return f"{days:,} days ago" if days > 1 else ("yesterday" if days == 1 else "today")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in {"things", "needed", "size", "oldest", "used last"} else "left", overflow="fold")
    return table

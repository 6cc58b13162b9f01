"""`animl-pipeline plan preview`: what a plan's labels would be, and what fetching its pictures would take, before any travels."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.table import Table

from animl_pipeline.cli import console
from animl_pipeline.cli.options import DataOption, PlanPath, StoreOption
from animl_pipeline.cli.run_flow import Debug
from animl_pipeline.config import Plan, SourceConfig, load_plan
from animl_pipeline.config.settings import Settings, load_settings, remember
from animl_pipeline.core.errors import ImagesError
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import DownloadEstimate, estimate_download, open_image_host
from animl_pipeline.steps.labels import LabelsPreview, preview_labels, wanted_labels
from animl_pipeline.storage.step_cache import Store, open_store

ASSUMED_BYTES = 700_000
"""A camera-trap picture of 3 megapixels as a JPEG: what is reckoned with while none is known."""
ASSUMED_RATE = 25.0
"""Pictures a second from S3 at 50 ms a request over an ordinary line."""
SHOWN = 12
LEAST_LOCATIONS = 3
"""One for each of train, val and test."""

Rate = Annotated[float, typer.Option("--rate", min=0.01, help="pictures a second that you reckon with")]


def preview(plan: PlanPath, store: StoreOption = None, data: DataOption = None, rate: Rate = ASSUMED_RATE) -> None:
    """Show what PLAN would train on, and what fetching its pictures would take, before any is fetched.

    Reads the exports (from Animl, if the plan says so), applies the label specification, and looks up which pictures are in
    the store. Ends with status 1 where `retrain` would refuse: a class has too few objects or places, and the plan calls
    that an error; there are fewer than three known places; or a folder of pictures is not there.
    """
    remember(store=store, data=data)
    checked, settings = load_plan(plan), load_settings()
    opened = open_store(settings)
    with console.watched(debug=Debug.on):
        exports = {s.name: export_annotations(s, opened, settings) for s in checked.sources}
        outlooks = {s.name: estimate_download(s, exports[s.name], wanted_labels(checked.labels, s.name, settings), opened) for s in checked.sources}
        found = preview_labels(checked.sources, checked.labels, exports, {name: o.over_limit for name, o in outlooks.items()}, opened, settings)
    show_classes(checked, found)
    show_images(outlooks, opened, settings, rate)
    lost = [line for s in checked.sources if (line := _lost(s, settings))]
    if found.locations < LEAST_LOCATIONS:
        lost.append(
            f"train, val and test need at least {LEAST_LOCATIONS} known places, found {found.locations}; add sources with more places, "
            "or check sources.location_field and layout in the plan"
        )
    for line in lost:
        console.out.print(f"refused: {line}")  # a path stays in one piece
    if lost or (found.too_few and checked.labels.on_too_few == "error"):
        raise typer.Exit(1)


def show_classes(plan: Plan, found: LabelsPreview) -> None:
    """A row a class, the totals, and what a person should look at."""
    table = _table(f"{plan.model}: what it would train on, by the exports alone", ("class", "objects", "images", "locations", "left out", "names"))
    for c in found.classes:
        names = ", ".join(f"{name} {n:,}" for name, n in list(c.labels.items())[:SHOWN]) or "none found"
        table.add_row(c.id, f"{c.annotations:,}", f"{c.images:,}", f"{c.locations:,}", _reasons(c.dropped), names)
    table.add_row("all", f"{found.annotations:,}", f"{found.images:,}", f"{found.locations:,}", "", "", style="bold")
    console.out.print(table)
    _say(f"\nleft out in all: {_reasons(found.dropped) or 'nothing'}")
    if found.unlisted:
        more = f" and {len(found.unlisted) - SHOWN} more" if len(found.unlisted) > SHOWN else ""
        _say(f"names that stand nowhere in the plan: {', '.join(f'{n} {k:,}' for n, k in list(found.unlisted.items())[:SHOWN])}{more}")
    for line in found.conflicts:
        _say(f"to settle: {line}; the first counts")
    for line in found.too_few:
        _say(f"{'refused' if plan.labels.on_too_few == 'error' else 'to note'}: {line}")


def show_images(outlooks: Mapping[str, DownloadEstimate], store: Store, settings: Settings, rate: float) -> None:
    """A row a source: how many pictures would travel, how many bytes, how long; then the disk."""
    table = _table("\nWhat fetching the pictures would take", ("source", "wanted", "here", "to fetch", "bytes", "time"))
    here, held = (sum(getattr(o, f) for o in outlooks.values()) for f in ("in_store", "bytes_in_store"))
    needed = 0
    for name, o in outlooks.items():
        mean = o.bytes_in_store / o.in_store if o.in_store else held / here if here else ASSUMED_BYTES
        size = int(o.to_download * mean)
        needed += size
        table.add_row(name, f"{o.wanted:,}", f"{o.in_store:,}", f"{o.to_download:,}", console.in_bytes(size), _duration(o.to_download / rate))
    console.out.print(table)
    basis = (
        f"{console.in_bytes(int(held / here))} each, the mean of the {here:,} that are here"
        if here
        else f"{console.in_bytes(ASSUMED_BYTES)} each, which is assumed"
    )
    _say(f"\nreckoned with {basis}; at {rate:g} pictures a second (--rate)")
    _say(f"{console.in_bytes(needed)} to keep them{_disk(store, settings, needed)}")


def _lost(source: SourceConfig, settings: Settings) -> str:
    """Why no picture of a source can come, "" where they can be asked for."""
    try:
        open_image_host(source, settings)
    except ImagesError as e:
        return str(e)
    return ""


def _say(line: str) -> None:
    """A line for a person, wrapped between words."""
    console.out.print(line, soft_wrap=False)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        words = column in {"class", "source", "left out", "names"}
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=column in {"class", "source"})
    return table


def _reasons(dropped: Mapping[str, int]) -> str:
    words = {"image_unusable": "over a source's limits"}  # nothing else makes a picture unusable before it is fetched
    return ", ".join(f"{n:,} {words.get(reason, reason.replace('_', ' '))}" for reason, n in dropped.items())


def _disk(store: Store, settings: Settings, needed: int) -> str:
    """How that compares with the disk, where the store is a folder."""
    if settings.store.startswith("s3://"):
        return f" in {settings.store}"
    free = shutil.disk_usage(store.local).free
    enough = "" if free > needed else ": NOT ENOUGH; make room, set ANIML_STORE to another disk, or limit the sources (max_images)"
    return f"; the disk of {store.local} has {console.in_bytes(free)} free{enough}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""`animl-pipeline plan preview`: what a plan would train on, and what downloading its images would take, before any download."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import DataOption, Debug, PlanArgument, StoreOption, open_plan, settings_with
from animl_pipeline.cli.tables import print_table
from animl_pipeline.config import Plan, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import ImagesError
from animl_pipeline.plan_init.expected_test_set import ClassSize, forecast_need_more_data
from animl_pipeline.steps.export import describe_locations, export_annotations
from animl_pipeline.steps.images import DownloadEstimate, estimate_download, open_image_host
from animl_pipeline.steps.labels import LabelsPreview, limits_of_classes, preview_labels, wanted_labels, wanted_samples
from animl_pipeline.storage.open_existing_or_temporary_store import open_store_or_temporary
from animl_pipeline.storage.store import Store

ASSUMED_BYTES = 700_000
"""A camera-trap image of 3 megapixels as JPEG: assumed while the store holds none of the images."""
ASSUMED_RATE = 25.0
"""Images per second from S3, with 50 ms for a request and an ordinary line."""
SHOWN = 12
MIN_LOCATIONS = 3
"""One for each of train, val and test."""

Rate = Annotated[float, typer.Option("--rate", min=0.01, help="images downloaded per second, for the estimate")]


def preview(plan: PlanArgument, store: StoreOption = None, data: DataOption = None, rate: Rate = ASSUMED_RATE) -> None:
    """Show what PLAN would train on, and what downloading its images would take, before any is downloaded.

    Reads the exports (from Animl, if the plan says so), applies the label rules, and looks up which images the store holds.
    Ends with status 1 if `retrain` would refuse: if a class has too few annotations or locations, and the plan calls that an
    error; if there are fewer than three known locations; or if a folder of images does not exist. If the classes have too little for
    the gate, so that the verdict will be need_more_data, it says so.
    """
    settings = settings_with(store, data)
    checked = open_plan(plan, settings)
    with open_store_or_temporary(settings) as opened:
        refusals = _preview(checked, opened, settings, rate)
    if refusals:
        console.out.print("\nretrain would refuse this plan:")
        for line in refusals:
            console.out.print(f"refused: {line}")
        raise typer.Exit(1)
    console.out.print(f"\nnext: animl-pipeline retrain {plan}")


def _preview(checked: Plan, opened: Store, settings: Settings, rate: float) -> list[str]:
    """Show classes and downloads. Returns why `retrain` would refuse the plan, a line each."""
    with console.show_progress(debug=Debug.on):
        exports = {s.name: export_annotations(s, opened, settings) for s in checked.sources}
        estimates = {s.name: _estimate(s, exports[s.name], checked, opened, settings) for s in checked.sources}
        over_limit = {name: estimate.over_limit for name, estimate in estimates.items()}
        found = preview_labels(checked.sources, checked.labels, exports, over_limit, opened, settings)
    _show_classes(checked, found)
    for line in (line for s in checked.sources for line in describe_locations(s.name, exports[s.name], opened)):
        _print_wrapped(f"note: {line}")
    _show_downloads(estimates, settings.store, rate)
    refusals = list(found.too_few) if checked.labels.on_too_few == "error" else []
    refusals += [line for s in checked.sources if (line := _missing_images(s, settings))]
    if found.locations < MIN_LOCATIONS:
        refusals.append(
            f"train, val and test need at least {MIN_LOCATIONS} known locations, found {found.locations}; add sources with more locations, "
            "or check sources.location_field and layout in the plan"
        )
    if forecast := forecast_need_more_data([ClassSize(c.id, c.annotations, c.locations) for c in found.classes], checked.gate, checked.splits):
        _print_wrapped(f"\n{forecast}")
    return refusals


def _estimate(source: SourceConfig, export: Artifact, plan: Plan, store: Store, settings: Settings) -> DownloadEstimate:
    samples = wanted_samples(plan.labels, source.name, settings)
    limits = limits_of_classes(source, export, plan.labels, store, settings)
    return estimate_download(source, export, wanted_labels(plan.labels, source.name, settings), store, settings, samples, limits)


def _show_classes(plan: Plan, found: LabelsPreview) -> None:
    """A row for each class, the total, and what a person should check."""
    numbers = ("annotations", "images", "locations")
    title = f"{plan.model}: what it would train on, by the exports alone"
    rows = []
    for c in found.classes:
        labels = ", ".join(f"{name} {n:,}" for name, n in list(c.labels.items())[:SHOWN]) or "none found"
        rows.append((c.id, f"{c.annotations:,}", f"{c.images:,}", f"{c.locations:,}", _reasons(c.dropped), labels))
    rows.append(("total", f"{found.annotations:,}", f"{found.images:,}", f"{found.locations:,}", "", ""))
    print_table(title, ("class", *numbers, "left out", "labels"), rows, right=numbers, less_important=("images",))
    _print_wrapped(f"\nleft out in total: {_reasons(found.dropped) or 'nothing'}")
    if found.unlisted:
        more = f" and {len(found.unlisted) - SHOWN} more" if len(found.unlisted) > SHOWN else ""
        _print_wrapped(f"labels that the plan does not name: {', '.join(f'{n} {k:,}' for n, k in list(found.unlisted.items())[:SHOWN])}{more}")
    if n := found.sequence_ids_at_several_locations:
        _print_wrapped(f"{n:,} sequence ids occur at several locations; they count as sequences of their own at each")
    for line in found.conflicts:
        _print_wrapped(f"to decide: {line}; the first counts")
    for line in found.too_few if plan.labels.on_too_few != "error" else ():
        _print_wrapped(f"note: {line}")


def _show_downloads(estimates: Mapping[str, DownloadEstimate], address: str, rate: float) -> None:
    """A row for each source: how many images would be downloaded, how many bytes, how long; then the disk."""
    numbers = ("wanted", "in store", "to download", "bytes", "time")
    rows = []
    images, size = sum(e.in_store for e in estimates.values()), sum(e.bytes_in_store for e in estimates.values())
    needed = 0
    for name, e in estimates.items():
        mean = e.bytes_in_store / e.in_store if e.in_store else size / images if images else ASSUMED_BYTES
        download = int(e.to_download * mean)
        needed += download
        cells = (f"{e.wanted:,}", f"{e.in_store:,}", f"{e.to_download:,}", console.format_bytes(download), _duration(e.to_download / rate))
        rows.append((name, *cells))
    print_table("\nWhat downloading the images would take", ("source", *numbers), rows, right=numbers)
    if left_out := sum(e.over_class_limit for e in estimates.values()):
        _print_wrapped(
            f"\n{left_out:,} more images have a label of the plan, and are not needed: the limits of classes (max_count, max_per_location) leave "
            "them out; a fifth of each limit is downloaded in addition, in place of images that cannot be downloaded"
        )
    if images:
        basis = f"{console.format_bytes(int(size / images))} each, the mean of the {images:,} images in the store"
    else:
        basis = f"{console.format_bytes(ASSUMED_BYTES)} each, which is assumed"
    _print_wrapped(f"\nestimated with {basis}; at {rate:g} images per second (--rate)")
    _print_wrapped(f"{console.format_bytes(needed)} to store them{_disk(address, needed)}")


def _missing_images(source: SourceConfig, settings: Settings) -> str:
    """Why no image of a source can be downloaded, "" if they can be."""
    try:
        open_image_host(source, settings)
    except ImagesError as e:
        return str(e)
    return ""


def _print_wrapped(line: str) -> None:
    """Print a line, wrapped between words."""
    console.out.print(line, soft_wrap=False)


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in dropped.items())


def _disk(address: str, needed: int) -> str:
    """How the size compares with the free disk, if the store at ``address`` is a folder. The folder need not be there yet."""
    if address.startswith("s3://"):
        return f" in {address}"
    folder = Path(address).expanduser().resolve()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
    enough = "" if free > needed else ": NOT ENOUGH; delete something, set ANIML_STORE to another disk, or limit the sources (max_images)"
    return f"; the disk of {folder} has {console.format_bytes(free)} free{enough}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

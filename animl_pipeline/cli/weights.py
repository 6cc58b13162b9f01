"""`animl-pipeline weights …`: the detectors and networks that have a name, and fetching them ahead of a run."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.table import Table

from animl_pipeline.cli import console
from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.errors import WeightsError
from animl_pipeline.integrations.weights import ADDRESSES, fetch_address, fetch_first, fetch_weights, known_weights, names_like, registry
from animl_pipeline.storage.step_cache import sha256_of

weights = typer.Typer(
    help="Pretrained weights that have a name: MegaDetectors for detections.detector, networks for train.weights.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@weights.command("list")
def list_weights() -> None:
    """List all weights that a plan can name, with what they are, their licence, and the numbers that a plan may leave out.

    Besides these, detections.detector takes a path or address of any checkpoint, or sagemaker:<endpoint>.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "what", "licence", "pixels", "from", "sha256"):
        table.add_column(column, justify="right" if column in {"pixels", "from"} else "left", no_wrap=column == "name")
    for known in registry():
        certain = f"{known.confidence:g}" if known.confidence else ""
        table.add_row(known.name, known.what, known.licence, str(known.image_size or ""), certain, (known.sha256 or "to be named")[:11])
    console.out.print(table)
    console.out.print("pixels: longer side that the network sees; from: least confidence of a box. Fetch one: animl-pipeline weights fetch NAME")


@weights.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of `animl-pipeline weights list`, or an address of other weights")],
) -> None:
    """Fetch the weights called NAME into the cache (ANIML_CACHE), check them, and print where they lie and their sha256.

    Where the publisher names no sha256, a plan must: this prints it, for detections.sha256. What was fetched is then what
    every later run must find. NAME may also be an https:// or s3:// address; of a file that is here its sha256 is printed.
    """
    settings = load_settings()
    known = known_weights(name)
    if known is None and not name.startswith(ADDRESSES):
        _tell_file(name, settings)
        return
    with console.watched(debug=False):
        path, sha256 = fetch_first(known, settings) if known else fetch_address(name, settings)
    console.out.print(f"{known.name if known else path.name}  {path}", soft_wrap=True)
    console.out.print(f"sha256  {sha256}", soft_wrap=True)
    if known:
        console.out.print(f"licence {known.licence}; from {known.origin}", soft_wrap=True)
    if known is None or known.sha256 is None:
        checked = "its md5 is the one that its publisher names" if known and known.md5 else "nothing vouches for it: compare it with another copy"
        console.out.print(f"\n{checked}. In the plan:\n\ndetections:\n  detector: {name}\n  sha256: {sha256}", soft_wrap=True)


def _tell_file(name: str, settings: Settings) -> None:
    """Print the sha256 of weights that are here."""
    if not name or not os.path.isfile(settings.data_path(name)):  # noqa: PTH113 - Path.is_file raises where a name is too long
        raise WeightsError(f"expected a name of `animl-pipeline weights list`, found {name!r}, which is no file either; give {names_like(name)}")
    path = fetch_weights(name, settings, key="weights fetch")
    console.out.print(f"{name} is here and needs no fetching\nsha256  {sha256_of(path)}", soft_wrap=True)

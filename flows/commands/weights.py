"""`animl-pipeline weights …`: the detectors and networks that have a name, and fetching them ahead of a run."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from animl_pipeline.errors import WeightsError
from animl_pipeline.settings import load_settings
from animl_pipeline.weights import KnownWeights, fetch_first, registry
from flows import screen

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
    screen.out.print(table)
    screen.out.print("pixels: longer side that the network sees; from: least confidence of a box. Fetch one: animl-pipeline weights fetch NAME")


@weights.command("fetch")
def fetch(name: Annotated[str, typer.Argument(metavar="NAME", help="a name of `animl-pipeline weights list`")]) -> None:
    """Fetch the weights called NAME into the cache (ANIML_CACHE), check them, and print where they lie and their sha256.

    Where the publisher names no sha256, a plan must: this prints it, for detections.sha256. What was fetched is then what
    every later run must find.
    """
    known = _named(name)
    with screen.watched(debug=False):
        path, sha256 = fetch_first(known, load_settings())
    screen.out.print(f"{known.name}  {path}", soft_wrap=True)
    screen.out.print(f"sha256  {sha256}", soft_wrap=True)
    screen.out.print(f"licence {known.licence}; from {known.origin}", soft_wrap=True)
    if known.sha256 is None:
        checked = "its md5 is the one that its publisher names" if known.md5 else "its publisher names no checksum: compare it with another copy"
        screen.out.print(f"\n{checked}. In the plan:\n\ndetections:\n  detector: {known.name}\n  sha256: {sha256}", soft_wrap=True)


def _named(name: str) -> KnownWeights:
    known = next((w for w in registry() if w.name == name), None)
    if known is None:
        raise WeightsError(f"expected a name of `animl-pipeline weights list`, found {name!r}: {', '.join(w.name for w in registry())}")
    return known

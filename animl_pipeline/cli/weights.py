"""`animl-pipeline weights …`: list the pretrained weights that have a name, and download them ahead of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import JsonOption
from animl_pipeline.cli.tables import print_table
from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.errors import WeightsError
from animl_pipeline.integrations.weights import URL_SCHEMES, fetch_weights, fetch_without_sha256, known_weights, list_known_weights, suggest_names
from animl_pipeline.storage.store import sha256_of

weights = typer.Typer(
    help="Pretrained weights that have a name: MegaDetectors for detections.detector, backbones for train.weights.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@weights.command("list")
def list_weights(as_json: JsonOption = False) -> None:
    """List all weights that a plan can name, with their licence and the values that a plan may leave out.

    Besides these, detections.detector takes the path or URL of any checkpoint, or sagemaker:<endpoint>.
    """
    listed = list_known_weights()
    if as_json:
        console.print_json([known.model_dump(mode="json", by_alias=True) for known in listed])
        return
    rows = [
        (k.name, k.what, k.licence, str(k.image_size or ""), f"{k.confidence:g}" if k.confidence else "", (k.sha256 or "not known")[:11])
        for k in listed
    ]
    columns = ("name", "what", "licence", "pixels", "confidence", "sha256")
    print_table(None, columns, rows, right=("pixels", "confidence"), less_important=("sha256", "pixels", "confidence", "licence"))
    console.out.print(
        "pixels: longer side of the input; confidence: lowest confidence of a box that counts. Download one: animl-pipeline weights fetch NAME"
    )


@weights.command("fetch")
def fetch(name: Annotated[str, typer.Argument(metavar="NAME", help="of `animl-pipeline weights list`, or a URL of other weights")]) -> None:
    """Download the weights called NAME into the cache (ANIML_CACHE), check them, and print their path and sha256.

    If the publisher names no sha256, a plan must: this prints it, for detections.sha256. Every later run then expects the same
    file. NAME may also be an https:// or s3:// URL; of a local file, the sha256 is printed.
    """
    settings = load_settings()
    known = known_weights(name)
    if known is None and not name.startswith(URL_SCHEMES):
        _show_local_file(name, settings)
        return
    if known and known.file_of_user and not known.address:
        raise WeightsError(f"{known.name}: download the file from its publisher; docs/training.md says how to use it", code="no_address")
    with console.show_progress():
        if known and known.sha256:
            path, sha256 = fetch_weights(name, settings, key=f"weights {name}"), known.sha256
        else:
            path, sha256 = fetch_without_sha256(known.address if known else name, settings, known.md5 if known else None)
    console.out.print(f"{known.name if known else path.name}  {path}", soft_wrap=True)
    console.out.print(f"sha256  {sha256}", soft_wrap=True)
    if known:
        console.out.print(f"licence {known.licence}; from {known.origin}", soft_wrap=True)
    if known is None or known.sha256 is None:
        checked = "its md5 is the publisher's" if known and known.md5 else "no publisher confirms this file: compare it with another copy"
        console.out.print(f"\n{checked}. In the plan:\n\ndetections:\n  detector: {name}\n  sha256: {sha256}", soft_wrap=True)


@weights.command("convert")
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a torch file that holds a pickled module or checkpoint, such as SpeciesNet's")],
    sha256: Annotated[str, typer.Option(help="of FILE, from a source that you trust; the code in another file is not run")],
    out: Annotated[Path, typer.Option(help="the .safetensors file to write")],
) -> None:
    """Read the tensors out of FILE, which runs the code that it holds, in a process of its own, and write them as .safetensors.

    A training never loads such a file. It takes the result: train.networks: [{network: NAME, weights: OUT, weights_sha256: …}].
    """
    from animl_pipeline.integrations.convert_weights import convert_weights

    if not file.is_file():
        raise WeightsError(f"expected a file at {file}, found none", code="no_such_file")
    if (found := sha256_of(file)) != sha256.casefold():
        raise WeightsError(f"expected the sha256 {sha256}, found {found}; nothing was run", code="wrong_sha256")
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise WeightsError(f"--out: expected a .safetensors file in an existing folder, found {out}", code="invalid_option")
    convert_weights(file, out)
    console.out.print(f"{out}\nsha256  {sha256_of(out)}", soft_wrap=True)


def _show_local_file(name: str, settings: Settings) -> None:
    """Print the sha256 of a local weights file."""
    if not name or not os.path.isfile(settings.data_path(name)):  # noqa: PTH113 - Path.is_file raises if a name is too long
        raise WeightsError(
            f"expected a name of `animl-pipeline weights list` or a file, found {name!r}; give {suggest_names(name)}",
            code="unknown_weights",
            name=name,
        )
    path = fetch_weights(name, settings, key="weights fetch")
    console.out.print(f"{name} is a local file and needs no download\nsha256  {sha256_of(path)}", soft_wrap=True)

"""`animl-pipeline review-next`: which images people should review next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import DataOption, Debug, JsonOption, PlanArgument, StoreOption, VersionOption, open_plan, settings_with
from animl_pipeline.cli.tables import print_table
from animl_pipeline.storage.open_existing_or_temporary_store import open_existing_store


def review_next(
    plan: PlanArgument,
    count: Annotated[int, typer.Option(min=1, max=20_000, help="images on the list")] = 200,
    random_share: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="share of the list that is random, for honest figures; without it, the plan's", show_default=False),
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="unreviewed images that are looked at, at most; spread over locations")] = 2000,
    folder: Annotated[Path | None, typer.Option(help="a folder of new images; without it, the plan's exports", show_default=False)] = None,
    results: Annotated[
        Path | None, typer.Option(help="a MegaDetector results file with the boxes; without it, MegaDetector looks", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for review.csv and review.html")] = Path("review"),
    seed: Annotated[int, typer.Option(min=0, help="of the random part")] = 0,
    version: VersionOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    data: DataOption = None,
) -> None:
    """List the images that people should review next: those that the model of PLAN would learn most from, and a random part.

    Never two images of a sequence. Only images without any reviewed label are listed. Where the plan says so (review.tag), they get a tag in Animl.
    """
    settings = settings_with(store, data)
    checked, opened = open_plan(plan, settings), open_existing_store(settings)
    from animl_pipeline.review.animl_tags import tag_images
    from animl_pipeline.review.review_next import Wish, list_images, write_list

    share = checked.review.random_share if random_share is None else random_share
    with console.show_progress(debug=Debug.on):
        found = list_images(checked, Wish(count, share, candidates, seed, version, folder, results), opened, settings)
        files = write_list(found, out, opened)
        tagged = tag_images(found.table, checked, settings) if checked.review.tag and folder is None else 0
    reasons = {str(reason): int(n) for reason, n in found.table["reason"].value_counts(sort=False).items()}
    if as_json:
        console.print_json({
            "model": found.model, "version": found.version, "images": len(found.table), "reasons": reasons, "looked_at": len(found.pool.images),
            "unreviewed": found.pool.unreviewed, "not_readable": len(found.scored.failed), "tagged": tagged, "files": [str(f) for f in files],
        })  # fmt: skip
        return
    print_table(f"{found.model} {found.version}: review next", ("reason", "images"), [(r, f"{n:,}") for r, n in reasons.items()], right=("images",))
    pool = found.pool
    console.out.print(
        f"looked at {len(pool.images):,} of {pool.unreviewed:,} unreviewed images in {pool.sequences:,} sequences; "
        f"{len(found.scored.failed):,} could not be read"
    )
    if tagged:
        console.out.print(f"{tagged:,} images have the tag {console.one_line(checked.review.tag or '')} in Animl")
    console.out.print(f"written: {', '.join(map(str, files))}")

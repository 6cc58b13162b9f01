"""`animl-pipeline plan init`: a first plan, drafted from what exports hold."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from animl_pipeline.cli import console
from animl_pipeline.cli.options import DataOption, StoreOption
from animl_pipeline.config import SourceConfig, check_plan
from animl_pipeline.config.settings import Settings, load_settings, remember
from animl_pipeline.core.errors import PlanError
from animl_pipeline.core.records import Artifact
from animl_pipeline.plan_init import Draft, Survey, drafted, plan_text, surveyed
from animl_pipeline.plan_init.find_images import images_of
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.export.camtrap_dp_observations import ElsewhereError, common_base
from animl_pipeline.storage.remote import bare_address
from animl_pipeline.storage.step_cache import Store, open_store

SHOWN = 12
"""Classes, and lines of what looks wrong, that the terminal shows; the plan holds all."""
HEAD = 1 << 16


def init(
    exports: Annotated[
        list[str],
        typer.Argument(
            metavar="EXPORT...",
            help="what holds the labels: a COCO for Camera Traps file (.json, .zip, .gz), a folder of pictures in folders by class, a Camtrap DP, "
            "MegaDetector's JSON, as a path, https://… or s3://…; or animl://<project>; or lila://<set>. Several become one plan",
        ),
    ],
    images: Annotated[
        list[str] | None, typer.Option("--images", help="where the pictures lie, once for each EXPORT; without it they are looked for beside it")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="the file to write; it must not be there yet")] = Path("plan.yaml"),
    model: Annotated[str | None, typer.Option("--model", help="the model's name; without it, the first source's")] = None,
    kind: Annotated[str, typer.Option("--kind", help="how labels are written, when it is not seen: cct, folders, camtrap-dp, megadetector")] = "auto",
    location_field: Annotated[str, typer.Option("--place-field", help="which field of an image says where it was taken")] = "location",
    layout: Annotated[str | None, typer.Option("--layout", help="what folders of pictures mean, such as '{location}/{label}'")] = None,
    min_objects: Annotated[int, typer.Option("--min-objects", min=1, help="objects that a name needs to be suggested as a class")] = 30,
    min_locations: Annotated[int, typer.Option("--min-places", min=1, help="places that it needs: train, val and test want one each")] = 3,
    store: StoreOption = None,
    data: DataOption = None,
) -> None:
    """Write a first, commented plan from EXPORTs: classes that can be learnt, what is left out, what looks wrong.

    Labels are read and checked, no picture is fetched. The plan is a suggestion: look it over, then run `animl-pipeline plan check`.
    """
    remember(store=store, data=data)
    settings = load_settings()
    if output.exists():
        raise PlanError(f"{output} is there already and stays as it is; name another file with --output")
    if not all(e.strip() for e in exports):
        raise PlanError("EXPORT: expected a path, an address, animl://<project> or lila://<set>, found nothing; is a variable of the shell empty?")
    if images and len(images) != len(exports):
        raise PlanError(f"--images: expected one for each of the {len(exports)} exports, found {len(images)}")
    said = {"kind": kind, "location_field": location_field} | ({"layout": layout} if layout else {})
    kept = open_store(settings)
    surveys, guessed = [], {}
    with console.watched():
        for export, name, where in zip_longest(exports, _names(exports), images or []):
            survey, unsure = _surveyed({"name": name, "export": _as_given(export, settings)} | said, where, kept, settings)
            surveys.append(survey)
            guessed[name] = unsure
    draft = drafted(surveys, min_objects, min_locations)
    text = plan_text(model or surveys[0].source.name, surveys, draft, guessed)
    check_plan(yaml.safe_load(text), str(output))
    _write(output, text)
    _show(output, surveys, draft, guessed)


def _surveyed(said: dict[str, Any], images: str | None, store: Store, settings: Settings) -> tuple[Survey, str]:
    """One export in figures, and what is not sure about where its pictures lie."""
    source = _source(said | ({"images": images} if images else {}))
    try:
        export = export_annotations(source, store, settings)
    except ElsewhereError as e:
        if images:
            raise
        source = source.model_copy(update={"images": e.base})
        export = export_annotations(source, store, settings)
    elsewhere = _elsewhere(export, store)
    if not images and elsewhere:
        source = source.model_copy(update={"images": elsewhere})
        export = export_annotations(source, store, settings)
    kind = str(store.manifest(export).config.get("kind", "animl" if source.project() else source.kind if source.kind == "lila" else "cct"))
    source = source.model_copy(update={"kind": "lila" if source.export.startswith("lila://") else kind})
    unsure = ""
    if images is None and (source.kind in {"cct", "animl", "megadetector"} or source.images == "."):
        found = images_of(source, store.table(export, "images.parquet"), _head(export, store), settings)
        unsure, source = found.unsure, source.model_copy(update={"images": found.images, "key": found.key})
    return surveyed(source, export, store, datetime.now(UTC).date().isoformat()), unsure


def _elsewhere(export: Artifact, store: Store) -> str:
    """The address below which most of a Camtrap DP's pictures lie, where that is not where they were looked for."""
    found = store.table(export, "problems.parquet")
    addresses = found.loc[found["problem"] == "image_elsewhere", "detail"]
    return common_base(addresses) if len(addresses) > len(store.table(export, "images.parquet")) else ""


def _source(said: dict[str, Any]) -> SourceConfig:
    """The source, its pictures somewhere: labels can be read without them.

    Raises:
        PlanError: the options do not fit each other.
    """
    try:
        return SourceConfig.model_validate(said if "images" in said else {"images": None} | said)
    except ValueError:
        whole = {"model": "draft", "sources": [{"images": "."} | said], "labels": {"classes": {"a": ["a"], "b": ["b"]}}}
        return check_plan(whole, "the options").sources[0]


def _head(export: Artifact, store: Store) -> bytes:
    with store.path(export, "export.json").open("rb") as f:
        return f.read(HEAD)


def _as_given(export: str, settings: Settings) -> str:
    """A path as a plan has it: below ANIML_DATA where it lies there, else from the root."""
    if "://" in export:
        return export
    path = settings.data_path(export)
    if not path.exists() and Path(export).exists():  # as the shell means it
        path = Path(export).resolve()
    base = settings.data_path(".")
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


def _names(exports: list[str]) -> list[str]:
    """A short name for each source, none twice."""
    names: list[str] = []
    for export in exports:
        name = _name(export)
        names.append(name if name not in names else next(f"{name[:36]}-{i}" for i in range(2, len(exports) + 2) if f"{name[:36]}-{i}" not in names))
    return names


def _name(export: str) -> str:
    """A name made of a path or address: of the file, or of the folder where every export's file is called alike."""
    parts = [p for p in PurePosixPath(export.partition("?")[0].rpartition("://")[2]).parts if p not in {"/", ".", ".."}]
    stem = parts[-1].partition(".")[0] if parts else ""
    if len(parts) > 1 and stem.lower() in {"cct", "export", "datapackage", "images", "annotations", "metadata", "coco", "results", "file"}:
        stem = parts[-2]
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40].strip("-") or "source"


def _write(output: Path, text: str) -> None:
    try:
        with output.open("x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError as e:
        raise PlanError(f"{output} is there already and stays as it is; name another file with --output") from e
    except OSError as e:
        raise PlanError(f"{output} cannot be written ({e.strerror}); name another file with --output") from e


def _show(output: Path, surveys: list[Survey], draft: Draft, guessed: dict[str, str]) -> None:
    """What a person needs to know before opening the file."""
    for s in surveys:
        dates = f"{s.first} to {s.last}" if s.first else "no dates"
        console.out.print(
            f"{s.source.name} ({s.source.kind}): {s.images:,} pictures, {s.objects:,} labels, {len(s.locations):,} known places; {dates}"
        )
        if guessed[s.source.name]:
            console.out.print(f"  images: {bare_address(s.source.images)}: {guessed[s.source.name]}")
    table = Table(title=f"Suggested classes: {len(draft.classes)}", title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in ("class", "objects", "boxes", "locations", "names"):
        table.add_column(column, justify="left" if column in {"class", "names"} else "right", overflow="fold")
    for c in draft.classes[:SHOWN]:
        table.add_row(c.id, f"{c.objects:,}", f"{c.boxes:,}", f"{len(c.locations):,}", ", ".join(c.names))
    console.out.print(table)
    if len(draft.classes) > SHOWN:
        console.out.print(f"… and {len(draft.classes) - SHOWN} more")
    asides = "; ".join(f"{role}: {', '.join(names)}" for role, names in draft.asides.items())
    console.out.print(f"left out: {asides or 'nothing by its name'}; {len(draft.few)} names with too few objects or places")
    console.out.print("what looks wrong:" if draft.wrong else "nothing looks wrong")
    for line in draft.wrong[:SHOWN]:
        console.out.print(f"  - {line}")
    if len(draft.wrong) > SHOWN:
        console.out.print(f"  … {len(draft.wrong) - SHOWN} more in the plan")
    console.out.print(f"written: {output}; look it over, then: animl-pipeline plan check {output}")

"""`animl-pipeline plan init`: write a first plan, suggested from what exports hold."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer
import yaml

from animl_pipeline.cli import console
from animl_pipeline.cli.options import DataOption, StoreOption, settings_with
from animl_pipeline.cli.tables import print_table
from animl_pipeline.config import SourceConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.config.value_types_and_messages import did_you_mean, shorten
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import ExportError, PlanError, redact_url
from animl_pipeline.core.table_schemas import EXPORT_IMAGES, EXPORT_PROBLEMS
from animl_pipeline.plan_init import SuggestedPlan, Survey, render_plan, suggest_plan, survey_export
from animl_pipeline.plan_init.expected_test_set import ENOUGH_ANNOTATIONS, ENOUGH_LOCATIONS
from animl_pipeline.plan_init.find_exports_and_images import find_exports_inside, find_images
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.export.camtrap_dp_observations import common_base
from animl_pipeline.storage.open_existing_or_temporary_store import open_store_or_temporary
from animl_pipeline.storage.store import Store

SHOWN = 12
"""Classes and warnings that the terminal shows. The plan holds all."""
HEAD_BYTES = 1 << 16
GENERIC_NAMES = {"cct", "export", "datapackage", "images", "annotations", "metadata", "coco", "results", "file"}
"""Names of files that say nothing about a source."""


def init(
    exports: Annotated[
        list[str],
        typer.Argument(
            metavar="EXPORT...",
            help="an export of labels: a COCO for Camera Traps file (.json, .zip, .gz), a folder with a folder of images for each class, a Camtrap "
            "DP, MegaDetector's JSON, as a path, https://… or s3://…; or animl://<project>; or lila://<set>. Several become one plan",
        ),
    ],
    images: Annotated[
        list[str] | None, typer.Option("--images", help="folder or URL of the images, once for each EXPORT; without it they are looked for beside it")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="the file to write; it must not exist yet")] = Path("plan.yaml"),
    model: Annotated[str | None, typer.Option("--model", help="the model's name; without it, the first source's")] = None,
    kind: Annotated[str, typer.Option("--kind", help="format of the labels, if not recognised: cct, folders, camtrap-dp, megadetector")] = "auto",
    location_field: Annotated[str, typer.Option("--location-field", help="the field of an image that holds its location")] = "location",
    layout: Annotated[str | None, typer.Option("--layout", help="what the folders of images mean, such as '{location}/{label}'")] = None,
    min_annotations: Annotated[
        int, typer.Option("--min-annotations", min=1, help="annotations that a label needs to become a class")
    ] = ENOUGH_ANNOTATIONS,
    min_locations: Annotated[
        int, typer.Option("--min-locations", min=1, help="locations that it needs: the gate wants two in test")
    ] = ENOUGH_LOCATIONS,
    invasive: Annotated[
        list[str] | None, typer.Option("--invasive", help="a class that must not be missed, once for each; without it, a terminal is asked")
    ] = None,
    store: StoreOption = None,
    data: DataOption = None,
) -> None:
    """Write a first, commented plan from EXPORTs: classes that can be learnt, what is left out, and warnings.

    Labels are read and checked; no image is downloaded. The plan is a suggestion: read it, then run `animl-pipeline plan check`.
    """
    settings = settings_with(store, data)
    if output.exists():
        raise PlanError(f"{output} exists already and is not changed; give another file with --output", code="file_exists")
    if not all(e.strip() for e in exports):
        raise PlanError(
            "EXPORT: expected a path, a URL, animl://<project> or lila://<set>, found nothing; is a variable of the shell empty?", code="no_export"
        )
    if images and len(images) != len(exports):
        raise PlanError(f"--images: expected one for each of the {len(exports)} exports, found {len(images)}", code="image_folders")
    options = {"kind": kind, "location_field": location_field} | ({"layout": layout} if layout else {})
    if not images and kind == "auto":
        exports = [inner for export in exports for inner in find_exports_inside(export, settings)]
    surveys, doubts = _survey_all(exports, images or [], options, settings)
    plan = suggest_plan(surveys, min_annotations, min_locations)
    must_not_be_missed = _check_invasive(invasive, plan) if invasive else _ask_for_invasive(plan)
    text = render_plan(model or surveys[0].source.name, surveys, plan, doubts, must_not_be_missed)
    check_plan(yaml.safe_load(text), str(output))
    _write(output, text)
    _show(output, surveys, plan, doubts)


def _survey_all(exports: list[str], images: Sequence[str], options: dict[str, str], settings: Settings) -> tuple[list[Survey], dict[str, str]]:
    """What each export has, and by source what is doubtful about its images. ``options``: fields of every source."""
    surveys: list[Survey] = []
    doubts: dict[str, str] = {}
    with console.show_progress(), open_store_or_temporary(settings) as opened:
        for export, name, given in zip_longest(exports, _source_names(exports), images):
            folder = _path_in_plan(given, settings) if given else None
            survey, doubts[name] = _survey({"name": name, "export": _path_in_plan(export, settings)} | options, folder, opened, settings)
            surveys.append(survey)
    return surveys, doubts


def _check_invasive(names: Sequence[str], plan: SuggestedPlan) -> list[str]:
    """The ids of the classes of these names or labels.

    Raises:
        PlanError: one is no suggested class.
    """
    ids = {label.casefold(): c.id for c in plan.classes for label in (*c.labels, c.id)}
    unknown = [name for name in names if name.strip().casefold() not in ids]
    if unknown:
        known = [c.id for c in plan.classes]
        raise PlanError(
            f"--invasive: expected a suggested class, found {shorten(unknown[0])}{did_you_mean(unknown[0], known)}; there are: {', '.join(known)}",
            code="unknown_class",
        )
    return list(dict.fromkeys(ids[name.strip().casefold()] for name in names))


def _ask_for_invasive(plan: SuggestedPlan) -> list[str]:
    """Ask at a terminal which classes are invasive; none is asked for elsewhere."""
    if not (sys.stdin.isatty() and console.out.is_terminal):
        return []
    console.out.print(f"classes: {', '.join(c.id for c in plan.classes)}")
    while True:
        answer = typer.prompt(
            "Which of them are invasive, and must not be missed? Names with commas between, or nothing", default="", show_default=False
        )
        try:
            return _check_invasive([name for name in answer.split(",") if name.strip()], plan)
        except PlanError as e:
            console.out.print(str(e))


def _survey(options: Mapping[str, Any], images: str | None, store: Store, settings: Settings) -> tuple[Survey, str]:
    """One export in figures, and what is uncertain about where its images are."""
    source = _make_source(dict(options) | ({"images": images} if images else {}))
    try:
        export = export_annotations(source, store, settings)
    except ExportError as e:
        if images or e.code != "images_elsewhere":
            raise
        source = source.model_copy(update={"images": e.details["base"]})
        export = export_annotations(source, store, settings)
    elsewhere = _other_image_folder(export, store)
    if not images and elsewhere:
        source = source.model_copy(update={"images": elsewhere})
        export = export_annotations(source, store, settings)
    kind = str(store.manifest(export).config.get("kind", "animl" if source.project() else source.kind if source.kind == "lila" else "cct"))
    source = source.model_copy(update={"kind": "lila" if source.export.startswith("lila://") else kind})
    doubt = ""
    if images is None and (source.kind in {"cct", "animl", "megadetector"} or source.images == "."):
        found = find_images(source, store.table(export, EXPORT_IMAGES), _read_head(export, store), settings)
        doubt, source = found.doubt, source.model_copy(update={"images": found.images, "path_field": found.path_field})
    return survey_export(source, export, store, datetime.now(UTC).date().isoformat()), doubt


def _other_image_folder(export: Artifact, store: Store) -> str:
    """The URL below which most images of a Camtrap DP are, if they are not where they were expected; else ""."""
    problems = store.table(export, EXPORT_PROBLEMS)
    urls = problems.loc[problems["problem"] == "image_elsewhere", "detail"]
    return common_base(urls) if len(urls) > len(store.table(export, EXPORT_IMAGES)) else ""


def _make_source(options: dict[str, Any]) -> SourceConfig:
    """The source, without its images if they are not known: labels can be read without them.

    Raises:
        PlanError: the options do not fit each other.
    """
    try:
        return SourceConfig.model_validate(options if "images" in options else {"images": None} | options)
    except ValueError:
        plan = {"model": "draft", "sources": [{"images": "."} | options], "labels": {"classes": {"a": ["a"], "b": ["b"]}}}
        return check_plan(plan, "the options").sources[0]


def _read_head(export: Artifact, store: Store) -> bytes:
    with store.path(export, "export.json").open("rb") as f:
        return f.read(HEAD_BYTES)


def _path_in_plan(given: str, settings: Settings) -> str:
    """A path as a plan holds it: relative to ANIML_DATA if it is below that folder, else absolute."""
    if "://" in given:
        return given
    path = settings.data_path(given)
    if not path.exists() and Path(given).exists():  # relative to the shell's folder
        path = Path(given).resolve()
    base = settings.data_path(".")
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


def _source_names(exports: list[str]) -> list[str]:
    """A short, unique name for each source."""
    names: list[str] = []
    for export in exports:
        name = _source_name(export)
        names.append(name if name not in names else next(f"{name[:36]}-{i}" for i in range(2, len(exports) + 2) if f"{name[:36]}-{i}" not in names))
    return names


def _source_name(export: str) -> str:
    """A name made of a path or URL: of the file, or of its folder if the file has a generic name."""
    parts = [p for p in PurePosixPath(export.partition("?")[0].rpartition("://")[2]).parts if p not in {"/", ".", ".."}]
    stem = parts[-1].partition(".")[0] if parts else ""
    if len(parts) > 1 and stem.lower() in GENERIC_NAMES:
        stem = parts[-2]
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40].strip("-") or "source"


def _write(output: Path, text: str) -> None:
    try:
        with output.open("x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError as e:
        raise PlanError(f"{output} exists already and is not changed; give another file with --output", code="file_exists") from e
    except OSError as e:
        raise PlanError(f"{output} cannot be written ({e.strerror}); give another file with --output", code="not_writable") from e


def _show(output: Path, surveys: list[Survey], plan: SuggestedPlan, doubts: Mapping[str, str]) -> None:
    """What a person needs to know before opening the file."""
    for s in surveys:
        dates = f"{s.first} to {s.last}" if s.first else "no dates"
        counts = f"{s.images:,} images, {s.annotations:,} annotations, {len(s.locations):,} known locations"
        console.out.print(f"{s.source.name} ({s.source.kind}): {counts}; {dates}")
        if doubts[s.source.name]:
            console.out.print(f"  images: {redact_url(s.source.images)}: {doubts[s.source.name]}")
    numbers = ("annotations", "boxes", "locations")
    rows = [(c.id, f"{c.annotations:,}", f"{c.boxes:,}", f"{len(c.locations):,}", ", ".join(c.labels)) for c in plan.classes[:SHOWN]]
    print_table(f"Suggested classes: {len(plan.classes)}", ("class", *numbers, "labels"), rows, right=numbers, less_important=("boxes",))
    if len(plan.classes) > SHOWN:
        console.out.print(f"… and {len(plan.classes) - SHOWN} more")
    left_out = "; ".join(f"{role}: {', '.join(labels)}" for role, labels in plan.no_animals.items())
    console.out.print(f"left out: {left_out or 'nothing by its label'}; {len(plan.too_few)} labels with too few annotations or locations")
    console.out.print("warnings:" if plan.warnings else "no warnings")
    for line in plan.warnings[:SHOWN]:
        console.out.print(f"  - {line}")
    if len(plan.warnings) > SHOWN:
        console.out.print(f"  … {len(plan.warnings) - SHOWN} more in the plan")
    console.out.print(f"written: {output}; read it, then: animl-pipeline plan check {output}")

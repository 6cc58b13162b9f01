"""Export the annotations of an Animl project: ask for what is new, merge it with what was exported before, list what failed.

Each answer of Animl is stored at once, so that a killed export resumes where it was, and a later export asks only for images
validated since (and, if the plan wants images without a review, for those added since). An object that was deleted, a box that was
moved, and a deployment or label that was changed move no validation date: they show only in a full export, which is made when the
last one is ``full_after_days`` old.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from animl_pipeline.config import AnimlExportConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError
from animl_pipeline.integrations.animl import AnimlClient
from animl_pipeline.integrations.animl.animl_windows import EARLIEST, Window, divide_into_windows
from animl_pipeline.integrations.animl.camera_deployments import CameraDeployment
from animl_pipeline.integrations.animl.errors_in_answers import animl_errors
from animl_pipeline.integrations.animl.export_progress import Answer, Attempt, ExportState, FailedWindow, ProjectExport
from animl_pipeline.integrations.animl.queries import image_filters
from animl_pipeline.steps.export.animl_merge import ExportMerge
from animl_pipeline.steps.export.export_animl_windows import SHORT, ExportContext, is_null_box, request_windows
from animl_pipeline.steps.export.fetch_and_parse_coco import parse_coco, read_batches
from animl_pipeline.steps.export.problems import Problems
from animl_pipeline.steps.export.write_export_tables import ExportBuild, Location, merge_deployments, write_tables
from animl_pipeline.storage.store import StepOutput, Store, Workspace, digest_of

log = logging.getLogger(__name__)

OVERLAP = timedelta(days=1)
"""An incremental export goes back so much further, since clocks differ and people validate while an export runs."""


def count_validated(source: SourceConfig, since: datetime | None, settings: Settings) -> int:
    """How many images of a source's Animl project fit the plan and hold a label that was validated since then (None: ever).

    Raises:
        ExportUnreachableError: Animl does not answer now.
        ExportError: ``not_animl``: the source is not an Animl project; ``refused``: Animl refused the question.
        SettingsError: a setting for Animl is missing or wrong.
    """
    project = source.project()
    if project is None:
        line = f"source {source.name!r}: expected animl://<project id> to watch, found {source.export}; a file cannot say what is new"
        raise ExportError(line, code="not_animl")
    filters = image_filters(source.animl or AnimlExportConfig())
    ever = None if filters.only_reviewed else EARLIEST  # without a date, Animl would count images without a validated label, too
    filters = filters.model_copy(update={"validated_since": since or ever})
    with animl_errors(source), AnimlClient(project, settings) as animl:
        return animl.count_images(filters)


def read_animl_project(project: str, source: SourceConfig, store: Store, settings: Settings) -> ExportBuild:
    """The export of an Animl project.

    Raises:
        ExportUnreachableError: Animl does not answer now. What has arrived is kept.
        ExportError: ``refused``: Animl refused a question; ``all_windows_failed``; ``no_images``: no image fits the plan.
        SettingsError: a setting for Animl is missing or wrong.
    """
    config = source.animl or AnimlExportConfig()
    filters = image_filters(config)
    name = digest_of([settings.api_url, project, filters.model_dump(mode="json")])[:16]
    with animl_errors(source), AnimlClient(project, settings) as animl, _locked_scratch(store, name) as scratch:
        within_m, state = source.merge_locations_within_m, ExportState(store, name)
        deployments = _with_earlier_names(animl.deployments(), state.last_export())
        locations = merge_deployments(deployments, within_m) if within_m else []
        export = _update(ExportContext(animl, filters, config, state, store, scratch), deployments)
    digests = {
        "answers": digest_of([a.model_dump(mode="json") for a in export.answers]),
        "failed": digest_of([f.model_dump(mode="json") for f in export.failed]),
        "locations": digest_of(locations),
    }
    fields = {"export": source.export, "path_field": source.path_field, "location_field": source.location_field}
    return ExportBuild(digests, fields | {"without_time": export.without_time}, lambda space: _build(space, source, export, locations, store))


def _with_earlier_names(deployments: list[CameraDeployment], last: ProjectExport | None) -> list[CameraDeployment]:
    """The deployments, and those that the last export knew under names that Animl no longer has: its answers hold these names until a full
    export, and a renamed deployment must not become a second location meanwhile.
    """
    names = {d.deployment for d in deployments}
    return deployments + [d for d in (last.deployments if last else ()) if d.deployment not in names]


@contextmanager
def _locked_scratch(store: Store, name: str) -> Iterator[Path]:
    """A temporary folder, and the lock that lets one export of a project run at a time on this machine."""
    work = store.local / "work"
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / f"animl-{name}.lock"):
        scratch = work / f"animl-{name}"
        shutil.rmtree(scratch, ignore_errors=True)  # files left by a killed run; all complete answers are in the store
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


# -- which answers make up the export --------------------------------------------------------------------------------


def _update(context: ExportContext, deployments: list[CameraDeployment]) -> ProjectExport:
    """Ask Animl for what is missing and return the project's export."""
    project, state = context.animl.project, context.state
    last = state.last_export()
    attempt = state.unfinished_attempt(datetime.now(UTC))
    if attempt is None or (last is None and not attempt.full):
        attempt = _new_attempt(context, last)
        state.begin(attempt)
    else:
        log.info("resuming the export of %s that began %s", project, attempt.begun.isoformat(timespec="seconds"))
    answers, failed = request_windows(context, attempt, f"export of {project}")
    if failed and not answers and (attempt.full or last is None):
        raise ExportError(
            f"Animl could export no window of the project {project!r}; the first of {len(failed)}, {failed[0].window}: {failed[0].detail}; "
            "see whether Animl's own export works, or choose other dates or cameras in sources.animl of the plan",
            code="all_windows_failed",
            reason=failed[0].reason,
        )
    short = sum(f.window.images for f in failed if f.reason == SHORT)
    if short and last is None and not any(a.window.images for a in answers):
        raise ExportError(
            f"Animl counts {short} images of the project {project!r} for this plan, and exports none of them; see whether ids in sources.animl "
            f"(cameras, deployments, labels) are the reason: {', '.join(context.filters.ids()) or 'none are named'}",
            code="nothing_exported",
            counted=short,
        )
    if attempt.full or last is None:
        export = _full_export(context, attempt, answers, failed, last)
    else:
        export = _incremental_export(context, attempt, answers, failed, last)
    if not export.answers:
        line = f"the project {project!r} has no image that fits; check the project's id and sources.animl in the plan"
        raise ExportError(line, code="no_images")
    state.finish(export.model_copy(update={"deployments": tuple(deployments)}))
    return export


def _new_attempt(context: ExportContext, last: ProjectExport | None) -> Attempt:
    """A full export, or one of the images that are new since the last export and of the windows that failed then."""
    now = datetime.now(UTC)
    all_time = Window(start=context.filters.created_from, end=context.filters.created_to)
    divide = partial(divide_into_windows, count=context.count, max_images=context.config.window_images)
    if last is None or now - last.last_full >= timedelta(days=context.config.full_after_days):
        windows, without_time = divide(all_time)
        return Attempt(begun=now, full=True, windows=tuple(windows), without_time=without_time)
    since = last.begun - OVERLAP
    wanted = [*(f.window for f in last.failed), all_time.model_copy(update={"since": since})]
    if not context.filters.only_reviewed:  # new images hold no validation date yet
        wanted.append(all_time.model_copy(update={"added_since": since}))
    windows = [window for part in wanted for window in divide(part)[0]]
    return Attempt(begun=now, full=False, windows=tuple(windows), without_time=last.without_time)


def _full_export(
    context: ExportContext, attempt: Attempt, answers: list[Answer], failed: list[FailedWindow], last: ProjectExport | None
) -> ProjectExport:
    """The export from new answers alone; the last export is used for failed windows.

    Where nothing has changed, the last answers are kept, so that the step and all steps after it stay cached.
    """
    kept = _limit_to(last.answers, failed) if last is not None else []
    export = ProjectExport(
        begun=attempt.begun, last_full=attempt.begun, answers=(*kept, *answers), failed=tuple(failed), without_time=attempt.without_time
    )
    if last is None:
        return export
    with ExportMerge(context.scratch / "before.sqlite") as before, ExportMerge(context.scratch / "now.sqlite") as now:
        add_answers(before, last.answers, context.store)
        add_answers(now, export.answers, context.store)
        gone = len(before.image_ids() - now.image_ids())
        if gone:
            log.warning("%d images of the last export are no longer in Animl, or no longer fit the plan; they are dropped", gone)
        unchanged = before.digest() == now.digest()
    return export.model_copy(update={"answers": last.answers}) if unchanged else export


def _incremental_export(
    context: ExportContext, attempt: Attempt, answers: list[Answer], failed: list[FailedWindow], last: ProjectExport
) -> ProjectExport:
    """The last export and the new answers, without those that change nothing."""
    new = []
    if answers:
        with ExportMerge(context.scratch / "merge.sqlite") as merge:
            add_answers(merge, last.answers, context.store)
            new = [a for a in answers if add_answers(merge, [a], context.store)]
    log.info("%d of %d new answers change the export", len(new), len(answers))
    due = last.last_full + timedelta(days=context.config.full_after_days)
    log.info("objects deleted, boxes moved and deployments changed since %s are seen from %s on", f"{last.last_full:%Y-%m-%d}", f"{due:%Y-%m-%d}")
    return last.model_copy(update={"begun": attempt.begun, "answers": (*last.answers, *new), "failed": tuple(failed)})


def _limit_to(answers: Iterable[Answer], failed: list[FailedWindow]) -> list[Answer]:
    """Earlier answers, limited to the time of the failed windows."""
    limited = []
    for answer in answers:
        parts = answer.only or (answer.window,)
        shared = [both for f in failed for part in parts if (both := part.intersection(f.window)) is not None]
        if shared:
            limited.append(answer.model_copy(update={"only": tuple(shared)}))
    return limited


def add_answers(merge: ExportMerge, answers: Iterable[Answer], store: Store) -> int:
    """Merge answers in their order and return how many images changed."""
    changed = 0
    for answer in answers:
        coco = parse_coco(store.blob(answer.blob), str(answer.window))
        if answer.boxes is not None:
            fill_in_boxes(coco, json.loads(store.blob(answer.boxes)))
        changed += merge.add(coco, partial(_is_within, answer.only))
    return changed


def fill_in_boxes(coco: dict[str, Any], boxes: dict[str, list[float]]) -> None:
    """Put relative boxes in place of boxes of null. The images of these annotations, whose size is unknown, count as 1 x 1.

    ``boxes``: object id → [ymin, xmin, ymax, xmax].
    """
    images = set()
    for row in coco["annotations"]:
        box = boxes.get(row["id"]) if isinstance(row, dict) and is_null_box(row.get("bbox")) and isinstance(row.get("id"), str) else None
        if box is not None:
            ymin, xmin, ymax, xmax = box
            row["bbox"] = [xmin, ymin, xmax - xmin, ymax - ymin]
            images.add(row.get("image_id"))
    for image in coco["images"]:
        if isinstance(image, dict) and isinstance(image.get("id"), str) and image["id"] in images:
            image["width"] = image["height"] = 1


def _is_within(windows: tuple[Window, ...], taken: str) -> bool:
    """Whether a capture time is in one of some windows; True without windows."""
    return not windows or any(window.contains(taken) for window in windows)


# -- what the step writes --------------------------------------------------------------------------------------------


def _build(space: Workspace, source: SourceConfig, export: ProjectExport, locations: list[Location], store: Store) -> StepOutput:
    _keep_answers(space, export.answers, store)
    with ExportMerge(space.scratch / "merge.sqlite") as merge:
        add_answers(merge, export.answers, store)
        merge.write(space.out / "export.json")
    return write_tables(space, read_batches(space.out / "export.json", source.export), source, _known_problems(export), locations)


def _keep_answers(space: Workspace, answers: tuple[Answer, ...], store: Store) -> None:
    """Write Animl's answers unchanged, and the list of their windows."""
    (space.out / "windows").mkdir()
    listed: list[dict[str, Any]] = []
    for i, answer in enumerate(answers):
        name = f"windows/{i:03d}.json"
        (space.out / name).write_bytes(store.blob(answer.blob))
        if answer.boxes is not None:
            (space.out / f"windows/{i:03d}-boxes.json").write_bytes(store.blob(answer.boxes))
        listed.append({"file": name, **answer.window.model_dump(mode="json"), "only": [w.model_dump(mode="json") for w in answer.only]})
    (space.out / "windows.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def _known_problems(export: ProjectExport) -> Problems:
    problems = Problems()
    for f in export.failed:
        if f.reason == SHORT:
            problems.add("window_short", str(f.window), f"{f.window.images} images are missing: {f.detail}")
        else:
            problems.add("window_failed", str(f.window), f"about {f.window.images} images: {f.reason}: {f.detail}")
    if export.without_time:
        detail = f"{export.without_time} images have no capture time that Animl can filter by; they are not in the export"
        problems.add("images_without_capture_time", "", detail)
    return problems

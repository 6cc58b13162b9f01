"""An Animl project as an export: only what is new is asked for, what is kept is merged with it, holes are said.

What Animl answers is remembered answer by answer, so that a killed export goes on, and a later one asks only for images
validated since. Now and then everything is asked for again: only that shows what was deleted.
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
from animl_pipeline.core.errors import ExportError, ExportUnreachableError
from animl_pipeline.core.records import Artifact
from animl_pipeline.core.table_schemas import EXPORT_LOCATIONS
from animl_pipeline.core.tables import write_table
from animl_pipeline.integrations.animl import AnimlClient, ImageFilters
from animl_pipeline.steps.export.animl_merge import Merge
from animl_pipeline.steps.export.animl_requests import Desk, ask_windows, counted
from animl_pipeline.steps.export.animl_state import Answer, Attempt, Exported, Hole, Memory
from animl_pipeline.steps.export.animl_windows import Window, planned_windows
from animl_pipeline.steps.export.declaration import STEP
from animl_pipeline.steps.export.locations import Location, locations_table, merge_deployments
from animl_pipeline.steps.export.problems import Problem
from animl_pipeline.steps.export.read_export import Batch, batches, parsed
from animl_pipeline.steps.export.write_tables import write_batches
from animl_pipeline.storage.remote_files import RemoteError
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace, digest_of

log = logging.getLogger(__name__)


OVERLAP = timedelta(days=1)
"""An incremental export asks for this much more, since clocks differ and validations arrive while an export runs."""


def export_project(project: str, source: SourceConfig, store: Store, settings: Settings) -> Artifact:
    """The export of an Animl project; see :func:`animl_pipeline.steps.export.export_annotations`.

    Raises:
        ExportUnreachableError: Animl does not answer now.
        ExportError: Animl cannot be asked, or not one window could be exported, or the project holds nothing that fits.
        SettingsError: where Animl is, or as whom to ask, is not said or not right.
    """
    spec = source.animl or AnimlExportConfig()
    filters = filters_of(spec)
    name = digest_of([settings.api_url, project, filters.model_dump(mode="json")])[:16]
    with AnimlClient(project, settings) as animl, _alone(store, name) as scratch:
        try:
            within = source.merge_locations_within_m
            locs = merge_deployments(animl.deployments(), within) if within else []
            exported = _exported(animl, filters, spec, Memory(store, name), store, scratch)
        except RemoteError as e:
            kind = ExportUnreachableError if e.retryable else ExportError
            raise kind(f"source {source.name!r}: Animl cannot be asked for {source.export}: {e}; what has arrived is kept, run again") from e
        return make_step(source, exported, locs, store)


def filters_of(spec: AnimlExportConfig) -> ImageFilters:
    """The plan's choice of images in Animl's words."""
    return ImageFilters(
        created_from=_in_utc(spec.created_from),
        created_to=_in_utc(spec.created_to),
        cameras=spec.cameras,
        deployments=spec.deployments,
        labels=spec.labels,
        only_reviewed=spec.only_reviewed,
    )


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment and (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC))


@contextmanager
def _alone(store: Store, name: str) -> Iterator[Path]:
    """One export of a project at a time on this machine, with a folder for scratch."""
    work = store.local / "work"
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / f"animl-{name}.lock"):
        scratch = work / f"animl-{name}"
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left: every answer that arrived whole is in the store
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _exported(animl: AnimlClient, filters: ImageFilters, spec: AnimlExportConfig, memory: Memory, store: Store, scratch: Path) -> Exported:
    """What the project's exports amount to, after asking for what is lacking."""
    last = memory.exported()
    attempt = memory.attempt(datetime.now(UTC))
    if attempt is None or (last is None and not attempt.full):
        attempt = _attempt(animl, filters, spec, last)
        memory.begin(attempt)
    else:
        log.info("going on with the export of %s that was begun %s", animl.project, attempt.begun.isoformat(timespec="seconds"))
    answers, holes = ask_windows(Desk(animl, filters, spec, memory, attempt, store, scratch), f"export of {animl.project}")
    if holes and not answers:
        raise ExportError(
            f"not one window of the project {animl.project!r} could be exported; the first of {len(holes)}, {holes[0].window}: {holes[0].detail}; "
            "see in Animl whether an export by hand works, or choose other dates or cameras in sources.animl of the plan"
        )
    exported = _whole(attempt, answers, holes, last, store, scratch) if attempt.full else _added(attempt, answers, holes, last, store, scratch)
    if not exported.answers:
        raise ExportError(f"the project {animl.project!r} holds no image that fits; check the project's id and sources.animl in the plan")
    memory.end(exported)
    return exported


def _attempt(animl: AnimlClient, filters: ImageFilters, spec: AnimlExportConfig, last: Exported | None) -> Attempt:
    """A new export: of all, or of what was validated since the last one and of the holes that it left."""
    now = datetime.now(UTC)
    count = counted(animl, filters)
    whole = Window(start=filters.created_from, end=filters.created_to)
    if last is None or now - last.last_full >= timedelta(days=spec.full_after_days):
        windows, outside = planned_windows(whole, count, spec.window_images)
        return Attempt(begun=now, full=True, windows=tuple(windows), outside=outside)
    new = whole.model_copy(update={"since": last.begun - OVERLAP})
    wanted = [hole.window for hole in last.holes] + [new]
    windows = [window for part in wanted for window in planned_windows(part, count, spec.window_images)[0]]
    return Attempt(begun=now, full=False, windows=tuple(windows), outside=last.outside)


def _whole(attempt: Attempt, answers: list[Answer], holes: list[Hole], last: Exported | None, store: Store, scratch: Path) -> Exported:
    """All anew. What an earlier export holds stands in for a hole; where nothing changed, its answers stay, and so does all that was made of them."""
    kept = _within_holes(last.answers, holes) if last is not None else []
    exported = Exported(begun=attempt.begun, last_full=attempt.begun, answers=(*kept, *answers), holes=tuple(holes), outside=attempt.outside)
    if last is None:
        return exported
    with Merge(scratch / "before.sqlite") as before, Merge(scratch / "now.sqlite") as now:
        lay(before, last.answers, store)
        lay(now, exported.answers, store)
        gone = len(before.images() - now.images())
        if gone:
            log.warning("%d images of the last export are no longer in Animl, or no longer fit; they are left out", gone)
        unchanged = before.digest() == now.digest()
    return exported.model_copy(update={"answers": last.answers}) if unchanged else exported


def _added(attempt: Attempt, answers: list[Answer], holes: list[Hole], last: Exported | None, store: Store, scratch: Path) -> Exported:
    """What is new laid over what is kept; an answer that changes nothing is not kept."""
    assert last is not None  # noqa: S101 - only an export of all begins from nothing
    new = []
    if answers:
        with Merge(scratch / "merge.sqlite") as merge:
            lay(merge, last.answers, store)
            new = [a for a in answers if lay(merge, [a], store)]
    log.info("%d of %d new answers change what is kept", len(new), len(answers))
    return last.model_copy(update={"begun": attempt.begun, "answers": (*last.answers, *new), "holes": tuple(holes)})


def _within_holes(answers: Iterable[Answer], holes: list[Hole]) -> list[Answer]:
    """Earlier answers, limited to the time of the holes."""
    limited = []
    for answer in answers:
        parts = answer.only or (answer.window,)
        shared = [both for hole in holes for part in parts if (both := part.meets(hole.window)) is not None]
        if shared:
            limited.append(answer.model_copy(update={"only": tuple(shared)}))
    return limited


def make_step(source: SourceConfig, exported: Exported, locs: list[Location], store: Store) -> Artifact:
    """The artifact of what the exports amount to; the same answers, holes and places are the same artifact."""
    answers = [a.model_dump(mode="json") for a in exported.answers]
    holes = [h.model_dump(mode="json") for h in exported.holes]
    config = {"export": source.export, "key": source.key, "location_field": source.location_field, "outside": exported.outside}
    digests = {"answers": digest_of(answers), "holes": digest_of(holes), "locations": digest_of(locs)}

    def build(space: Workspace) -> StepOutput:
        return _build(space, source, exported, locs, store)

    return store.make(STEP, digests=digests, config=config, build=build)


def _build(space: Workspace, source: SourceConfig, exported: Exported, locs: list[Location], store: Store) -> StepOutput:
    _keep_untouched(space, exported.answers, store)
    with Merge(space.scratch / "merge.sqlite") as merge:
        lay(merge, exported.answers, store)
        merge.write(space.out / "export.json")
    named: set[str] = set()
    records = _noting_locations(batches(space.out / "export.json", source.export), named)
    location_of = {p.deployment: p.location for p in locs} if source.location_field == "location" else {}
    made = write_batches(space, records, source, known=_problems(exported), locations=location_of)
    write_table(space.out, EXPORT_LOCATIONS, locations_table(_all_locations(locs, named)))
    return made


def lay(merge: Merge, answers: Iterable[Answer], store: Store) -> int:
    """Lay answers over each other in their order; how many images changed comes back."""
    changed = 0
    for answer in answers:
        cct = parsed(store.blob(answer.blob), str(answer.window))
        changed += merge.add(cct, partial(_counts, answer.only))
    return changed


def _counts(only: tuple[Window, ...], taken: str) -> bool:
    """Whether an image of that capture time counts in an answer that is limited to some windows."""
    return not only or any(window.holds(taken) for window in only)


def _keep_untouched(space: Workspace, answers: tuple[Answer, ...], store: Store) -> None:
    """Write what Animl answered, byte for byte, and which is what."""
    (space.out / "windows").mkdir()
    listed: list[dict[str, Any]] = []
    for i, answer in enumerate(answers):
        name = f"windows/{i:03d}.json"
        (space.out / name).write_bytes(store.blob(answer.blob))
        listed.append({"file": name, **answer.window.model_dump(mode="json"), "only": [w.model_dump(mode="json") for w in answer.only]})
    (space.out / "windows.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def _problems(exported: Exported) -> list[Problem]:
    found = [("window_failed", str(h.window), f"about {h.window.images} images: {h.reason}: {h.detail}") for h in exported.holes]
    if exported.outside:
        found.append(
            ("images_outside_of_time", "", f"{exported.outside} images have no capture time that Animl can ask for; they are not in the export")
        )
    return found


def _noting_locations(records: Iterable[Batch], named: set[str]) -> Iterator[Batch]:
    """The records as they are; the locations that their images name are added to ``named`` on the way."""
    for part, rows in records:
        if part == "images":
            named |= {row["location"] for row in rows if isinstance(row, dict) and isinstance(row.get("location"), str) and row["location"]}
        yield part, rows


def _all_locations(locs: list[Location], named: set[str]) -> list[Location]:
    """The places, with those locations that stand nowhere, as places of their own."""
    known = {p.deployment for p in locs}
    return sorted([*locs, *(Location(name, name, float("nan"), float("nan")) for name in named - known)])

"""An Animl project as an export: only what is new is asked for, what is kept is merged with it, holes are said.

What Animl answers is remembered answer by answer, so that a killed export goes on, and a later one asks only for images
validated since. Now and then everything is asked for again: only that shows what was deleted.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock

from animl_pipeline.animl import Animl, Filters
from animl_pipeline.errors import AwayError, ExportError
from animl_pipeline.export.asking import Desk, ask_windows, counted
from animl_pipeline.export.kept import Answer, Attempt, Exported, Hole, Memory
from animl_pipeline.export.merging import Merge
from animl_pipeline.export.places import merged_places
from animl_pipeline.export.project_step import lay, make_step
from animl_pipeline.export.windows import Window, planned_windows
from animl_pipeline.plan import AnimlPlan, SourcePlan
from animl_pipeline.records import Artifact
from animl_pipeline.remote import RemoteError
from animl_pipeline.settings import Settings
from animl_pipeline.store import Store, digest_of

log = logging.getLogger(__name__)

OVERLAP = timedelta(days=1)
"""An incremental export asks for this much more, since clocks differ and validations arrive while an export runs."""


def export_project(project: str, source: SourcePlan, store: Store, settings: Settings) -> Artifact:
    """The export of an Animl project; see :func:`animl_pipeline.export.export_annotations`.

    Raises:
        AwayError: Animl does not answer now.
        ExportError: Animl cannot be asked, or not one window could be exported, or the project holds nothing that fits.
        SettingsError: where Animl is, or as whom to ask, is not said or not right.
    """
    spec = source.animl or AnimlPlan()
    filters = filters_of(spec)
    name = digest_of([settings.api_url, project, filters.model_dump(mode="json")])[:16]
    with Animl(project, settings) as animl, _alone(store, name) as scratch:
        try:
            within = source.merge_places_within_m
            places = merged_places(animl.deployments(), within) if within else []
            exported = _exported(animl, filters, spec, Memory(store, name), store, scratch)
        except RemoteError as e:
            kind = AwayError if e.heals else ExportError
            raise kind(f"source {source.name!r}: Animl cannot be asked for {source.export}: {e}; what has arrived is kept, run again") from e
        return make_step(source, exported, places, store)


def filters_of(spec: AnimlPlan) -> Filters:
    """The plan's choice of images in Animl's words."""
    return Filters(
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


def _exported(animl: Animl, filters: Filters, spec: AnimlPlan, memory: Memory, store: Store, scratch: Path) -> Exported:
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


def _attempt(animl: Animl, filters: Filters, spec: AnimlPlan, last: Exported | None) -> Attempt:
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

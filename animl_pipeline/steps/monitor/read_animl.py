"""Ask Animl for the labels of images that are new or newly reviewed, and keep all of them as one table in the store.

Images are asked for in windows of capture time, page by page. Each window is stored when it is complete, so that a killed run resumes
where it was. A later run asks only for images that were added or validated since. What moves no validation date (a deleted object, a
changed deployment) shows when everything is asked for again, as for exports: ``sources.animl.full_after_days``.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from filelock import FileLock

from animl_pipeline.config import AnimlExportConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.progress import track
from animl_pipeline.integrations.animl import AnimlClient, ImageFilters
from animl_pipeline.integrations.animl.animl_windows import Window, divide_into_windows
from animl_pipeline.integrations.animl.errors_in_answers import animl_errors
from animl_pipeline.integrations.animl.export_progress import Answer, Attempt, ExportState, FailedWindow, ProjectExport, WindowProgress
from animl_pipeline.integrations.animl.names_of_ids import ProjectNames
from animl_pipeline.integrations.animl.queries import LABELS, image_filters
from animl_pipeline.steps.monitor.label_rows import from_parquet, merge_rows, rows_of_images, to_parquet
from animl_pipeline.storage.object_store import WORK
from animl_pipeline.storage.read_remote_files import RemoteError
from animl_pipeline.storage.store import Store, digest_of

log = logging.getLogger(__name__)

WINDOW_IMAGES = 5000
"""Images of one window: a killed run asks again for at most so many."""
PAGE_IMAGES = 100
OVERLAP = timedelta(days=1)
"""A run goes back so much further than the last one, since clocks differ and models label an image a while after it was added."""
SHORT = "short"


class ServiceLabels(Record):
    """The labels of one source: the blob of SERVICE_LABELS as Parquet, when Animl was asked, and how many images are missing."""

    source: str
    blob: str
    asked: datetime
    missing_images: int


class _Context(NamedTuple):
    """What the questions to one project work with."""

    animl: AnimlClient
    names: ProjectNames
    filters: ImageFilters
    source: SourceConfig
    random_tag: str | None
    state: ExportState
    store: Store

    def count(self, window: Window) -> int:
        return self.animl.count_images(self.filters.of_window(window))


def read_service_labels(source: SourceConfig, added_since: datetime, random_tag: str | None, store: Store, settings: Settings) -> ServiceLabels:
    """The labels of all images of a source that were added to Animl since a time, asking only for what is new.

    Args:
        source: a source with ``export: animl://<project id>``. Its filters choose images here too, except ``only_reviewed``.
        added_since: when the model came into service.
        random_tag: name of the tag of images that were drawn at random for review.
        store: holds what was asked before.
        settings: Animl's address and user.

    Raises:
        ExportUnreachableError: Animl does not answer now. What has arrived is kept.
        ExportError: Animl refused the questions, or answered none of them.
        SettingsError: a setting for Animl is missing or wrong.
    """
    project, config = source.project() or "", source.animl or AnimlExportConfig()
    filters = image_filters(config).model_copy(update={"only_reviewed": False})
    name = "monitor-" + digest_of([settings.api_url, project, filters.model_dump(mode="json"), added_since.isoformat(), random_tag])[:16]
    with animl_errors(source), AnimlClient(project, settings) as animl, _lock(store, name):
        context = _Context(animl, animl.project_names(), filters, source, random_tag, ExportState(store, name), store)
        last = context.state.last_export()
        attempt = context.state.unfinished_attempt(datetime.now(UTC))
        if attempt is None or (last is None and not attempt.full):
            attempt = _new_attempt(context, last, added_since, config.full_after_days)
            context.state.begin(attempt)
        answers, failed = _request_windows(context, attempt)
        export = _merge(context, attempt, last, answers, failed)
        context.state.finish(export)
    missing = sum(f.window.images for f in export.failed)
    return ServiceLabels(source=source.name, blob=export.answers[0].blob, asked=export.begun, missing_images=missing)


@contextmanager
def _lock(store: Store, name: str) -> Iterator[None]:
    """Let one run ask for a project at a time on this machine."""
    work = store.local / WORK
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / f"animl-{name}.lock"):
        yield


def _new_attempt(context: _Context, last: ProjectExport | None, added_since: datetime, full_after_days: float) -> Attempt:
    """All images, or those that were added or validated since the last run, and those of the windows that failed then."""
    now = datetime.now(UTC)
    everything = Window(start=context.filters.created_from, end=context.filters.created_to, added_since=added_since)
    full = last is None or now - last.last_full >= timedelta(days=full_after_days)
    wanted = [everything]
    if last is not None and not full:
        since = max(added_since, last.begun - OVERLAP)
        wanted = [everything.model_copy(update={"added_since": since}), everything.model_copy(update={"since": last.begun - OVERLAP})]
        wanted += [f.window.model_copy(update={"images": 0}) for f in last.failed]
    windows = [window for part in wanted for window in divide_into_windows(part, context.count, WINDOW_IMAGES)[0]]
    return Attempt(begun=now, full=full, windows=tuple(dict.fromkeys(windows)))


def _request_windows(context: _Context, attempt: Attempt) -> tuple[list[Answer], list[FailedWindow]]:
    """The answers for the windows of an attempt, and the windows that failed or are short of images."""
    known = context.state.progress(attempt)
    answers: list[Answer] = []
    failed: list[FailedWindow] = []
    with track(f"labels of {context.animl.project}", sum(w.images for w in attempt.windows)) as step:
        for window in attempt.windows:
            progress = known.get(window.key, WindowProgress())
            try:
                if progress.answer is None:
                    progress = _request(context, window)
                    context.state.save_progress(attempt, window, progress)
            except RemoteError as e:
                if e.reason == "unreachable":  # not the fault of this window: stop here and resume later
                    raise
                failed.append(FailedWindow(window=window, reason=e.reason, detail=str(e)))
                log.warning("%s: no labels: %s", window, e)
            answers += [progress.answer] if progress.answer else []
            if progress.missing:
                detail = f"Animl counts {progress.missing} images more than it answers"
                failed.append(FailedWindow(window=window.model_copy(update={"images": progress.missing}), reason=SHORT, detail=detail))
            step(window.images)
    return answers, failed


def _request(context: _Context, window: Window) -> WindowProgress:
    """A window's labels as a blob, and how many of its images are not in it."""
    pages = context.animl.image_pages(LABELS, context.filters.of_window(window).as_input(), PAGE_IMAGES)
    try:
        rows = rows_of_images((image for page in pages for image in page), context.source.name, context.names, context.random_tag)
    except (LookupError, TypeError, ValueError, AttributeError) as e:
        raise RemoteError("refused", f"an image does not have the form that Animl's API describes ({type(e).__name__}: {e})") from e
    images = len(rows["image_id"].unique())
    missing = max(0, context.count(window) - images) if images < window.images else 0
    data = to_parquet(rows)
    return WindowProgress(answer=Answer(window=window, blob=context.store.put_blob(data), bytes=len(data)), missing=missing)


def _merge(
    context: _Context, attempt: Attempt, last: ProjectExport | None, answers: Sequence[Answer], failed: Sequence[FailedWindow]
) -> ProjectExport:
    """All labels so far as one answer. What a complete run no longer has, such as deleted images, is dropped."""
    if failed and not answers and last is None:
        raise ExportError(
            f"source {context.source.name!r}: Animl answered none of {len(failed)} questions for labels; the first: {failed[0].detail}",
            code="all_windows_failed",
        )
    before = [] if last is None or (attempt.full and not failed) else list(last.answers)
    parts = [from_parquet(context.store.blob(a.blob)) for a in [*before, *answers]]
    data = to_parquet(merge_rows(parts or [rows_of_images([], context.source.name, context.names, None)]))
    whole = Answer(window=Window(), blob=context.store.put_blob(data), bytes=len(data))
    full = attempt.begun if attempt.full or last is None else last.last_full
    return ProjectExport(begun=attempt.begun, last_full=full, answers=(whole,), failed=tuple(failed))


def read_random_sample(model: str, store: Store) -> frozenset[str]:
    """The ids of all images that lists of `review-next` drew at random: ``reviews/<model>/*.csv``, columns image_id and random."""
    found: set[str] = set()
    for name in store.object_store.names(f"reviews/{model}/"):
        if name.endswith(".csv"):
            rows = csv.DictReader(io.StringIO((store.object_store.read(name) or b"").decode("utf-8", "replace")))
            found |= {str(row["image_id"]) for row in rows if str(row.get("random")).lower() in {"true", "yes", "1"} and row.get("image_id")}
    return frozenset(found)

"""Export windows from Animl one by one: check each answer, halve windows that are cut off or fail, list those that stay failed.

An export that Animl cannot make, often because of a single image whose camera deployment is gone, is halved until the failed
window holds that image alone.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SecretStr

from animl_pipeline.config import AnimlExportConfig
from animl_pipeline.core.errors import ExportError
from animl_pipeline.core.progress import track
from animl_pipeline.integrations.animl import AnimlClient, ExportTask, ImageFilters
from animl_pipeline.integrations.animl.animl_windows import Window
from animl_pipeline.integrations.animl.export_progress import Answer, Attempt, ExportState, FailedWindow, WindowProgress
from animl_pipeline.steps.export.fetch_and_parse_coco import parse_coco
from animl_pipeline.storage.read_remote_files import RemoteError
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)

MAX_HALVINGS = 60
"""Halvings in all for failed windows, and as many for incomplete answers; and four more for each window."""
SHORT = "short"
"""The reason of a window that was exported without some of the images that Animl counts in it."""
MAX_FIRST_HALVINGS = 20
"""Halvings for failed windows before the first answer. One bad image takes at most 14; with more, Animl exports nothing at all."""
URL_TRIES = 3
"""How many expired addresses of one window are replaced."""
INCOMPLETE = {"truncated", "miscounted"}
"""Reasons why an answer is not used: the file is cut off, or holds another number of images than Animl counted."""
HALVED = INCOMPLETE | {"failed", "timed_out"}
"""Reasons for which a smaller window may succeed."""


class ExportContext(NamedTuple):
    """What the export of a project works with."""

    animl: AnimlClient
    filters: ImageFilters
    config: AnimlExportConfig
    state: ExportState
    store: Store
    scratch: Path

    def count(self, window: Window) -> int:
        """How many images of the project are in a window now."""
        return self.animl.count_images(self.filters.of_window(window))


def request_windows(context: ExportContext, attempt: Attempt, what: str) -> tuple[list[Answer], list[FailedWindow]]:
    """Export the windows of an attempt; windows that were exported before it was interrupted are not requested again.

    Returns:
        The answers in order of time, and the windows that failed or are short of images.

    Raises:
        RemoteError: ``unreachable``: Animl does not answer at all.
    """
    known = context.state.progress(attempt)
    retried: set[str] = set()
    answers: list[Answer] = []
    failed: list[FailedWindow] = []
    incomplete_left = failed_left = MAX_HALVINGS + 4 * len(attempt.windows)
    first_left = failed_left - MAX_FIRST_HALVINGS
    todo = list(reversed(attempt.windows))
    with track(what, sum(w.images for w in todo)) as step:
        while todo:
            window = todo.pop()
            before = known.pop(window.key, WindowProgress())
            if before.halves:
                todo.extend(reversed(before.halves))
                continue
            try:
                answer, missing = (before.answer, before.missing) if before.answer else _request(context, attempt, window, before.task)
                answers.append(answer)
                failed += [_short_window(window, answer, missing)] if missing else []
                step(window.images)
            except RemoteError as e:
                if e.reason == "unreachable":  # not the fault of this window: stop here and resume later
                    raise
                incomplete = e.reason in INCOMPLETE
                incomplete_left, failed_left = incomplete_left - incomplete, failed_left - (not incomplete)
                useful = incomplete_left >= 0 if incomplete else failed_left >= (0 if answers else first_left)
                halves = _halves(context, attempt, window, e) if useful else ()
                todo.extend(reversed(halves))
                if not halves and incomplete and window.key not in retried:
                    retried.add(window.key)  # images may have been added just then
                    todo.append(window)
                elif not halves:
                    failed.append(FailedWindow(window=window, reason=e.reason, detail=str(e)))
                    log.warning("not exported: %s, about %d images: %s", window, window.images, e)
                    step(window.images)
    return answers, failed


def _halves(context: ExportContext, attempt: Attempt, window: Window, error: RemoteError) -> tuple[Window, ...]:
    """The halves to export instead, where that may help. They are remembered."""
    pair = window.halves()
    if pair is None or error.reason not in HALVED or window.images <= 1:
        return ()
    try:
        counts = [context.count(half) for half in pair]
    except RemoteError as e:
        log.warning("%s cannot be halved: %s", window, e)
        return ()
    halves = tuple(half.model_copy(update={"images": n}) for half, n in zip(pair, counts, strict=True) if n)
    if halves:
        log.info("exporting in halves: %s (%s)", window, error)
        context.state.save_progress(attempt, window, WindowProgress(halves=halves))
    return halves


def _request(context: ExportContext, attempt: Attempt, window: Window, task_id: str) -> tuple[Answer, int]:
    """Animl's answer for a window, checked and stored, and how many of the images that Animl counts are not in it.

    An answer that is short of images is requested once more, because images may have changed between the count and the export.

    Raises:
        RemoteError: ``failed``, ``truncated``, ``miscounted``, or an error of the client.
    """
    answer = _request_once(context, attempt, window, task_id)
    missing = _missing(context, window, answer)
    if missing:
        answer = _request_once(context, attempt, window, "")
        missing = _missing(context, window, answer)
    context.state.save_progress(attempt, window, WindowProgress(answer=answer, missing=missing))
    log.info("%s: %d images%s", window, answer.window.images, f", {missing} are missing" if missing else "")
    return answer, missing


def _missing(context: ExportContext, window: Window, answer: Answer) -> int:
    """How many images Animl counts in a window, beyond those in the answer. It is only asked again where the first count differs."""
    found = answer.window.images
    return max(0, context.count(window) - found) if window.images > found else 0


def _short_window(window: Window, answer: Answer, missing: int) -> FailedWindow:
    detail = f"Animl counts {answer.window.images + missing} images, and its export holds {answer.window.images}"
    log.warning("%s: %s", window, detail)
    return FailedWindow(window=window.model_copy(update={"images": missing}), reason=SHORT, detail=detail)


def _request_once(context: ExportContext, attempt: Attempt, window: Window, task_id: str) -> Answer:
    target = context.scratch / "answer.json"
    try:
        task = _download(context, attempt, window, task_id, target)
        data = target.read_bytes()
    finally:
        target.unlink(missing_ok=True)
    coco = _check_complete(data, task, str(window))
    answer = Answer(window=window.model_copy(update={"images": task.count}), blob=context.store.put_blob(data), bytes=len(data))
    boxes = _boxes_without_image_size(context, coco)
    if not boxes:
        return answer
    encoded = json.dumps(boxes, sort_keys=True).encode()
    return answer.model_copy(update={"boxes": context.store.put_blob(encoded), "boxes_bytes": len(encoded)})


def _boxes_without_image_size(context: ExportContext, coco: dict[str, Any]) -> dict[str, list[float]]:
    """The relative boxes of annotations whose box is null in the export, because Animl does not know the size of their image."""
    rows = [row for row in coco["annotations"] if isinstance(row, dict) and is_null_box(row.get("bbox"))]
    images = sorted({row["image_id"] for row in rows if isinstance(row.get("image_id"), str)})
    if not images:
        return {}
    boxes = context.animl.relative_boxes(images)
    found = {row["id"]: boxes[row["id"]] for row in rows if isinstance(row.get("id"), str) and row["id"] in boxes}
    log.info("read %d relative boxes for %d annotations without a box, on %d images without a size", len(found), len(rows), len(images))
    return found


def is_null_box(bbox: Any) -> bool:
    """Whether a box is [null, null, null, null]."""
    return isinstance(bbox, list) and len(bbox) == 4 and all(n is None for n in bbox)


def _download(context: ExportContext, attempt: Attempt, window: Window, task_id: str, target: Path) -> ExportTask:
    """Wait for Animl's export and download it to ``target``; returns what Animl says of it.

    The address of an export expires after an hour. Then the same task is asked for a new one; where it has none, a new export
    is made.
    """
    expired = SecretStr("")
    for _ in range(URL_TRIES):
        task_id = task_id or _start(context, attempt, window)
        try:
            task = _wait(context, attempt, window, task_id)
        except RemoteError as e:
            if e.reason != "not_found":
                raise
            log.info("%s: Animl no longer knows the task %s; starting a new export", window, task_id)
            task_id = _start(context, attempt, window)
            task = _wait(context, attempt, window, task_id)
        if task.url == expired:
            task_id = _start(context, attempt, window)
            task = _wait(context, attempt, window, task_id)
        try:
            context.animl.download(task.url, target)
            return task
        except RemoteError as e:
            if e.reason != "forbidden":
                raise
            log.info("%s: the address of the export has expired; asking for a new one", window)
            expired = task.url
    raise RemoteError("forbidden", f"{URL_TRIES} addresses of exports had expired as soon as Animl gave them")


def _start(context: ExportContext, attempt: Attempt, window: Window) -> str:
    """Start an export and remember its task, so that a killed run waits for it instead of starting another."""
    task_id = context.animl.start_export(context.filters.of_window(window))
    context.state.save_progress(attempt, window, WindowProgress(task=task_id))
    return task_id


def _wait(context: ExportContext, attempt: Attempt, window: Window, task_id: str) -> ExportTask:
    try:
        task = context.animl.wait_for_export(task_id, context.config.timeout_s)
    except RemoteError as e:
        if e.reason == "timed_out":  # the export has died, and its task stays RUNNING: the next run must not wait for it again
            context.state.save_progress(attempt, window, WindowProgress())
        raise
    if task.status == "COMPLETE":
        return task
    context.state.save_progress(attempt, window, WindowProgress())  # so that the next run starts a new export
    log.info("%s: the task %s failed", window, task_id)
    raise RemoteError("failed", f"Animl could not make the export: {task.error or 'no reason given'}")


def _check_complete(data: bytes, task: ExportTask, where: str) -> dict[str, Any]:
    """The answer's content, if it is strict JSON with as many images as Animl counted."""
    try:
        coco = parse_coco(data, where)
    except ExportError as e:
        raise RemoteError("truncated", f"the answer is cut off ({e.__cause__ or e}; {len(data)} bytes)") from e
    if len(coco["images"]) != task.count:
        raise RemoteError("miscounted", f"the answer holds {len(coco['images'])} images where Animl counted {task.count}")
    return coco

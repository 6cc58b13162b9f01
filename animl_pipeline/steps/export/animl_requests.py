"""Windows asked of Animl one after the other: what arrives is checked, what does not fit is split, what fails is reported.

An export that Animl fails to make, often because of a single image, is halved until the hole around that image is small.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

from animl_pipeline.config import AnimlExportConfig
from animl_pipeline.core.errors import ExportError
from animl_pipeline.core.progress import track
from animl_pipeline.integrations.animl import AnimlClient, ExportTask, ImageFilters
from animl_pipeline.steps.export.animl_state import Answer, Attempt, Hole, Memory, Progress
from animl_pipeline.steps.export.animl_windows import Window
from animl_pipeline.steps.export.read_export import parsed
from animl_pipeline.storage.remote_files import RemoteError
from animl_pipeline.storage.step_cache import Store

log = logging.getLogger(__name__)


SMALL_HOLE = 20
"""A window of so few images that failed is not halved any more."""
NARROWING = 60
"""Exports that may be spent, in all, on making holes smaller; and, beside four a window, on what was cut off."""
CUT_OFF = {"truncated", "miscounted"}
TRIES = 3
"""How many dead addresses of a window are followed."""
SPLITS = CUT_OFF | {"failed", "timed_out"}
"""Reasons for which a smaller window may succeed."""


class Desk(NamedTuple):
    """What asking needs."""

    animl: AnimlClient
    filters: ImageFilters
    spec: AnimlExportConfig
    memory: Memory
    attempt: Attempt
    store: Store
    scratch: Path


def ask_windows(desk: Desk, what: str) -> tuple[list[Answer], list[Hole]]:
    """The answers to an attempt's windows in order of time, and the windows that failed. What was answered before is not asked again.

    Raises:
        RemoteError: ``unreachable``: Animl is gone altogether.
    """
    known = desk.memory.progress(desk.attempt)
    again: set[str] = set()
    answers: list[Answer] = []
    holes: list[Hole] = []
    budget = {True: NARROWING + 4 * len(desk.attempt.windows), False: NARROWING}
    todo = list(reversed(desk.attempt.windows))
    with track(what, sum(w.images for w in todo)) as step:
        while todo:
            window = todo.pop()
            before = known.pop(window.key, Progress())
            if before.halves:
                todo.extend(reversed(before.halves))
                continue
            try:
                answers.append(before.answer or _answer(desk, window, before.task))
                step(window.images)
            except RemoteError as e:
                if e.reason == "unreachable":  # not this window's fault: better to stop here and go on later
                    raise
                budget[e.reason in CUT_OFF] -= 1
                halves = _halves(desk, window, e) if budget[e.reason in CUT_OFF] >= 0 else ()
                todo.extend(reversed(halves))
                if not halves and e.reason in CUT_OFF and window.key not in again:
                    again.add(window.key)  # the count may have moved just then
                    todo.append(window)
                elif not halves:
                    holes.append(Hole(window=window, reason=e.reason, detail=str(e)))
                    log.warning("not exported: %s, about %d images: %s", window, window.images, e)
                    step(window.images)
    return answers, holes


def counted(animl: AnimlClient, filters: ImageFilters) -> Callable[[Window], int]:
    """Counts a window's images."""
    return lambda window: animl.count(_within(filters, window))


def _within(filters: ImageFilters, window: Window) -> ImageFilters:
    return filters.model_copy(update={"created_from": window.start, "created_to": window.end, "validated_since": window.since})


def _halves(desk: Desk, window: Window, fault: RemoteError) -> tuple[Window, ...]:
    """The halves to ask for instead, where that may help; they are remembered."""
    pair = window.halves()
    if pair is None or fault.reason not in SPLITS or window.images <= (1 if fault.reason in CUT_OFF else SMALL_HOLE):
        return ()
    try:
        counts = [counted(desk.animl, desk.filters)(half) for half in pair]
    except RemoteError as e:
        log.warning("%s cannot be halved: %s", window, e)
        return ()
    halves = tuple(half.model_copy(update={"images": n}) for half, n in zip(pair, counts, strict=True) if n)
    if halves:
        log.info("asked again in halves: %s (%s)", window, fault)
        desk.memory.note(desk.attempt, window, Progress(halves=halves))
    return halves


def _answer(desk: Desk, window: Window, task: str) -> Answer:
    """Animl's answer, checked and kept.

    Raises:
        RemoteError: ``failed``, ``truncated``, ``miscounted``, or what the client raises.
    """
    target = desk.scratch / "answer.json"
    try:
        outcome = _arrived(desk, window, task, target)
        data = target.read_bytes()
    finally:
        target.unlink(missing_ok=True)
    _check(data, outcome, str(window))
    answer = Answer(window=window.model_copy(update={"images": outcome.count}), blob=desk.store.put_blob(data), bytes=len(data))
    desk.memory.note(desk.attempt, window, Progress(answer=answer))
    log.info("%s: %d images", window, outcome.count)
    return answer


def _arrived(desk: Desk, window: Window, task: str, target: Path) -> ExportTask:
    """What Animl says of the export that lies at ``target`` now.

    An address dies after an hour: then the same task is asked for another, and a new export is made when it has none.
    """
    dead = SecretStr("")
    for _ in range(TRIES):
        task = task or _begun(desk, window)
        outcome = _ended(desk, window, task)
        if outcome.url == dead:
            task = _begun(desk, window)
            outcome = _ended(desk, window, task)
        try:
            desk.animl.download(outcome.url, target)
            return outcome
        except RemoteError as e:
            if e.reason != "forbidden":
                raise
            log.info("%s: the address of the export is dead, asking for another", window)
            dead = outcome.url
    raise RemoteError("forbidden", f"the addresses of {TRIES} exports were dead as soon as they were known")


def _begun(desk: Desk, window: Window) -> str:
    """A new export of the window, remembered so that a killed run waits for it instead of for another."""
    task = desk.animl.begin_export(_within(desk.filters, window))
    desk.memory.note(desk.attempt, window, Progress(task=task))
    return task


def _ended(desk: Desk, window: Window, task: str) -> ExportTask:
    outcome = desk.animl.outcome(task, desk.spec.timeout_s)
    if outcome.status == "COMPLETE":
        return outcome
    desk.memory.note(desk.attempt, window, Progress())  # so that the next run asks anew
    log.info("%s: the task %s failed", window, task)
    raise RemoteError("failed", f"Animl could not make the export: {outcome.error or 'no reason given'}")


def _check(data: bytes, outcome: ExportTask, where: str) -> None:
    """Whether the answer is whole: strict JSON, with as many images as Animl says."""
    try:
        images = len(parsed(data, where)["images"])
    except ExportError as e:
        raise RemoteError("truncated", f"the answer is cut off ({e.__cause__ or e}; {len(data)} bytes)") from e
    if images != outcome.count:
        raise RemoteError("miscounted", f"the answer holds {images} images where Animl counted {outcome.count}")

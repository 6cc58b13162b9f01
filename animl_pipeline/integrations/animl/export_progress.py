"""What the store remembers of an Animl project's exports: the result of the last one, and the progress of the current one.

Nothing in it is secret: it holds no token and no address of a file in S3.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TypeVar

from pydantic import ValidationError

from animl_pipeline.core.frozen_record import Digest, Record
from animl_pipeline.integrations.animl.animl_windows import Window
from animl_pipeline.integrations.animl.camera_deployments import CameraDeployment
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
RESUME_WITHIN = timedelta(hours=24)
"""A killed export is resumed within this time; later a new one begins."""


class Answer(Record):
    """One export file of Animl, unchanged, as a blob. ``only`` limits it to parts of its time; other files hold the rest.

    ``boxes`` is a blob with the relative boxes of objects that have none in the file: {object id: [ymin, xmin, ymax, xmax]}.
    """

    window: Window
    blob: Digest
    bytes: int
    only: tuple[Window, ...] = ()
    boxes: Digest | None = None
    boxes_bytes: int = 0

    def blobs(self) -> list[str]:
        """The digests of its blobs."""
        return [self.blob, *([self.boxes] if self.boxes else [])]


class FailedWindow(Record):
    """A window that Animl could not export (all of its images), and why.

    With the reason ``short`` Animl exported it without so many (``window.images``) of the images that it counts.
    """

    window: Window
    reason: str
    detail: str


class ProjectExport(Record):
    """The result of all exports so far. Later answers replace earlier ones, image by image.

    ``deployments``: of the project's cameras, with those that Animl no longer names: earlier answers may still do.
    """

    begun: datetime
    last_full: datetime
    answers: tuple[Answer, ...]
    failed: tuple[FailedWindow, ...] = ()
    without_time: int = 0
    deployments: tuple[CameraDeployment, ...] = ()


class Attempt(Record):
    """An export that has begun: all images (``full``), or those validated since the last export."""

    begun: datetime
    full: bool
    windows: tuple[Window, ...]
    without_time: int = 0


class WindowProgress(Record):
    """How far a window has come: Animl's task, the answer (and how many images it lacks), or the halves exported in its place."""

    task: str = ""
    answer: Answer | None = None
    missing: int = 0
    halves: tuple[Window, ...] = ()


class ExportState:
    """The remembered state of one project with one set of filters."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    def last_export(self) -> ProjectExport | None:
        """The result of the exports so far; None if there is none, or the store lacks a part of it."""
        found = self._read("exported", ProjectExport)
        return found if found is not None and all(map(self._has, found.answers)) else None

    def unfinished_attempt(self, now: datetime) -> Attempt | None:
        """The export that did not end, if it is young enough to resume."""
        found = self._read("attempt", Attempt)
        return found if found is not None and now - found.begun < RESUME_WITHIN else None

    def begin(self, attempt: Attempt) -> None:
        """Remember an attempt with its windows."""
        self._store.add_to_index(f"animl/{self._name}", {"attempt": attempt.model_dump(mode="json")})

    def finish(self, export: ProjectExport) -> None:
        """Remember the result. No attempt is unfinished any more."""
        blobs = [blob for answer in export.answers for blob in answer.blobs()]  # garbage collection keeps the blobs in this list
        self._store.add_to_index(f"animl/{self._name}", {"exported": export.model_dump(mode="json") | {"blobs": blobs}, "attempt": {}})

    def progress(self, attempt: Attempt) -> dict[str, WindowProgress]:
        """Window's key → how far it has come."""
        found = {key: WindowProgress.model_validate(record) for key, record in self._store.read_index(self._progress_name(attempt)).items()}
        return {key: p for key, p in found.items() if p.answer is None or self._has(p.answer)}

    def save_progress(self, attempt: Attempt, window: Window, progress: WindowProgress) -> None:
        """Remember how far a window has come."""
        self._store.add_to_index(self._progress_name(attempt), {window.key: progress.model_dump(mode="json")})

    def _has(self, answer: Answer) -> bool:
        """Whether the store has an answer's blobs."""
        return self._store.has_blob(answer.blob, answer.bytes) and (answer.boxes is None or self._store.has_blob(answer.boxes, answer.boxes_bytes))

    def _progress_name(self, attempt: Attempt) -> str:
        return f"animl-windows/{self._name}-{attempt.begun:%Y%m%dT%H%M%S%f}"

    def _read(self, key: str, kind: type[R]) -> R | None:
        record = dict(self._store.read_index(f"animl/{self._name}").get(key, {}))
        record.pop("blobs", None)
        try:
            return kind.model_validate(record) if record else None
        except ValidationError:
            log.warning("the remembered state of the last export does not fit this version; all images are exported again")
            return None

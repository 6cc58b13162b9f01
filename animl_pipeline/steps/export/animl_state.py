"""What is remembered of a project's exports: what the last one gave, and how far the one under way has come.

Nothing here is secret: no token, no address of a file in S3.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TypeVar

from pydantic import ValidationError

from animl_pipeline.core.records import Digest, Record
from animl_pipeline.steps.export.animl_windows import Window
from animl_pipeline.storage.step_cache import Store

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
RESUMED_FOR = timedelta(hours=24)
"""A killed export is taken up again within this time; later a new one is begun."""


class Answer(Record):
    """One answer of Animl, untouched, as a blob. ``only`` limits it to a part of its time: the rest was answered anew."""

    window: Window
    blob: Digest
    bytes: int
    only: tuple[Window, ...] = ()


class Hole(Record):
    """A window that could not be exported, and why."""

    window: Window
    reason: str
    detail: str


class Exported(Record):
    """What the exports so far amount to: answers in the order in which they count, later ones over earlier ones."""

    begun: datetime
    last_full: datetime
    answers: tuple[Answer, ...]
    holes: tuple[Hole, ...] = ()
    outside: int = 0


class Attempt(Record):
    """An export under way."""

    begun: datetime
    full: bool
    windows: tuple[Window, ...]
    outside: int = 0


class Progress(Record):
    """How far a window of the attempt has come: Animl's task, its answer, or the halves that it was split into."""

    task: str = ""
    answer: Answer | None = None
    halves: tuple[Window, ...] = ()


class Memory:
    """The memory of one project with one set of filters."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    def exported(self) -> Exported | None:
        """What the exports so far amount to, if all of it is still in the store."""
        found = self._recall("exported", Exported)
        if found is not None and all(self._store.has_blob(a.blob, a.bytes) for a in found.answers):
            return found
        return None

    def attempt(self, now: datetime) -> Attempt | None:
        """The export that was begun and not ended, if it is young enough to go on with."""
        found = self._recall("attempt", Attempt)
        return found if found is not None and now - found.begun < RESUMED_FOR else None

    def begin(self, attempt: Attempt) -> None:
        """Remember an attempt with its windows."""
        self._store.add_to_index(f"animl/{self._name}", {"attempt": attempt.model_dump(mode="json")})

    def end(self, exported: Exported) -> None:
        """Remember what the exports amount to now; no attempt is under way any more."""
        self._store.add_to_index(f"animl/{self._name}", {"exported": exported.model_dump(mode="json"), "attempt": {}})

    def progress(self, attempt: Attempt) -> dict[str, Progress]:
        """How far each window of an attempt has come, by the window's key."""
        found = {key: Progress.model_validate(record) for key, record in self._store.read_index(self._windows(attempt)).items()}
        return {k: p for k, p in found.items() if p.answer is None or self._store.has_blob(p.answer.blob, p.answer.bytes)}

    def note(self, attempt: Attempt, window: Window, progress: Progress) -> None:
        """Remember how far a window has come."""
        self._store.add_to_index(self._windows(attempt), {window.key: progress.model_dump(mode="json")})

    def _windows(self, attempt: Attempt) -> str:
        return f"animl-windows/{self._name}-{attempt.begun:%Y%m%dT%H%M%S%f}"

    def _recall(self, key: str, kind: type[R]) -> R | None:
        record = self._store.read_index(f"animl/{self._name}").get(key)
        try:
            return kind.model_validate(record) if record else None
        except ValidationError:
            log.warning("what is remembered of the last export does not fit this version; everything is asked for again")
            return None

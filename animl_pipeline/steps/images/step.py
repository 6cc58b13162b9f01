"""The step: which pictures are wanted, which are there, what became of the others."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing

import pandas as pd

from animl_pipeline.config import ImagesConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ImagesError, redact_url
from animl_pipeline.core.progress import track
from animl_pipeline.core.records import Artifact, Counts
from animl_pipeline.core.step import Step
from animl_pipeline.core.table_schemas import DOWNLOADED_IMAGES, EXPORT_ANNOTATIONS, EXPORT_IMAGES, MISSING_IMAGES
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.images.concurrency import Pace
from animl_pipeline.steps.images.disk_budget import budget_of
from animl_pipeline.steps.images.download import OVER_BUDGET, Arrived, Fetching, Lost, Wanted, fetch
from animl_pipeline.steps.images.fetch_index import Known
from animl_pipeline.steps.images.max_images import OVER_LIMIT, limits_of, over_limits
from animl_pipeline.storage.remote_files import LocalFolder, Remote, open_remote
from animl_pipeline.storage.step_cache import BlobColumn, StepOutput, Store, Workspace, digest_of

log = logging.getLogger(__name__)

STEP = Step(
    "images",
    version=1,
    sections=("sources", "images"),
    reads=(EXPORT_IMAGES, EXPORT_ANNOTATIONS),
    writes=(DOWNLOADED_IMAGES, MISSING_IMAGES),
    libraries=("pillow",),
)


IMAGE_COLUMNS = ("image_id", "path", "blob", "bytes", "width", "height")
MISSING_COLUMNS = ("image_id", "path", "reason", "detail")
BATCH = 256
"""Pictures after which what arrived is remembered: a kill loses at most these ..."""
BATCH_S = 10.0
"""... and at most what arrived in so many seconds."""
IN_VAIN = 64
"""Pictures in a row for which nobody was there: the place of the pictures is gone."""
SAID_EVERY_S = 60.0


def fetch_images(
    source: SourceConfig, export: Artifact, wanted: Collection[str], store: Store, settings: Settings, spec: ImagesConfig | None = None
) -> Artifact:
    """The pictures of ``source`` that carry a wanted label.

    images.parquet: ``image_id, path, blob`` (sha256, in the store), ``bytes, width, height`` (as stored in the picture).
    missing.parquet: ``image_id, path, reason, detail``; reasons are missing, forbidden, refused, unsafe_path, too_large,
    wrong_md5, broken_picture and over_limit (of the source); and, worth another run, unreachable, timed_out, truncated and over_budget.

    Args:
        source: where the pictures lie, and which field names them.
        export: its export step.
        wanted: category names, case-folded; pictures without any of them do not travel, nor those of which only labels that
            nobody reviewed are wanted, where such labels are left out.
        store: keeps pictures by content and remembers what was fetched.
        settings: how many at a time, how patiently.
        spec: how far the store may grow.

    Raises:
        ImagesError: the place of the pictures is not there, or pictures are wanted and not one of them arrived; says why, with counts.
    """
    remote = location_of(source, settings)
    config = {"images": _base_of(source), "key": source.key, "wanted": sorted(wanted), "unreviewed": source.unreviewed, **limits_of(source)}

    def build(space: Workspace) -> StepOutput:
        images, not_wanted = wanted_images(source, store, export, wanted)
        over = over_limits(images, source)
        images, left_out = images.loc[~over, ["image_id", "path"]], images.loc[over, ["image_id", "path"]]
        known = _fetch_all(source, images, remote, store, settings, spec or ImagesConfig())
        return _write_tables(space, source, known, left_out, not_wanted)

    return store.make(STEP, inputs={"export": export}, config=config, build=build)


def location_of(source: SourceConfig, settings: Settings) -> Remote:
    """Where a source's pictures lie. Nothing is asked of it.

    Raises:
        ImagesError: in a folder that is not there.
    """
    remote = open_remote(source.images, settings)
    if isinstance(remote, LocalFolder) and not os.path.isdir(remote.folder):  # noqa: PTH112 - Path.is_dir raises where a name is too long
        raise ImagesError(
            f"source {source.name!r}: expected a folder of pictures at {remote.folder}, found none; mend sources.images in the plan or set ANIML_DATA"
        )
    return remote


def wanted_images(source: SourceConfig, store: Store, export: Artifact, wanted: Collection[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The images with a wanted label that counts, and how many are left out by reason."""
    images, objects = store.table(export, "images.parquet"), store.table(export, "annotations.parquet")
    named = objects["label"].str.casefold().isin(list(wanted))
    only_reviewed = source.unreviewed == "drop" and "reviewed" in objects  # a table that does not say is taken at its word
    counts = named & objects["reviewed"] if only_reviewed else named
    carries, mask = (images["image_id"].isin(objects.loc[some, "image_id"]) for some in (named, counts))
    left_out = {"without_a_wanted_label": int((~carries).sum()), "with_unreviewed_labels_only": int((carries & ~mask).sum())}
    return images.loc[mask, ["image_id", "path", "location"]], {reason: n for reason, n in left_out.items() if n}


def memory_of(source: SourceConfig) -> str:
    """Under which name it is remembered what arrived from where a source's pictures lie."""
    return f"images/{digest_of([_base_of(source), source.key])[:16]}"


def _base_of(source: SourceConfig) -> str:
    """Where the pictures lie, by which they are known again: a new signature is no other place, and no secret lies in the store."""
    return redact_url(source.images) if source.images.startswith("http") else source.images


def _fetch_all(source: SourceConfig, images: pd.DataFrame, remote: Remote, store: Store, settings: Settings, spec: ImagesConfig) -> Known:
    """What became of each picture; what arrives is remembered a batch at a time, also when the fetching ends before its time."""
    known = Known(images)
    memory = memory_of(source)
    known.recall(memory, store)
    there = int(known.here.sum())
    if there == len(known):
        return known
    log.info("pictures of %s: %d wanted, %d of them here", source.name, len(known), there)
    with track(f"pictures of {source.name}", len(known), there) as step, budget_of(store, spec.max_disk) as budget:
        shared = Fetching(remote, store, budget, Pace(settings.connections), settings.timeout_s)
        log_book = _LogBook(source, memory, store, step, len(known) - there)
        try:
            with closing(fetch(known.todo(), shared, settings.connections)) as fetched:
                for answers in fetched:
                    for wanted, answer in answers:
                        known.add(wanted.row, answer)
                    log_book.add(answers)
        finally:
            log_book.remember()
    for row in known.unanswered().tolist():
        known.add(row, OVER_BUDGET)
    return known


class _LogBook:
    """What is done with answers besides keeping them: remembered in batches, told to people, judged for a host that is gone."""

    def __init__(self, source: SourceConfig, memory: str, store: Store, step: Callable[[int], None], total: int) -> None:
        self._source, self._memory, self._store, self._step, self._total = source, memory, store, step, total
        self._batch: dict[str, dict[str, object]] = {}
        self._begun = self._remembered = self._said = time.monotonic()
        self._answered = self._arrived = self._bytes = self._in_vain = 0

    def add(self, answers: list[tuple[Wanted, Arrived | Lost]]) -> None:
        """Some more answers.

        Raises:
            ImagesError: nobody was there for many pictures in a row.
        """
        now = time.monotonic()
        for wanted, answer in answers:
            if isinstance(answer, Arrived):
                self._batch[wanted.path] = answer._asdict()
                self._arrived += 1
                self._bytes += answer.bytes
            self._in_vain = self._in_vain + 1 if isinstance(answer, Lost) and answer.offline else 0
            if self._in_vain >= IN_VAIN and isinstance(answer, Lost):
                self._give_up(answer)
        self._answered += len(answers)
        if answers:
            self._step(len(answers))
        if len(self._batch) >= BATCH or (self._batch and now - self._remembered > BATCH_S):
            self.remember()
        if now - self._said > SAID_EVERY_S:
            self._say(now)

    def remember(self) -> None:
        """Keep what arrived since the last time: first the pictures themselves, then what is known of them."""
        if not self._batch:
            return
        self._store.object_store.flush()
        self._store.add_to_index(self._memory, self._batch)
        self._batch = {}
        self._remembered = time.monotonic()

    def _say(self, now: float) -> None:
        self._said = now
        seconds = now - self._begun
        rate = self._answered / seconds
        left = (self._total - self._answered) / rate / 60 if rate else float("inf")
        log.info(
            "pictures of %s: %d of %d, %.0f a second, %.1f MB a second, about %.0f minutes left",
            self._source.name, self._answered, self._total, rate, self._bytes / seconds / 1e6, left,
        )  # fmt: skip

    def _give_up(self, answer: Lost) -> None:
        raise ImagesError(
            f"source {self._source.name!r}: expected pictures from {redact_url(self._source.images)}, reached none of {self._in_vain} in a row "
            f"({answer.detail}); check the network, sources.images and the credentials, then run again; "
            f"what arrived before ({self._arrived:,} in this run) is kept"
        )


def _why_none(not_wanted: dict[str, int]) -> str:
    """Why no picture is wanted."""
    if unreviewed := not_wanted.get("with_unreviewed_labels_only"):
        return f"no person validated the labels of the plan that {unreviewed:,} of them carry (`unreviewed: keep` would take a machine's word)"
    return "none carries a label of the plan"


def _write_tables(space: Workspace, source: SourceConfig, known: Known, left_out: pd.DataFrame, not_wanted: dict[str, int]) -> StepOutput:
    reasons = Counter(lost.reason for lost in known.lost.values())
    here = known.arrived()
    if not len(known):  # another source may have what the plan asks for; a class that has nothing is the next step's word
        log.warning("pictures of %s: none is wanted: %s", source.name, _why_none(not_wanted))
    elif not len(here):
        found = ", ".join(f"{n} {r.replace('_', ' ')}" for r, n in reasons.most_common())
        first = f" (the first: {known.lost[min(known.lost)].detail})" if known.lost else ""
        mend = "raise images.max_disk" if set(reasons) == {OVER_BUDGET.reason} else "check sources.images and sources.key"
        raise ImagesError(
            f"source {source.name!r}: not one of {len(known)} pictures arrived from {redact_url(source.images)}: {found}{first}; {mend} in the plan"
        )
    write_table(space.out, DOWNLOADED_IMAGES, here)
    limits = ", ".join(f"{k} {v:,}" for k, v in limits_of(source).items())
    beyond = left_out.assign(reason=OVER_LIMIT, detail=f"the source's limits: {limits}")
    write_table(space.out, MISSING_IMAGES, pd.concat([known.missing(), beyond]) if len(beyond) else known.missing())
    if reasons["over_budget"]:
        log.warning(
            "pictures of %s: %d left out, since the store would grow beyond images.max_disk; raise it in the plan, then run again",
            source.name, reasons["over_budget"],
        )  # fmt: skip
    dropped = dict(reasons) | ({OVER_LIMIT: len(beyond)} if len(beyond) else {})
    dropped |= not_wanted
    twice = len(here) - here["blob"].nunique()
    noted = {"same_bytes_as_another": twice} if twice else {}
    final = not any(lost.retryable for lost in known.lost.values())
    return StepOutput(Counts(kept=len(here), dropped=dropped, noted=noted, unit="images"), blobs=(BlobColumn(file="images.parquet"),), final=final)

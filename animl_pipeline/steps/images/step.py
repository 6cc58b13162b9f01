"""The step `images`: download and verify the images that carry a wanted label."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from typing import Any

import pandas as pd

from animl_pipeline.config import ImagesConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import ImagesError, ImagesUnreachableError, redact_url
from animl_pipeline.core.progress import track
from animl_pipeline.core.sample_limit_and_false_box_types import ClassLimits, WantedSample
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import DOWNLOADED_IMAGES, EXPORT_ANNOTATIONS, EXPORT_IMAGES, MISSING_IMAGES
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.images.adaptive_download_limit import AdaptiveLimit
from animl_pipeline.steps.images.download import (
    FORMAT_NOT_ALLOWED,
    OVER_BUDGET,
    Answer,
    Downloaded,
    Failed,
    Session,
    disk_budget,
    download,
    open_image_host,
)
from animl_pipeline.steps.images.download_status import DownloadStatus
from animl_pipeline.steps.images.files_changed_later import make_again_if_changed
from animl_pipeline.steps.images.wanted_images_and_estimate import (
    UNREVIEWED_ONLY,
    WantedImages,
    host_address,
    index_name,
    local_folder,
    select_images,
    source_limits,
)
from animl_pipeline.storage.read_remote_files import RemoteFolder
from animl_pipeline.storage.store import BlobColumn, StepOutput, Store, Workspace

log = logging.getLogger(__name__)

STEP = Step(
    "images",
    version=2,
    sections=("sources", "images"),
    reads=(EXPORT_IMAGES, EXPORT_ANNOTATIONS),
    writes=(DOWNLOADED_IMAGES, MISSING_IMAGES),
    libraries=("pillow",),
)

BATCH = 256
"""Images between two writes to the image index: a killed process loses at most these ..."""
BATCH_S = 10.0
"""... and at most the images of this many seconds."""
MAX_OFFLINE = 64
"""After this many images in a row without a connection, the step gives up."""
OVER_LIMIT, OVER_CLASS_LIMIT = "over_limit", "over_class_limit"


def download_images(
    source: SourceConfig,
    export: Artifact,
    wanted: Collection[str],
    store: Store,
    settings: Settings,
    config: ImagesConfig | None = None,
    samples: Sequence[WantedSample] = (),
    limits: ClassLimits | None = None,
) -> Artifact:
    """Download the images of ``source`` that have a wanted label, and put them into the store.

    Writes the table DOWNLOADED_IMAGES, and MISSING_IMAGES with a reason for each image that failed: missing, forbidden, refused,
    unsafe_path, too_large, wrong_md5, broken_image, format_not_allowed, over_limit (of the source), over_class_limit; and those that another
    run may get: unreachable, timed_out, truncated, over_budget.

    ``wanted``: labels, case-folded. Images without any of them are not downloaded. ``samples``: which images without a wanted label are
    downloaded as well, for the classes of false boxes and other animals. ``limits``: of the plan's classes; images that they have no use for
    are not downloaded. None: no class has any.

    Raises:
        ImagesUnreachableError: the host does not answer.
        ImagesError: the folder of the images does not exist, the credentials are refused, or no image could be downloaded.
    """
    host = open_image_host(source, settings)
    key = {
        "images": host_address(source, settings),
        "path_field": source.path_field,
        "wanted": sorted(wanted),
        "unreviewed": source.unreviewed,
        **source_limits(source),
        **({"formats": sorted(formats)} if (formats := (config or ImagesConfig()).formats) != ImagesConfig().formats else {}),
        **({"samples": [list(s) for s in samples]} if samples else {}),
        **({"class_limits": limits.key} if limits else {}),
    }

    def build(space: Workspace) -> StepOutput:
        selected = select_images(source, export, wanted, store, samples, limits)
        status = download_all(source, selected.images, host, store, settings, config or ImagesConfig())
        _check_any_downloaded(source, status, selected)
        return _write_tables(space, source, status, selected, is_final=status.is_final())

    def make(key: dict[str, Any]) -> Artifact:
        return store.make(STEP, inputs={"export": export}, config=key, build=build)

    return make_again_if_changed(make, key, local_folder(source, settings), store)


def download_all(
    source: SourceConfig, images: pd.DataFrame, host: RemoteFolder, store: Store, settings: Settings, config: ImagesConfig
) -> DownloadStatus:
    """Download the images that the store does not hold. What arrives is indexed in batches, also when the download ends early."""
    status = DownloadStatus(images)
    index = index_name(source, settings)
    status.load(index, store, local_folder(source, settings))
    if older := status.add_orientations(store):
        store.add_to_index(index, older)
    in_store = int(status.in_store.sum())
    if in_store == len(status):
        return status
    log.info("images of %s: %d wanted, %d of them in the store", source.name, len(status), in_store)
    with track(f"images of {source.name}", len(status), in_store) as advance, disk_budget(store, config.max_disk) as budget:
        session = Session(host, store, budget, AdaptiveLimit(settings.max_connections), settings.timeout_s, config.formats)
        recorder = _AnswerRecorder(source, index, store, advance)
        try:
            with closing(download(status.requests(), session, settings.max_connections)) as batches:
                for answers in batches:
                    for request, answer in answers:
                        status.add(request.row, answer)
                    recorder.add(answers)
        finally:
            recorder.write_index()
    status.fail_rest(OVER_BUDGET)
    return status


class _AnswerRecorder:
    """Writes downloads to the image index in batches, reports progress, and stops when the host does not answer."""

    def __init__(self, source: SourceConfig, index: str, store: Store, advance: Callable[[int], None]) -> None:
        self._source, self._index, self._store, self._advance = source, index, store, advance
        self._batch: dict[str, dict[str, object]] = {}
        self._written = time.monotonic()
        self._downloaded = self._offline = 0

    def add(self, answers: list[Answer]) -> None:
        """Record some answers.

        Raises:
            ImagesError: many images in a row failed without a connection, or with refused credentials.
        """
        for request, answer in answers:
            if isinstance(answer, Downloaded):
                self._batch[request.path] = answer._asdict()
                self._downloaded += 1
            self._offline = self._offline + 1 if isinstance(answer, Failed) and answer.offline else 0
            if self._offline >= MAX_OFFLINE and isinstance(answer, Failed):
                self._give_up(answer)
        if answers:
            self._advance(len(answers))
        if len(self._batch) >= BATCH or (self._batch and time.monotonic() - self._written > BATCH_S):
            self.write_index()

    def write_index(self) -> None:
        """Write the downloads since the last call to the index, after making sure that the images themselves are on disk."""
        if not self._batch:
            return
        self._store.object_store.flush()
        self._store.add_to_index(self._index, self._batch)
        self._batch = {}
        self._written = time.monotonic()

    def _give_up(self, answer: Failed) -> None:
        refused = answer.reason == "forbidden"
        advice = "check your credentials" if refused else "check the network and sources.images"
        raise (ImagesError if refused else ImagesUnreachableError)(
            f"source {self._source.name!r}: {self._offline} images in a row failed at {redact_url(self._source.images)} ({answer.detail}); "
            f"{advice}, then run again; the {self._downloaded:,} images that this run downloaded are kept",
            code="credentials_refused" if refused else "",
        )


def _check_any_downloaded(source: SourceConfig, status: DownloadStatus, selected: WantedImages) -> None:
    """Raise if images are wanted and none is in the store. Warn if none is wanted: another source may have what the plan needs.

    Raises:
        ImagesUnreachableError: each failure is one that may pass.
        ImagesError: otherwise.
    """
    if not len(status):
        if unreviewed := selected.not_wanted.get(UNREVIEWED_ONLY):
            why = f"the plan's labels on {unreviewed:,} of them were not validated by a person (`unreviewed: keep` would use them)"
        else:
            why = "none has a label of the plan"
        log.warning("images of %s: none is wanted: %s", source.name, why)
        return
    if status.in_store.any():
        return
    reasons = Counter(failed.reason for failed in status.failed.values())
    counts = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in reasons.most_common())
    over_budget = set(reasons) == {OVER_BUDGET.reason}
    unreachable = not over_budget and all(failed.retryable and failed.reason != "forbidden" for failed in status.failed.values())
    advice = "raise images.max_disk" if over_budget else "check sources.images and sources.path_field"
    if set(reasons) == {FORMAT_NOT_ALLOWED}:
        advice = "set images.formats"
    raise (ImagesUnreachableError if unreachable else ImagesError)(
        f"source {source.name!r}: none of {len(status)} images could be downloaded from {redact_url(source.images)}: {counts} "
        f"(the first: {status.failed[min(status.failed)].detail}); {advice} in the plan",
        code="over_budget" if over_budget else "none_downloaded",
        reasons=dict(reasons),
    )


def _write_tables(space: Workspace, source: SourceConfig, status: DownloadStatus, selected: WantedImages, *, is_final: bool) -> StepOutput:
    downloaded, missing = status.downloaded_table(), status.missing_table()
    dropped = dict(Counter(missing["reason"].tolist())) | selected.not_wanted
    if n := len(selected.over_limit):
        limits = ", ".join(f"{key} {limit:,}" for key, limit in source_limits(source).items())
        missing = pd.concat([missing, selected.over_limit.assign(reason=OVER_LIMIT, detail=f"the source's limits: {limits}")])
        dropped[OVER_LIMIT] = n
    if n := len(selected.over_class_limit):
        detail = "the limits of the plan's classes"
        missing = pd.concat([missing, selected.over_class_limit.assign(reason=OVER_CLASS_LIMIT, detail=detail)])
        dropped[OVER_CLASS_LIMIT] = n
    write_table(space.out, DOWNLOADED_IMAGES, downloaded)
    write_table(space.out, MISSING_IMAGES, missing)
    if over_budget := dropped.get(OVER_BUDGET.reason):
        log.warning(
            "images of %s: %d not downloaded, because the store would grow beyond images.max_disk; raise it in the plan, then run again",
            source.name, over_budget,
        )  # fmt: skip
    if refused := dropped.get(FORMAT_NOT_ALLOWED):
        log.warning("images of %s: %d are in a format that images.formats does not name; name it in the plan to use them", source.name, refused)
    repeated = len(downloaded) - downloaded["blob"].nunique()
    notes = {name: n for name, n in (("same_bytes_as_another", repeated), *selected.samples.items()) if n}
    counts = Counts(kept=len(downloaded), dropped=dropped, notes=notes, unit="images")
    return StepOutput(counts, blobs=(BlobColumn(file=DOWNLOADED_IMAGES.file),), final=is_final)

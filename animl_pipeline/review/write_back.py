"""Write changed answers of `reinfer` to Animl: only to images of which people reviewed nothing, and never a label twice.

Animl itself notices neither. So it is asked about each image right before, and the store notes each object before and after its
label is sent. After a kill, the next run sees by Animl's answer which of the labels in between arrived.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pandas as pd
from filelock import FileLock

from animl_pipeline.config import Plan, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, ExportUnreachableError
from animl_pipeline.core.progress import track
from animl_pipeline.deploy.resource_names import animl_model_id
from animl_pipeline.integrations.animl import AnimlClient
from animl_pipeline.integrations.animl.client import relative_box
from animl_pipeline.integrations.animl.queries import LABELS_WITH_BOXES
from animl_pipeline.integrations.animl.write_labels import LabelWriter, ModelLabel
from animl_pipeline.review.write_predictions import UNKNOWN
from animl_pipeline.storage.object_store import WORK
from animl_pipeline.storage.read_remote_files import RemoteError
from animl_pipeline.storage.store import Store, batches, digest_of

log = logging.getLogger(__name__)

BATCH = 20
"""Images that Animl is asked about at a time, right before their labels are sent."""
IN_FLIGHT_S = 60.0
"""A label that was sent less than this ago, by a run that was killed, may still arrive: Animl takes at most 30 s for a request."""


class _Writing(NamedTuple):
    """What the labels of one source are written with. ``noted`` is what the store's index ``noted_in`` holds: object → state, and since when."""

    animl: AnimlClient
    writer: LabelWriter
    model_id: str
    version: str
    noted_in: str
    noted: dict[str, dict[str, Any]]
    store: Store
    in_flight_s: float


def write_back(
    changed: pd.DataFrame, version: str, plan: Plan, store: Store, settings: Settings, in_flight_s: float = IN_FLIGHT_S
) -> dict[str, int]:  # fmt: skip
    """Send the new labels, and count what became of the changed answers.

    Args:
        changed: rows with ``source, image_id, object, new, probability``, as ``reinfer.execute`` returns them.
        version: of the model that answered.
        plan: names the model and the Animl projects.
        store: notes what was sent.
        settings: Animl's address, user and API key.
        in_flight_s: how long a label that a killed run sent may take to arrive.

    Returns:
        Reason → answers: ``written``; ``written_before``; ``unknown``: no class reaches its threshold; ``disabled``: Animl keeps no predictions of
        the class; ``not_in_animl``: the source is a file; ``reviewed``: people reviewed something of the image; ``gone``: Animl has no such
        object; ``in_flight``: a killed run sent it a moment ago, so the next run looks again; ``refused``.

    Raises:
        ExportUnreachableError: Animl does not answer now. The next run goes on.
        SettingsError: a setting for Animl is missing or wrong.
    """
    index = f"reinfer-sent/{digest_of([settings.api_url, animl_model_id(plan), version])[:32]}"
    projects = {source.name: source for source in plan.sources if source.project() is not None}
    disabled = plan.release.register_.disabled if plan.release.register_ else ()
    reasons = {"unknown": changed["new"] == UNKNOWN, "disabled": changed["new"].isin(disabled), "not_in_animl": ~changed["source"].isin(projects)}
    counts, left = Counter[str](), changed
    for reason, is_so in reasons.items():
        counts[reason] = int(is_so[left.index].sum())
        left = left[~is_so[left.index]]
    with FileLock(store.local / WORK / f"{index.replace('/', '-')}.lock"), LabelWriter(settings) as writer:
        noted = store.read_index(index)
        for source in projects.values():
            rows = left[left["source"] == source.name]
            if len(rows):
                with AnimlClient(source.project() or "", settings) as animl:
                    counts += _write_source(source, rows, _Writing(animl, writer, animl_model_id(plan), version, index, noted, store, in_flight_s))
    return {reason: n for reason, n in counts.items() if n}


def _write_source(source: SourceConfig, rows: pd.DataFrame, writing: _Writing) -> Counter[str]:
    """Send the labels of one source, some images at a time."""
    counts = Counter[str]()
    with track(f"labels to {source.name}", rows["image_id"].nunique()) as advance:
        for image_ids in batches(rows["image_id"].unique().tolist(), BATCH):
            part = {str(image): group for image, group in rows[rows["image_id"].isin(image_ids)].groupby("image_id", sort=False)}
            try:
                counts += _write_images(part, writing)
            except RemoteError as e:
                kind = ExportUnreachableError if e.retryable else ExportError
                raise kind(f"source {source.name!r}: {e}; run again: what was written is noted, and is not written twice", code=e.reason) from e
            advance(len(image_ids))
    return counts


def _write_images(rows: Mapping[str, pd.DataFrame], writing: _Writing) -> Counter[str]:
    images = {str(im["_id"]): im for im in writing.animl.images_by_id(LABELS_WITH_BOXES, list(rows))}
    counts = Counter[str]()
    todo: dict[str, dict[str, ModelLabel]] = {}
    arrived = []
    for image_id, of_image in rows.items():
        for row in of_image.to_dict("records"):
            state, label = _look(images.get(image_id), row, writing)
            counts[state] += label is None
            arrived += [row["object"]] if state == "written_before" else []
            if label is not None:
                todo.setdefault(image_id, {})[row["object"]] = label
    _note(arrived, "sent", writing)
    _note([o for labels in todo.values() for o in labels], "sending", writing)
    for image_id, labels in todo.items():
        try:
            writing.writer.create(image_id, list(labels.values()))
        except RemoteError as e:
            if e.retryable:  # it may have arrived: the next run looks
                raise
            log.warning("%s: no label written: %s", image_id, e)
            counts["refused"] += len(labels)
            continue
        _note(labels, "sent", writing)
        counts["written"] += len(labels)
    return counts


def _look(image: Mapping[str, Any] | None, row: Mapping[Any, Any], writing: _Writing) -> tuple[str, ModelLabel | None]:
    """The label to send for an object; or why none is sent, by what Animl has now."""
    noted = writing.noted.get(row["object"], {})
    if noted.get("state") == "sent":
        return "written_before", None
    objects = {str(o["_id"]): o for o in (image or {}).get("objects") or []}
    found = objects.get(row["object"])
    box = None if found is None else relative_box(found)
    if image is None or found is None or box is None:
        return "gone", None
    ours = (writing.model_id, writing.version)
    if any((label.get("mlModel"), str(label.get("mlModelVersion"))) == ours for label in found.get("labels") or []):
        return "written_before", None
    if is_reviewed(image):
        return "reviewed", None
    if noted and (datetime.now(UTC) - datetime.fromisoformat(noted["at"])).total_seconds() < writing.in_flight_s:
        return "in_flight", None
    return "", ModelLabel(labelId=row["new"], conf=row["probability"], bbox=tuple(box), mlModel=ours[0], mlModelVersion=ours[1])


def is_reviewed(image: Mapping[str, Any]) -> bool:
    """Whether people reviewed anything of an image: a label that they gave or decided about, or a locked object."""
    objects = image.get("objects") or []
    labels = [label for o in objects for label in o.get("labels") or []]
    decided = any(label.get("type") == "manual" or (label.get("validation") or {}).get("validated") is not None for label in labels)
    return bool(image.get("reviewed")) or decided or any(o.get("locked") for o in objects)


def _note(objects: Sequence[str] | Mapping[str, Any], state: str, writing: _Writing) -> None:
    records = {name: {"state": state, "at": datetime.now(UTC).isoformat()} for name in objects}
    if records:
        writing.store.add_to_index(writing.noted_in, records)
        writing.noted.update(records)

"""Ask a released model about old, unreviewed images of the plan's exports. No person's label changes; ``write_back`` sends the answers to Animl."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from animl_pipeline.config import Plan, PlannedEndpoint
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.animl_and_sagemaker_limits import MAX_IMAGE_BYTES, RESIZED_WIDTH
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.capture_times import parse_days
from animl_pipeline.core.category_names import role
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import ImagesError, ReleaseError
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.progress import track
from animl_pipeline.core.report_formats import image_link
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS, EXPORT_IMAGES
from animl_pipeline.core.untrusted_text import write_csv
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.deploy.animl_registration import kept_by_animl
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.endpoint_status import endpoint_statuses
from animl_pipeline.deploy.live_check import ask_endpoint
from animl_pipeline.deploy.release_history import read_records
from animl_pipeline.inference.shown_labels import shown_labels
from animl_pipeline.review.candidates import Pool, download_pool, export_with_unreviewed, unreviewed_images
from animl_pipeline.review.packaged_model import load_packaged_model
from animl_pipeline.review.score_images import BOX, ScoredImages
from animl_pipeline.review.write_predictions import UNKNOWN, Predictions, write_megadetector_file
from animl_pipeline.steps.labels.class_mapping import class_by_label
from animl_pipeline.storage.store import Store, batches, digest_of

RESULTS_FILE, CHANGED_FILE = "reinferred.json", "changed.csv"
BATCH = 64
"""Answers between two writes to the store: a killed command asks at most these again."""
ANSWER_TIMEOUT_S = 120.0
CHANGED_COLUMNS = ["rank", "invasive", "source", "image_id", "location", "taken", "old", "new", "probability", "link"]


class Work(NamedTuple):
    """What is to be asked.

    Attributes:
        objects: a row for each box: ``IMAGE_COLUMNS`` without sequence, ``object``, ``old`` (label), ``BOX`` and ``key`` (of its answer).
        images: how many images.
        without_size: boxes that are left out because the export does not say how large their image is.
        endpoint: the endpoint that is asked.
        version: the version that it serves.
        planned: its size, by the plan.
        answered: how many boxes have an answer of this version in the store.
        seconds, gb_seconds: how long the rest takes at the endpoint's measured time, and what it is billed by; None if no time was measured.
    """

    objects: pd.DataFrame
    images: int
    without_size: int
    endpoint: str
    version: str
    planned: PlannedEndpoint
    answered: int
    seconds: float | None
    gb_seconds: float | None


def plan_reinference(plan: Plan, since: date, store: Store, settings: Settings) -> Work:
    """What would be asked of the plan's batch endpoint (its only one if it has no other). No image is downloaded, nothing is asked.

    Raises:
        ReleaseError: ``not_released``: the endpoint does not serve a version that this store knows.
        ImagesError: ``nothing_unreviewed``.
    """
    status = endpoint_statuses(plan, store, settings)[-1]
    if status.version is None:
        raise ReleaseError(
            f"the endpoint {status.endpoint} ({status.status}) serves no version that was released from this store; release one first",
            code="not_released",
        )
    planned = plan.release.endpoints(plan.model, status.version)[-1]
    objects, without_size = _old_objects(plan, since, store, settings)
    known = store.read_index(_index(status.endpoint, status.version))
    left = int((~objects["key"].isin(list(known))).sum())
    times = [r.latency.p50_ms for r in read_records(planned.base_name, store) if r.state == "done" and r.latency is not None]
    seconds = left * times[-1] / 1000 if times else None
    return Work(
        objects, objects[["source", "image_id"]].drop_duplicates().shape[0], without_size, status.endpoint, status.version, planned,
        len(objects) - left, seconds / _workers(planned) if seconds is not None else None,
        seconds * planned.memory_mb / 1024 if seconds is not None else None,
    )  # fmt: skip


def execute(work: Work, plan: Plan, out: Path, store: Store, settings: Settings) -> tuple[pd.DataFrame, int]:
    """Ask for what has no answer yet, write reinferred.json and changed.csv, and return the changed answers and how many images failed.

    A changed answer has the columns of changed.csv and ``object``, the id of its annotation.

    At most as many requests as the endpoint answers at a time are sent. A killed command goes on where it was.

    Raises:
        ReleaseError: the endpoint refuses, or throttles for longer than two minutes.
    """
    index = _index(work.endpoint, work.version)
    known = store.read_index(index)
    missing = work.objects[~work.objects["key"].isin(list(known))]
    images = missing.drop_duplicates(["source", "image_id"]).reset_index(drop=True)
    pool = download_pool(Pool(images.assign(sequence=""), np.zeros(len(images), bool), 0, 0), plan, store, settings)
    blob = pool.images.set_index(["source", "image_id"])["blob"]
    rows = [r for r in missing.to_dict("records") if blob[(r["source"], r["image_id"])]]
    aws = AwsApi()

    def ask(row: dict[Any, Any]) -> tuple[str, dict[str, float]]:
        data = _as_animl_sends(store.blob(blob[(row["source"], row["image_id"])]))
        return row["key"], ask_endpoint(aws, work.endpoint, data, Box.of([row[side] for side in BOX]), ANSWER_TIMEOUT_S)

    with ThreadPoolExecutor(_workers(work.planned)) as threads, track("asking the endpoint", len(work.objects), work.answered) as advance:
        for batch in batches(rows, BATCH):
            answers = {key: {"p": answer} for key, answer in threads.map(ask, batch)}
            store.add_to_index(index, answers)
            known |= answers
            advance(len(batch))
    card = load_packaged_model(plan, work.version, store).classifier.card
    changed = _write(work, known, card, plan, out, settings)
    return changed, int((pool.images["blob"] == "").sum())


def _old_objects(plan: Plan, since: date, store: Store, settings: Settings) -> tuple[pd.DataFrame, int]:
    """The boxes of animals in unreviewed images taken on this day or later, and how many have no image size."""
    images = unreviewed_images(plan, store, settings)
    recent = images[parse_days(images["taken"]) >= np.datetime64(since)]
    parts = []
    for source in plan.sources:
        export = export_with_unreviewed(source, store, settings)
        sizes = store.table(export, EXPORT_IMAGES, ["image_id", "width", "height"])
        boxes = store.table(export, EXPORT_ANNOTATIONS).rename(columns={"annotation_id": "object", "label": "old"})
        boxes = boxes[boxes["x"].notna() & ~boxes["old"].map(lambda name: role(name) in {"people", "vehicle", "empty"}).astype(bool)]
        parts.append(recent[recent["source"] == source.name].merge(boxes, on="image_id").merge(sizes, on="image_id"))
    found = pd.concat(parts, ignore_index=True)
    sized = (found["width"] > 0) & (found["height"] > 0)
    for low, high, start, length, size in (("ymin", "ymax", "y", "h", "height"), ("xmin", "xmax", "x", "w", "width")):
        found[low] = (found[start] / found[size]).clip(0, 1)
        found[high] = ((found[start] + found[length]) / found[size]).clip(0, 1)
    found = found[sized & (found["ymax"] > found["ymin"]) & (found["xmax"] > found["xmin"])].reset_index(drop=True)
    if found.empty:
        raise ImagesError(
            f"expected boxes of animals in unreviewed images from {since} on in the plan's exports, found none; choose an earlier day",
            code="nothing_unreviewed",
        )
    keys = [digest_of([row[0], row[1], [round(v, 5) for v in row[2:]]])[:32] for row in found[["source", "image_id", *BOX]].itertuples(index=False)]
    return found.assign(key=keys).drop_duplicates("key").reset_index(drop=True), int((~sized).sum())


def _write(work: Work, known: dict[str, dict[str, Any]], card: ModelCard, plan: Plan, out: Path, settings: Settings) -> pd.DataFrame:
    objects = work.objects[work.objects["key"].isin(list(known))].reset_index(drop=True)
    answers = [known[key]["p"] for key in objects["key"]]
    probability = np.array([[float(a.get(c, 0.0)) for c in card.animal_ids()] for a in answers]).reshape(-1, len(card.animal_ids()))
    shown = shown_labels(probability, card, kept_by_animl(card, plan))
    images = objects.drop_duplicates(["source", "image_id"]).reset_index(drop=True).assign(sequence=0)
    position = pd.Series(images.index, pd.MultiIndex.from_frame(images[["source", "image_id"]]))
    rows = position.loc[pd.MultiIndex.from_frame(objects[["source", "image_id"]])].to_numpy(np.int64)
    boxes = objects[BOX].assign(row=rows, category=ANIMAL, confidence=objects["confidence"].fillna(1.0), animal=np.arange(len(objects)))
    scored = ScoredImages(images, {}, boxes, probability, np.empty((len(objects), 0), np.float32), card)
    out.mkdir(parents=True, exist_ok=True)
    write_megadetector_file(Predictions(scored, shown, "as in the export", smoothed=False), out / RESULTS_FILE)
    class_of = class_by_label(plan.labels)
    table = objects.assign(
        old=[class_of.get(str(name).casefold(), name) for name in objects["old"]],
        new=np.where(shown.label == "", UNKNOWN, shown.label),
        probability=shown.probability,
        link=[image_link(settings.image_url, image) for image in objects["image_id"]],
    )
    table = table[(table["old"] != table["new"]) & ~((table["new"] == UNKNOWN) & ~table["old"].isin(card.answered_ids()))]
    table = table.assign(invasive=table["new"].isin(plan.thresholds.invasive))
    table = table.sort_values(["invasive", "probability", "key"], ascending=[False, False, True], ignore_index=True)
    table = table.assign(rank=np.arange(1, len(table) + 1))[[*CHANGED_COLUMNS, "object"]]
    write_csv(out / CHANGED_FILE, table[CHANGED_COLUMNS])
    return table


def _as_animl_sends(image: bytes) -> bytes:
    """The image, or a narrower JPEG of it where Animl would send one."""
    if len(image) <= MAX_IMAGE_BYTES:
        return image
    whole = open_image(image)
    width = min(RESIZED_WIDTH, whole.width)
    smaller = whole.resize((width, max(1, round(whole.height * width / whole.width))), Image.Resampling.LANCZOS)
    for quality in (90, 75, 50):
        buffer = io.BytesIO()
        smaller.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= MAX_IMAGE_BYTES:
            break
    return buffer.getvalue()


def _workers(planned: PlannedEndpoint) -> int:
    """Requests at the same time: as many as the endpoint answers."""
    return planned.max_concurrency if planned.instance_type is None else 4 * planned.instances


def _index(endpoint: str, version: str) -> str:
    return f"reinfer/{digest_of([endpoint, version])[:32]}"

"""Look at unreviewed images with the model in service, for the monitor: the next review list, suspected strangers, and the embedding."""

from __future__ import annotations

import hashlib
import tempfile
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.capture_times import parse_seconds
from animl_pipeline.core.crop_for_page import crop_data_uri
from animl_pipeline.core.errors import PipelineError
from animl_pipeline.core.report_formats import image_link
from animl_pipeline.review.model_in_service import UNKNOWN_VERSION
from animl_pipeline.review.review_next import ReviewList, Wish, list_images, save_list, with_people, write_table
from animl_pipeline.review.score_images import BOX
from animl_pipeline.steps.monitor.unreviewed_look import EmbeddingDrift, Stranger, UnreviewedLook, measure_drift
from animl_pipeline.storage.store import Store

CANDIDATES = 10
"""So many times the length of the list are looked at."""
MAX_STRANGERS, MAX_SHOWN = 50, 12
"""Strangers that are listed, and those with a crop."""


def look_at_unreviewed(plan: Plan, version: str, day: date, store: Store, settings: Settings) -> UnreviewedLook:
    """What the model in service sees in a sample of the plan's unreviewed images.

    Args:
        plan: ``monitor.review_images`` is the length of the list; 0: nothing is looked at.
        version: that serves.
        day: the last of the recent days.
        store: holds the packages; the list and the measured drift are kept there.
        settings: where images are, and Animl's address and user.

    Raises:
        PipelineError: a retryable one. Others become a sentence of the result: the figures of the monitor do not depend on this look.
    """
    count = plan.monitor.review_images
    if not count:
        return UnreviewedLook()
    try:
        wish = Wish(count, plan.review.random_share, CANDIDATES * count, version="" if version == UNKNOWN_VERSION else version)
        found = list_images(plan, wish, store, settings)
    except PipelineError as e:
        if e.retryable:
            raise
        return UnreviewedLook(said=f"Strangers and the embedding were not looked at: {e}")
    with tempfile.TemporaryDirectory() as folder:
        table = write_table(found, Path(folder)).read_bytes()
    save_list(found, f"monitor-{day}-{hashlib.sha256(table).hexdigest()[:8]}", table, store)  # a second list of a day is kept beside the first
    return UnreviewedLook(
        said="", strangers=_strangers(found, store, settings), drift=_drift(found, plan, day, store), listed=len(found.table),
        list_csv=table.decode(), list_page=found.page,
    )  # fmt: skip


def _strangers(found: ReviewList, store: Store, settings: Settings) -> tuple[Stranger, ...]:
    """The animals above the limit, the strangest first, one of each sequence. Images with people are not shown."""
    scored, reference = found.scored, found.reference
    scores = reference.stranger_scores(scored.embeddings, scored.probability)
    animals = scored.animals().assign(
        score=scores, likeliest=np.asarray(scored.card.class_ids(), object)[scored.probability.argmax(axis=1)] if len(scores) else ""
    )
    animals = animals.join(scored.images[["image_id", "location", "taken", "blob", "sequence"]], on="row")
    strange = animals[animals["score"] > reference.limit].sort_values(["score", "image_id"], ascending=[False, True], kind="stable")
    rows = strange.drop_duplicates("sequence").head(MAX_STRANGERS).to_dict("records")
    hidden = with_people(scored)

    def describe(rank: int, row: dict[Any, Any]) -> Stranger:
        shown = rank < MAX_SHOWN and row["image_id"] not in hidden
        crop = crop_data_uri(store, row["blob"], Box.of([row[side] for side in BOX])) if shown else ""
        about = {name: str(row[name]) for name in ("image_id", "location", "taken", "likeliest")}
        return Stranger(**about, link=image_link(settings.image_url, row["image_id"]), crop=crop)

    return tuple(describe(rank, row) for rank, row in enumerate(rows))


def _drift(found: ReviewList, plan: Plan, day: date, store: Store) -> EmbeddingDrift | None:
    """The drift of the animals of the recent days; it is noted in the store, where what is usual comes from."""
    scored, reference = found.scored, found.reference
    until_s = datetime.combine(day + timedelta(days=1), time(), UTC).timestamp()
    taken = parse_seconds(scored.images["taken"])
    recent = (taken <= until_s) & (taken > until_s - plan.monitor.recent_days * 86_400)
    row = scored.animals()["row"].to_numpy(np.int64)
    chosen = recent[row]
    distances = reference.distances(reference.components(scored.embeddings[chosen])) / reference.spread[0]
    index, key = f"monitor-drift/{plan.model}", f"{found.version} {day}"
    looks = sorted((k, look) for k, look in store.read_index(index).items() if k.startswith(f"{found.version} ") and k < key)
    animals = scored.images.iloc[row[chosen]][["source", "image_id", "location"]].reset_index(drop=True)
    drift = measure_drift(animals, distances, [look for _, look in looks], plan.monitor.reference_sequences, day)
    if drift is not None:
        store.add_to_index(index, {key: drift.model_dump(include={"animals", "mean", "raised_at"})})
    return drift

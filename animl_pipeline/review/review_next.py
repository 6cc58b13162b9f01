"""Make the list of images to review next, with the reason for each, as a table, a page and tags in Animl."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import GateConfig, Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import BlobReader
from animl_pipeline.core.errors import PackageError
from animl_pipeline.core.evaluation_results import Metrics
from animl_pipeline.core.report_formats import image_link
from animl_pipeline.core.untrusted_text import write_csv
from animl_pipeline.deploy.trained_versions import read_report
from animl_pipeline.inference.embedding_reference import EmbeddingReference
from animl_pipeline.inference.shown_labels import shown_labels
from animl_pipeline.review.candidates import Pool, download_pool, sample_pool, unreviewed_images
from animl_pipeline.review.choose_images import Candidates, choose_images, margins
from animl_pipeline.review.folder_images import read_folder
from animl_pipeline.review.packaged_model import load_packaged_model
from animl_pipeline.review.review_page import render_page
from animl_pipeline.review.score_images import BOX, ScoredImages, score_images
from animl_pipeline.storage.store import Store

CSV_FILE, PAGE_FILE = "review.csv", "review.html"
COLUMNS = [
    "rank", "reason", "random", "source", "image_id", "location", "taken", "label", "probability", "likeliest", "margin", "stranger_score",
    "suspected_stranger", *BOX, "link",
]  # fmt: skip


class Wish(NamedTuple):
    """What is asked for.

    Attributes:
        images: how many.
        random_share: share of them that is random.
        candidates: how many images are looked at, at most.
        seed: of the random part.
        version: of the model; empty: the latest that is no trial.
        folder: a folder of images, instead of the plan's exports.
        results: a MegaDetector results file of these images.
    """

    images: int
    random_share: float
    candidates: int
    seed: int = 0
    version: str = ""
    folder: Path | None = None
    results: Path | None = None


class ReviewList(NamedTuple):
    """The list.

    Attributes:
        table: a row for each image, by rank, with ``COLUMNS``.
        page: the page with the images, as HTML.
        model, version: whose answers chose them.
        pool: from what they were chosen.
        scored: the pool with boxes, answers and embeddings.
        reference: animals that the model learnt from.
    """

    table: pd.DataFrame
    page: str
    model: str
    version: str
    pool: Pool
    scored: ScoredImages
    reference: EmbeddingReference


def list_images(plan: Plan, wish: Wish, store: Store, settings: Settings) -> ReviewList:
    """The images to review next.

    Raises:
        EvaluationError: there is no such model.
        PackageError: ``no_embeddings``: it was made by an earlier version.
        ImagesError: ``nothing_unreviewed`` or ``no_images``.
        ExportError, DetectionsError, WeightsError: the images cannot be listed or searched for animals.
    """
    classifier, reference = load_packaged_model(plan, wish.version, store)
    if reference is None:
        message = "the package names no animals that it learnt from; it was made by an earlier version: run `animl-pipeline retrain PLAN` once"
        raise PackageError(message, code="no_embeddings")
    reader: BlobReader = store
    if wish.folder is not None:
        images, reader = read_folder(wish.folder, store, settings)
    else:
        images = unreviewed_images(plan, store, settings)
    gap_s = plan.production.sequence_gap_seconds if plan.production else 3.0
    pool = sample_pool(images, round(wish.images * wish.random_share), max(wish.candidates, wish.images), wish.seed, gap_s)
    if wish.folder is None:
        pool = download_pool(pool, plan, store, settings)
    scored = score_images(pool.images, reader, plan, classifier, store, settings, wish.results)
    thin = thin_classes_of(read_report(plan.model, wish.version, store).metrics, plan.gate)
    chosen = _choose(scored, pool, reference, thin, wish.images)
    table = _describe(chosen, scored, reference, settings.image_url)
    blobs = pool.images["blob"].iloc[chosen["image"]]
    page = render_page(table, blobs, with_people(scored), reader, classifier.card, pool)
    return ReviewList(table, page, plan.model, classifier.card.version, pool, scored, reference)


def thin_classes_of(metrics: Metrics, gate: GateConfig) -> list[str]:
    """The classes of which the test set has fewer examples or locations than the plan's gate asks for."""
    return [c.id for c in metrics.classes if c.examples < gate.min_examples or c.locations < gate.min_locations]


def write_list(found: ReviewList, out: Path, store: Store) -> list[Path]:
    """Write review.csv and review.html into a folder, and keep the table in the store; the paths come back."""
    out.mkdir(parents=True, exist_ok=True)
    table = write_table(found, out)
    (out / PAGE_FILE).write_text(found.page, encoding="utf-8")
    save_list(found, f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}", table.read_bytes(), store)
    return [table, out / PAGE_FILE]


def write_table(found: ReviewList, out: Path) -> Path:
    """Write review.csv into a folder; its path comes back."""
    write_csv(out / CSV_FILE, found.table)
    return out / CSV_FILE


def save_list(found: ReviewList, name: str, table: bytes, store: Store) -> None:
    """Keep the table in the store under ``reviews/<model>/``, where the monitor finds which images were drawn at random."""
    store.object_store.put(f"reviews/{found.model}/{name}.csv", table)


def _choose(scored: ScoredImages, pool: Pool, reference: EmbeddingReference, thin: Sequence[str], count: int) -> pd.DataFrame:
    """The chosen rows of the pool: ``image``, ``reason``, ``animal``."""
    rows = scored.animals()["row"].to_numpy(np.int64)
    sequence = scored.images["sequence"].to_numpy(np.int64)
    candidates = Candidates(
        image=rows,
        sequence=sequence[rows],
        location=scored.images["location"].to_numpy(object)[rows],
        probability=scored.animal_probability(),
        components=reference.components(scored.embeddings),
        stranger_score=reference.stranger_scores(scored.embeddings, scored.probability),
    )
    numbers = [scored.card.animal_ids().index(c) for c in thin if c in scored.card.animal_ids()]
    return choose_images(candidates, sequence, np.flatnonzero(pool.random), reference, numbers, count)


def _describe(chosen: pd.DataFrame, scored: ScoredImages, reference: EmbeddingReference, image_url: str) -> pd.DataFrame:
    """The table ``COLUMNS`` with ``row`` (of the pool) and ``animal`` beside them."""
    images = scored.images.iloc[chosen["image"].to_numpy(np.int64)].reset_index(drop=True)
    animal = chosen["animal"].to_numpy(np.int64)
    has, at = animal >= 0, np.maximum(animal, 0)
    probability, boxes = scored.animal_probability(), scored.animals()
    shown, scores = shown_labels(probability, scored.card), reference.stranger_scores(scored.embeddings, scored.probability)
    likeliest = np.asarray(scored.card.animal_ids(), object)[probability.argmax(axis=1)] if len(probability) else np.zeros(0, object)

    def of_animal(values: NDArray[Any], missing: Any) -> pd.Series:
        return pd.Series(values[at] if len(values) else [missing] * len(at)).where(pd.Series(has), missing)

    return pd.DataFrame({
        "rank": np.arange(1, len(chosen) + 1),
        "reason": chosen["reason"],
        "random": chosen["reason"] == "random",
        "source": images["source"],
        "image_id": images["image_id"],
        "location": images["location"],
        "taken": images["taken"],
        "label": of_animal(np.where(shown.label == "", "unknown", shown.label), ""),
        "probability": of_animal(shown.probability, np.nan),
        "likeliest": of_animal(likeliest, ""),
        "margin": of_animal(margins(probability), np.nan),
        "stranger_score": of_animal(scores, np.nan),
        "suspected_stranger": of_animal(scores > reference.limit, False),
        **{side: of_animal(boxes[side].to_numpy(float), np.nan) for side in BOX},
        "link": [image_link(image_url, image) for image in images["image_id"]],
    })  # fmt: skip


def with_people(scored: ScoredImages) -> frozenset[str]:
    """Images in which the detector found a person or a vehicle; they are never shown."""
    rows = scored.boxes.loc[scored.boxes["animal"] < 0, "row"].unique()
    return frozenset(scored.images["image_id"].iloc[rows])

"""The page of the images to review next: crops of the animals, the reason for each, links to Animl. Never people."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from animl_pipeline.core.artifacts import BlobReader
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.category_names import is_person
from animl_pipeline.core.crop_for_page import crop_data_uri
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.report_formats import page_environment
from animl_pipeline.review.candidates import Pool
from animl_pipeline.review.score_images import BOX

REASONS = {
    "random": "Random",
    "stranger": "Suspected strangers",
    "thin_class": "Classes of which more is needed",
    "informative": "What the model would learn most from",
}
EXPLANATIONS = {
    "random": "Drawn by chance from all unreviewed sequences. Only these give honest figures of the model in service.",
    "stranger": "Unlike all animals that the model learnt from: perhaps a species that the plan does not know, perhaps no animal.",
    "thin_class": "Perhaps animals of classes of which the last test had too few examples or locations.",
    "informative": "Unlike the animals that the model learnt from, and unlike those listed before: together they cover the most.",
}


def render_page(table: pd.DataFrame, blobs: pd.Series, with_people: Collection[str], reader: BlobReader, card: ModelCard, pool: Pool) -> str:
    """The page as HTML.

    Args:
        table: rows of ``review_next.COLUMNS``, by rank.
        blobs: [n], the sha256 of each row's image.
        with_people: ids of images that are never shown.
        reader: holds the images.
        card: of the model.
        pool: what the images were chosen from.
    """
    hidden = table["image_id"].isin(list(with_people)) | table["label"].map(is_person).astype(bool) | table["likeliest"].map(is_person).astype(bool)
    rows = table.assign(
        crop=[
            "" if hide or row.label == "" else crop_data_uri(reader, blob, Box.of([getattr(row, side) for side in BOX]))
            for row, hide, blob in zip(table.itertuples(index=False), hidden, blobs, strict=True)
        ],
        hidden=hidden,
    )
    groups = [(REASONS[r], EXPLANATIONS[r], rows[rows["reason"] == r].to_dict("records")) for r in REASONS if (rows["reason"] == r).any()]
    template = page_environment(Path(__file__).parent).get_template("review.html.j2")
    page: str = template.render(card=card, groups=groups, pool=pool, count=len(table), locations=table["location"].nunique())
    return page

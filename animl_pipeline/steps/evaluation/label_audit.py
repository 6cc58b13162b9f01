"""Labels that the model firmly disbelieves, so that a reviewer can mend them before the next run.

Only answers of models that have not learnt from the crop's place count: of the model itself for val and test, and of further models,
each trained without a k-th of the places, for train (``audit.folds``). A model believes what it was taught, so its answers about
its own training crops find little.

The rule is confident learning's (Northcutt, Jiang, Chuang 2021, arXiv 1911.00068): a class's usual probability is its mean over the
crops that carry its label. A label is suspect where its own probability is below its usual and the likeliest class's is at or above
that one's, or at or above ``FIRM``; the largest gap between the two comes first.
"""

from __future__ import annotations

import re
from urllib.parse import quote

import numpy as np
import pandas as pd

from animl_pipeline.inference.scoring import probability_matrix

FIRM = 0.9
"""Firm whatever is usual: where a class is told with ease its usual probability is so near 1 that half of what is certain stays below it."""

COLUMNS = [
    "rank",
    "class_id",
    "model_says",
    "of_label",
    "of_model",
    "gap",
    "split",
    "location",
    "source",
    "image_id",
    "annotation_id",
    "crop_id",
    "link",
]


def suspects(scored: pd.DataFrame, ids: tuple[str, ...], link: str = "") -> pd.DataFrame:
    """The suspect labels, the firmest disbelief first; columns ``COLUMNS`` and ``blob``.

    Args:
        scored: crops with their split and out-of-fold answers.
        ids: the classes.
        link: an address with {project} and {image}, under which a person finds an image; "" for none.
    """
    p = probability_matrix(scored, ids)
    given = scored["class_id"].map({c: i for i, c in enumerate(ids)}).to_numpy(np.int64)
    usual = np.array([p[given == i, i].mean() if (given == i).any() else 1.0 for i in range(len(ids))])
    likeliest = p.argmax(axis=1)
    rows = np.arange(len(p))
    own, other = p[rows, given], p[rows, likeliest]
    suspect = (likeliest != given) & (own < usual[given]) & (other >= np.minimum(usual[likeliest], FIRM))
    found = scored[suspect].assign(
        model_says=np.asarray(ids, dtype=object)[likeliest[suspect]], of_label=own[suspect], of_model=other[suspect], gap=(other - own)[suspect]
    )
    found = found.sort_values(["gap", "crop_id"], ascending=[False, True], ignore_index=True)
    links = [image_link(link, image) for image in found["image_id"]]
    table: pd.DataFrame = found.assign(rank=np.arange(1, len(found) + 1), link=links)[[*COLUMNS, "blob"]]
    return table


def image_link(pattern: str, image_id: str) -> str:
    """Where a person finds an image of Animl's, whose id is ``<project>:<md5>``; "" for images of elsewhere or without a pattern."""
    if not pattern or not re.fullmatch(r"[A-Za-z0-9_-]+:[0-9a-f]{32}", image_id):
        return ""
    return pattern.replace("{project}", quote(image_id.split(":", maxsplit=1)[0])).replace("{image}", quote(image_id, safe=""))

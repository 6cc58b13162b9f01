"""Give listed images a tag in Animl. Nothing else is written there, and a tag that an image has already stays as it is."""

from __future__ import annotations

import pandas as pd

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, ExportUnreachableError
from animl_pipeline.integrations.animl.client import AnimlClient
from animl_pipeline.storage.read_remote_files import RemoteError


def tag_images(table: pd.DataFrame, plan: Plan, settings: Settings) -> int:
    """Tag the images of the plan's Animl projects with ``review.tag``, and the random ones also with ``monitor.random_tag``.

    Returns:
        How many images have the tag.

    Raises:
        SettingsError: a setting for Animl is missing, or the user may not do this.
        ExportError, ExportUnreachableError: Animl refuses, or does not answer now.
    """
    tagged = 0
    for source in plan.sources:
        project = source.project()
        rows = table[table["source"] == source.name]
        if project is None or rows.empty or plan.review.tag is None:
            continue
        try:
            with AnimlClient(project, settings) as animl:
                animl.tag_images(plan.review.tag, rows["image_id"].tolist())
                random = rows.loc[rows["random"], "image_id"].tolist()
                if plan.monitor.random_tag is not None and random:
                    animl.tag_images(plan.monitor.random_tag, random)
        except RemoteError as e:
            error = ExportUnreachableError if e.retryable else ExportError
            raise error(f"the images of {project} could not be tagged: {e}; the list itself is written", code="not_tagged") from e
        tagged += len(rows)
    return tagged

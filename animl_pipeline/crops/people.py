"""Pictures that show people or vehicles: animals are cut out of them, but nobody is shown the crops."""

from __future__ import annotations

from animl_pipeline.crops.choosing import ANIMAL, Image
from animl_pipeline.plan.seeing import VEHICLES, folded
from animl_pipeline.records import Artifact
from animl_pipeline.store import Store


def pictures_with_people(labels: Artifact, detections: Artifact, store: Store) -> set[Image]:
    """Images with a person or a vehicle, as far as people have labelled one or the detector has found one."""
    boxes = store.table(detections, "detections.parquet")
    tables = [boxes[boxes["category"] != ANIMAL]]
    if "people.parquet" in store.files(detections):  # persons labelled, and found beside reviewed boxes
        tables.append(store.table(detections, "people.parquet"))
    for name in {"labels.parquet", "dropped.parquet"} & set(store.files(labels)):
        named = store.table(labels, name)
        tables.append(named[named["name"].map(folded).isin(VEHICLES)])
    return {image for table in tables for image in zip(table["source"], table["image_id"], strict=True)}

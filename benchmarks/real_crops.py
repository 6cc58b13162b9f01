"""Crops of real images of all species with embeddings by frozen networks: what the benchmarks of strangers and of review-next share.

The boxes are those that people drew, where an image has any, else MegaDetector Lite's. Everything is kept in a store, so a second run
takes seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from false_boxes import make_crops
from numpy.typing import NDArray

from animl_pipeline.config import Plan, SourceConfig, load_plan
from animl_pipeline.config.labels import ClassConfig, LabelsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.table_schemas import CROPS
from animl_pipeline.integrations.weights import weights_digest
from animl_pipeline.steps.embeddings.run_networks import run_network
from animl_pipeline.storage.store import Store

PLAN = Path(__file__).parents[1] / "tests" / "flows" / "real-data.yaml"
NOT_A_SPECIES = {"empty", "vehicle", "canid", "bird"}
"""Names that several species share, or that are no animal."""
MAX_GAP = 3
"""File numbers of one burst are at most this far apart."""
GUIDES = ("gorongosa-guide", "serengeti-guide")
"""Sources with a few images of each species, from everywhere."""


class RealCrops(NamedTuple):
    """Crops of real images.

    Attributes:
        rows: the crops with ``species``, ``coarse`` (coarse class; "" for none), ``place`` (its location; its sequence where that is not known)
            and ``burst`` (images that may show the same animal).
        blocks: the embeddings by each network, float32 [n, width].
    """

    rows: pd.DataFrame
    blocks: list[NDArray[np.float32]]

    def only(self, chosen: NDArray[np.bool_]) -> RealCrops:
        """Some of the crops, bool [n]."""
        return RealCrops(self.rows[chosen].reset_index(drop=True), [block[chosen] for block in self.blocks])


def load_real_crops(store: Store, settings: Settings) -> RealCrops:
    """All crops of the sources below ``settings.data`` with the embeddings of the default frozen networks.

    A source that names no sequences gets bursts by the numbers of its files: images of one species with few numbers between them. Where files
    have no numbers, each image is a burst.
    """
    plan = species_plan(settings.data)
    found = make_crops(plan, store, settings)
    rows = store.table(found.crops, CROPS).sort_values("crop_id", ignore_index=True)
    coarse = pd.read_csv(settings.data / "coarse_classes.csv").set_index("name")["coarse_class"]
    burst = _bursts(rows)
    rows = rows.assign(
        species=rows["class_id"], coarse=rows["class_id"].map(coarse).fillna(""), burst=burst,
        place=rows["location"].where(rows["location"] != "", burst),
    )  # fmt: skip
    blobs = rows["blob"].tolist()
    digests = [weights_digest(n.network, n.weights, settings, n.weights_sha256) for n in plan.train.networks]
    pairs = zip(plan.train.networks, digests, strict=True)
    return RealCrops(rows, [run_network(n, digest, blobs, plan.model_input.size, store, settings)[0] for n, digest in pairs])


def _bursts(rows: pd.DataFrame) -> pd.Series:
    """A name for the burst of each crop."""
    number = rows["image_id"].str.extract(r"(\d+)(?:\.\w+)?$")[0].astype(float)
    order = rows.assign(number=number).sort_values(["source", "location", "number"], kind="stable")
    before = order.shift()
    starts = (order["number"] - before["number"] > MAX_GAP) | (
        order[["source", "location", "class_id"]] != before[["source", "location", "class_id"]]
    ).any(axis=1)
    by_number = (order["source"] + "/" + starts.cumsum().astype(str)).reindex(rows.index)
    return rows["sequence"].where(rows["sequence"] != "", by_number.where(number.notna(), rows["source"] + "/" + rows["image_id"]))


def species_plan(data: Path) -> Plan:
    """The plan of the tests with real images, with each species of every folder of images as a class of its own."""
    plan = load_plan(PLAN)
    folders = sorted(path.parent.name for path in data.glob("*/cct.json"))
    sources = tuple(_source(folder) for folder in folders)
    names = {c["name"] for folder in folders for c in json.loads((data / folder / "cct.json").read_bytes())["categories"]}
    classes = {name: ClassConfig.model_validate({"from": [name]}) for name in sorted(names - NOT_A_SPECIES)}
    labels = LabelsConfig(classes=classes, exclude=tuple(NOT_A_SPECIES - {"empty"}), on_too_few="warn")
    return plan.model_copy(update={"sources": sources, "labels": labels, "train": plan.train.model_copy(update={"recipe": "head"})})


def _source(folder: str) -> SourceConfig:
    field = "location_group" if folder == "missouri" else "location"
    return SourceConfig(name=folder.replace("_", "-"), export=f"{folder}/cct.json", images=folder, location_field=field)

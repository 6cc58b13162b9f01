"""The step embeddings: crops in, a row of numbers for each crop and frozen network out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from animl_pipeline.config.settings import Settings
from animl_pipeline.config.training import FrozenNetworkConfig
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import redact_url
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, EMBEDDED_CROPS, SPLITS
from animl_pipeline.core.tables import write_table
from animl_pipeline.integrations.weights import weights_digest
from animl_pipeline.steps.embeddings.run_networks import run_network
from animl_pipeline.storage.store import StepOutput, Store, Workspace

STEP = Step(
    "embeddings", version=1, sections=("train", "model_input"), reads=(CROPS, SPLITS), writes=(EMBEDDED_CROPS,), libraries=("pillow", "torch", "timm")
)


def embed_crops(
    crops: Artifact, splits: Artifact, networks: tuple[FrozenNetworkConfig, ...], size: int, store: Store, settings: Settings
) -> Artifact:
    """The embeddings of all crops of train and val by each network: embedded_crops.parquet, and for network number i ``<i>.npy``.

    An array is float32 [n, width of the network's embedding]; its rows are in the order of the table. The store's index remembers the
    embedding of each crop and network, so another training with more crops or other networks computes only what is new. The
    test set is not embedded.

    Args:
        crops: the step crops.
        splits: the step splits.
        networks: the plan's train.networks.
        size: width and height of a crop in pixels.
        store: holds the crops, and the index of embeddings.
        settings: where relative paths of weights start, and how many crops are decoded at a time.

    Raises:
        TrainingError: a network cannot be loaded, or an embedding is not finite.
        WeightsError: weights are missing or are not the expected file.
        DamagedError: a crop is missing from the store.
    """
    digests = [weights_digest(n.network, n.weights, settings, n.weights_sha256) for n in networks]

    def build(space: Workspace) -> StepOutput:
        rows = _crops_to_embed(crops, splits, store)
        write_table(space.out, EMBEDDED_CROPS, rows[["crop_id"]])
        new = 0
        for number, (network, digest) in enumerate(zip(networks, digests, strict=True)):
            embeddings, computed = run_network(network, digest, rows["blob"].tolist(), size, store, settings)
            np.save(space.out / f"{number}.npy", embeddings)
            new += computed
        return StepOutput(Counts(kept=len(rows), notes={"embeddings_computed_now": new} if new else {}, unit="crops"))

    config = {"networks": [n.model_dump(mode="json") | {"weights": redact_url(n.weights)} for n in networks], "size": size}
    weights = {f"weights {number}": digest for number, digest in enumerate(digests) if digest}
    return store.make(STEP, inputs={"crops": crops, "splits": splits}, digests=weights, config=config, build=build)


def _crops_to_embed(crops: Artifact, splits: Artifact, store: Store) -> pd.DataFrame:
    """crop_id and blob of the crops of train and val, by id."""
    split = store.table(splits, SPLITS)
    rows = store.table(crops, CROPS, ["crop_id", "blob"])
    return rows[rows["crop_id"].isin(split.loc[split["split"].isin(["train", "val"]), "crop_id"])].sort_values("crop_id", ignore_index=True)

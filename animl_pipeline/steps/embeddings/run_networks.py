"""Run a frozen network over crops. Each crop is embedded once: the results are added to the store's index after every batch."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from animl_pipeline.config.settings import Settings
from animl_pipeline.config.training import FrozenNetworkConfig
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import TrainingError
from animl_pipeline.core.progress import track
from animl_pipeline.core.step_declaration import installed_version
from animl_pipeline.storage.image_index import iter_index
from animl_pipeline.storage.store import Store, batches, digest_of

if TYPE_CHECKING:
    from animl_pipeline.integrations.frozen_networks import FrozenNetwork

log = logging.getLogger(__name__)

BATCH = 16
"""Crops in one forward pass. The last batch is filled up with black crops, so that a crop's embedding does not depend on how many there are."""
BATCHES_PER_SHARD = 16
"""Batches between two writes to the index. A killed process loses at most the work on these."""
FORMAT = np.dtype("<f4")
"""Single precision: in half precision, a number that varies little around a large mean would lose its differences, which a head scales up."""


def run_network(
    config: FrozenNetworkConfig, weights: str, blobs: Sequence[str], size: int, store: Store, settings: Settings
) -> tuple[NDArray[np.float32], int]:
    """The embeddings float32 [n, width] of crops, and how many of them were computed now.

    Args:
        config: the network.
        weights: sha256 of its weights; "" for those that have no file.
        blobs: sha256 of each crop in the store.
        size: width and height of a crop in pixels.
        store: holds the crops and the index.
        settings: as for ``load_frozen_network``; ``workers`` crops are decoded at a time.

    Raises:
        TrainingError: the network cannot be loaded; a crop has another size; an embedding is not finite.
        WeightsError: its weights are missing or are not the expected file.
    """
    from animl_pipeline.integrations import frozen_networks

    identity = [
        frozen_networks.VERSION,
        FORMAT.str,
        config.network,
        weights or config.weights,
        size,
        *map(installed_version, ("pillow", "torch", "timm")),
    ]
    index = f"embeddings/{digest_of(identity)[:32]}"
    wanted = set(blobs)
    known = {blob: _decode(record["f4"]) for blob, record in iter_index(store.object_store, index) if blob in wanted}
    missing = sorted(wanted - known.keys())
    log.info("embeddings: %d crops for %s, %d of them finished earlier", len(wanted), config.network, len(wanted) - len(missing))
    if missing:
        network = frozen_networks.load_frozen_network(config, size, settings)
        with track(f"embeddings by {config.network}", len(wanted), len(known)) as advance:
            for batch in _embed(missing, network, config.network, size, store, settings):
                store.add_to_index(index, {blob: {"f4": base64.b64encode(row.tobytes()).decode()} for blob, row in batch.items()})
                known |= batch
                advance(len(batch))
    return np.stack([known[blob] for blob in blobs]), len(missing)


def _embed(
    blobs: list[str], network: FrozenNetwork, name: str, size: int, store: Store, settings: Settings
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Groups of blob → embedding, in order. The crops of the next batches are decoded while the network runs."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device)
    pool = ThreadPoolExecutor(min(settings.workers, 2 * (os.cpu_count() or 1)))
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # the same on a GPU as in the classifier, which runs on a CPU
    with pool, torch.inference_mode(), exact:
        for group in batches(blobs, BATCH * BATCHES_PER_SHARD):
            decoded = pool.map(lambda blob: _read_crop(blob, size, store), group)
            found: dict[str, NDArray[np.float32]] = {}
            for batch in batches(group, BATCH):
                pixels = np.zeros((BATCH, size, size, 3), np.uint8)
                for slot in range(len(batch)):
                    pixels[slot] = next(decoded)
                scaled = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=torch.channels_last)
                rows = network(scaled).cpu().numpy().astype(FORMAT)
                found |= dict(zip(batch, rows[: len(batch)], strict=True))
            if not all(np.isfinite(row).all() for row in found.values()):
                message = f"train.networks: the embeddings of {name} are not finite numbers; name another network"
                raise TrainingError(message, code="not_finite")
            yield found


def _read_crop(blob: str, size: int, store: Store) -> NDArray[np.uint8]:
    crop = open_image(store.blob(blob))
    if crop.size != (size, size):
        message = (
            f"expected crops of {size} x {size} pixels, found {crop.width} x {crop.height}; run the step crops again with this plan's model_input"
        )
        raise TrainingError(message, code="wrong_crop_size")
    return np.asarray(crop, np.uint8)


def _decode(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), FORMAT)

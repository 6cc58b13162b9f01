"""Batches of crops. A train batch depends only on the seed and its number, so a resumed training sees the same batches."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import TrainingError
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.model_input import normalise_array
from animl_pipeline.core.progress import track
from animl_pipeline.storage.atomic_files import disk_errors
from animl_pipeline.storage.store import Store

DECODE_BATCH = 256


class DecodedCrops(NamedTuple):
    """The crops of one split: pixels uint8 [n, size, size, 3] RGB (a memory-mapped file), class numbers int64 [n], number of classes."""

    pixels: np.memmap[Any, np.dtype[np.uint8]]
    targets: NDArray[np.int64]
    classes: int


class CropRequest(NamedTuple):
    """The number of a crop, and the seed of its augmentation (None: no augmentation)."""

    crop: int
    seed: int | None


class CropsDataset(Dataset[tuple[NDArray[np.uint8], int]]):
    """Crops as uint8 [size, size, 3] RGB and their class number. The same :class:`CropRequest` always gives the same crop."""

    def __init__(self, crops: DecodedCrops, augment: v2.Transform | None) -> None:
        self.crops = crops
        self.augment = augment

    def __len__(self) -> int:
        return len(self.crops.targets)

    def __reduce__(self) -> tuple[Any, ...]:
        """For worker processes: they map the same file instead of getting a copy of it."""
        pixels, *others = self.crops
        return _reopen, (pixels.filename, pixels.shape, others, self.augment)

    def __getitems__(self, requests: list[CropRequest]) -> list[tuple[NDArray[np.uint8], int]]:
        """The crops of a batch. DataLoader calls this once for a batch instead of ``__getitem__`` for each crop."""
        with _one_thread(), torch.random.fork_rng(devices=[]):
            return [(self._crop(request), int(self.crops.targets[request.crop])) for request in requests]

    def _crop(self, request: CropRequest) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self.crops.pixels[request.crop]
        if self.augment is None or request.seed is None:
            return pixels
        torch.default_generator.manual_seed(request.seed)
        augmented: Tensor = self.augment(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        return np.asarray(augmented.permute(1, 2, 0), np.uint8)


def _reopen(path: str, shape: tuple[int, ...], others: list[Any], augment: v2.Transform | None) -> CropsDataset:
    return CropsDataset(DecodedCrops(np.memmap(path, np.uint8, "r", shape=shape), *others), augment)


class TrainBatchSampler(Sampler[list[CropRequest]]):
    """The train batches of an epoch, in an order that depends only on the seed and the epoch.

    Args:
        targets: the class number of every crop.
        classes: the number of classes.
        batch_size: crops in a batch. The last batch of an epoch may be smaller. A last batch of one crop is left out, because
            batch normalisation needs two.
        weighted: draw every class equally often, with replacement; else every crop once an epoch.
        seed: of the order and the augmentations.
        position: returns the epoch and the number of its batches that are done; called at the start of each iteration.
    """

    def __init__(
        self,
        targets: NDArray[np.int64],
        classes: int,
        batch_size: int,
        *,
        weighted: bool,
        seed: int,
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.targets = targets
        self.classes = classes
        self.batch_size = batch_size
        self.weighted = weighted
        self.seed = seed
        self.position = position

    def __len__(self) -> int:
        batches, rest = divmod(len(self.targets), self.batch_size)
        return max(1, batches + (rest > 1))

    def __iter__(self) -> Iterator[list[CropRequest]]:
        epoch, done = self.position()
        order = self._order(epoch)
        for number in range(done, len(self)):
            crops = order[number * self.batch_size : (number + 1) * self.batch_size]
            batch = epoch * len(self) + number
            yield [CropRequest(int(crop), derive_seed(self.seed, batch, slot)) for slot, crop in enumerate(crops)]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, epoch])
        if not self.weighted:
            return rng.permutation(len(self.targets))
        weights = 1 / np.bincount(self.targets, minlength=self.classes)[self.targets]
        return rng.choice(len(self.targets), size=len(self.targets), p=weights / weights.sum())


def sequential_batches(count: int, batch_size: int) -> list[list[CropRequest]]:
    """Requests for all crops once, in order, without augmentation."""
    return [[CropRequest(i, None) for i in range(start, min(start + batch_size, count))] for start in range(0, count, batch_size)]


class NormaliseBatch:
    """Makes a batch: inputs float32 [n, 3, size, size] in channels_last, normalised as everywhere, and class numbers int64 [n]."""

    def __init__(self, model_input: ModelInput) -> None:
        self.model_input = model_input

    def __call__(self, samples: list[tuple[NDArray[np.uint8], int]]) -> tuple[Tensor, Tensor]:
        pixels = np.stack([crop for crop, _ in samples])
        inputs = torch.from_numpy(normalise_array(pixels, self.model_input)).to(memory_format=torch.channels_last)
        return inputs, torch.tensor([target for _, target in samples])


def make_loader(dataset: CropsDataset, batches: Iterable[list[CropRequest]], model_input: ModelInput, workers: int) -> DataLoader[Any]:
    """A loader of these batches. They are made by ``workers`` processes, or by this one if that is 0.

    The processes come from a fork server that has no threads. A process forked from here could hang, because torch, a web server
    and S3 clients have threads here.
    """
    options: dict[str, Any] = {}
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        options = {"num_workers": workers, "multiprocessing_context": context, "persistent_workers": True}
    return DataLoader(dataset, batch_sampler=batches, collate_fn=NormaliseBatch(model_input), **options)


def decode_split(rows: pd.DataFrame, classes: Sequence[str], store: Store, size: int, path: Path, threads: int) -> DecodedCrops:
    """Decode the crops of a split once, into a memory-mapped file of 3 size² bytes a crop.

    Args:
        rows: crop_id, class_id and blob of each crop.
        classes: the class ids in the order of the model's outputs.
        store: holds the crops.
        size: width and height of a crop in pixels.
        path: the file; if a killed training has left it, it is used again.
        threads: decode at the same time.

    Raises:
        TrainingError: a crop does not have this size.
        DamagedError: a crop is missing from the store.
        StoreError: the disk is full.
    """
    if not path.exists() or path.stat().st_size != 3 * size * size * len(rows):
        part = path.with_name(f".part-{path.name}")
        crops = list(zip(rows["crop_id"], rows["blob"], strict=True))
        with disk_errors(path), part.open("wb") as file, track("crops decoded", len(crops)) as step, ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(crops), DECODE_BATCH):
                batch = crops[start : start + DECODE_BATCH]
                for pixels in pool.map(lambda crop: _decode(crop[0], crop[1], store, size), batch):
                    file.write(pixels.tobytes())
                step(len(batch))
        part.replace(path)
    targets = np.array([classes.index(c) for c in rows["class_id"]], np.int64)
    return DecodedCrops(np.memmap(path, np.uint8, "r", shape=(len(rows), size, size, 3)), targets, len(classes))


def derive_seed(seed: int, batch: int, slot: int) -> int:
    """A seed of 63 bits from the plan's seed, the number of the batch and a slot in it. It is the same on every machine."""
    return int(np.random.SeedSequence([seed, batch, slot]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread. For one small crop, two threads take up to seven times as long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _decode(crop_id: str, blob: str, store: Store, size: int) -> NDArray[np.uint8]:
    image = open_image(store.blob(blob))
    if image.size != (size, size):
        found = f"{image.width} x {image.height}"
        message = f"crop {crop_id[:12]}: expected {size} x {size} pixels (model_input.size), found {found}; run the step crops of this plan again"
        raise TrainingError(message, code="crop_size")
    return np.asarray(image, np.uint8)

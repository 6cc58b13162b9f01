"""Crops as batches. What a batch holds depends on the seed and its number alone, so that a resumed run sees the same."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
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

from animl_pipeline.core.errors import TrainingError
from animl_pipeline.core.imaging import normalise_array, open_image
from animl_pipeline.core.progress import track
from animl_pipeline.core.records import ModelInput
from animl_pipeline.storage.object_store import disk
from animl_pipeline.storage.step_cache import Store, batches


class Draw(NamedTuple):
    """One crop to be read, and the seed of its augmentation (None: as it is)."""

    crop: int
    seed: int | None


class Crops(Dataset[tuple[NDArray[np.uint8], int]]):
    """Crops of one split as uint8 [size, size, 3] RGB and their class number; what a :class:`Draw` gives is always the same."""

    def __init__(self, views: NDArray[np.uint8], targets: NDArray[np.int64], augment: v2.Transform | None) -> None:
        self.views = views
        self.targets = targets
        self.augment = augment

    def __len__(self) -> int:
        return len(self.targets)

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process: where the views lie instead of all of them; the worker maps the same file."""
        if not isinstance(self.views, np.memmap):
            return self.__dict__
        return self.__dict__ | {"views": (str(self.views.filename), self.views.shape)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["views"], tuple):
            path, shape = state["views"]
            state["views"] = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
        self.__dict__.update(state)

    def __getitems__(self, draws: list[Draw]) -> list[tuple[NDArray[np.uint8], int]]:
        """The crops of a batch (torch's DataLoader asks for whole batches where it can)."""
        with _one_thread(), torch.random.fork_rng(devices=[]):
            return [(self._view(draw), int(self.targets[draw.crop])) for draw in draws]

    def _view(self, draw: Draw) -> NDArray[np.uint8]:
        model_input: NDArray[np.uint8] = self.views[draw.crop]
        if self.augment is None or draw.seed is None:
            return model_input
        torch.default_generator.manual_seed(draw.seed)
        pixels: Tensor = self.augment(torch.from_numpy(model_input.copy()).permute(2, 0, 1))
        return np.asarray(pixels.permute(1, 2, 0), np.uint8)


class TrainBatches(Sampler[list[Draw]]):
    """The batches of an epoch from where the run stands: a function of the seed and of the number of steps done.

    Args:
        targets: the class number of every crop.
        classes: how many classes there are.
        batch_size: crops a batch; the last one of an epoch may be smaller.
        weighted: draw every class alike often (with replacement), else every crop once an epoch.
        seed: of the order.
        steps_done: asked at the beginning of an epoch, also of one that is resumed in the middle.
    """

    def __init__(
        self, targets: NDArray[np.int64], classes: int, batch_size: int, *, weighted: bool, seed: int, steps_done: Callable[[], int] = lambda: 0
    ) -> None:
        self.targets = targets
        self.classes = classes
        self.batch_size = batch_size
        self.weighted = weighted
        self.seed = seed
        self.steps_done = steps_done

    def __len__(self) -> int:
        return max(1, -(-len(self.targets) // self.batch_size) - self._lone_crop())

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, first = divmod(self.steps_done(), len(self))
        order = self.order(epoch)
        for number in range(first, len(self)):
            step = epoch * len(self) + number
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield [Draw(int(crop), mixed_seed(self.seed, step, slot)) for slot, crop in enumerate(chosen)]

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The crops of an epoch, as many as there are."""
        rng = np.random.default_rng([self.seed, epoch])
        if not self.weighted:
            return rng.permutation(len(self.targets))
        weights = 1 / np.bincount(self.targets, minlength=self.classes)[self.targets]
        return rng.choice(len(self.targets), size=len(self.targets), p=weights / weights.sum())

    def _lone_crop(self) -> int:
        """1 where the last batch would hold a single crop, on which batch normalisation cannot work."""
        return int(len(self.targets) % self.batch_size == 1 and self.batch_size > 1)


class PlainBatches(Sampler[list[Draw]]):
    """All crops once, in order, as they are."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.batches = list(batches([Draw(i, None) for i in range(count)], batch_size))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.batches)


def collate(model_input: ModelInput) -> Callable[[list[tuple[NDArray[np.uint8], int]]], tuple[Tensor, Tensor]]:
    """A function that makes a batch: float32 [n, 3, size, size] in channels_last, normalised by ``pixels``, and int64 [n]."""
    return _Collate(model_input)


class _Collate:
    """A class, since worker processes cannot be sent a closure."""

    def __init__(self, model_input: ModelInput) -> None:
        self.model_input = model_input

    def __call__(self, samples: list[tuple[NDArray[np.uint8], int]]) -> tuple[Tensor, Tensor]:
        pixels = np.stack([model_input for model_input, _ in samples])
        inputs = torch.from_numpy(normalise_array(pixels, self.model_input)).to(memory_format=torch.channels_last)
        return inputs, torch.tensor([target for _, target in samples])


def loader(crops: Crops, batches_of: Sampler[list[Draw]], model_input: ModelInput, workers: int) -> DataLoader[Any]:
    """Batches of crops, made by ``workers`` processes (0: by this one).

    The processes are forked from a server that has no threads: one forked from here, where torch, a web server and S3
    clients have theirs, may die or hang as it ends.
    """
    if not workers:
        return DataLoader(crops, batch_sampler=batches_of, collate_fn=collate(model_input))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return DataLoader(
        crops,
        batch_sampler=batches_of,
        collate_fn=collate(model_input),
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=True,
    )


def decode_crops(crops: pd.DataFrame, store: Store, size: int, path: Path, workers: int) -> NDArray[np.uint8]:
    """All crops as uint8 [n, size, size, 3] RGB, decoded once into a file that is mapped, not loaded: 3 size² bytes a crop.

    Raises:
        TrainingError: a crop is not of the view's size.
        DamagedError: a crop is missing from the store.
        StoreError: the disk is full.
    """
    if not path.exists() or path.stat().st_size != 3 * size * size * len(crops):
        part = path.with_name(f".part-{path.name}")
        with disk(path), part.open("wb") as f, track("crops decoded", len(crops)) as step, ThreadPoolExecutor(workers) as pool:
            for batch in batches(list(zip(crops["crop_id"], crops["blob"], strict=True)), 256):
                for model_input in pool.map(lambda crop: _decode(crop[0], crop[1], store, size), batch):
                    f.write(model_input.tobytes())
                step(len(batch))
        part.replace(path)
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(len(crops), size, size, 3))


def mixed_seed(seed: int, step: int, slot: int) -> int:
    """A seed of 63 bits from the plan's seed, the step and the place within the batch; the same on every machine."""
    return int(np.random.SeedSequence([seed, step, slot]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _one_thread() -> Iterator[None]:
    """A picture is too small for more: two threads take up to seven times as long as one on a busy machine."""
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
        raise TrainingError(
            f"crop {crop_id[:12]}: expected {size} x {size} pixels (view.size), found {found}; run the step 'crops' of this plan again"
        )
    return np.asarray(image, np.uint8)

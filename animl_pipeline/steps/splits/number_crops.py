"""Read the crops as columns of numbers: crops with the same location, sequence, image or copy of an image have the same number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import SplitsConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.capture_times import parse_days, parse_seconds
from animl_pipeline.core.errors import SplitsError
from animl_pipeline.core.table_schemas import CROPS
from animl_pipeline.steps.splits.grouping import Bools, Ints, connected_components, number_texts
from animl_pipeline.steps.splits.near_duplicates import NO_PAIRS, Pairs, near_duplicates
from animl_pipeline.storage.store import Store

COLUMNS = ["crop_id", "location", "class_id", "sequence", "image", "source", "image_id", "taken", "phash"]


class NumberedCrops(NamedTuple):
    """n crops in the order of their ids, as numbers; -1 where a crop has no value.

    Attributes:
        rows: the table of crops.
        location, image, sequence, class_number: int [n].
        copy: int [n], the same for certain near-duplicates.
        locations, images: names by number.
        likely_copies: pairs of images.
        seconds: float [n], since 1970, NaN where unknown or not needed.
        usable: bool [3, n], whether the plan's dates allow the crop in train, val and test.
        undated: number of crops whose day the plan needs and does not know.
        late: bool [n], whether the image was taken on ``test_after`` or later.
        without_day: bool [n], whether its day is unknown or was not needed.
    """

    rows: pd.DataFrame
    location: Ints
    locations: tuple[str, ...]
    image: Ints
    images: NDArray[np.object_]
    sequence: Ints
    class_number: Ints
    copy: Ints
    likely_copies: Pairs
    seconds: NDArray[np.float64]
    usable: Bools
    undated: int
    late: Bools
    without_day: Bools

    def links(self) -> tuple[Ints, ...]:
        """What links locations to each other."""
        return self.sequence, self.image, self.copy

    def select(self, mask: Bools) -> NumberedCrops:
        """Some of the crops. Locations and images keep their numbers."""
        columns = ("rows", "location", "image", "sequence", "class_number", "copy", "seconds", "late", "without_day")
        return self._replace(usable=self.usable[:, mask], **{name: getattr(self, name)[mask] for name in columns})


def read_crops(crops: Artifact, store: Store) -> pd.DataFrame:
    """The columns of the crops that this step needs, in the order of the crops' ids."""
    rows = store.table(crops, CROPS, COLUMNS)
    return rows if rows["crop_id"].is_monotonic_increasing else rows.sort_values("crop_id", ignore_index=True)


def number_crops(rows: pd.DataFrame, config: SplitsConfig, classes: tuple[str, ...]) -> NumberedCrops:
    """The crops as numbers, with near-duplicates if the plan looks for them.

    Raises:
        SplitsError: a crop has a class that the plan does not have.
    """
    location = pd.Categorical(rows["location"])
    names, codes = tuple(location.categories), np.asarray(location.codes, np.int64)
    if "" in names:  # empty text is sorted first
        names, codes = names[1:], codes - 1
    image, images = pd.factorize(rows["image"])
    first = ~pd.Series(image).duplicated().to_numpy()
    taken = rows.loc[first, "taken"]
    seconds = parse_seconds(taken)[image]
    needs_day = bool(config.train_only_before or config.test_only_after or config.test_after)
    day = (parse_days(taken) if needs_day else np.full(len(taken), "NaT", "datetime64[D]"))[image]
    never = np.full(len(day), False)  # a comparison with an unknown day is False, too
    old = never if config.train_only_before is None else day < np.datetime64(config.train_only_before)
    new = never if config.test_only_after is None else day >= np.datetime64(config.test_only_after)
    late = never if config.test_after is None else day >= np.datetime64(config.test_after)
    certain = likely = NO_PAIRS
    if config.near_duplicate_bits is not None:
        hashed = pd.DataFrame({"location": codes[first], "phash": rows["phash"].to_numpy()[first], "seconds": seconds[first]})
        certain, likely = near_duplicates(hashed, config.near_duplicate_bits)
    return NumberedCrops(
        rows=rows,
        location=codes,
        locations=names,
        image=image.astype(np.int64),
        images=np.asarray(images, object),
        sequence=number_texts(rows["sequence"]),
        class_number=_class_numbers(rows["class_id"], classes),
        copy=number_copies(len(images), certain)[image],
        likely_copies=likely,
        seconds=seconds,
        usable=np.stack([~new, ~old & ~new, ~old]),
        undated=int(np.isnat(day).sum()) if needs_day else 0,
        late=late,
        without_day=np.isnat(day),
    )


def _class_numbers(class_id: pd.Series, classes: tuple[str, ...]) -> Ints:
    codes = pd.Categorical(class_id, categories=list(classes)).codes.astype(np.int64)
    if (codes < 0).any():
        raise SplitsError(
            f"expected crops of {', '.join(classes)}, found {class_id[codes < 0].iloc[0]!r}; run the steps `labels` to `crops` of this plan",
            code="unknown_class",
        )
    return codes


def number_copies(n: int, pairs: Pairs) -> Ints:
    """For each of ``n`` images a number that it shares with its copies; -1 for an image without a copy."""
    codes = np.full(n, -1, np.int64)
    if len(pairs.one):
        codes[:] = connected_components(n, pairs.one, pairs.other)
        codes[np.bincount(codes)[codes] == 1] = -1
    return codes


# -- times -------------------------------------------------------------------------------------------------------------


def sequences_by_time(source: pd.Series, seconds: NDArray[np.float64], max_gap_s: float) -> Ints:
    """A number for each image: the same for images of one source with at most ``max_gap_s`` between neighbours; -1 without a time."""
    timed = np.flatnonzero(~np.isnan(seconds))
    code = pd.factorize(source)[0][timed]
    order = np.lexsort((seconds[timed], code))
    is_new = (np.diff(code[order], prepend=-1) != 0) | (np.diff(seconds[timed][order], prepend=-np.inf) > max_gap_s)
    found = np.full(len(seconds), -1, np.int64)
    found[timed[order]] = np.cumsum(is_new) - 1
    return found

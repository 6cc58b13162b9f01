"""What labels, images and detections must know of each other: limits of classes, and which images without a class give crops."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class FalseBoxClass(NamedTuple):
    """The model's class for false boxes.

    ``detector_confidence``: the detector's boxes on empty images count from here on; None: as in all other images.
    """

    id: str
    detector_confidence: float | None = None


class WantedSample(NamedTuple):
    """Which images of a source are downloaded although none of their labels is a class of the plan.

    Attributes:
        labels: the labels that count, case-folded: of empty images, all labels must be among them.
        max_images: at most so many ...
        max_per_location: ... and at most so many of one location.
        others: instead, images with a label of an animal that is not among ``labels``; ``max_per_location`` is then for each such label.
    """

    labels: tuple[str, ...]
    max_images: int
    max_per_location: int
    others: bool = False


def spread_over_locations(names: Sequence[str], locations: Sequence[str], max_images: int, max_per_location: int) -> NDArray[np.bool_]:
    """Which images to take, bool [n]: of each location the first before of any the second, and so on. None of an unknown location.

    The images of a location are ordered by a hash of their names, so that the choice changes little while the data grow.

    ``names``: [n], a name of each image, such as ``<source>/<image id>``. ``locations``: [n], its location; "" where unknown.
    """
    import numpy as np
    import pandas as pd

    images = pd.DataFrame({"location": np.asarray(locations, object), "hash": pd.util.hash_array(np.asarray(names, object))})
    images = images[images["location"] != ""].sort_values("hash", kind="stable")
    images["turn"] = images.groupby("location").cumcount()
    first = images[images["turn"] < max_per_location].sort_values("turn", kind="stable").head(max_images)
    taken = np.zeros(len(names), bool)
    taken[first.index.to_numpy(np.int64)] = True
    return taken


class ClassLimits(NamedTuple):
    """The limits of classes, as they apply to one source.

    Attributes:
        key: JSON that the choice depends on, besides the export and the source: a part of the cache key.
        left_out: ids of the images that the source's own limits leave out → ids of the other images that no class can use.
    """

    key: Mapping[str, Any]
    left_out: Callable[[Collection[str]], frozenset[str]]

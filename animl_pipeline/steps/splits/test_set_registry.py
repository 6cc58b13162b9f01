"""The registry of the locations and images that earlier runs used for training or testing. It freezes a model's test set.

It is part of the store's index, one for each model and number of the test set. A location has an entry by its name. The images of a
location have an entry for each run that used new ones, so that a location is recognised under another name.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.core.errors import StoreError
from animl_pipeline.steps.splits.grouping import to_list
from animl_pipeline.storage.store import Store, digest_of

NEW, TRAINED, TESTED, BOTH = 0, 1, 2, 3
"""What a location or image was used for by earlier runs."""
WORDS = {"learnt": TRAINED, "tested": TESTED}
"""The words in the registry's files. They stay as they are, so that registries of earlier versions keep test sets frozen."""
PREFIX = 16
"""The first characters of an image's sha256 stand for the image."""
UNKNOWN_LOCATION, ANY_LOCATION = "", "?"
"""The location of images whose location was unknown, and of images that an early registry kept without their location."""


class ImageUse(NamedTuple):
    """What some images were used for (``TRAINED`` or ``TESTED``), and their location then."""

    use: int
    location: str


class History(NamedTuple):
    """What earlier runs used those locations and images for that are among the present ones.

    Attributes:
        locations: name → ``TRAINED`` or ``TESTED``.
        images: use → prefixes of images.
        recorded: whether this very run is in the registry.
    """

    locations: dict[str, int]
    images: dict[ImageUse, set[str]]
    recorded: bool = False

    def digest(self) -> str:
        """The same for the same history."""
        images = [[*use, digest_of(sorted(prefixes))] for use, prefixes in sorted(self.images.items())]
        return digest_of([sorted(self.locations.items()), images])

    def image_uses(self) -> tuple[list[ImageUse], pd.Series]:
        """All uses, and for each prefix of an image the position of its use. An image that was used for both counts as tested."""
        uses = sorted(self.images)  # TRAINED before TESTED
        prefixes = pd.Series([prefix for use in uses for prefix in sorted(self.images[use])], dtype=str)
        position = np.repeat(np.arange(len(uses)), [len(self.images[use]) for use in uses])
        last = ~prefixes.duplicated(keep="last").to_numpy()
        return uses, pd.Series(position[last], index=prefixes[last])

    def tested_images(self) -> set[str]:
        """Prefixes of the images that were used for testing."""
        return set().union(*(prefixes for use, prefixes in self.images.items() if use.use == TESTED))


def registry_name(model: str, test_set: int) -> str:
    """The name of a registry in the store's index. No model has such a name with a dot."""
    return f"splits/{model}" if test_set == 1 else f"splits/{model}.{test_set}"


def read_history(store: Store, registry: str, run: str, locations: set[str], images: set[str]) -> History:
    """What earlier runs used these locations and images for. The entries of ``run`` itself do not count.

    Args:
        store: the store.
        registry: name of the registry.
        run: id of this run.
        locations: names of the present locations.
        images: prefixes of the present images.

    Raises:
        StoreError: the registry cannot be read. Without it, the test set would not stay frozen.
    """
    entries = store.read_index(registry, irreplaceable=True)
    unknown = [name for name, e in entries.items() if set(e) not in ({"as", "run"}, {"as", "run", "location", "images"}) or e["as"] not in WORDS]
    if unknown:
        raise StoreError(
            f"the registry of test locations has an unknown entry for {unknown[0]!r}; restore index/{registry} in the store from a backup, "
            "or raise splits.test_set in the plan to start a new test set",
            code="unknown_registry_entry",
        )
    used: dict[str, int] = {}
    image_uses: dict[ImageUse, set[str]] = {}
    for name, entry in entries.items():
        if entry["run"] == run:
            continue
        use = WORDS[entry["as"]]
        if "images" in entry:
            image_uses.setdefault(ImageUse(use, entry["location"]), set()).update(images.intersection(entry["images"].split()))
        elif name in locations:
            used[name] = use
        elif name[:PREFIX] in images:
            image_uses.setdefault(ImageUse(use, ANY_LOCATION), set()).add(name[:PREFIX])
    present = {use: prefixes for use, prefixes in image_uses.items() if prefixes}
    return History(used, present, recorded=any(e["run"] == run for e in entries.values()))


def record_split(store: Store, registry: str, run: str, crops: pd.DataFrame) -> None:
    """Add the locations and images of a split to the registry. What it holds already stays as it is.

    Args:
        store: the store.
        registry: name of the registry.
        run: id of this run.
        crops: columns ``location``, ``image`` and ``split``.
    """
    entries = store.read_index(registry, irreplaceable=True)
    known = {name[:PREFIX] for name in entries} | {prefix for entry in entries.values() for prefix in entry.get("images", "").split()}
    use = crops["split"].eq("test").map({True: "tested", False: "learnt"})
    table = pd.DataFrame({"location": crops["location"], "use": use, "image": crops["image"].str.slice(0, PREFIX)}).drop_duplicates()
    new: dict[str, dict[str, str]] = {}
    for (location, word), rows in ((map(str, key), rows) for key, rows in table.groupby(["location", "use"])):
        if location and location not in entries:
            new[location] = {"as": word, "run": run}
        if images := sorted(set(to_list(rows["image"])) - known):
            new[f"{run} {word} {location}"] = {"as": word, "run": run, "location": location, "images": " ".join(images)}
    store.add_to_index(registry, new)

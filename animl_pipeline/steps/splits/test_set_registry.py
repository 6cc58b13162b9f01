"""The register of what was tested on and learnt from, which freezes a model's test set from one retraining to the next.

It lies in the store's memory, for each model and test set. A place has an entry by its name; the pictures of a place have
one for each run that used new ones, so that a place is known again under another name.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.core.errors import StoreError
from animl_pipeline.steps.splits.grouping import texts
from animl_pipeline.storage.step_cache import Store, digest_of

TESTED, LEARNT = "tested", "learnt"
MARK = 16
"""So many first characters of a picture's name stand for it."""
NOWHERE, ELSEWHERE = "", "?"
"""The home of a picture whose place was unknown, and of one that an early register kept without its place."""


class Use(NamedTuple):
    """What was done with pictures, tested or learnt, and the place that they were of."""

    how: str
    home: str


class Past(NamedTuple):
    """What other runs did with places and pictures that are here again."""

    locations: dict[str, str]  # name of a place: tested or learnt
    images: dict[Use, set[str]]  # marks of pictures
    complete: bool = False  # whether this very run has been written down already

    def digest(self) -> str:
        """The same for the same past."""
        images = [[*use, digest_of(sorted(marks))] for use, marks in sorted(self.images.items())]
        return digest_of([sorted(self.locations.items()), images])

    def done(self) -> pd.Series:
        """For each mark its use, by its number in the sorted uses; of a picture with two uses the tested one."""
        uses = sorted(self.images)  # learnt before tested
        marks = pd.Series([mark for use in uses for mark in sorted(self.images[use])], dtype=str)
        number = np.repeat(np.arange(len(uses)), [len(self.images[use]) for use in uses])
        last = ~marks.duplicated(keep="last").to_numpy()
        return pd.Series(number[last], index=marks[last])


def register_of(lineage: str, test_set: int) -> str:
    """The name of a register in the store's memory; no model is called so, since names hold no dot."""
    return f"splits/{lineage}" if test_set == 1 else f"splits/{lineage}.{test_set}"


def read_past(store: Store, register: str, run: str, locations: set[str], marks: set[str]) -> Past:
    """What other runs did with these; a run's own entries do not change its key.

    Raises:
        StoreError: the register is damaged or not what this version wrote: to go on without would thaw the test set.
    """
    entries = store.recall(register, irreplaceable=True)
    strange = [name for name, entry in entries.items() if set(entry) not in ({"as", "run"}, {"as", "run", "location", "images"})]
    if strange:
        raise StoreError(
            f"the register of tested places has no entry of this version for {strange[0]!r}; "
            f"restore memory/{register} in the store from a copy, or raise splits.test_set in the plan to begin a new test set"
        )
    used: dict[str, str] = {}
    images: dict[Use, set[str]] = {}
    for name, entry in entries.items():
        if entry["run"] == run:
            continue
        if "images" in entry:
            images.setdefault(Use(entry["as"], entry["location"]), set()).update(marks.intersection(entry["images"].split()))
        elif name in locations:
            used[name] = entry["as"]
        elif name[:MARK] in marks:
            images.setdefault(Use(entry["as"], ELSEWHERE), set()).add(name[:MARK])
    return Past(used, {use: there for use, there in images.items() if there}, any(e["run"] == run for e in entries.values()))


def write_register(store: Store, register: str, run: str, used: pd.DataFrame) -> None:
    """Remember what is tested on and learnt from now (``place, picture, split``); what is known already stays as it is."""
    entries = store.recall(register, irreplaceable=True)
    known = {name[:MARK] for name in entries} | {mark for entry in entries.values() for mark in entry.get("images", "").split()}
    use = used["split"].eq("test").map({True: TESTED, False: LEARNT})
    table = pd.DataFrame({"location": used["location"], "use": use, "mark": used["image"].str.slice(0, MARK)}).drop_duplicates()
    new: dict[str, dict[str, str]] = {}
    for (location, how), rows in ((map(str, key), rows) for key, rows in table.groupby(["location", "use"])):
        if location and location not in entries:
            new[location] = {"as": how, "run": run}
        if marks := sorted(set(texts(rows["mark"])) - known):
            new[f"{run} {how} {location}"] = {"as": how, "run": run, "location": location, "images": " ".join(marks)}
    store.remember(register, new)

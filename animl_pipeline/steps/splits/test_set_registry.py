"""The registry of the locations and images that earlier runs used for training or testing. It freezes a model's test set.

There is one for each model and number of the test set, ``index/splits/<model>/`` in the store. Each run that used something new adds a
file: the first is ``00000001.json``, the next ``00000002.json``, and so on. A file is written only if there is none of its number, so
of two runs at once one is refused and divides again. Each file holds the sha256 of the one before it. The number of files and the
sha256 of the last one are also kept with the model's reports. So a changed, empty or missing file is noticed. Files of earlier
versions (``*.jsonl``) come before them all.

A location has an entry by its name. The images of a location have an entry for each run that used new ones, so that a location is
recognised under another name.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PipelineError, StoreError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.deploy.release_history import records_of_model
from animl_pipeline.deploy.trained_versions import trained_versions
from animl_pipeline.inference.classifier import CARD_FILE, read_card
from animl_pipeline.steps.splits.grouping import to_list
from animl_pipeline.storage.store import Store, digest_of

NEW, TRAINED, TESTED, BOTH, TESTED_LATER = 0, 1, 2, 3, 4
"""What a location or image was used for by earlier runs. Only an image is TESTED_LATER: a later image of a training location."""
WORDS = {"learnt": TRAINED, "tested": TESTED, "tested_later": TESTED_LATER}
"""The words in the registry's files. They stay as they are, so that registries of earlier versions keep test sets frozen."""
PREFIX = 16
"""The first characters of an image's sha256 stand for the image."""
UNKNOWN_LOCATION, ANY_LOCATION = "", "?"
"""The location of images whose location was unknown, and of images that an early registry kept without their location."""
NUMBERED = re.compile(r"[0-9]{8}\.json")
"""The names of a registry's files; those of earlier versions have others."""
DIGEST_IN_NAME = re.compile(r"/[0-9]{20}-([0-9a-f]{16})\.jsonl$")


class ImageUse(NamedTuple):
    """What some images were used for (``TRAINED``, ``TESTED`` or ``TESTED_LATER``), and their location then."""

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
        uses = sorted(self.images)  # TRAINED before the tests
        prefixes = pd.Series([prefix for use in uses for prefix in sorted(self.images[use])], dtype=str)
        position = np.repeat(np.arange(len(uses)), [len(self.images[use]) for use in uses])
        last = ~prefixes.duplicated(keep="last").to_numpy()
        return uses, pd.Series(position[last], index=prefixes[last])

    def use_of_images(self, images: NDArray[np.object_]) -> NDArray[np.int64]:
        """What each image, by its sha256, was used for: ``NEW`` or the use of its entry."""
        if not self.images:
            return np.full(len(images), NEW)
        uses, position_of = self.image_uses()
        position = pd.Series(images, dtype=str).str.slice(0, PREFIX).map(position_of).fillna(len(uses)).to_numpy(np.int64)
        return np.asarray(np.array([*(u.use for u in uses), NEW])[position])

    def tested_images(self) -> set[str]:
        """Prefixes of the images that were used for testing."""
        return set().union(*(prefixes for use, prefixes in self.images.items() if use.use in {TESTED, TESTED_LATER}))


class Registry(NamedTuple):
    """A registry as it is in the store now.

    Attributes:
        name: its name in the store's index.
        report: the name of the object that keeps its number of files with the model's reports.
        entries: name of a location, or of images of a run → what they were used for.
        files: how many numbered files it has.
        last: sha256 of the last file, which the next file names.
        unconfirmed: whether it has files of earlier versions that no numbered file names yet.
    """

    name: str
    report: str
    entries: dict[str, dict[str, str]]
    files: int
    last: str
    unconfirmed: bool

    def use_of_images(self) -> dict[str, str]:
        """Prefix of an image → the word for its use. An image that was used for both counts as tested."""
        found = {prefix: e["as"] for e in self.entries.values() for prefix in e.get("images", "").split()}
        return found | {prefix: e["as"] for e in self.entries.values() if e["as"] != "learnt" for prefix in e.get("images", "").split()}


class _File(Record):
    """One numbered file of a registry."""

    previous: str
    entries: dict[str, dict[str, str]]


class _Count(Record):
    """The number of files of a registry and the sha256 of the last one, as they are kept with the model's reports."""

    files: int
    last: str


def registry_name(model: str, test_set: int) -> str:
    """The name of a registry in the store's index. No model has such a name with a dot."""
    return f"splits/{model}" if test_set == 1 else f"splits/{model}.{test_set}"


def read_registry(store: Store, model: str, test_set: int) -> Registry:
    """The registry of a model's test set.

    Raises:
        StoreError: it cannot be read, has changed, or is missing although the model was trained with it (codes "damaged_registry",
            "missing_registry", "unknown_registry_entry"). Without it, the test set would not stay frozen.
    """
    name, report = registry_name(model, test_set), f"reports/{model}/test_set_{test_set}.json"
    folder = f"index/{name}/"
    names = [n for n in store.object_store.names(folder) if "/" not in n.removeprefix(folder)]
    earlier = {n: store.object_store.read(n) or b"" for n in names if not NUMBERED.fullmatch(n.removeprefix(folder))}
    entries: dict[str, dict[str, str]] = {}
    for shard, data in earlier.items():
        entries |= _parse_earlier(shard, data)
    last = digest_of(sorted((n.removeprefix(folder), hashlib.sha256(data).hexdigest()) for n, data in earlier.items())) if earlier else ""
    numbered = [n for n in names if n not in earlier]
    digests = [last]
    for number, file in enumerate(numbered, 1):
        data = store.object_store.read(file) or b""
        content = _parse_numbered(file, data)
        if file != f"{folder}{number:08d}.json" or content.previous != last:
            raise _damaged(file, "a file before it is missing or has changed")
        entries |= content.entries
        last = hashlib.sha256(data).hexdigest()
        digests.append(last)
    _check_entries(name, entries)
    _check_complete(store, model, test_set, report, digests, empty=not names)
    return Registry(name, report, entries, len(numbered), last, bool(earlier) and not numbered)


def was_judged(store: Store, model: str, test_set: int) -> bool:
    """Whether any training of the model has been judged on this test set, trials included."""
    return any(_test_set_of(trained.report.package, store) == test_set for trained in reversed(trained_versions(model, store)))


def find_history(registry: Registry, run: str, locations: set[str], images: set[str]) -> History:
    """What earlier runs used these locations and images for. The entries of ``run`` itself do not count.

    ``locations``: names of the present locations. ``images``: prefixes of the present images.
    """
    used: dict[str, int] = {}
    image_uses: dict[ImageUse, set[str]] = {}
    for name, entry in registry.entries.items():
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
    return History(used, present, recorded=any(e["run"] == run for e in registry.entries.values()))


def record_split(store: Store, registry: Registry, run: str, crops: pd.DataFrame) -> bool:
    """Add the locations and images of a split to the registry; False if it has grown since it was read, and nothing was written.

    What it holds already stays as it is.

    ``crops``: columns ``location``, ``image`` and ``split``.
    """
    entries = registry.entries
    known = {name[:PREFIX] for name in entries} | {prefix for entry in entries.values() for prefix in entry.get("images", "").split()}
    use = _words(crops["split"])
    table = pd.DataFrame({"location": crops["location"], "use": use, "image": crops["image"].str.slice(0, PREFIX)}).drop_duplicates()
    new: dict[str, dict[str, str]] = {}
    for (location, word), rows in ((map(str, key), rows) for key, rows in table.groupby(["location", "use"])):
        if location and location not in entries:
            new[location] = {"as": "tested" if word == "tested" else "learnt", "run": run}
        if images := sorted(set(to_list(rows["image"])) - known):
            new[f"{run} {word} {location}"] = {"as": word, "run": run, "location": location, "images": " ".join(images)}
    number = registry.files + 1
    name = f"index/{registry.name}/{number:08d}.json"
    if not new and not registry.unconfirmed:
        return store.object_store.size(name) is None
    data = _File(previous=registry.last, entries=new).model_dump_json(indent=0).encode()
    if not store.object_store.put_if_absent(name, data):
        return False
    store.object_store.put(registry.report, _Count(files=number, last=hashlib.sha256(data).hexdigest()).model_dump_json().encode())
    return True


def count_conflicts(registry: Registry, crops: pd.DataFrame) -> int:
    """How many crops are in test although their location or image was used for training, or the other way round.

    ``crops``: columns ``location``, ``image`` and ``split``.
    """
    by_location = crops["location"].map({name: e["as"] for name, e in registry.entries.items() if "images" not in e})
    by_image = crops["image"].str.slice(0, PREFIX).map(registry.use_of_images())
    word = _words(crops["split"])
    of_location = word.where(word == "tested", "learnt")  # later images are tested at training locations
    return int(((by_location.notna() & (by_location != of_location)) | (by_image.notna() & (by_image != word))).sum())


def _words(split: pd.Series) -> pd.Series:
    """The registry's word for each split."""
    return split.map({"test": "tested", "test_later": "tested_later"}).fillna("learnt")


def _parse_earlier(name: str, data: bytes) -> dict[str, dict[str, str]]:
    """The entries of a file of an earlier version, whose name may end with the beginning of its sha256."""
    digest = DIGEST_IN_NAME.search(name)
    if digest and not hashlib.sha256(data).hexdigest().startswith(digest[1]):
        raise _damaged(name, "its content does not fit the digest in its name")
    try:
        found = {str(key): dict(entry) for key, entry in map(json.loads, data.decode().splitlines())}
    except (ValueError, TypeError) as e:
        raise _damaged(name, "it cannot be read") from e
    if not found:
        raise _damaged(name, "it is empty")
    return found


def _parse_numbered(name: str, data: bytes) -> _File:
    try:
        return _File.model_validate_json(data)
    except ValidationError as e:
        raise _damaged(name, "it is empty" if not data else "it cannot be read") from e


def _damaged(name: str, what: str) -> StoreError:
    return StoreError(
        f"the registry of test locations is damaged: {name}: {what}; restore its folder in the store from a copy, or raise splits.test_set in the "
        "plan to start a new test set",
        code="damaged_registry",
    )


def _check_entries(name: str, entries: dict[str, dict[str, str]]) -> None:
    unknown = [n for n, e in entries.items() if set(e) not in ({"as", "run"}, {"as", "run", "location", "images"}) or e["as"] not in WORDS]
    if unknown:
        raise StoreError(
            f"the registry of test locations has an unknown entry for {unknown[0]!r}; restore index/{name} in the store from a copy, "
            "or raise splits.test_set in the plan to start a new test set",
            code="unknown_registry_entry",
        )


def _check_complete(store: Store, model: str, test_set: int, report: str, digests: list[str], *, empty: bool) -> None:
    """Check that no file is missing or changed at the end of a registry, by what reports and releases of the model know.

    ``digests[n]`` is the sha256 of the file with the number n.
    """
    kept = store.object_store.read(report)
    try:
        expected = _Count.model_validate_json(kept) if kept is not None else None
    except ValidationError:
        raise _damaged(report, "it cannot be read") from None
    files = len(digests) - 1
    if expected and expected.files <= files and digests[expected.files] != expected.last:
        raise _damaged(f"index/{registry_name(model, test_set)}/{expected.files:08d}.json", f"it is not the file that {report} names")
    if (expected and files < expected.files) or (not expected and empty and test_set in _test_sets_in_use(store, model)):
        raise StoreError(
            f"expected a registry of test locations in index/{registry_name(model, test_set)}, with which {model} was trained before, found "
            f"{files} of {expected.files if expected else 'its'} files; restore the folder in the store from a copy, or raise splits.test_set in "
            "the plan to start a new test set",
            code="missing_registry",
        )


class _Report(BaseModel):
    """The only field of a stored report that matters here."""

    package: Artifact


def _test_sets_in_use(store: Store, model: str) -> set[int]:
    """The numbers of the test sets with which the model's latest report and its releases were made. A card that cannot be read counts as 1."""
    data = store.object_store.read(f"reports/{model}/newest.json")
    packages = [r.package for r in records_of_model(model, store).records if r.package is not None]
    try:
        packages += [_Report.model_validate_json(data).package] if data is not None else []
    except ValidationError:
        return {1}
    return {_test_set_of(package, store) for package in packages}


def _test_set_of(package: Artifact, store: Store) -> int:
    try:
        plan = read_card(store.path(package, CARD_FILE)).plan
    except PipelineError:
        return 1
    return int((plan.get("splits") or {}).get("test_set", 1))

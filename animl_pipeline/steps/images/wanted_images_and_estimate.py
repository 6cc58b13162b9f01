"""Which images to download: those with a wanted label, within the source's own limits. And an estimate of the download."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.category_names import label_forms, role
from animl_pipeline.core.errors import redact_url
from animl_pipeline.core.sample_limit_and_false_box_types import ClassLimits, WantedSample, spread_over_locations
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS, EXPORT_IMAGES
from animl_pipeline.steps.images.download_status import DownloadStatus
from animl_pipeline.storage.store import Store, digest_of

UNREVIEWED_ONLY = "with_unreviewed_labels_only"


class WantedImages(NamedTuple):
    """The images to download, and those that are left out.

    Attributes:
        images: columns image_id and path.
        over_limit: the same columns; images with a wanted label that the source's limits leave out.
        over_class_limit: the same columns; the others that no class can use, because of the classes' limits.
        not_wanted: reason → number of the other images.
        samples: how many of the images have no class of the plan: notes with their numbers.
    """

    images: pd.DataFrame
    over_limit: pd.DataFrame
    over_class_limit: pd.DataFrame
    not_wanted: dict[str, int]
    samples: dict[str, int] = {}  # noqa: RUF012 - a named tuple's default, never changed


class DownloadEstimate(NamedTuple):
    """How many images are wanted, how many of them the store holds, with how many bytes, the ids that the source's limits leave out, and how
    many more the classes' limits leave out.
    """

    wanted: int
    in_store: int
    bytes_in_store: int
    over_limit: frozenset[str]
    over_class_limit: int

    @property
    def to_download(self) -> int:
        """Images that would be downloaded."""
        return self.wanted - self.in_store


def estimate_download(
    source: SourceConfig,
    export: Artifact,
    wanted: Collection[str],
    store: Store,
    settings: Settings,
    samples: Sequence[WantedSample] = (),
    limits: ClassLimits | None = None,
) -> DownloadEstimate:
    """What :func:`~animl_pipeline.steps.images.step.download_images` would download. Sends no request to the host."""
    found = select_images(source, export, wanted, store, samples, limits)
    status = DownloadStatus(found.images)
    status.load(index_name(source, settings), store, local_folder(source, settings))
    size = int(status.downloaded_table()["bytes"].sum())
    return DownloadEstimate(len(status), int(status.in_store.sum()), size, frozenset(found.over_limit["image_id"]), len(found.over_class_limit))


def select_images(
    source: SourceConfig,
    export: Artifact,
    wanted: Collection[str],
    store: Store,
    samples: Sequence[WantedSample] = (),
    limits: ClassLimits | None = None,
) -> WantedImages:
    """The images with a wanted label. Labels that are not reviewed count only if the source keeps them.

    ``wanted``: labels, case-folded. ``samples``: which other images are wanted as well. They have limits of their own, so that they never
    displace the plan's classes.
    """
    images = store.table(export, EXPORT_IMAGES, ["image_id", "path", "location"])
    annotations = store.table(export, EXPORT_ANNOTATIONS, ["image_id", "label", "reviewed"])
    labels = [label for label in annotations["label"].unique() if not frozenset(wanted).isdisjoint(label_forms(str(label)))]
    has_wanted = annotations["label"].isin(labels)
    counts = has_wanted & annotations["reviewed"] if source.unreviewed == "drop" else has_wanted
    labelled, selected = (images["image_id"].isin(annotations.loc[mask, "image_id"]) for mask in (has_wanted, counts))
    chosen = {_note(sample): _choose_sample(source, images[~labelled], annotations, sample) for sample in samples}
    extra = images["image_id"].isin(set().union(*chosen.values()))
    not_wanted = {"without_a_wanted_label": int((~labelled & ~extra).sum()), UNREVIEWED_ONLY: int((labelled & ~selected).sum())}
    animals, columns = images[selected], ["image_id", "path"]
    over = _over_limits(animals, source)
    left_out = limits.left_out(animals.loc[over, "image_id"].tolist()) if limits else frozenset()
    unused = ~over & animals["image_id"].isin(left_out).to_numpy()
    used = animals.loc[~over & ~unused, columns]
    taken = pd.concat([used, images.loc[extra, columns]]) if extra.any() else used
    reasons = {reason: n for reason, n in not_wanted.items() if n}
    return WantedImages(taken, animals.loc[over, columns], animals.loc[unused, columns], reasons, {note: len(ids) for note, ids in chosen.items()})


def _note(sample: WantedSample) -> str:
    return "images_of_other_animals" if sample.others else "empty_images"


def _choose_sample(source: SourceConfig, images: pd.DataFrame, annotations: pd.DataFrame, sample: WantedSample) -> set[str]:
    """The ids of a sample of these images. Of empty ones, people reviewed all labels, and each means empty; of others, a label of an animal."""
    labels = annotations["label"].unique()
    known = {label for label in labels if not frozenset(sample.labels).isdisjoint(label_forms(str(label)))}
    counting = {label for label in labels if label not in known and not role(label)} if sample.others else known
    counts = annotations["label"].isin(counting) & annotations["reviewed"]
    name = annotations[counts].drop_duplicates("image_id").set_index("image_id")["label"].astype(str)
    if not sample.others:
        name = name[~name.index.isin(annotations.loc[~counts, "image_id"])]
    candidates = images[images["image_id"].isin(name.index) & (images["location"] != "")]
    names, names_and_locations = (source.name + "/" + candidates["image_id"].astype(str)).to_list(), candidates["location"].astype(str)
    if sample.others:
        names_and_locations = candidates["image_id"].map(name) + "\0" + names_and_locations
    taken = spread_over_locations(names, names_and_locations.to_list(), sample.max_images, sample.max_per_location)
    return set(candidates.loc[taken, "image_id"])


def source_limits(source: SourceConfig) -> dict[str, int]:
    """The limits that a source has: plan key → number."""
    return {key: n for key, n in (("max_images", source.max_images), ("max_per_location", source.max_per_location)) if n is not None}


def index_name(source: SourceConfig, settings: Settings) -> str:
    """The name of the store's image index for the host of a source's images."""
    return f"images/{digest_of([host_address(source, settings), source.path_field])[:16]}"


def host_address(source: SourceConfig, settings: Settings) -> str:
    """Where the images are: an address without its signature, because a new signature is the same host and no secret goes into the store; or a
    folder's absolute path, because a relative one is another folder below another data folder.
    """
    if (folder := local_folder(source, settings)) is not None:
        return str(folder)
    return redact_url(source.images) if source.images.startswith("http") else source.images


def local_folder(source: SourceConfig, settings: Settings) -> Path | None:
    """The folder of a source's images, if they are on this machine."""
    return None if "://" in source.images else settings.data_path(source.images)


def _over_limits(images: pd.DataFrame, source: SourceConfig) -> NDArray[np.bool_]:
    """Which images the source's limits leave out: max_per_location first, then max_images.

    The images are ordered by a hash of their ids, so that the choice stays the same while the source grows. Images of unknown
    location are not limited by max_per_location.
    """
    over = np.zeros(len(images), bool)
    order = np.argsort(pd.util.hash_array(images["image_id"].to_numpy(object)), kind="stable")
    if source.max_per_location is not None:
        locations = images["location"].iloc[order].astype(str)
        too_many = (locations != "") & (locations.groupby(locations).cumcount() >= source.max_per_location)
        over[order[too_many.to_numpy()]] = True
    if source.max_images is not None:
        order = order[~over[order]]
        over[order[source.max_images :]] = True
    return over

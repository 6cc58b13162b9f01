"""Turn a Camtrap DP's observations into labels of images.

A media-based observation labels its image, with a box where it has one. An event-based observation names no image. It labels
the images of its deployment that were taken between the event's start and end and have no observation of their own, and only
if the event saw one kind of thing: otherwise it is not known which image shows which.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.capture_times import parse_times, to_iso
from animl_pipeline.core.errors import ExportError, redact_url
from animl_pipeline.steps.export.camtrap_dp_locations import locate_deployments
from animl_pipeline.steps.export.problems import Problems
from animl_pipeline.steps.export.to_coco import REVIEWED, UNIT_SIZE, UNREVIEWED, Converted, Row, is_image

TYPE_LABELS = {"blank": "empty", "human": "human", "vehicle": "vehicle", "unknown": "unknown"}
"""observationType → label, for observations without a scientific name; all others are "animal"."""
BOX = ("bboxX", "bboxY", "bboxWidth", "bboxHeight")
OPTIONAL = ("mediaID", "eventID", "eventStart", "eventEnd", "observationLevel", "cameraSetupType", "scientificName", "classificationMethod",
            "classificationProbability", *BOX)  # fmt: skip
NO_BOX = ("", "", "", "")
SLACK = 0.01
"""Share of the image by which rounding may let a box reach over the edge."""
NOT_A_TIME = np.iinfo(np.int64).min
"""A missing time as a number of microseconds."""


class Observation(NamedTuple):
    """One observation; all values are text as in the table, "" where missing."""

    id: str
    deployment: str
    media: str
    event: str
    start: str
    end: str
    level: str
    type: str
    taxon: str
    method: str
    probability: str
    box: tuple[str, str, str, str]

    @property
    def label(self) -> str:
        """The label that it gives."""
        return self.taxon or TYPE_LABELS.get(self.type, "animal")

    @property
    def by_machine(self) -> bool:
        """Whether a machine classified it."""
        return self.method == "machine"

    @property
    def sequence(self) -> str:
        """The event as a sequence id; event ids may repeat from deployment to deployment."""
        return f"{self.deployment}/{self.event}" if self.event else ""


class ImageLabel(NamedTuple):
    """A label of one image: the image's id, its sequence, and the COCO annotation."""

    image: str
    sequence: str
    row: Row


def convert_observations(tables: dict[str, pd.DataFrame], stated_precision: float | None, source: SourceConfig, where: str) -> Converted:
    """The package's images and labels as COCO rows.

    ``stated_precision``: the package's coordinatePrecision in degrees, if it states one.

    Raises:
        ExportError: ``images_elsewhere``: no image is below ``sources.images``; its detail ``base`` is where they are. ``no_location_field``:
            ``location_field`` is not a column of the deployments.
    """
    problems = Problems()
    locations = locate_deployments(tables["deployments"], stated_precision, source, where, problems)
    media = _image_media(tables["media"], source, problems)
    labels = list(_image_labels(_observations(tables["observations"], problems), media, tables["media"]["mediaID"], problems))
    sequences = {label.image: label.sequence for label in reversed(labels) if label.sequence}
    images = _image_rows(media, locations.location_of, sequences, problems)
    return Converted(images, (label.row for label in labels), problems, locations.placed)


# -- media ---------------------------------------------------------------------------------------------------------


def _image_media(media: pd.DataFrame, source: SourceConfig, problems: Problems) -> pd.DataFrame:
    """The media that are images below ``sources.images``, with their ``path`` below it."""
    media = media.assign(timestamp=_known_times(media, problems))
    kind = media["fileMediatype"].str.lower() if "fileMediatype" in media else pd.Series("", index=media.index)
    name = media["fileName"].where(media["fileName"] != "", media["filePath"]) if "fileName" in media else media["filePath"]
    images = kind.str.startswith("image/")
    images[kind == ""] = name[kind == ""].map(is_image)
    base = f"{redact_url(source.images).rstrip('/')}/"
    inside = ~media["filePath"].str.contains("://", regex=False) | media["filePath"].str.startswith(base)
    for mask, problem in ((~images, "not_an_image"), (images & ~inside, "image_elsewhere")):
        for media_id, path in zip(media["mediaID"][mask], media["filePath"][mask], strict=True):
            problems.add(problem, media_id, path)
    kept = media[images & inside]
    if not len(kept) and (images & ~inside).any():
        found = common_base(media["filePath"][images & ~inside])
        raise ExportError(
            f"source {source.name!r}: expected images below sources.images ({redact_url(source.images)}), "
            f"found all {int(images.sum()):,} of the package below {found}; set sources.images to that",
            code="images_elsewhere",
            base=found,
        )
    return kept.assign(path=kept["filePath"].str.removeprefix(base))


def _known_times(media: pd.DataFrame, problems: Problems) -> pd.Series[str]:
    """The timestamps in ISO 8601's form, "" where they are not understood."""
    times = to_iso(media["timestamp"] if "timestamp" in media else pd.Series("", index=media.index))
    for mask, problem in ((times.ambiguous, "ambiguous_time"), (times.unreadable, "unreadable_time")):
        found = times.texts[mask]
        details = [f"expected a time such as 2024-05-31T10:00:00Z, found {text!r}" for text in found]
        problems.add_many(problem, media["mediaID"][mask].tolist(), details)
    return times.texts.where(~(times.ambiguous | times.unreadable), "")


def common_base(urls: Iterable[str]) -> str:
    """The URL of the folder that holds all of some URLs; where they have several hosts, the first host."""
    ordered = sorted(urls)
    first, last = ordered[0].split("/"), ordered[-1].split("/")  # all others are between these two
    common = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first[:-1], last, strict=False))]
    return "/".join(common) if len(common) >= 3 else first[0] + "//" + first[2]


def _image_rows(media: pd.DataFrame, location_of: dict[str, str], sequences: dict[str, str], problems: Problems) -> Iterator[Row]:
    for image, deployment, taken, path in zip(media["mediaID"], media["deploymentID"], media["timestamp"], media["path"], strict=True):
        if deployment not in location_of:
            problems.add("unknown_deployment", image, f"deploymentID {deployment!r} is not in its deployments; the location is unknown")
        row = {"id": image, "file_name": path, "location": location_of.get(deployment, ""), "datetime": taken}
        yield row | {"seq_id": sequences.get(image, ""), **UNIT_SIZE}


# -- observations ----------------------------------------------------------------------------------------------------


def _observations(table: pd.DataFrame, problems: Problems) -> list[Observation]:
    """The observations that say what an image shows."""
    table = table.assign(**{c: "" for c in OPTIONAL if c not in table})
    level = table["observationLevel"].str.lower()
    level = level.where(level.isin(["media", "event"]), table["mediaID"].map(lambda media: "media" if media else "event"))
    columns = [table[c] for c in ("observationID", "deploymentID", "mediaID", "eventID", "eventStart", "eventEnd")]
    columns += [level, *(table[c].str.strip() for c in ("observationType", "scientificName", "classificationMethod"))]
    columns += [table["classificationProbability"]]
    kept = []
    boxes = zip(*(table[c] for c in BOX), strict=True)
    for values, box, setup in zip(zip(*columns, strict=True), boxes, table["cameraSetupType"].str.strip(), strict=True):
        observation = Observation._make((*values, box if _relative_box(box) else NO_BOX))
        if any(box) and observation.box is NO_BOX:
            problems.add("box_malformed", observation.id, f"box {', '.join(box)}: expected relative x, y, width, height; the label is kept")
        if setup:
            problems.add("camera_setup", observation.id, f"cameraSetupType {setup[:80]}")
        elif observation.type == "unclassified":
            problems.add("unclassified", observation.id, "it is not classified yet")
        else:
            kept.append(observation)
    return kept


def _image_labels(observations: list[Observation], media: pd.DataFrame, all_media: Iterable[str], problems: Problems) -> Iterator[ImageLabel]:
    """The labels of the images in ``media``; ``all_media`` also names the media that were dropped."""
    known, in_package = set(media["mediaID"]), set(all_media)
    of_media = [o for o in observations if o.level == "media"]
    labelled_by_people = {o.media for o in of_media if not o.by_machine}
    given: set[tuple[str, str, tuple[str, ...]]] = set()
    for o in of_media:
        if o.media not in known and o.media in in_package:
            problems.add("label_of_dropped_image", o.id, f"mediaID {o.media!r} was dropped")
        elif o.media not in known:
            problems.add("unknown_image", o.id, f"mediaID {o.media!r} is not in the package")
        elif o.by_machine and o.media in labelled_by_people:
            problems.add("superseded_by_people", o.id, "people classified this image")
        elif (o.media, o.label, o.box) in given:
            problems.add("repeated_label", o.id, f"{o.media} has the label {o.label!r} already")
        else:
            given.add((o.media, o.label, o.box))
            yield ImageLabel(o.media, o.sequence, _annotation(o, o.id, o.media))
    yield from _event_labels([o for o in observations if o.level == "event"], media, {o.media for o in of_media}, problems)


def _event_labels(observations: list[Observation], media: pd.DataFrame, covered: set[str], problems: Problems) -> Iterator[ImageLabel]:
    """The labels that events give to images without an observation of their own; ``covered`` names those that have one.

    Events may overlap. An image in events of different labels gets none, whichever of them it shows.
    """
    by_image: dict[str, list[Observation]] = defaultdict(list)
    for event, images, timed in _events_with_images(observations, media):
        for image in images:
            if image not in covered:
                by_image[image] += _by_people_if_any(event)
        problem = _event_problem(event, images, timed, covered)
        for o in event if problem else ():
            problems.add(problem, o.id, f"event {o.event or o.start} of {o.deployment}")
        if not problem:
            best, *others = sorted(event, key=lambda o: o.by_machine)
            for o in others:
                superseded = o.by_machine and not best.by_machine
                problems.add("superseded_by_people" if superseded else "repeated_label", o.id, f"this event has the label {best.label!r} already")
    for image, found in by_image.items():
        counting = _by_people_if_any(found)
        labels = sorted({o.label for o in counting})
        if len(labels) == 1:
            row = _annotation(counting[0]._replace(box=NO_BOX), f"{counting[0].id}/{image}", image)
            yield ImageLabel(image, counting[0].sequence, row | {"sequence_level_annotation": True})
        elif len({(o.start, o.end) for o in counting}) > 1:  # one event with several labels is counted already
            problems.add("image_in_events_of_several_labels", image, f"its events have the labels {', '.join(labels)}")


def _events_with_images(observations: list[Observation], media: pd.DataFrame) -> Iterator[tuple[list[Observation], list[str], bool]]:
    """Each event's observations, the images that it covers, and whether its times are known."""
    events: dict[tuple[str, str, str], list[Observation]] = defaultdict(list)
    for o in observations:
        events[o.deployment, o.start, o.end].append(o)
    media_of = {str(deployment): _sort_by_time(rows) for deployment, rows in media.groupby("deploymentID")}
    both = pd.Series([key[i] for i in (1, 2) for key in events], dtype=str)
    starts, ends = np.split(_microseconds(parse_times(both)), 2)
    for (key, event), start, end in zip(events.items(), starts, ends, strict=True):
        yield event, _taken_between(media_of.get(key[0]), int(start), int(end)), NOT_A_TIME not in {start, end}


def _by_people_if_any(observations: list[Observation]) -> list[Observation]:
    """The observations by people; all of them if there are none by people."""
    return [o for o in observations if not o.by_machine] or observations


def _event_problem(event: list[Observation], images: list[str], timed: bool, covered: set[str]) -> str:
    """Why an event labels no image; "" where it may."""
    if not timed:
        return "event_without_time"
    if not images:
        return "event_without_images"
    if all(image in covered for image in images):
        return "event_images_already_labelled"
    return "event_with_several_labels" if len({o.label for o in _by_people_if_any(event)}) > 1 else ""


def _annotation(o: Observation, annotation_id: str, image: str) -> Row:
    box = _relative_box(o.box)
    row = {"id": annotation_id, "image_id": image, "label": o.label, **(UNREVIEWED if o.by_machine else REVIEWED)}
    confidence = _number(o.probability) if o.by_machine else None
    return row | ({"bbox": box} if box else {}) | ({"confidence": confidence} if confidence is not None else {})


def _relative_box(texts: tuple[str, str, str, str]) -> list[float] | None:
    """x, y, width and height as shares of the image; None where they are not a box."""
    x, y, w, h = (_number(text) for text in texts)
    if x is None or y is None or w is None or h is None or w <= 0 or h <= 0:
        return None
    return [x, y, w, h] if min(x, y) >= -SLACK and max(x + w, y + h) <= 1 + SLACK else None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# -- times -----------------------------------------------------------------------------------------------------------


def _microseconds(times: pd.Series[pd.Timestamp]) -> NDArray[np.int64]:
    """Times as microseconds since 1970, in which all years of four digits fit."""
    return times.astype("datetime64[us, UTC]").to_numpy("datetime64[us]").astype(np.int64)


def _sort_by_time(media: pd.DataFrame) -> tuple[NDArray[np.int64], list[str]]:
    """A deployment's images in order of time, as times and ids. Images without a time are left out."""
    times = parse_times(media["timestamp"])
    known = media[times.notna()].assign(time=_microseconds(times[times.notna()])).sort_values(["time", "mediaID"])
    return known["time"].to_numpy(np.int64), list(known["mediaID"])


def _taken_between(images: tuple[NDArray[np.int64], list[str]] | None, start: int, end: int) -> list[str]:
    """The ids of the images taken from start to end, both inclusive."""
    if images is None or NOT_A_TIME in {start, end}:
        return []
    times, ids = images
    return ids[np.searchsorted(times, start, "left") : np.searchsorted(times, end, "right")]

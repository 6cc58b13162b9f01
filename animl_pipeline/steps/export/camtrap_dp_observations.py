"""A Camtrap DP's observations as labels of pictures.

Observations of one picture (media-based) label it, with a box where they have one. Observations of an event name no picture: they
label those pictures of the deployment that were taken between the event's start and end and that have no observation of their
own, and only if the event saw one kind of thing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import MAXYEAR
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.errors import ExportError, redact_url
from animl_pipeline.integrations.animl import CameraDeployment
from animl_pipeline.steps.export.problems import Problem
from animl_pipeline.steps.export.to_coco import REVIEWED, UNIT, UNREVIEWED, Converted, Row, is_image

TYPES = {"blank": "empty", "human": "human", "vehicle": "vehicle", "unknown": "unknown"}
"""What an observation that names no taxon is called."""
BOX = ("bboxX", "bboxY", "bboxWidth", "bboxHeight")
OPTIONAL = ("mediaID", "eventID", "eventStart", "eventEnd", "observationLevel", "cameraSetupType", "scientificName", "classificationMethod",
            "classificationProbability", *BOX)  # fmt: skip


LONGEST = 500
"""Characters of a path or address that a problem lists."""


class ElsewhereError(ExportError):
    """The package's pictures lie below ``base``, not where the plan says."""

    def __init__(self, line: str, base: str) -> None:
        super().__init__(line)
        self.base = base


class Seen(NamedTuple):
    """One observation."""

    id: str
    deployment: str
    media: str
    event: str
    start: str
    end: str
    level: str
    kind: str
    setup: str
    taxon: str
    method: str
    probability: str
    box: tuple[str, str, str, str]

    @property
    def name(self) -> str:
        """What it saw, as a category's name."""
        return self.taxon or TYPES.get(self.kind, "animal")


def converted(tables: dict[str, pd.DataFrame], source: SourceConfig, where: str) -> Converted:
    """The package's pictures and labels as rows.

    Raises:
        ElsewhereError: all its pictures lie elsewhere.
        ExportError: ``location_field`` is no column of its deployments.
    """
    problems: list[Problem] = []
    location_of = _locations(tables["deployments"], source, where, problems)
    media = _image_list(tables["media"], source, problems)
    labels = list(_labels(_observations(tables["observations"], problems), media, tables["media"]["mediaID"], problems))
    events = {image: event for image, event, _ in reversed(labels) if event}
    sites = _sites(tables["deployments"], location_of) if source.merge_locations_within_m else []
    return Converted(_images(media, location_of, events, problems), (row for _, _, row in labels), problems, sites)


def _locations(deployments: pd.DataFrame, source: SourceConfig, where: str, problems: list[Problem]) -> dict[str, str]:
    """Deployment → its location: locationID, else the deployment itself; or the column that the plan names."""
    column = source.location_field if source.location_field != "location" else "locationID"
    if source.location_field != "location" and column not in deployments:
        raise ExportError(f"{where}: location_field: expected a column of its deployments ({', '.join(deployments.columns[:8])} …), found {column!r}")
    said = deployments[column] if column in deployments else deployments["deploymentID"]
    found: dict[str, str] = {}
    for deployment, loc in zip(deployments["deploymentID"], said, strict=True):
        if found.setdefault(deployment, loc or deployment) != (loc or deployment):
            problems.append(("duplicate_deployment", deployment[:160], f"the first one counts, at {found[deployment]!r}"[:160]))
    return found


def _sites(deployments: pd.DataFrame, location_of: dict[str, str]) -> list[CameraDeployment]:
    """Where deployments with coordinates stood."""
    if not {"latitude", "longitude"} <= set(deployments.columns):
        return []
    lat, lon = (pd.to_numeric(deployments[c], errors="coerce") for c in ("latitude", "longitude"))
    known = lat.between(-90, 90) & lon.between(-180, 180) & ((lat != 0) | (lon != 0))
    began = _instants(deployments["deploymentStart"]) if "deploymentStart" in deployments else pd.Series(pd.NaT, index=deployments.index)
    return [
        CameraDeployment(
            deployment=location_of[d], camera=d, started=t.to_pydatetime() if 1 <= t.year <= MAXYEAR else None, lat=float(y), lon=float(x)
        )
        for d, t, y, x in zip(deployments["deploymentID"][known], began[known], lat[known], lon[known], strict=True)
    ]


def _image_list(media: pd.DataFrame, source: SourceConfig, problems: list[Problem]) -> pd.DataFrame:
    """The media that are pictures below the source's place of pictures, with their ``path``."""
    media = media.assign(timestamp=media.get("timestamp", ""))
    kind = media["fileMediatype"].str.lower() if "fileMediatype" in media else pd.Series("", index=media.index)
    name = media["fileName"].where(media["fileName"] != "", media["filePath"]) if "fileName" in media else media["filePath"]
    img = kind.str.startswith("image/")
    img[kind == ""] = name[kind == ""].map(is_image)
    base = f"{redact_url(source.images).rstrip('/')}/"
    inside = ~media["filePath"].str.contains("://", regex=False) | media["filePath"].str.startswith(base)
    for mask, problem in ((~img, "not_an_image"), (img & ~inside, "image_elsewhere")):
        problems += [(problem, m, p[:LONGEST]) for m, p in zip(media["mediaID"][mask], media["filePath"][mask], strict=True)]
    kept = media[img & inside]
    if not len(kept) and (img & ~inside).any():
        base = common_base(media["filePath"][img & ~inside])
        raise ElsewhereError(
            f"source {source.name!r}: expected pictures below sources.images ({redact_url(source.images)}), "
            f"found all {int(img.sum()):,} of the package below {base}; set sources.images to that",
            base,
        )
    return kept.assign(path=kept["filePath"].str.removeprefix(base))


def common_base(addresses: Iterable[str]) -> str:
    """The address of the folder below which all of some addresses lie; where they share no host, that of the first."""
    ordered = sorted(addresses)
    low, high = ordered[0].split("/"), ordered[-1].split("/")  # all others stand between these two
    common = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(low[:-1], high, strict=False))]
    return "/".join(common) if len(common) >= 3 else low[0] + "//" + low[2]


def _observations(table: pd.DataFrame, problems: list[Problem]) -> list[Seen]:
    """The observations that say something of a picture."""
    table = table.assign(**{c: "" for c in OPTIONAL if c not in table})
    level = table["observationLevel"].str.lower()
    level = level.where(level.isin(["media", "event"]), table["mediaID"].map(lambda media: "media" if media else "event"))
    columns = [table[c] for c in ("observationID", "deploymentID", "mediaID", "eventID", "eventStart", "eventEnd")]
    columns += [level, *(table[c].str.strip() for c in ("observationType", "cameraSetupType", "scientificName", "classificationMethod"))]
    columns += [table["classificationProbability"]]
    boxes = zip(*(table[c] for c in BOX), strict=True)
    kept = []
    for values, (x, y, w, h) in zip(zip(*columns, strict=True), boxes, strict=True):
        seen = Seen._make((*values, (x, y, w, h)))
        if seen.setup:
            problems.append(("camera_setup", seen.id, f"cameraSetupType {seen.setup[:80]}"))
        elif seen.kind == "unclassified":
            problems.append(("unclassified", seen.id, "nobody has named it yet"))
        else:
            kept.append(seen)
    return kept


Label = tuple[str, str, Row]
"""Picture, event (of its deployment), and the label as a row."""


def _labels(observations: list[Seen], media: pd.DataFrame, everything: Iterable[str], problems: list[Problem]) -> Iterator[Label]:
    """What is said of each picture in ``media``; ``everything`` names all media, also those that were left out."""
    known, there = set(media["mediaID"]), set(everything)
    own = [s for s in observations if s.level == "media"]
    by_people = {s.media for s in own if s.method != "machine"}
    said: set[tuple[str, str, tuple[str, ...]]] = set()
    for seen in own:
        again = (seen.media, seen.name, seen.box)
        if seen.media not in known:
            left_out = seen.media in there
            problem, said_of = ("of_a_image_left_out", "was left out") if left_out else ("unknown_image", "is not in the package")
            problems.append((problem, seen.id, f"mediaID {seen.media!r} {said_of}"[:160]))
        elif seen.method == "machine" and seen.media in by_people:
            problems.append(("superseded_by_people", seen.id, "people have named what is in this picture"))
        elif again in said:
            problems.append(("same_label_again", seen.id, f"{seen.name!r} was said of {seen.media} already"[:160]))
        elif (row := _row(seen, seen.id, seen.media, problems)) is not None:
            said.add(again)
            yield seen.media, _event(seen), row
    yield from _event_labels([s for s in observations if s.level == "event"], media, {s.media for s in own}, problems)


def _event_labels(events: list[Seen], media: pd.DataFrame, covered: set[str], problems: list[Problem]) -> Iterator[Label]:
    """What events say of their pictures that nothing else is said of."""
    groups: dict[tuple[str, str, str], list[Seen]] = defaultdict(list)
    for seen in events:
        groups[seen.deployment, seen.start, seen.end].append(seen)
    taken_in = {str(d): _by_time(rows) for d, rows in media.groupby("deploymentID")}
    starts, ends = (_microseconds(_instants(pd.Series([key[i] for key in groups], dtype=str))) for i in (1, 2))
    said: set[tuple[str, str]] = set()
    for (key, group), start, end in zip(groups.items(), starts, ends, strict=True):
        images = _between(taken_in.get(key[0]), int(start), int(end))
        fault = _event_fault(group, images, covered)
        if fault is not None:
            problems += [(fault, seen.id, f"event {seen.event or key[1]} of {seen.deployment}"[:160]) for seen in group]
            continue
        best, *others = sorted(group, key=lambda s: s.method == "machine")
        problems += [("same_label_again", seen.id, f"{seen.name!r} was said of this event already"[:160]) for seen in others]
        for image in (p for p in images if p not in covered):
            if (image, best.name) in said:  # events may overlap
                continue
            said.add((image, best.name))
            row = _row(best._replace(box=("", "", "", "")), f"{best.id}/{image}", image, problems)
            if row is not None:
                yield image, _event(best), row | {"sequence_level_annotation": True}


def _event_fault(group: list[Seen], images: list[str], covered: set[str]) -> str | None:
    """Why an event labels no picture, if it does not."""
    if not images:
        return "event_without_images"
    if all(p in covered for p in images):
        return "event_told_by_its_images"
    by_people = [s for s in group if s.method != "machine"] or group
    return "event_with_several_kinds" if len({s.name for s in by_people}) > 1 else None


def _row(seen: Seen, annotation_id: str, image: str, problems: list[Problem]) -> Row | None:
    box = None
    if any(seen.box):
        box = _box(seen.box)
        if box is None:
            problems.append(("malformed_object", seen.id, f"box {', '.join(seen.box)}: expected relative x, y, width, height"[:160]))
            return None
    machine = seen.method == "machine"
    row = {"id": annotation_id, "image_id": image, "name": seen.name, **(UNREVIEWED if machine else REVIEWED)}
    confidence = _number(seen.probability) if machine else None
    return row | ({"bbox": box} if box else {}) | ({"confidence": confidence} if confidence is not None else {})


def _box(said: tuple[str, str, str, str]) -> list[float] | None:
    x, y, w, h = (_number(v) for v in said)
    if x is None or y is None or w is None or h is None or w <= 0 or h <= 0 or min(x, y) < -0.01 or max(x + w, y + h) > 1.01:
        return None
    return [x, y, w, h]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _event(seen: Seen) -> str:
    return f"{seen.deployment}/{seen.event}" if seen.event else ""


def _images(media: pd.DataFrame, location_of: dict[str, str], events: dict[str, str], problems: list[Problem]) -> Iterator[Row]:
    for image, deployment, taken, path in zip(media["mediaID"], media["deploymentID"], media["timestamp"], media["path"], strict=True):
        if deployment not in location_of:
            problems.append(("unknown_deployment", image, f"deploymentID {deployment!r} is not in its deployments; the place is unknown"[:160]))
        yield {
            "id": image,
            "file_name": path,
            "location": location_of.get(deployment, ""),
            "datetime": taken,
            "seq_id": events.get(image, ""),
            **UNIT,
        }


def _instants(texts: pd.Series[str]) -> pd.Series[pd.Timestamp]:
    """ISO texts as UTC; texts that are none become NaT."""
    return pd.to_datetime(texts, utc=True, errors="coerce", format="ISO8601")


def _microseconds(moments: pd.Series[pd.Timestamp]) -> NDArray[np.int64]:
    return moments.astype("datetime64[us, UTC]").to_numpy("datetime64[us]").astype(np.int64)  # all years of four digits fit


def _by_time(media: pd.DataFrame) -> tuple[NDArray[np.int64], list[str]]:
    """A deployment's pictures in order of time; those without one are left out."""
    moments = _instants(media["timestamp"])
    known = media[moments.notna()].assign(moment=_microseconds(moments[moments.notna()])).sort_values(["moment", "mediaID"])
    return known["moment"].to_numpy(np.int64), list(known["mediaID"])


def _between(images: tuple[NDArray[np.int64], list[str]] | None, start: int, end: int) -> list[str]:
    if images is None or NAT in {start, end}:
        return []
    moments, ids = images
    return ids[np.searchsorted(moments, start, "left") : np.searchsorted(moments, end, "right")]


NAT = np.iinfo(np.int64).min
"""What a missing time is as a number."""

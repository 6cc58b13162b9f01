"""How Animl's API chooses images by filters, and shows them: as ``images`` answers them, and as rows of an export."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from graphql import GraphQLError

from tests.support.animl_images import DAY, AnimlImage, AnimlObject

CONDITION = re.compile(r"'([\w.]+)': \{ (?:\$gte: ISODate\('([^']+)'\)|\$in: (\[[^\]]*\])) \}")
ISO_DATE = re.compile(r"\d\d|\d{4}|\d{4}-\d\d|\d{4}-?\d\d-?\d\d|\d{4}-?\d{3}|\d{4}-?W\d\d|\d\d:\d\d(:\d\d)?")
"""Texts that the library of Animl's task handler reads as dates. The handler turns them into dates, which no id equals."""
CUSTOM_FIELDS: dict[str, Any] = {
    "_id": lambda p: {p.id},
    "cameraId": lambda p: {p.camera},
    "queryableLabelIds": lambda p: {t.name for t in p.objects},
}
"""Field of a MongoDB filter → its values for an image."""


def matching_images(images: list[AnimlImage], filters: dict[str, Any], project: str | None) -> list[AnimlImage]:
    """The images of a project (None: of all) that fit Animl's filters, in order of time."""
    start, end = (_parse_time(filters.get(k)) for k in ("createdStart", "createdEnd"))
    custom = _parse_custom(filters.get("custom"))
    since = _parse_time(custom.pop("objects.labels.validation.validationDate", None))
    added = _parse_time(filters.get("addedStart"))

    def fits(p: AnimlImage) -> bool:
        return (
            (project is None or p.project == project)
            and (start is None or (p.taken is not None and p.taken >= start))
            and (end is None or (p.taken is not None and p.taken < end))
            and ("cameras" not in filters or p.camera in filters["cameras"])
            and ("deployments" not in filters or p.deployment in filters["deployments"])
            and ("labels" not in filters or any(t.name in filters["labels"] for t in p.objects))
            and ("reviewed" not in filters or p.reviewed == filters["reviewed"])
            and (since is None or any(date >= since for date in p.validated_dates()))
            and (added is None or p.added >= added)
            and ("tags" not in filters or bool(set(p.tags) & set(filters["tags"])))
            and all(values(p) & set(custom[name]) for name, values in CUSTOM_FIELDS.items() if name in custom)
        )

    return sorted((p for p in images if fits(p)), key=lambda p: (p.taken or DAY, p.id))


def _parse_custom(text: str | None) -> dict[str, Any]:
    """The conditions of a filter ``custom``, by field: a time, or a list of texts."""
    found = {match[1]: match[2] or json.loads(match[3]) for match in CONDITION.finditer(text or "")}
    rest = CONDITION.sub("", text or "{}")
    if rest.strip("{}, ") or not found.keys() <= {*CUSTOM_FIELDS, "objects.labels.validation.validationDate"}:
        raise GraphQLError(f"not a filter: {text}")
    return found


def filters_of_exports(filters: dict[str, Any]) -> dict[str, Any]:
    """Filters as the task handler reads them: an id that reads as a date has become one, and equals nothing."""
    return {name: [None if ISO_DATE.fullmatch(v) else v for v in value] if isinstance(value, list) else value for name, value in filters.items()}


def _parse_time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def image_document(p: AnimlImage) -> dict[str, Any]:
    """An image as ``images`` answers it."""
    objects = [
        {"_id": t.id, "bbox": relative_box(t, p), "locked": t.is_locked(), "labels": [_label(t, i) for i in range(len(t.all_labels()))]}
        for t in p.objects
    ]
    about = {"_id": p.id, "projectId": p.project, "cameraId": p.camera, "deploymentId": f"{p.camera}/{p.deployment}", "reviewed": p.reviewed}
    times = {"dateAdded": p.added.isoformat(), "dateTimeAdjusted": p.taken.isoformat() if p.taken else None, "timezone": p.timezone}
    return about | times | {"awaitingPrediction": False, "tags": p.tags, "objects": objects}


def _label(t: AnimlObject, number: int) -> dict[str, Any]:
    label = t.all_labels()[number]
    decided = {"validated": label.validated, "validationDate": label.date.isoformat() if label.date else None, "userId": t.by}
    return {
        "_id": f"{t.id}-{number}",
        "type": "ml" if label.model else "manual",
        "labelId": label_id(label.name),
        "conf": label.conf,
        "labeledDate": label.labelled.isoformat() if label.labelled else None,
        "mlModel": label.model,
        "mlModelVersion": label.version,
        "validation": None if label.validated is None else decided,
    }


def label_id(name: str) -> str:
    """A project's id of a label, which is not its name."""
    return f"id-of-{name}"


def coco_image(p: AnimlImage) -> dict[str, Any]:
    name = f"{p.camera}-default" if p.deployment == "default" else p.deployment
    file_name = f"{p.project}/{p.camera}/{p.deployment.lower()}/{p.id.replace(':', '-')}.jpg"
    row = {"id": p.id, "file_name": file_name, "serving_bucket_key": f"original/{p.id}-original.jpg", "location": name}
    size = {"width": p.width, "height": p.height} if p.size_known else {}
    return row | {"datetime": p.taken.isoformat() if p.taken else None} | size


def coco_annotation(t: AnimlObject, p: AnimlImage, number: dict[str, int]) -> dict[str, Any]:
    row = {"id": t.id, "image_id": p.id, "category_id": number[t.name], "sequence_level_annotation": False}
    row["bbox"] = list(t.bbox) if p.size_known else [None] * 4
    return row | {"confidence": t.confidence, "validated": t.validated, "validated_by": t.by}


def relative_box(t: AnimlObject, p: AnimlImage) -> list[float]:
    """The box as [ymin, xmin, ymax, xmax]."""
    x, y, w, h = t.bbox
    return [y / p.height, x / p.width, (y + h) / p.height, (x + w) / p.width]

"""The label specification applied: one class for each object, by category name, and the reason for every object left out.

Also writes the same as MegaDetector-format JSON, which the field's tools read.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.errors import LabelsError
from animl_pipeline.plan import LabelsPlan, SourcePlan
from animl_pipeline.records import Artifact, Counts
from animl_pipeline.store import Made, Store, Workspace, write_table

LABEL_COLUMNS = (
    "source image_id object_id label name ymin xmin ymax xmax place taken sequence blob bytes width height file_name".split()
)  # fmt: skip
WHOLE_FRAME = 0.95
"""A box that fills this share of both sides is what Animl leaves on an image once called empty: a label without a box."""
BOX = ["ymin", "xmin", "ymax", "xmax"]


class SourceSteps(NamedTuple):
    """One source and the two steps that read it."""

    plan: SourcePlan
    export: Artifact
    images: Artifact


def resolve_labels(sources: Sequence[SourceSteps], spec: LabelsPlan, store: Store) -> Artifact:
    """One class for each object that the plan wants, over all sources.

    labels.parquet: an object a row, with ``label`` (class id), ``name`` (the export's own), the box as ``ymin, xmin, ymax,
    xmax`` relative to the picture (NaN where there is none), ``place`` and ``sequence`` with the source's name in front
    (empty text where unknown), and the picture's ``blob, bytes, width, height``. dropped.parquet: ``source, image_id,
    object_id, name, reason``. megadetector.json: the same in MegaDetector's batch format.

    Raises:
        LabelsError: no object is left, or a class has none; says what was found instead.
    """
    inputs = {f"{s.plan.name}.{part}": a for s in sources for part, a in (("export", s.export), ("images", s.images))}
    config = spec.model_dump(mode="json", by_alias=True) | {"unreviewed": {s.plan.name: s.plan.unreviewed for s in sources}}

    def build(space: Workspace) -> Made:
        objects = pd.concat([_objects_of(s, store) for s in sources], ignore_index=True)
        objects["label"] = objects["name"].str.casefold().map(spec.class_of())
        objects["reason"] = _reasons(objects, spec)
        objects.loc[_over_cap(objects, spec), "reason"] = "over_cap"
        _check_classes(objects, spec)
        return _write(space, objects, spec)

    return store.make("labels", room="labels", inputs=inputs, config=config, build=build)


def _objects_of(source: SourceSteps, store: Store) -> pd.DataFrame:
    """A source's objects with their pictures; the box relative, NaN where there is none."""
    objects = store.table(source.export, "objects.parquet")
    images = store.table(source.export, "images.parquet").rename(columns={"width": "said_width", "height": "said_height"})
    pictures = store.table(source.images, "images.parquet").drop(columns="path")
    missing = store.table(source.images, "missing.parquet")[["image_id", "reason"]].rename(columns={"reason": "missing"})
    t = objects.merge(images.drop(columns="path"), on="image_id").merge(pictures, on="image_id", how="left").merge(missing, on="image_id", how="left")
    t.insert(0, "source", source.plan.name)
    t["unreviewed"] = ~t["reviewed"] & (source.plan.unreviewed == "drop")
    for column in ("place", "sequence"):
        t[column] = np.where(t[column] == "", "", source.plan.name + "/" + t[column])
    return t.assign(**_relative_boxes(t))


def _relative_boxes(t: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """[ymin, xmin, ymax, xmax] from absolute [x, y, w, h], cut at the frame.

    Boxes are in the pixels of the export's own width and height; the picture may be a smaller copy. Without them the
    picture's own size counts. Whole-frame boxes become NaN: they name no animal's place.
    """
    width = t["said_width"].where(t["said_width"] > 0, t["width"]).to_numpy(float)
    height = t["said_height"].where(t["said_height"] > 0, t["height"]).to_numpy(float)
    x, y, w, h = (t[c].to_numpy(float) for c in "xywh")
    box = np.stack([y / height, x / width, (y + h) / height, (x + w) / width]).clip(0, 1).round(6)
    whole = (box[2] - box[0] >= WHOLE_FRAME) & (box[3] - box[1] >= WHOLE_FRAME)
    box[:, whole] = np.nan
    return {c: box[i] for i, c in enumerate(BOX)} | {"whole_frame": whole}


def _reasons(t: pd.DataFrame, spec: LabelsPlan) -> pd.Series[str]:
    """Why an object is left out, or empty text; the first reason that holds counts."""
    name = t["name"].str.casefold()
    empty_box = t["x"].notna() & t["ymin"].notna() & ((t["ymin"] >= t["ymax"]) | (t["xmin"] >= t["xmax"]))
    rules = {
        "empty": name.isin([n.casefold() for n in spec.empty]),
        "excluded": name.isin([n.casefold() for n in spec.exclude]),
        "unlisted_name": t["label"].isna(),
        "unreviewed": t["unreviewed"],
        "picture_unusable": t["missing"].notna() | t["blob"].isna(),
        "box_outside": empty_box,
    }
    return pd.Series(np.select([r.to_numpy(bool) for r in rules.values()], list(rules), default=""), index=t.index)


def _over_cap(t: pd.DataFrame, spec: LabelsPlan) -> pd.Series[bool]:
    """Which objects a cap leaves out; the choice is a hash of seed and object, so it stays as the data grow."""
    over = pd.Series(False, index=t.index)
    for class_id, rule in spec.classes.items():
        left = t[(t["reason"] == "") & (t["label"] == class_id)]
        per_place = rule.max_per_place or spec.max_per_place
        if not len(left) or (per_place is None and rule.max_count is None):
            continue
        left = left.loc[(left["source"] + "/" + left["object_id"]).map(lambda key: _rank(spec.seed, key)).sort_values().index]
        if per_place is not None:
            capped = (left["place"] != "") & (left.groupby("place").cumcount() >= per_place)
            over.loc[left.index[capped]] = True
            left = left[~capped]
        if rule.max_count is not None:
            over.loc[left.index[rule.max_count :]] = True
    return over


def _rank(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()


def _check_classes(t: pd.DataFrame, spec: LabelsPlan) -> None:
    left = Counter(t.loc[t["reason"] == "", "label"])
    without = [c for c in spec.classes if not left[c]]
    if not without:
        return
    reasons = Counter(t.loc[t["label"] == without[0], "reason"])
    why = ", ".join(f"{n} {r.replace('_', ' ')}" for r, n in reasons.most_common()) or "no category of that name"
    names = ", ".join(f"{name} {n}" for name, n in Counter(t["name"]).most_common(12))
    raise LabelsError(
        f"the class {without[0]!r} has no example ({why}); the exports hold: {names}; "
        f"mend labels.classes.{without[0]}.from in the plan or leave the class out"
    )


def _write(space: Workspace, t: pd.DataFrame, spec: LabelsPlan) -> Made:
    kept = t[t["reason"] == ""].sort_values(["source", "image_id", "object_id"])
    dropped = t[t["reason"] != ""].sort_values(["source", "image_id", "object_id"])
    labels = kept[LABEL_COLUMNS].astype({"bytes": "int64", "width": "int64", "height": "int64", "label": str})
    write_table(space.out / "labels.parquet", labels)
    write_table(space.out / "dropped.parquet", dropped[["source", "image_id", "object_id", "name", "reason"]])
    _write_megadetector_json(space.out / "megadetector.json", labels, kept["confidence"], list(spec.classes))
    noted = {f"{c}": n for c, n in Counter(labels["label"]).items()}
    if whole := int(kept["whole_frame"].sum()):
        noted["whole_frame_box_taken_as_none"] = whole
    return Made(Counts(kept=len(kept), dropped=dict(Counter(dropped["reason"])), noted=noted))


def _write_megadetector_json(path: Path, labels: pd.DataFrame, confidence: pd.Series[float], classes: list[str]) -> None:
    """Write boxes and classes in MegaDetector's batch format: bbox [x_min, y_min, width, height], relative.

    Format: https://lila.science/megadetector-output-format. A box drawn by hand has confidence 1.
    """
    images: dict[str, list[dict[str, Any]]] = {}
    number = {c: str(i) for i, c in enumerate(classes)}
    rows: list[dict[Any, Any]] = labels.assign(conf=confidence.fillna(1.0).clip(0, 1)).to_dict("records")
    for row in rows:
        detections = images.setdefault(f"{row['source']}/{row['file_name']}", [])
        if not np.isnan(row["ymin"]):
            bbox = [round(v, 6) for v in (row["xmin"], row["ymin"], row["xmax"] - row["xmin"], row["ymax"] - row["ymin"])]
            detections.append({"category": "1", "conf": round(row["conf"], 4), "bbox": bbox, "classifications": [[number[row["label"]], 1.0]]})
    document = {
        "info": {"format_version": "1.6", "detector": "human review", "classifier": "human review"},
        "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
        "classification_categories": {n: c for c, n in number.items()},
        "images": [{"file": file, "detections": images[file]} for file in sorted(images)],
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def wanted_names(spec: LabelsPlan) -> tuple[str, ...]:
    """The category names whose pictures are needed, case-folded and sorted."""
    return tuple(sorted(spec.class_of()))

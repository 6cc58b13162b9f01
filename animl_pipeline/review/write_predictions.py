"""Write the predictions for a folder as files that other tools read: MegaDetector's results, a table for Timelapse, Camtrap DP's observations."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.core.capture_times import parse_times
from animl_pipeline.core.untrusted_text import write_csv
from animl_pipeline.core.write_megadetector_results import ANIMAL, CATEGORIES, ResultBoxes, write_results
from animl_pipeline.inference.shown_labels import ShownLabels
from animl_pipeline.review.score_images import BOX, ScoredImages

RESULTS_FILE, TIMELAPSE_FILE, OBSERVATIONS_FILE = "predictions.json", "timelapse.csv", "observations.csv"
UNKNOWN = "unknown"
"""An animal of which no class reaches its threshold; in Animl it has no label of the model."""
EMPTY = "empty"
OBSERVATION_TYPES = {"animal": "animal", "person": "human", "vehicle": "vehicle"}
"""MegaDetector's categories → Camtrap DP's observationType."""


class Predictions(NamedTuple):
    """Scored images with the labels that Animl would show for their animals. ``detector`` is the name of what found the boxes."""

    scored: ScoredImages
    shown: ShownLabels
    detector: str
    smoothed: bool

    def boxes(self) -> pd.DataFrame:
        """The boxes with ``what`` (label, unknown, person or vehicle) and ``probability`` (of the label; for unknown of the likeliest class)."""
        boxes = self.scored.boxes
        animal = boxes["animal"].to_numpy(np.int64)
        what = boxes["category"].map(CATEGORIES).to_numpy(object, copy=True)
        probability = boxes["confidence"].to_numpy(float, copy=True)
        is_animal = animal >= 0
        labels = self.shown.label[animal[is_animal]]
        what[is_animal] = np.where(labels == "", UNKNOWN, labels)
        probability[is_animal] = self.shown.probability[animal[is_animal]]
        return boxes.assign(what=what, probability=probability)


def write_predictions(predictions: Predictions, out: Path) -> list[Path]:
    """Write all files into a folder, which is made; the paths of the files come back."""
    out.mkdir(parents=True, exist_ok=True)
    write_megadetector_file(predictions, out / RESULTS_FILE)
    write_csv(out / TIMELAPSE_FILE, timelapse_table(predictions))
    write_csv(out / OBSERVATIONS_FILE, observations_table(predictions))
    return [out / name for name in (RESULTS_FILE, TIMELAPSE_FILE, OBSERVATIONS_FILE)]


def write_megadetector_file(predictions: Predictions, path: Path) -> None:
    """The results in MegaDetector's format. A box has the label that Animl would show, or none."""
    scored, card = predictions.scored, predictions.scored.card
    boxes, ids = predictions.boxes(), list(card.answered_ids())
    number = np.where(boxes["animal"] >= 0, pd.Index(ids).get_indexer(pd.Index(boxes["what"])), -1)  # unknown is no class
    columns = ResultBoxes(
        boxes["row"].to_numpy(np.int64), boxes["category"].tolist(), boxes["confidence"].to_numpy(float), boxes[BOX].to_numpy(float), number,
        boxes["probability"].to_numpy(float).round(4),
    )  # fmt: skip
    info: dict[str, Any] = {
        "detector": predictions.detector,
        "classifier": f"{card.model} {card.version}",
        "classification_thresholds": card.thresholds,
    }
    info |= {"smoothed_over_sequences": True} if predictions.smoothed else {}
    write_results(path, info, scored.images["path"].tolist(), columns, classes=ids, failures=scored.failed)


def timelapse_table(predictions: Predictions) -> pd.DataFrame:
    """A row for each image. Timelapse finds the image by RelativePath and File and fills the fields of its template that have the other names.

    ``Species`` is the most certain animal; ``Labels`` are all, with their number; ``Unknown`` counts animals without a label.
    """
    scored = predictions.scored
    of_image = dict(tuple(predictions.boxes().groupby("row")))
    times = parse_times(scored.images["taken"]).dt.strftime("%Y-%m-%d %H:%M:%S").fillna("")
    rows = []
    for row, (path, sequence, time) in enumerate(zip(scored.images["path"], scored.images["sequence"], times, strict=True)):
        boxes = of_image.get(row)
        file = PurePosixPath(path)
        rows.append({
            "RelativePath": "" if str(file.parent) == "." else str(file.parent), "File": file.name, "DateTime": time,
            **_summary(boxes, scored.failed.get(row, "")), "Sequence": int(sequence), "Model": scored.card.model, "Version": scored.card.version,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _summary(boxes: pd.DataFrame | None, failure: str) -> dict[str, object]:
    """What an image shows, in the words of a label."""
    if boxes is None or boxes.empty:
        return {"Species": "" if failure else EMPTY, "Confidence": np.nan, "Count": 0, "Unknown": 0, "Labels": "", "Problem": failure}
    animals = boxes[boxes["category"] == ANIMAL]
    named = animals[animals["what"] != UNKNOWN].sort_values("probability", ascending=False, kind="stable")
    best = named if len(named) else animals.sort_values("probability", ascending=False) if len(animals) else boxes.sort_values("confidence")[::-1]
    counts = boxes["what"].value_counts().sort_index()
    return {
        "Species": best["what"].iloc[0], "Confidence": float(best["probability"].iloc[0]), "Count": len(animals),
        "Unknown": len(animals) - len(named), "Labels": ", ".join(f"{n} {what}" for what, n in counts.items()), "Problem": failure,
    }  # fmt: skip


def observations_table(predictions: Predictions) -> pd.DataFrame:
    """Camtrap DP 1.0 observations of single images: one for each box, ``blank`` for an image without any.

    The model's class is in observationTags, because scientificName would need a taxonomy. Images that cannot be read have no row. Times
    without a zone are written as the camera wrote them.
    """
    scored = predictions.scored
    boxes = predictions.boxes()
    blank = pd.DataFrame({"row": sorted(set(range(len(scored.images))) - set(boxes["row"]) - set(scored.failed))})
    rows = pd.concat([boxes, blank.assign(category="", what="")], ignore_index=True).sort_values("row", kind="stable", ignore_index=True)
    images = scored.images.iloc[rows["row"].to_numpy(np.int64)].reset_index(drop=True)
    of_image = rows.groupby("row").cumcount().astype(str)
    ids = [hashlib.sha256(f"{path}\n{k}".encode()).hexdigest()[:16] for path, k in zip(images["path"], of_image, strict=True)]
    is_box, what = rows["category"] != "", rows["what"]
    return pd.DataFrame({
        "observationID": ids,
        "deploymentID": images["location"],
        "mediaID": images["path"],
        "eventID": images["sequence"],
        "eventStart": images["taken"],
        "eventEnd": images["taken"],
        "observationLevel": "media",
        "observationType": rows["category"].map(CATEGORIES).map(OBSERVATION_TYPES).fillna("blank"),
        "count": is_box.map({True: "1", False: ""}),
        "bboxX": rows["xmin"],
        "bboxY": rows["ymin"],
        "bboxWidth": rows["xmax"] - rows["xmin"],
        "bboxHeight": rows["ymax"] - rows["ymin"],
        "classificationMethod": "machine",
        "classifiedBy": f"{scored.card.model} {scored.card.version}",
        "classificationProbability": rows["probability"],
        "observationTags": ("class:" + what).where((rows["category"] == ANIMAL) & (what != UNKNOWN), ""),
    })  # fmt: skip

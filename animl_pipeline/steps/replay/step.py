"""The step `replay`: answers of the model in service and a new package in, changed labels, counts and a page out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import REPLAYED_LABELS
from animl_pipeline.core.tables import write_table
from animl_pipeline.core.untrusted_text import write_csv
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.inference.classifier import Classifier, load_package
from animl_pipeline.inference.score_crops import BATCH, MAX_THREADS, score_crops
from animl_pipeline.inference.sequence_outcomes import right_truths
from animl_pipeline.inference.shown_labels import shown_labels
from animl_pipeline.steps.replay.replay_page import render_page
from animl_pipeline.steps.replay.replay_result import Replay, count_changes
from animl_pipeline.storage.store import StepOutput, Store, Workspace, digest_of

STEP = Step("replay", version=2, sections=("labels", "thresholds"), writes=(REPLAYED_LABELS,), libraries=("pillow", "onnxruntime"))
RESULT_FILE, PAGE_FILE, CSV_FILE = "replay.json", "replay.html", "replayed_labels.csv"
BOX = ["ymin", "xmin", "ymax", "xmax"]
OBJECT_COLUMNS = ["source", "image_id", "image", "location", *BOX, "old", "truth", "decided", "people"]


class InService(NamedTuple):
    """The model in service and its answers.

    Attributes:
        version: its version.
        objects: a row for each animal, with ``OBJECT_COLUMNS``; ``image`` is the sha256 of a stored image, ``old`` the list of its labels.
        images: how many images were chosen.
        not_readable: how many of them could not be downloaded.
        classes: the plan's classes, without parents.
        equivalents: class → other classes that count as right when they are predicted for it.
        parents: parent → its children.
    """

    version: str
    objects: pd.DataFrame
    images: int
    not_readable: int
    classes: Sequence[str]
    equivalents: Mapping[str, Sequence[str]]
    parents: Mapping[str, Sequence[str]]


def replay_model(
    package: Artifact, before: InService, invasive: Sequence[str], kept_from: Mapping[str, float], image_url: str, store: Store
) -> Artifact:
    """The new model on the same boxes: REPLAYED_LABELS as a table and as CSV, replay.json, and replay.html.

    Args:
        package: of the new model.
        before: the model in service and its answers.
        invasive: classes whose labels are alarms.
        kept_from: class or parent → the probability from which Animl keeps a label of the new model.
        image_url: address of an image in Animl, for links; "" for none.
        store: holds the package and the images.

    Raises:
        PackageError: the package cannot be read.
    """
    objects = before.objects[OBJECT_COLUMNS].astype(dict.fromkeys(BOX, float) | {"decided": bool, "people": bool})
    config = {
        "version": before.version, "images": before.images, "not_readable": before.not_readable, "invasive": list(invasive),
        "kept_from": dict(kept_from),
        "classes": list(before.classes), "equivalents": {k: list(v) for k, v in before.equivalents.items()},
        "parents": {k: list(v) for k, v in before.parents.items()}, "image_url": image_url,
    }  # fmt: skip
    digests = {"objects": digest_of(json.loads(objects.to_json(orient="split", double_precision=15)))}

    def build(space: Workspace) -> StepOutput:
        classifier = load_package(store.path(package, "model.tar.gz"))
        labels = _compare(objects, before, classifier, kept_from, store)
        result = Replay(
            champion=before.version, challenger=classifier.card.version, images=before.images - before.not_readable, animals=len(objects),
            decided=int(objects["decided"].sum()), not_readable=before.not_readable, classes=count_changes(labels, invasive),
        )  # fmt: skip
        write_table(space.out, REPLAYED_LABELS, labels)
        write_csv(space.out / CSV_FILE, labels.drop(columns="image"))
        (space.out / RESULT_FILE).write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (space.out / PAGE_FILE).write_text(render_page(result, labels, classifier.card.model, image_url, store), encoding="utf-8")
        notes = {change: int((labels["change"] == change).sum()) for change in ("kept", "gained", "lost")}
        return StepOutput(Counts(kept=len(objects), dropped={"not_readable": before.not_readable}, notes=notes, unit="animals"))

    return store.make(STEP, inputs={"package": package}, digests=digests, config=config, build=build)


def read_replay(artifact: Artifact, store: Store) -> Replay:
    """The result in an artifact of this step."""
    return Replay.model_validate_json(store.path(artifact, RESULT_FILE).read_bytes())


def estimate_seconds(classifier: Classifier, animals: int) -> float:
    """About how long this machine classifies so many animals, by the time of one batch."""
    size = classifier.card.model_input.size
    batch = np.zeros((BATCH, 3, size, size), np.float32)
    classifier.probabilities(batch)  # the first pass also prepares the network
    started = time.perf_counter()
    classifier.probabilities(batch)
    return (time.perf_counter() - started) * animals / BATCH / min(MAX_THREADS, os.cpu_count() or 1)


def _compare(objects: pd.DataFrame, before: InService, classifier: Classifier, kept_from: Mapping[str, float], store: Store) -> pd.DataFrame:
    """REPLAYED_LABELS: a row for each animal and class that one of both models gives."""
    card = classifier.card
    scored = score_crops(objects.assign(blob=""), classifier, store, card.model_input, "replay")
    probability = scored[[probability_column(c) for c in card.animal_ids()]].to_numpy(np.float64)
    new = shown_labels(probability, card, kept_from).all
    old = [[str(c) for c in labels] for labels in objects["old"]]
    rows = pd.DataFrame(
        [(i, c, _change(c, old[i], new[i])) for i in range(len(objects)) for c in dict.fromkeys((*old[i], *new[i]))],
        columns=["object", "class_id", "change"],
    )
    at = rows["object"].to_numpy(np.int64)
    judged = _judge(objects, rows, before)
    of_class = [_probability_of(c, probability[i], card) for i, c in zip(at, rows["class_id"], strict=True)]
    found = objects.drop(columns=["old", "decided"]).iloc[at].reset_index(drop=True)
    found = found.assign(class_id=rows["class_id"], change=rows["change"], judged=judged, probability=np.array(of_class, np.float64))
    return found[REPLAYED_LABELS.names()]


def _change(class_id: str, old: Sequence[str], new: Sequence[str]) -> str:
    return "kept" if class_id in old and class_id in new else "gained" if class_id in new else "lost"


def _probability_of(class_id: str, probability: NDArray[np.float64], card: ModelCard) -> float:
    """Of a class by the new model; the sum of its children for a parent; NaN for a class that the model does not know."""
    ids = card.animal_ids()
    known = [ids.index(c) for c in card.parents.get(class_id, (class_id,)) if c in ids]
    return float(probability[known].sum()) if known else float("nan")


def _judge(objects: pd.DataFrame, rows: pd.DataFrame, before: InService) -> list[str]:
    """Whether each label is right by what people validated; "" where they did not decide."""
    truth, decided = objects["truth"].to_numpy(object), objects["decided"].to_numpy(bool)
    right = right_truths(truth, before.classes, before.equivalents, before.parents)
    column = {c: i for i, c in enumerate((*before.classes, *before.parents))}

    def judge(i: int, class_id: str) -> str:
        if not decided[i]:
            return ""
        is_right = right[i, column[class_id]] if class_id in column else truth[i] == class_id
        return "right" if is_right else "wrong"

    return [judge(i, c) for i, c in zip(rows["object"], rows["class_id"], strict=True)]

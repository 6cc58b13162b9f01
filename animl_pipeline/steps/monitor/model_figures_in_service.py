"""The figures of the model in service: by month, version, location and light, by class, with 95 % intervals over locations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.table_schemas import SERVICE_METRICS
from animl_pipeline.inference.bootstrap_intervals import BootstrapDraws, percentile_interval
from animl_pipeline.steps.monitor.service_outcomes import Bools, Floats, ServedModel, ServiceData, ServiceSequences

BIAS = {
    "precision": "Too high if people confirm a shown name without a close look, too low if they look first at answers that seem wrong.",
    "recall": "Too high: animals that neither detector nor people noticed are not in it. Only completely reviewed sequences count.",
    "sequence_precision": "As precision, of sequences. Sequences that people reviewed in part are not in it.",
    "sequence_recall": "As recall, of sequences: one image in which the animal is named is enough.",
    "share_reviewed": "A count, without bias. If it is low, or changes, the other figures say little about all images.",
    "mean_confidence": "Of all answers, reviewed or not. Answers below their threshold are never stored, so it is higher than the model's own.",
    "unknown_rate": "Of all detected animals, reviewed or not; false boxes of the detector count as unknown, so it is too high.",
}
"""Metric → how it is wrong because reviewed images are no random sample."""
OF_RANDOM = ("precision", "recall", "sequence_precision", "sequence_recall")
"""Figures that a random sample makes fair."""
BY = ("all", "month", "version", "location", "light")


def service_metrics(data: ServiceData, sequences: ServiceSequences, model: ServedModel) -> pd.DataFrame:
    """SERVICE_METRICS."""
    cells = pd.concat(_units(data, sequences, model), ignore_index=True)
    rows: list[tuple[object, ...]] = []
    for metric, of_metric in cells.groupby("metric", sort=False):
        rows += _rates("reviewed", str(metric), of_metric)
        fair = of_metric[of_metric["random"]]
        rows += _rates("random", str(metric), fair) if metric in OF_RANDOM and len(fair) else []
    return pd.DataFrame(rows, columns=SERVICE_METRICS.names())


def _units(data: ServiceData, sequences: ServiceSequences, model: ServedModel) -> list[pd.DataFrame]:
    """The cells of each metric."""
    images, objects, answers = data.images, data.objects, data.answers
    of_images = images.assign(month=_months(images["taken_s"]), version=_names(data, images["version"]))
    of_objects = of_images.iloc[objects["image"]].reset_index(drop=True)
    of_answers = of_objects.iloc[answers["object"]].reset_index(drop=True).assign(version=_names(data, answers["version"]))
    number, obj = answers["class_number"].to_numpy(np.int64), answers["object"].to_numpy(np.int64)
    locked = objects["locked"].to_numpy()
    ids = np.array([*model.classes, ""], object)
    has_answer = np.bincount(obj, minlength=len(objects)) > 0
    served = (images["version"] >= 0).to_numpy()
    counted = served[objects["image"]]
    confidence = answers["confidence"].to_numpy(np.float64)
    found = [
        _cells("precision", of_answers, ids[number], data.right[obj, number], locked[obj]),
        _cells("mean_confidence", of_answers, ids[number], np.nan_to_num(confidence), ~np.isnan(confidence)),
        _cells("unknown_rate", of_objects, "", ~has_answer, objects["animal"].to_numpy() & counted),
        _cells("share_reviewed", of_images, "", images["reviewed"].to_numpy(), served),
    ]
    labelled = np.zeros((len(objects), len(model.classes)), bool)
    labelled[obj, number] = True
    for child, parent in ((c, p) for p, children in model.parents.items() for c in children):
        labelled[:, model.classes.index(parent)] |= labelled[:, model.classes.index(child)]
    whole = counted & locked & images["whole"].to_numpy()[objects["image"]]
    of_sequences = sequences.rows.assign(month=_months(sequences.rows["taken_s"]))
    outcomes = sequences.outcomes
    for i, c in enumerate(model.classes):
        hit, answered = outcomes.hit[:, i], outcomes.hit[:, i] | outcomes.false_alarm[:, i]
        found += [
            _cells("recall", of_objects, c, labelled[:, i], whole & data.right[:, i]),
            _cells("sequence_recall", of_sequences, c, hit, outcomes.actual[:, i]),
            _cells("sequence_precision", of_sequences, c, hit, answered),
        ]
    return found


def _cells(metric: str, units: pd.DataFrame, class_id: str | NDArray[np.object_], part: Bools | Floats, whole: Bools) -> pd.DataFrame:
    """Units that count (``whole``), summed: how many, and ``part`` of them."""
    keys = ["month", "version", "location", "night", "random"]
    frame = units.loc[whole, keys].assign(class_id=class_id[whole] if isinstance(class_id, np.ndarray) else class_id)
    frame["part"], frame["whole"] = part[whole].astype(np.float64), 1.0
    summed = frame.groupby([*keys, "class_id"], observed=True, sort=True)[["part", "whole"]].sum().reset_index()
    return summed.assign(metric=metric, location=summed["location"].astype(object), light=np.where(summed.pop("night"), "night", "day"))


def _months(seconds: pd.Series) -> pd.Series:
    """Months as 2026-11; "" where the time is unknown."""
    return pd.to_datetime(seconds, unit="s").dt.strftime("%Y-%m").fillna("")


def _names(data: ServiceData, versions: pd.Series) -> NDArray[np.object_]:
    return np.asarray(np.array([*data.versions, ""], object)[versions.to_numpy(np.int64)])


def _rates(sample: str, metric: str, cells: pd.DataFrame) -> Iterator[tuple[object, ...]]:
    """A row for each part and class that has anything to count."""
    draws = BootstrapDraws(cells.assign(source="", image_id=""))
    part, whole = cells["part"].to_numpy(), cells["whole"].to_numpy()
    class_number, class_ids = pd.factorize(cells["class_id"], sort=True)
    of_class = {"": np.ones(len(cells), bool)} | {str(c): class_number == i for i, c in enumerate(class_ids)}
    for by in BY:
        number, groups = pd.factorize(cells[by] if by != "all" else np.full(len(cells), ""), sort=True)
        for i, group in enumerate(groups):
            in_group = number == i
            for class_id, is_class in of_class.items():
                chosen = in_group & is_class
                total = float(whole[chosen].sum())
                if total:
                    low, high = (np.nan, np.nan) if by == "location" else _interval(draws, part * chosen, whole * chosen, chosen)
                    where = draws.count_locations(chosen)
                    yield sample, metric, by, group, class_id, float(part[chosen].sum()) / total, low, high, total, where


def _interval(draws: BootstrapDraws, part: Floats, whole: Floats, chosen: Bools) -> tuple[float, float]:
    with np.errstate(invalid="ignore", divide="ignore"):
        found = percentile_interval(draws.sums(part) / draws.sums(whole), draws.count_locations(chosen))
    return found or (np.nan, np.nan)

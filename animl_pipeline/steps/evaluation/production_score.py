"""Score detector, classifier and thresholds together on the sequences of the test locations, as Animl's users would see the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.capture_times import parse_seconds
from animl_pipeline.core.evaluation_results import ProductionChange, ProductionComparison, ProductionScore, SequenceScores
from animl_pipeline.core.model_card import ModelCard, ModelInput
from animl_pipeline.core.table_schemas import SEARCHED_TEST_IMAGES, TEST_DETECTIONS, TEST_IMAGES, TEST_OBJECTS
from animl_pipeline.inference.bootstrap_intervals import BootstrapDraws, Floats, mean_over_present_classes, percentile_interval
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.inference.classifier import labelled_classes
from animl_pipeline.inference.score_crops import score_and_embed_crops
from animl_pipeline.inference.sequence_outcomes import ModelLabels, ReviewedImages, SequenceOutcomes, find_outcomes
from animl_pipeline.storage.store import Store

if TYPE_CHECKING:
    from animl_pipeline.inference.classifier import Classifier

WEEK_S = 7 * 24 * 3600
MISSES = ("missed_by_detector", "missed_by_threshold", "missed_by_classifier")
SEQUENCE_COLUMNS = ["class", "outcome", "location", "taken", "images", "source", "image_id"]


class SequenceData(NamedTuple):
    """The test images in which the detector searched.

    Attributes:
        images: a row for each image, with ``source, image_id, location, taken``.
        reviewed: what people saw in them; sequences are numbered from 0.
        sequences: a row for each sequence, by number: ``location, weight``.
        boxes: the detector's boxes, as rows for :func:`score_crops`.
        box_image, truth_box, truth: as in :class:`ModelLabels`.
        not_searched: number of images that could not be downloaded or decoded.
    """

    images: pd.DataFrame
    reviewed: ReviewedImages
    sequences: pd.DataFrame
    boxes: pd.DataFrame
    box_image: NDArray[np.int64]
    truth_box: NDArray[np.int64]
    truth: NDArray[np.int64]
    not_searched: int


class _Rates(NamedTuple):
    """A class's counts and rates in each draw of the locations, [draws]; NaN where a rate has no denominator."""

    counts: Mapping[str, Floats]
    precision: Floats
    recall: Floats
    noticed: Floats
    f1: Floats
    per_1000_empty: Floats

    def f1_of_present(self) -> Floats:
        """F1 where the class is in the draw; NaN elsewhere, so that false alarms of an absent class are no F1 of 0."""
        return np.where(self.counts["actual"] > 0, self.f1, np.nan)

    def noticed_f1_of_present(self) -> Floats:
        """The same if a label of the class's parent counts as a hit, too."""
        found, actual = self.counts["noticed"], self.counts["actual"]
        with np.errstate(invalid="ignore"):
            return np.where(actual > 0, 2 * found / (found + self.counts["on_empty"] + self.counts["on_others"] + actual), np.nan)


def read_sequences(
    test_images: Artifact, test_detections: Artifact, store: Store, *, later: bool = False, only: pd.DataFrame | None = None
) -> SequenceData:
    """Join the steps test_images and test_detections: sequences, what people saw, and the detector's boxes.

    Those of the test locations, or with ``later`` those of later images of known cameras; with ``only`` (source, image_id), of these images.
    """
    key = ["source", "image_id"]
    tested = store.table(test_images, TEST_IMAGES, [*key, "location", "taken", "sequence", "weight", "later"])
    chosen = tested[tested["later"] == later].drop(columns="later")
    searched = store.table(test_detections, SEARCHED_TEST_IMAGES, key)
    if only is not None:
        chosen, searched = chosen.merge(only, on=key), searched.merge(only, on=key)
    images = chosen.merge(searched, on=key).sort_values(key, ignore_index=True)
    sequence = pd.factorize(images["sequence"])[0]
    position = pd.Series(images.index, pd.MultiIndex.from_frame(images[key]))
    objects = _with_image(store.table(test_images, TEST_OBJECTS), position)
    boxes = _with_image(store.table(test_detections, TEST_DETECTIONS), position)
    truth_box, truth = _match(boxes, objects)
    first = ~pd.Series(sequence).duplicated().to_numpy()
    return SequenceData(
        images=images,
        reviewed=ReviewedImages(sequence.astype(np.int64), objects["image"].to_numpy(np.int64), objects["truth"].to_numpy(object)),
        sequences=images.loc[first, ["location", "weight", "source", "image_id"]].reset_index(drop=True),
        boxes=boxes.rename(columns={"blob": "image_blob"}).assign(image=boxes["blob"], blob=""),
        box_image=boxes["image"].to_numpy(np.int64),
        truth_box=truth_box,
        truth=truth,
        not_searched=len(chosen) - len(images),
    )


def match_boxes(
    data: SequenceData, boxes: pd.DataFrame, test_images: Artifact, store: Store
) -> tuple[pd.DataFrame, NDArray[np.int64], NDArray[np.int64]]:
    """Another model's boxes in the same images.

    ``boxes``: a row for each box: source, image_id, annotation_id, and other columns.

    Returns:
        The boxes in images of ``data``, with the position of the image as ``image``; and the pairs of a box and an object that it shows, as
        in :class:`ModelLabels`.
    """
    position = pd.Series(data.images.index, pd.MultiIndex.from_frame(data.images[["source", "image_id"]]))
    found = _with_image(boxes, position)
    return found, *_match(found, _with_image(store.table(test_images, TEST_OBJECTS), position))


def label_boxes(data: SequenceData, classifier: Classifier, store: Store, stored: ModelInput, progress_name: str) -> ModelLabels:
    """What the packaged model answers for each box: the labels that reach their thresholds, and the likeliest class with its probability.

    ``classifier``: the model with its card; a class without a threshold there never labels anything.
    """
    return label_by_thresholds(data, score_boxes(data, classifier, store, stored, progress_name), classifier.card)


def score_boxes(data: SequenceData, classifier: Classifier, store: Store, stored: ModelInput, progress_name: str) -> Floats:
    """The probability of each output of the model for each box: float [d, outputs]. Arguments as for :func:`label_boxes`."""
    return score_and_embed_boxes(data, classifier, store, stored, progress_name)[0]


def score_and_embed_boxes(
    data: SequenceData, classifier: Classifier, store: Store, stored: ModelInput, progress_name: str
) -> tuple[Floats, NDArray[np.float32]]:
    """As :func:`score_boxes`, and the embeddings float32 [d, width]; without columns where the package gives none."""
    columns = ["blob", "image", "ymin", "xmin", "ymax", "xmax"]
    scored = score_and_embed_crops(data.boxes[columns], classifier, store, stored, progress_name)
    return scored.rows[[probability_column(c) for c in classifier.card.class_ids()]].to_numpy(np.float64), scored.embeddings


def label_by_thresholds(data: SequenceData, probability: Floats, card: ModelCard) -> ModelLabels:
    """What these probabilities mean in Animl: labels of animals and of parent classes only.

    The classes for other animals and for false boxes, which are the last outputs, label nothing: an animal of no class of the plan has no
    label here, also where Animl shows it as another animal. Where one is the likeliest, ``likeliest`` is -1.

    ``probability``: float [d, outputs], with or without the class for false boxes.
    """
    ids = card.animal_ids()
    labelled = labelled_classes(probability[:, : len(ids)], ids, card.thresholds, card.parents)
    likeliest = probability.argmax(axis=1).astype(np.int64)
    likeliest[likeliest >= len(ids)] = -1
    return ModelLabels(data.box_image, labelled, likeliest, probability.max(axis=1), data.truth_box, data.truth)


def without_nothing(probability: Floats, card: ModelCard) -> Floats:
    """The probabilities as if the model had no class for false boxes: of each box, the others scaled to a sum of 1."""
    animals = probability[:, : len(card.class_ids()) - 1]
    return np.asarray(animals / np.maximum(animals.sum(axis=1, keepdims=True), 1e-37))


def score_classifier(
    data: SequenceData,
    classifier: Classifier,
    equivalents: Mapping[str, Sequence[str]],
    detector_confidence: float,
    store: Store,
    stored: ModelInput,
    progress_name: str,
) -> ProductionScore:
    """The score of a packaged model. Arguments as for :func:`label_boxes`, :func:`find_outcomes_of` and :func:`score_production`."""
    ids, parents = classifier.card.animal_ids(), classifier.card.parents
    labels = label_boxes(data, classifier, store, stored, progress_name)
    return score_production(data, find_outcomes_of(data, labels, ids, equivalents, parents), ids, detector_confidence, parents)


def score_production(
    data: SequenceData,
    outcomes: SequenceOutcomes,
    classes: Sequence[str],
    detector_confidence: float,
    parents: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> ProductionScore:
    """The score of one model by class, with 95 % intervals over locations."""
    parent_of = {child: parent for parent, children in parents.items() for child in children}
    draws, weight = BootstrapDraws(data.sequences), data.sequences["weight"].to_numpy(np.float64)
    empty = draws.sums(weight * outcomes.empty)
    locations_with_empties = draws.count_locations(outcomes.empty)
    rates = [_rates(i, outcomes, draws, weight) for i in range(len(classes) + len(parents))]
    scores = tuple(
        _class_scores(c, rates[i], draws.count_locations(outcomes.actual[:, i]), locations_with_empties, parent_of.get(c))
        for i, c in enumerate((*classes, *parents))
    )
    macro_f1 = mean_over_present_classes(np.stack([r.noticed_f1_of_present() for r in rates[: len(classes)]], axis=1))
    any_label = _per_1000(draws.sums(weight * (outcomes.empty & outcomes.false_alarm.any(axis=1))), empty)
    return ProductionScore(
        images=len(data.images),
        sequences=float(weight.sum()),
        empty_sequences=float(empty[0]),
        locations=draws.locations,
        not_searched=data.not_searched,
        detector_confidence=detector_confidence,
        classes=scores[: len(classes)],
        parents=scores[len(classes) :],
        false_alarms_per_1000_empty=_value(any_label),
        false_alarms_interval=percentile_interval(any_label, locations_with_empties),
        false_alarms_per_week=_false_alarms_per_week(data, outcomes),
        macro_f1_interval=percentile_interval(macro_f1, draws.locations),
    )


def compare_production(
    data: SequenceData, models: tuple[SequenceOutcomes, SequenceOutcomes], classes: tuple[Sequence[str], Sequence[str]]
) -> ProductionComparison:
    """Champion and challenger on the same sequences, paired over locations.

    ``models``: the outcomes of champion and challenger.
    """
    draws, weight = BootstrapDraws(data.sequences), data.sequences["weight"].to_numpy(np.float64)
    empty, empty_locations = draws.sums(weight * models[0].empty), draws.count_locations(models[0].empty)
    alarms = [_per_1000(draws.sums(weight * (m.empty & m.false_alarm.any(axis=1))), empty) for m in models]
    changes, f1 = [], []
    for c in (c for c in classes[1] if c in classes[0]):
        champion, challenger = (_rates(list(ids).index(c), m, draws, weight) for m, ids in zip(models, classes, strict=True))
        f1.append((champion.f1_of_present(), challenger.f1_of_present()))
        locations = draws.count_locations(models[1].actual[:, list(classes[1]).index(c)])
        changes.append(
            ProductionChange(
                id=c,
                sequences=float(challenger.counts["actual"][0]),
                locations=locations,
                recall=_pair(champion.recall, challenger.recall),
                recall_interval=percentile_interval(challenger.recall - champion.recall, locations),
                **_noticed_change(champion, challenger, locations),
                false_alarms_per_1000_empty=_pair(champion.per_1000_empty, challenger.per_1000_empty),
                false_alarms_interval=percentile_interval(challenger.per_1000_empty - champion.per_1000_empty, empty_locations),
            )
        )
    means = [mean_over_present_classes(np.stack(values, axis=1)) for values in zip(*f1, strict=True)] if f1 else [np.zeros(1)] * 2
    return ProductionComparison(
        macro_f1=(_value(means[0]) or 0.0, _value(means[1]) or 0.0),
        macro_f1_interval=percentile_interval(means[1] - means[0], draws.locations),
        false_alarms_per_1000_empty=_pair(*alarms),
        false_alarms_interval=percentile_interval(alarms[1] - alarms[0], empty_locations),
        classes=tuple(changes),
    )


def list_sequences(data: SequenceData, outcomes: SequenceOutcomes, classes: Sequence[str]) -> pd.DataFrame:
    """A row for each miss and false alarm: class, outcome, location, time and number of images, source and id of the first image."""
    frame = data.images.assign(number=data.reviewed.sequence, dated=data.images["taken"].where(data.images["taken"] != "", "9"))
    in_order = frame.sort_values(["number", "dated"]).groupby("number")
    first = in_order[["location", "taken", "source", "image_id"]].first().assign(images=in_order.size())
    parts = []
    for i, c in enumerate(classes):
        kinds = {name: getattr(outcomes, name)[:, i] for name in MISSES}
        kinds["false_alarm_on_empty"] = outcomes.false_alarm[:, i] & outcomes.empty
        kinds["false_alarm_on_others"] = outcomes.false_alarm[:, i] & ~outcomes.empty
        parts += [first[mask].assign(**{"class": c, "outcome": name}) for name, mask in kinds.items()]
    rows: pd.DataFrame = pd.concat(parts, ignore_index=True)[SEQUENCE_COLUMNS]
    return rows


def find_outcomes_of(
    data: SequenceData,
    labels: ModelLabels,
    classes: Sequence[str],
    equivalents: Mapping[str, Sequence[str]],
    parents: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> SequenceOutcomes:
    """What happened in each sequence with one model's labels."""
    return find_outcomes(data.reviewed, labels, classes, equivalents, parents)


def _false_alarms_per_week(data: SequenceData, outcomes: SequenceOutcomes) -> float | None:
    """False alarms a week of all locations together, on whatever sequence; None where no image has a time.

    A location counts from its first to its last dated image, at least one week. Seasons in which a camera was off count as its time.
    """
    seconds = parse_seconds(data.images["taken"])
    spans = pd.Series(seconds).groupby(data.images["location"].to_numpy()).agg(lambda s: s.max() - s.min())
    weeks = (spans / WEEK_S).clip(lower=1.0)
    alarms = (data.sequences["weight"] * outcomes.false_alarm.any(axis=1)).groupby(data.sequences["location"]).sum()
    rates = (alarms / weeks).dropna()
    return float(rates.sum()) if len(rates) else None


def _with_image(rows: pd.DataFrame, position: pd.Series) -> pd.DataFrame:
    """The rows of images that were searched, in the order of the images, with their positions as ``image``."""
    found = position.reindex(pd.MultiIndex.from_frame(rows[["source", "image_id"]])).to_numpy(np.float64)
    kept: pd.DataFrame = rows[~np.isnan(found)].assign(image=found[~np.isnan(found)].astype(np.int64))
    return kept.sort_values("image", kind="stable", ignore_index=True)


def _match(boxes: pd.DataFrame, objects: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a box and an object that it shows, as positions.

    A box shows the object whose reviewed box it matches. In an image with labels without a box, every other box shows each of these
    labels, because people did not say which animal is meant.
    """
    has_box = objects["ymin"].notna()
    numbered = objects[["image", "annotation_id"]].assign(truth=objects.index)
    matched = boxes.assign(box=boxes.index)[["image", "annotation_id", "box"]]
    own = matched[matched["annotation_id"] != ""].merge(numbered[has_box], on=["image", "annotation_id"])
    free = matched[~matched["box"].isin(own["box"])]
    image_level = free[["image", "box"]].merge(numbered.loc[~has_box, ["image", "truth"]], on="image")
    pairs = pd.concat([own[["box", "truth"]], image_level[["box", "truth"]]])
    return pairs["box"].to_numpy(np.int64), pairs["truth"].to_numpy(np.int64)


def _rates(i: int, outcomes: SequenceOutcomes, draws: BootstrapDraws, weight: Floats) -> _Rates:
    kinds = {name: getattr(outcomes, name)[:, i] for name in ("actual", "hit", "noticed", *MISSES)}
    kinds["on_empty"] = outcomes.false_alarm[:, i] & outcomes.empty
    kinds["on_others"] = outcomes.false_alarm[:, i] & ~outcomes.empty
    counts = {name: draws.sums(weight * mask) for name, mask in kinds.items()}
    hit, actual, false = counts["hit"], counts["actual"], counts["on_empty"] + counts["on_others"]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall, noticed, f1 = hit / (hit + false), hit / actual, counts["noticed"] / actual, 2 * hit / (hit + false + actual)
    return _Rates(counts, precision, recall, noticed, f1, _per_1000(counts["on_empty"], draws.sums(weight * outcomes.empty)))


def _per_1000(counts: Floats, of: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1000 * counts / of)


def _noticed_change(champion: _Rates, challenger: _Rates, locations: int) -> dict[str, Any]:
    """The recall with labels of parents, where these add a sequence to either model's hits."""
    if all(np.array_equal(m.counts["noticed"], m.counts["hit"]) for m in (champion, challenger)):
        return {}
    interval = percentile_interval(challenger.noticed - champion.noticed, locations)
    return {"noticed": _pair(champion.noticed, challenger.noticed), "noticed_interval": interval}


def _class_scores(class_id: str, rates: _Rates, locations: int, locations_with_empties: int, parent: str | None) -> SequenceScores:
    count = {name: float(values[0]) for name, values in rates.counts.items()}
    return SequenceScores(
        id=class_id,
        sequences=count["actual"],
        locations=locations,
        hits=count["hit"],
        **{name: count[name] for name in MISSES},
        false_alarms_on_empty=count["on_empty"],
        false_alarms_on_others=count["on_others"],
        precision=_value(rates.precision),
        recall=_value(rates.recall),
        f1=_value(rates.f1),
        false_alarms_per_1000_empty=_value(rates.per_1000_empty),
        precision_interval=percentile_interval(rates.precision, locations),
        recall_interval=percentile_interval(rates.recall, locations),
        f1_interval=percentile_interval(rates.f1, locations),
        false_alarms_interval=percentile_interval(rates.per_1000_empty, locations_with_empties),
        parent=parent,
        noticed=count["noticed"] if parent else None,
    )


def _value(values: Floats) -> float | None:
    return float(values[0]) if np.isfinite(values[0]) else None


def _pair(champion: Floats, challenger: Floats) -> tuple[float, float] | None:
    first, second = _value(champion), _value(challenger)
    return None if first is None or second is None else (first, second)

"""What a class for false boxes saves on real images: false alarms per 1,000 empty sequences with and without it, at the same recall of animals.

python benchmarks/false_boxes.py --data FOLDER

For each seed, two models learn from the same crops of animals at the same locations; one also learns the class for false boxes from empty
images of these locations. Both are scored as in production on the same sequences of the test locations. A third row is the second model
with its output for false boxes removed. Then the thresholds of each model are moved together, on the scale of log odds, to the strictest
ones with which it finds as many sequences with animals as the model without the class, and false alarms are counted there. The sequences
of all seeds are pooled; the interval is by bootstrap over locations.

The images of these data are a few long bursts, so each image counts as a sequence of its own, unless --bursts is given.

The plan is that of the tests with real images (--plan); --nacti adds a source with one location and 451 empty images. Results are kept in
--store, so a second run only computes the figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from measure import conclude, show
from numpy.typing import NDArray

from animl_pipeline.config import NothingConfig, Plan, SourceConfig, TrainingConfig, load_plan
from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.inference.bootstrap_intervals import BootstrapDraws, percentile_interval
from animl_pipeline.inference.classifier import MODEL_FILE, Classifier
from animl_pipeline.inference.sequence_outcomes import SequenceOutcomes
from animl_pipeline.steps.calibration import calibrate_classifier
from animl_pipeline.steps.crops import extract_crops
from animl_pipeline.steps.detections import detect_animals, detect_in_test_images
from animl_pipeline.steps.embeddings import embed_crops
from animl_pipeline.steps.evaluation import production_score
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images, download_test_images
from animl_pipeline.steps.labels import SourceArtifacts, choose_test_images, resolve_labels, wanted_labels, wanted_samples
from animl_pipeline.steps.splits import split_by_location
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.store import Store, open_store

ROOT = Path(__file__).parents[1]
AIM = 0.5
SHIFTS = np.arange(-12, 12, 0.02)
"""Shifts of the thresholds' log odds that are tried, the most permissive first."""
WITHOUT, REMOVED, WITH = "without the class", "with it, output removed", "with the class"
Floats = NDArray[np.float64]


class Crops(NamedTuple):
    """The sources with their exports and images, and the crops."""

    sources: list[SourceArtifacts]
    crops: Artifact


class Answers(NamedTuple):
    """A model's probabilities for the boxes of the test sequences, and its card."""

    probability: Floats
    card: ModelCard


class Found(NamedTuple):
    """Sequences with animals, those that were found, empty sequences, and those with a label: each bool [sequences]."""

    animal: NDArray[np.bool_]
    hit: NDArray[np.bool_]
    empty: NDArray[np.bool_]
    alarm: NDArray[np.bool_]

    def recall(self) -> float:
        return float(self.hit.sum() / self.animal.sum())

    def per_1000(self) -> float:
        return float(1000 * self.alarm.sum() / self.empty.sum())


def make_crops(plan: Plan, store: Store, settings: Settings) -> Crops:
    """The plan's crops."""
    sources = []
    for source in plan.sources:
        export = export_annotations(source, store, settings)
        wanted, samples = wanted_labels(plan.labels, source.name, settings), wanted_samples(plan.labels, source.name, settings)
        sources.append(SourceArtifacts(source, export, download_images(source, export, wanted, store, settings, plan.images, samples)))
    labels = resolve_labels(sources, plan.labels, store, settings)
    detections = detect_animals(labels, plan.detections, store, settings, false_boxes=plan.false_box_class())
    return Crops(sources, extract_crops(labels, detections, plan.crops, plan.model_input, store, settings, plan.labels.nothing_id))


def read_sequences(plan: Plan, found: Crops, splits: Artifact, store: Store, settings: Settings, *, bursts: bool) -> production_score.SequenceData:
    """The test sequences with the detector's boxes; without ``bursts``, each image is one."""
    assert plan.production is not None
    images = choose_test_images(found.sources, splits, plan.labels, plan.production, plan.splits, store, settings)
    downloads = {s.source.name: download_test_images(s.source, images, store, settings, plan.images) for s in found.sources}
    detections = detect_in_test_images(images, downloads, plan.detections, plan.production, store, settings)
    data = production_score.read_sequences(images, detections, store)
    if bursts:
        return data
    rows = data.images[["location", "source", "image_id"]].assign(weight=1.0)
    return data._replace(reviewed=data.reviewed._replace(sequence=np.arange(len(rows))), sequences=rows)


def answer(plan: Plan, crops: Artifact, splits: Artifact, data: production_score.SequenceData, store: Store, settings: Settings) -> Answers:
    """Train a model and let it answer for the boxes."""
    embeddings = None
    if plan.train.needs_embeddings():
        embeddings = embed_crops(crops, splits, plan.train.networks, plan.model_input.size, store, settings)
    trained = train_classifier(crops, splits, plan, store, settings, embeddings=embeddings)
    model = calibrate_classifier(trained, crops, splits, plan.thresholds, store)
    store.path(model, "card.json")
    classifier = Classifier.load(store.path(model, MODEL_FILE).parent)
    return Answers(production_score.score_boxes(data, classifier, store, plan.model_input, "boxes of test images"), classifier.card)


def outcomes(data: production_score.SequenceData, answers: Answers, shift: float = 0.0) -> SequenceOutcomes:
    """What happens in each sequence if the log odds of all thresholds are moved."""
    odds = {c: np.log(max(t, 1e-9)) - np.log(max(1 - t, 1e-9)) + shift for c, t in answers.card.thresholds.items()}
    card = answers.card.model_copy(update={"thresholds": {c: float(1 / (1 + np.exp(-v))) for c, v in odds.items()}})
    labels = production_score.label_by_thresholds(data, answers.probability, card)
    return production_score.find_outcomes_of(data, labels, card.animal_ids(), {})


def count(happened: SequenceOutcomes) -> Found:
    """Animals of any class that are found, and empty sequences with any label."""
    animal = np.asarray(happened.actual.any(axis=1))
    hit, alarm = np.asarray(happened.hit.any(axis=1)) & animal, np.asarray(happened.false_alarm.any(axis=1)) & happened.empty
    return Found(animal, hit, happened.empty, alarm)


def at_recall(data: production_score.SequenceData, answers: Answers, recall: float) -> Found:
    """The counts at the strictest thresholds that find at least this share of the sequences with animals."""
    for shift in SHIFTS[::-1]:
        found = count(outcomes(data, answers, float(shift)))
        if found.recall() >= recall:
            return found
    return count(outcomes(data, answers, float(SHIFTS[0])))


def compare(
    plan: Plan, both: tuple[Crops, Crops], seed: int, store: Store, settings: Settings, *, bursts: bool
) -> tuple[pd.DataFrame, dict[str, tuple[Found, Found]]]:
    """One seed: the sequences' locations; and for each model its counts at its own thresholds and at the same recall.

    Args:
        plan: with the class for false boxes.
        both: the crops without and with false boxes.
        seed: of split and training.
        store: holds the steps.
        settings: where data and weights are.
        bursts: count sequences; else images.
    """
    parts = {"model": f"{plan.model}-{seed}"} | {p: getattr(plan, p).model_copy(update={"seed": seed}) for p in ("splits", "train")}
    plan = plan.model_copy(update=parts)
    animals_only = without_class(plan)
    splits = split_by_location(both[1].crops, plan.splits, plan.labels.class_ids(), store, plan.model)
    data = read_sequences(plan, both[1], splits, store, settings, bursts=bursts)
    plain, learnt = answer(animals_only, both[0].crops, splits, data, store, settings), answer(plan, both[1].crops, splits, data, store, settings)
    removed = Answers(production_score.without_nothing(learnt.probability, learnt.card), learnt.card)
    recall = count(outcomes(data, plain)).recall()
    models = {WITHOUT: plain, REMOVED: removed, WITH: learnt}
    return data.sequences, {name: (count(outcomes(data, m)), at_recall(data, m, recall)) for name, m in models.items()}


def without_class(plan: Plan) -> Plan:
    """The plan without the class for false boxes."""
    return plan.model_copy(update={"labels": plan.labels.model_copy(update={"nothing": None})})


def change_interval(seeds: list[tuple[pd.DataFrame, dict[str, tuple[Found, Found]]]]) -> tuple[float, float] | None:
    """The 95 % interval of the ratio of false alarms, with the class to without it, at the same recall; all seeds, over locations."""
    draws = BootstrapDraws(pd.concat([sequences for sequences, _ in seeds], ignore_index=True))
    alarms = {name: draws.sums(np.concatenate([found[name][1].alarm for _, found in seeds])) for name in (WITHOUT, WITH)}
    with np.errstate(invalid="ignore", divide="ignore"):
        return percentile_interval(alarms[WITH] / alarms[WITHOUT], draws.locations)


def main() -> None:
    """Train both models on every seed's split and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=ROOT / "tests" / "flows" / "real-data.yaml", help="the plan (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder where the plan's relative paths start (default: ANIML_DATA)")
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "false-boxes", help="store for all results (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--head", action="store_true", help="train linear heads on frozen networks instead of the plan's recipe: minutes, not hours")
    parser.add_argument("--epochs", type=int, help="instead of the plan's")
    parser.add_argument("--max-images", type=int, default=NothingConfig().max_images, help="empty images that are learnt from (default: %(default)s)")
    parser.add_argument("--bursts", action="store_true", help="count sequences by time instead of images")
    parser.add_argument("--nacti", action="store_true", help="add the source nacti_ca01 of the same data")
    given = parser.parse_args()
    settings = load_settings()
    settings = settings.model_copy(update={"store": str(given.store), "data": given.data or settings.data})
    plan, store = load_plan(given.plan), open_store(settings)
    labels = plan.labels.model_copy(update={"nothing": NothingConfig(max_images=given.max_images)})
    train = TrainingConfig(recipe="head") if given.head else plan.train.model_copy(update={"epochs": given.epochs or plan.train.epochs})
    nacti = (SourceConfig(name="nacti", export="nacti_ca01/cct.json", images="nacti_ca01"),) if given.nacti else ()
    plan = plan.model_copy(update={"labels": labels, "train": train, "sources": (*plan.sources, *nacti)})
    both = make_crops(without_class(plan), store, settings), make_crops(plan, store, settings)
    seeds = [compare(plan, both, seed, store, settings, bursts=given.bursts) for seed in given.seeds]
    columns = ("seed", "model", "empty", "animals", "recall", "false alarms per 1,000 empty", "the same at equal recall", "recall there")
    rows: list[list[object]] = [
        [seed, name, int(own.empty.sum()), int(own.animal.sum()), own.recall(), own.per_1000(), equal.per_1000(), equal.recall()]
        for seed, (_, found) in zip(given.seeds, seeds, strict=True)
        for name, (own, equal) in found.items()
    ]
    unit = "Sequences" if given.bursts else "Images"
    show(f"{unit} of the test locations, as in production", columns, rows)
    totals = {name: sum(int(found[name][1].alarm.sum()) for _, found in seeds) for name in (WITHOUT, REMOVED, WITH)}
    empty = sum(int(found[WITH][1].empty.sum()) for _, found in seeds)
    ratio, ends = totals[WITH] / max(1, totals[WITHOUT]), change_interval(seeds)
    shown_ends = "–" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"
    shown = ", ".join(f"{1000 * n / empty:.0f} {name}" for name, n in totals.items())
    figure = f"false alarms per 1,000 empty {unit.lower()} at the same recall: {shown}; ratio {ratio:.2f}, 95 % interval over locations {shown_ends}"
    conclude("false_boxes", figure=figure, aim=f"at most {AIM}", met=totals[WITHOUT] > 0 and ratio <= AIM)


if __name__ == "__main__":
    main()

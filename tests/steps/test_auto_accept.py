"""Images without review: the bound holds when locations are drawn anew, and the answer says where locations are too few."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import binom

from animl_pipeline.config import AutoAcceptConfig, Plan, check_plan
from animl_pipeline.core.evaluation_results import AutoAcceptClass
from animl_pipeline.inference.sequence_outcomes import ModelLabels, ReviewedImages
from animl_pipeline.steps.evaluation import read_metrics
from animl_pipeline.steps.evaluation.auto_accept import (
    THRESHOLDS,
    AnsweredImages,
    find_thresholds,
    images_of_crops,
    images_of_sequences,
    locations_needed,
    upper_bound,
)
from animl_pipeline.steps.evaluation.production_score import SequenceData
from animl_pipeline.steps.evaluation.report_wording import describe_auto_accepts
from animl_pipeline.storage.store import Store
from tests.support.colour_models import ReportPage, evaluate, plan_of, read_report

CLASSES = ("fox", "rat")
SIZE = 3000
"""Locations of a synthetic island."""


class Island(NamedTuple):
    """A population of locations: m images in the order of their locations; location i has those from ``begin[i]`` to ``begin[i + 1]``."""

    images: AnsweredImages
    begin: NDArray[np.int64]

    def draw(self, locations: int, rng: np.random.Generator) -> AnsweredImages:
        """The images of so many random locations."""
        chosen = rng.integers(0, len(self.begin) - 1, locations)
        rows = np.concatenate([np.arange(self.begin[i], self.begin[i + 1]) for i in chosen])
        number = np.repeat(np.arange(locations), self.begin[chosen + 1] - self.begin[chosen])
        return AnsweredImages(number, *(values[rows] for values in self.images[1:]))

    def risks(self) -> tuple[dict[float, float], dict[float, float]]:
        """Threshold → the true risk of 1,000: as the mean over all locations with skipped images, and over all skipped images."""
        points = fox(self.images, 5).points
        return {p.threshold: p.observed_per_1000 for p in points}, {p.threshold: 1000 * p.skipped_with_invasive / p.skipped for p in points}


def island(kind: str, risk: float, typical: int = 40) -> Island:
    """Locations of very unequal sizes (half of all images at a sixth of them) and risks; the risk of an image rises as its probability falls.

    Args:
        kind: ``graded``: risks differ by location by a factor of e² (one standard deviation); ``busy``: the same, and locations with more images
            are riskier; ``overrun``: at some locations nearly all answers below 0.95 are wrong, elsewhere none; ``hopeless``: at some locations
            nearly all answers are wrong, however certain, so that every threshold is wrong.
        risk: the share of such locations, or about the share of wrong answers at probability 0.5.
        typical: images of the median location.
    """
    rng = np.random.default_rng(7)
    size = np.maximum(1, np.exp(rng.normal(np.log(typical), 1, SIZE)).astype(np.int64))
    location = np.repeat(np.arange(SIZE), size)
    probability = 1 - 0.5 * rng.random(len(location)) ** 3
    effect = rng.normal(0, 2, SIZE)
    if kind == "busy":
        effect = 0.7 * 2 * (np.log(size) - np.log(typical)) + np.sqrt(1 - 0.7**2) * effect
    if kind in {"overrun", "hopeless"}:
        wrong = np.where((rng.random(SIZE) < risk)[location], 0.95 * (probability < (0.95 if kind == "overrun" else 2)), 0.0)
    else:
        wrong = np.minimum(1, risk * np.exp(effect - 1)[location] * ((1 - probability) / 0.5 + 0.005))
    images = AnsweredImages(location, np.ones(len(location)), rng.random(len(location)) < wrong, np.zeros(len(location), np.int64), probability)
    return Island(images, np.concatenate([[0], np.cumsum(size)]))


def fox(images: AnsweredImages, limit: float) -> AutoAcceptClass:
    return find_thresholds(images, CLASSES, {}, ("rat",), limit, "sequences").classes[0]


def threshold_by_images(images: AnsweredImages, limit: float) -> float | None:
    """The threshold that a binomial test over images would choose, as if images of one location were independent."""
    chosen = None
    for t in THRESHOLDS:
        skipped = images.probability >= t
        if binom.cdf(images.invasive[skipped].sum(), skipped.sum(), limit / 1000) > 0.05:
            break
        chosen = t
    return chosen


class Shares(NamedTuple):
    """Of many draws of locations, the shares in which a threshold was chosen, and in which the true risk of the chosen one is above the limit.

    ``by_images``: the same if images are taken as independent. ``over_images``: with the risk over all images instead of the mean location.
    """

    chosen: float
    broken: float
    by_images: float
    over_images: float


def redraw(population: Island, limit: float, locations: int, draws: int) -> Shares:
    at_mean_location, over_images = population.risks()
    rng, chosen, naive = np.random.default_rng(1), [], []
    for _ in range(draws):
        images = population.draw(locations, rng)
        found = fox(images, limit)
        chosen.append(found.point.threshold if found.answer == "skip" and found.point else None)
        naive.append(threshold_by_images(images, limit))

    def broken(thresholds: list[float | None], risks: dict[float, float]) -> float:
        return float(np.mean([t is not None and risks[t] > limit for t in thresholds]))

    given = float(np.mean([t is not None for t in chosen]))
    return Shares(given, broken(chosen, at_mean_location), broken(naive, at_mean_location), broken(chosen, over_images))


def test_the_bound_holds_for_locations_drawn_anew() -> None:
    shares = redraw(island("overrun", 0.2, typical=15), limit=50, locations=80, draws=150)
    assert shares.chosen > 0.8
    assert shares.broken <= 0.05
    assert shares.by_images > 0.1  # what the method is for: images of one location are no independent evidence


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "risk", "limit", "locations"), [
    ("graded", 0.2, 50, 80), ("graded", 0.02, 5, 800), ("overrun", 0.2, 50, 80), ("busy", 0.2, 50, 80),
    ("hopeless", 0.056, 50, 80), ("hopeless", 0.056, 50, 60),
])  # fmt: skip
def test_the_bound_holds_in_a_thousand_draws(kind: str, risk: float, limit: float, locations: int) -> None:
    shares = redraw(island(kind, risk), limit, locations, draws=1000)
    assert shares.broken <= 0.05, shares


def images_of(*rows: tuple[str, int, int, float]) -> AnsweredImages:
    """Images that are called fox: the location's name, the images, how many of them hold an invasive animal, and the probability of all."""
    names = sorted({r[0] for r in rows})
    location = np.concatenate([np.full(n, names.index(name)) for name, n, _, _ in rows])
    invasive = np.concatenate([np.arange(n) < wrong for _, n, wrong, _ in rows])
    probability = np.concatenate([np.full(n, p) for _, n, _, p in rows])
    return AnsweredImages(location, np.ones(len(location)), invasive, np.zeros(len(location), np.int64), probability)


def test_one_location_too_few_gives_no_answer_and_says_what_it_could_show() -> None:
    enough = [(f"l{i:02}", 500, 0, 0.999) for i in range(locations_needed(0.05))]
    assert len(enough) == 59  # 0.95 ** 59 < 0.05 < 0.95 ** 58
    assert fox(images_of(*enough), 50).answer == "skip"
    fewer = fox(images_of(*enough[1:]), 50)
    assert (fewer.answer, fewer.point, fewer.locations) == ("too_few_locations", None, 58)
    assert fewer.lowest_limit_per_1000 is not None
    assert fox(images_of(*enough[1:]), fewer.lowest_limit_per_1000 + 0.01).answer == "skip"


def test_the_sequence_ends_at_the_first_threshold_that_does_not_hold() -> None:
    strict = [(f"l{i:03}", 10, 0, 0.999) for i in range(100)]
    wrong = [(f"l{i:03}", 90, 80, 0.96) for i in range(20)]
    harmless = [(f"l{i:03}", 9000, 0, 0.5) for i in range(100)]  # with these, the risk is low again
    found = fox(images_of(*strict, *wrong, *harmless), 50)
    assert found.point is not None
    assert (found.answer, found.point.threshold) == ("skip", 0.97)
    assert [p.holds for p in found.points if p.threshold in {0.97, 0.95, 0.5}] == [True, False, True]
    assert found.point.work_saved == pytest.approx(1000 / (1000 + 1800 + 900_000))


def test_each_location_counts_the_same_and_the_share_over_all_images_must_hold_too() -> None:
    small = [(f"l{i:03}", 1, 0, 0.999) for i in range(300)]
    large = ("large", 3000, 1500, 0.999)  # half of the images of one location
    found = fox(images_of(*small, large), 50)
    assert found.point is not None
    assert found.point.observed_per_1000 == pytest.approx(1000 * 0.5 / 301)
    assert found.point.bound_per_1000 < 50
    assert (found.answer, found.point.holds) == ("too_risky", False)


def test_invasive_classes_are_always_reviewed_and_a_class_that_is_not_shown_has_no_answer() -> None:
    found = find_thresholds(
        images_of(("a", 5, 0, 0.9)), ("fox", "rat", "bird", "hidden"), {"fox": 0.95, "rat": 0.1, "bird": 0.3}, ("rat",), 5, "crops"
    )
    assert {c.id: c.answer for c in found.classes} == {"fox": "no_images", "rat": "always_review", "bird": "no_images"}


def test_an_image_is_skipped_only_if_each_box_shows_the_class_alone() -> None:
    crops = pd.DataFrame(
        [  # image, truth, probability of fox, rat, bird
            ("alone", "fox", 0.9, 0.05, 0.05),
            ("two boxes", "fox", 0.9, 0.05, 0.05), ("two boxes", "rat", 0.8, 0.05, 0.15),
            ("also called rat", "fox", 0.8, 0.2, 0.0),
            ("two classes", "fox", 0.9, 0.05, 0.05), ("two classes", "bird", 0.05, 0.05, 0.9),
            ("unknown beside it", "fox", 0.9, 0.05, 0.05), ("unknown beside it", "fox", 0.45, 0.1, 0.45),
        ],
        columns=["image_id", "class_id", "p_fox", "p_rat", "p_bird"],
    ).assign(source="isle", location="cove")  # fmt: skip
    images = images_of_crops(crops, ("fox", "rat", "bird"), {"fox": 0.5, "rat": 0.15, "bird": 0.5}, ("rat",))
    rows = zip(sorted(set(crops["image_id"])), images.called, images.probability, images.invasive, strict=True)
    assert [(name, int(c), p, bool(seen)) for name, c, p, seen in rows if c >= 0] == [("alone", 0, 0.9, False), ("two boxes", 0, 0.8, True)]


def test_crops_without_a_location_count_as_one_location() -> None:
    crops = pd.DataFrame({"image_id": ["a", "b"], "class_id": "fox", "p_fox": 0.9, "p_rat": 0.1, "source": "isle", "location": ""})
    assert find_thresholds(images_of_crops(crops, CLASSES, {}, ("rat",)), CLASSES, {}, ("rat",), 5, "crops").locations == 1


def test_production_counts_images_with_a_missed_animal_and_the_weight_of_their_sequence() -> None:
    nothing = np.empty(0, np.int64)
    data = SequenceData(
        images=pd.DataFrame({"location": ["cove", "cove", "hill", "hill"]}),
        reviewed=ReviewedImages(np.array([0, 0, 1, 2]), np.array([1, 2]), np.array(["rat", "hare"], object)),
        sequences=pd.DataFrame({"weight": [3.0, 1.0, 2.0]}),
        boxes=pd.DataFrame(), box_image=nothing, truth_box=nothing, truth=nothing, not_searched=0,
    )  # fmt: skip
    fox_box = np.array([[True, False]] * 3)
    boxes = ModelLabels(np.array([0, 1, 2]), fox_box, np.zeros(3, np.int64), np.array([0.9, 0.8, 0.7]), nothing, nothing)
    images = images_of_sequences(data, boxes, ("rat",))
    assert images.invasive.tolist() == [False, True, False]  # the detector found no rat in the second image; the hare is not invasive
    assert images.weight.tolist() == [3, 3, 1]  # the last image has no box: it needs no review
    assert images.probability.tolist() == [0.9, 0.8, 0.7]


def plan_with(**sections: Any) -> Plan:
    return check_plan(plan_of().model_dump(mode="json", by_alias=True, exclude_unset=True) | sections)


def test_metrics_and_report_say_which_images_need_no_review(store: Store) -> None:
    evaluation = evaluate(store, plan=plan_with(thresholds={"invasive": ["red"]}))
    found = read_metrics(evaluation, store).auto_accept
    assert found is not None
    assert (found.source, found.images, found.images_with_invasive, found.locations, found.locations_needed) == ("crops", 9, 4, 3, 598)
    assert {c.id: c.answer for c in found.classes} == {"red": "always_review", "green": "too_few_locations", "blue": "too_few_locations"}
    page = ReportPage(read_report(evaluation, store))
    (sentence,) = describe_auto_accepts(found)
    assert sentence in page.text
    assert "598" in sentence
    answered = fox(images_of(*((f"l{i:02}", 500, 0, 0.999) for i in range(59))), 50)
    assert len(describe_auto_accepts(found.model_copy(update={"classes": (*found.classes, answered)}))) == 4, "a sentence each if one has an answer"
    assert "Images that need no review" in page.text


@pytest.mark.parametrize("sections", [{}, {"thresholds": {"invasive": ["red"]}, "auto_accept": None}], ids=["no invasive class", "off"])
def test_nothing_is_said_without_an_invasive_class_or_if_the_plan_turns_it_off(store: Store, sections: dict[str, Any]) -> None:
    evaluation = evaluate(store, plan=plan_with(**sections))
    assert read_metrics(evaluation, store).auto_accept is None
    assert "need no review" not in ReportPage(read_report(evaluation, store)).text


@pytest.mark.parametrize(("wrong", "n"), [(0, 30), (1, 100), (5, 100), (40, 100), (99, 100)])
def test_the_bound_is_never_below_the_exact_one_of_yes_or_no(wrong: int, n: int) -> None:
    exact = next(risk for risk in np.linspace(wrong / n, 1, 20_001) if binom.cdf(wrong, n, risk) <= 0.05)
    bound = upper_bound(wrong / n, n)
    assert exact - 1e-4 <= bound <= 1
    assert wrong or bound == pytest.approx(exact, abs=1e-4)


@given(st.integers(1, 500), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_the_bound_lies_between_the_observed_mean_and_one(n: int, mean: float) -> None:
    assert mean <= upper_bound(mean, n) <= 1


@pytest.mark.parametrize("limit", [0, 1000, -1])
def test_the_plan_takes_a_limit_between_0_and_1000(limit: float) -> None:
    with pytest.raises(ValidationError):
        AutoAcceptConfig(max_invasive_per_1000=limit)

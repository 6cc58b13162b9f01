"""Calibration: a temperature and thresholds from val, written where evaluation, package, endpoint and Animl find them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from animl_pipeline.config import AimConfig, ThresholdsConfig, UnknownConfig
from animl_pipeline.core.errors import EvaluationError, PlanError
from animl_pipeline.core.records import Threshold
from animl_pipeline.inference.classifier import Classifier, read_card
from animl_pipeline.inference.scoring import expected_calibration_error, operating_point, rescale_temperature
from animl_pipeline.steps.calibration import calibrate_classifier
from animl_pipeline.steps.calibration.temperature import fitted_temperature
from animl_pipeline.steps.calibration.thresholds import chosen_thresholds, meets, unknown_floor
from animl_pipeline.steps.evaluation import read_metrics
from animl_pipeline.storage.step_cache import Store
from tests.support.colour_models import ISLAND, Page, island, island_plan, judged, learnt, linear_step, report, street

IDS = ("rat", "fox")


def val_of(rat: list[float], fox: list[float]) -> pd.DataFrame:
    """Scored crops of two classes by their probability of rat."""
    p = np.array(rat + fox)
    class_id = ["rat"] * len(rat) + ["fox"] * len(fox)
    predicted = np.where(p >= 0.5, "rat", "fox")
    return pd.DataFrame(
        {"class_id": class_id, "predicted": predicted, "probability": np.maximum(p, 1 - p), "location": "isle/a", "p_rat": p, "p_fox": 1 - p}
    )


def threshold_of(val: pd.DataFrame, class_id: str, aim: AimConfig) -> Threshold:
    spec = ThresholdsConfig(invasive=("rat",), aims={class_id: aim})
    return next(t for t in chosen_thresholds(val, IDS, spec) if t.id == class_id)


# -- temperature -------------------------------------------------------------------------------------------------------------


def test_the_temperature_undoes_what_made_the_model_too_sure() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 3))
    honest = rescale_temperature(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1.0)
    targets = np.array([rng.choice(3, p=row) for row in honest])
    sure = rescale_temperature(honest, 1 / 3)  # logits three times as large
    assert fitted_temperature(sure, targets) == pytest.approx(3.0, rel=0.08)
    right = sure.argmax(1) == targets
    assert expected_calibration_error(rescale_temperature(sure, 3.0).max(1), right) < expected_calibration_error(sure.max(1), right) / 4


@pytest.mark.parametrize("n", [1, 5, 40])
def test_a_val_side_without_a_mistake_does_not_make_the_model_infinitely_sure(n: int) -> None:
    assert 0.3 < fitted_temperature(np.tile([0.9, 0.1], (n, 1)), np.zeros(n, np.int64)) < 1


def test_the_calibration_error_is_that_computed_by_hand() -> None:
    confidence, right = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55]), np.array([True, True, True, False, True, False])
    assert expected_calibration_error(confidence, right) == pytest.approx((4 * abs(0.95 - 0.75) + 2 * abs(0.55 - 0.5)) / 6)


def test_an_overconfident_model_ships_with_half_the_calibration_error_and_says_so(store: Store) -> None:
    drawn = island(seed=4, each=12, noise=75)
    weights, bias = learnt(drawn)
    plan = island_plan()
    done = judged(store, linear_step(store, (5 * weights, 5 * bias)), street(store, drawn, plan, tuple(ISLAND)), plan)
    found = read_metrics(done.evaluation, store).calibration
    assert found is not None
    assert found.temperature > 2
    assert found.after <= found.before / 2
    assert f"The calibration error on test is {found.after:.3f}" in Page(report(done.evaluation, store)).text
    assert "more than halved." in Page(report(done.evaluation, store)).text
    shipped = read_card(store.path(done.package, "card.json"))
    assert shipped.temperature == found.temperature  # the endpoint's classifier divides by it


# -- thresholds ----------------------------------------------------------------------------------------------------------------


def test_a_recall_is_reached_with_the_fewest_false_alarms() -> None:
    val = val_of(rat=[0.9, 0.8, 0.7, 0.2], fox=[0.75, 0.3, 0.1, 0.05])
    three_of_four = threshold_of(val, "rat", AimConfig(recall=0.75))
    assert 0.3 < three_of_four.value <= 0.7
    assert (three_of_four.val.recall, three_of_four.val.precision, three_of_four.val.false_alarms_per_1000) == (0.75, 0.75, 125)
    assert threshold_of(val, "rat", AimConfig(recall=1.0)).value <= 0.2


def test_a_precision_is_reached_with_the_most_found_but_never_below_one_half() -> None:
    val = val_of(rat=[0.9, 0.8, 0.7, 0.2], fox=[0.75, 0.3, 0.1, 0.05])
    assert threshold_of(val, "fox", AimConfig(precision=0.75)).val.recall == 0.75
    pure = val_of(rat=[0.9], fox=[0.02, 0.01])
    assert threshold_of(pure, "fox", AimConfig(precision=0.9)).value >= 0.5


def test_few_false_alarms_are_an_aim_of_their_own_and_recall_goes_before_them() -> None:
    val = val_of(rat=[0.9, 0.8, 0.4], fox=[0.85, 0.6, 0.1, 0.1])
    assert threshold_of(val, "rat", AimConfig(max_false_alarms_per_1000=0)).val.false_alarms_per_1000 == 0
    both = threshold_of(val, "rat", AimConfig(recall=1.0, max_false_alarms_per_1000=0))
    assert both.val.recall == 1
    assert not both.met


def test_a_class_that_val_lacks_has_a_threshold_that_reaches_nothing() -> None:
    t = threshold_of(val_of(rat=[], fox=[0.1, 0.2]), "rat", AimConfig(recall=0.9))
    assert (t.value, t.met, t.val.recall) == (0.5, False, None)


def test_a_precision_that_no_threshold_reaches_names_nothing_below_one_half() -> None:
    t = threshold_of(val_of(rat=[0.6, 0.7, 0.8], fox=[0.65]), "fox", AimConfig(precision=0.9))
    assert (t.value, t.met, t.val.recall) == (0.5, False, 0)


ROWS = st.lists(st.tuples(st.booleans(), st.integers(1, 999).map(lambda n: n / 1000)), min_size=1, max_size=40)


@settings(deadline=None)
@given(ROWS, st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_whatever_val_holds_a_recall_is_always_reached_and_what_is_met_is_met(
    rows: list[tuple[bool, float]], recall: float, precision: float
) -> None:
    val = val_of([p for is_rat, p in rows if is_rat], [p for is_rat, p in rows if not is_rat])
    found = threshold_of(val, "rat", AimConfig(recall=recall))
    assert 0 <= found.value <= 1
    if (val["class_id"] == "rat").any():
        assert (found.val.recall or 0) >= recall
    other = threshold_of(val, "fox", AimConfig(precision=precision))
    assert other.met == meets(operating_point(val, "fox", other.value), AimConfig(precision=precision))
    possible = [operating_point(val, "fox", float(p)) for p in val["p_fox"] if p >= 0.5]
    assert other.met == any(meets(reached, AimConfig(precision=precision)) for reached in possible)
    assert other.value >= 0.5


def test_the_unknown_floor_keeps_what_the_plan_says_and_stand_ins_for_strangers_lower_it() -> None:
    val = val_of(rat=[0.99, 0.95, 0.9, 0.55], fox=[0.01, 0.05, 0.1, 0.4])
    assert unknown_floor(val, IDS, UnknownConfig(keep=1.0)) == pytest.approx(0.55)
    assert unknown_floor(val, IDS, UnknownConfig(keep=0.7)) > 0.85
    thresholds = chosen_thresholds(val, IDS, ThresholdsConfig(invasive=("rat",), unknown=UnknownConfig(keep=0.7)))
    assert thresholds[1].value > 0.85
    assert thresholds[0].value < 0.85, "an invader is never made unknown by the floor"


# -- the step ------------------------------------------------------------------------------------------------------------------


def test_the_step_gives_the_same_model_with_thresholds_that_reach_their_aims_on_val(store: Store) -> None:
    drawn, plan = island(each=8), island_plan()
    steps = street(store, drawn, plan, tuple(ISLAND))
    model = linear_step(store, learnt(drawn))
    done = judged(store, model, steps, plan)
    assert store.path(done.calibrated, "model.onnx").read_bytes() == store.path(model, "model.onnx").read_bytes()
    card = Classifier.load(store.path(done.calibrated, "card.json").parent).card
    told = [Threshold.model_validate(t) for t in json.loads(store.path(done.calibrated, "thresholds.json").read_text())]
    assert card.thresholds == {t.id: t.value for t in told}
    assert all(t.met for t in told)
    assert (told[0].val.recall or 0) >= 0.95
    assert all((t.val.precision or 0) >= 0.9 for t in told[1:])
    config = json.loads(store.path(done.calibrated, "category_config.json").read_text())
    assert config == {c: {"confThreshold": card.thresholds[c], "disabled": False} for c in ISLAND}
    assert card.plan["thresholds"]["invasive"] == ["rat"]
    tested = read_metrics(done.evaluation, store).thresholds
    page = Page(report(done.evaluation, store)).text
    for t in tested:
        assert t.test is not None
        assert t.test.examples == 32
        assert f"{t.aim} {t.value:.3f}" in page
    assert calibrate_classifier(model, steps.crops, steps.splits, plan, store).cached
    assert store.table(done.calibrated, "val.parquet").shape[0] == done.calibrated.counts.kept == 96


def test_other_aims_are_another_calibration_but_no_other_training(store: Store) -> None:
    drawn, plan = island(), island_plan()
    steps, model = street(store, drawn, plan, tuple(ISLAND)), linear_step(store, learnt(drawn))
    one = calibrate_classifier(model, steps.crops, steps.splits, plan, store)
    other = calibrate_classifier(model, steps.crops, steps.splits, island_plan(thresholds={"invasive": ["fox"]}), store)
    assert one.key != other.key


def test_without_val_crops_there_is_one_clear_line(store: Store) -> None:
    drawn, plan = [d for d in island() if d.split != "val"], island_plan()
    steps = street(store, drawn, plan, tuple(ISLAND))
    with pytest.raises(EvaluationError, match=r"expected crops in the val split to calibrate on, found none; raise splits\.val"):
        calibrate_classifier(linear_step(store, learnt(drawn)), steps.crops, steps.splits, plan, store)


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        ({"invasive": ["cat"]}, "thresholds.invasive: 'cat' is no class of labels.classes"),
        ({"aims": {"cat": {"recall": 0.9}}}, "thresholds.aims: 'cat' is no class"),
        ({"aims": {"rat": {}}}, "give at least one of them"),
        ({"unknown": {"left_out": ["cat"]}}, "thresholds.unknown.left_out: 'cat' is no class"),
    ],
)
def test_aims_of_classes_that_are_not_there_are_refused(thresholds: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        island_plan(thresholds=thresholds)

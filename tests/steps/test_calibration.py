"""Calibration: temperature and thresholds are chosen on val, and evaluation, package, endpoint and Animl use them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from animl_pipeline.config import AimConfig, ThresholdsConfig, UnknownConfig
from animl_pipeline.core.errors import EvaluationError, PlanError
from animl_pipeline.core.evaluation_results import Threshold
from animl_pipeline.inference.calibration_and_threshold_metrics import expected_calibration_error, operating_point, rescale_temperature
from animl_pipeline.inference.classifier import Classifier, read_card
from animl_pipeline.steps.calibration import calibrate_classifier
from animl_pipeline.steps.calibration.step import fit_temperature
from animl_pipeline.steps.calibration.thresholds import choose_thresholds, meets_aim, unknown_floor
from animl_pipeline.steps.evaluation import read_metrics
from animl_pipeline.storage.store import Store
from tests.support.colour_models import (
    ISLAND,
    ReportPage,
    fit_linear,
    island_crops,
    island_plan,
    make_data_steps,
    make_linear_model,
    read_report,
    run_evaluation_steps,
)

IDS = ("rat", "fox")


def val_of(rat: list[float], fox: list[float]) -> pd.DataFrame:
    """Scored crops of the classes rat and fox, by their probability of rat."""
    p = np.array(rat + fox)
    class_id = ["rat"] * len(rat) + ["fox"] * len(fox)
    predicted = np.where(p >= 0.5, "rat", "fox")
    return pd.DataFrame(
        {"class_id": class_id, "predicted": predicted, "probability": np.maximum(p, 1 - p), "location": "isle/a", "p_rat": p, "p_fox": 1 - p}
    )


def threshold_of(val: pd.DataFrame, class_id: str, aim: AimConfig) -> Threshold:
    spec = ThresholdsConfig(invasive=("rat",), aims={class_id: aim})
    return next(t for t in choose_thresholds(val, IDS, spec) if t.id == class_id)


# -- temperature -------------------------------------------------------------------------------------------------------------


def test_the_temperature_corrects_an_overconfident_model() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 3))
    honest = rescale_temperature(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1.0)
    targets = np.array([rng.choice(3, p=row) for row in honest])
    sure = rescale_temperature(honest, 1 / 3)  # logits three times as large
    assert fit_temperature(sure, targets) == pytest.approx(3.0, rel=0.08)
    right = sure.argmax(1) == targets
    assert expected_calibration_error(rescale_temperature(sure, 3.0).max(1), right) < expected_calibration_error(sure.max(1), right) / 4


@pytest.mark.parametrize("n", [1, 5, 40])
def test_val_without_a_mistake_does_not_make_the_model_infinitely_certain(n: int) -> None:
    assert 0.3 < fit_temperature(np.tile([0.9, 0.1], (n, 1)), np.zeros(n, np.int64)) < 1


def test_the_calibration_error_equals_a_computation_by_hand() -> None:
    confidence, right = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55]), np.array([True, True, True, False, True, False])
    assert expected_calibration_error(confidence, right) == pytest.approx((4 * abs(0.95 - 0.75) + 2 * abs(0.55 - 0.5)) / 6)


def test_calibration_halves_the_error_of_an_overconfident_model_and_the_package_has_its_temperature(store: Store) -> None:
    drawn = island_crops(seed=4, each=12, noise=75)
    weights, bias = fit_linear(drawn)
    plan = island_plan()
    done = run_evaluation_steps(store, make_linear_model(store, (5 * weights, 5 * bias)), make_data_steps(store, drawn, plan, tuple(ISLAND)), plan)
    found = read_metrics(done.evaluation, store).calibration
    assert found is not None
    assert found.temperature > 2
    assert found.ece_after <= found.ece_before / 2
    page = ReportPage(read_report(done.evaluation, store)).text
    assert f"{found.ece_after:.3f}" in page
    shipped = read_card(store.path(done.package, "card.json"))
    assert shipped.temperature == found.temperature  # the endpoint's classifier divides by it


# -- thresholds ----------------------------------------------------------------------------------------------------------------


def test_a_recall_aim_is_reached_with_the_fewest_false_alarms() -> None:
    val = val_of(rat=[0.9, 0.8, 0.7, 0.2], fox=[0.75, 0.3, 0.1, 0.05])
    three_of_four = threshold_of(val, "rat", AimConfig(recall=0.75))
    assert 0.3 < three_of_four.value <= 0.7
    assert (three_of_four.val.recall, three_of_four.val.precision, three_of_four.val.false_alarms_per_1000) == (0.75, 0.75, 125)
    assert threshold_of(val, "rat", AimConfig(recall=1.0)).value <= 0.2


def test_a_precision_aim_is_reached_with_the_highest_recall_wherever_the_threshold_is() -> None:
    val = val_of(rat=[0.9, 0.8, 0.7, 0.2], fox=[0.75, 0.3, 0.1, 0.05])
    assert threshold_of(val, "fox", AimConfig(precision=0.75)).val.recall == 0.75
    unsure = threshold_of(val_of(rat=[0.9, 0.8, 0.75], fox=[0.7, 0.65, 0.6]), "fox", AimConfig(precision=0.9))
    assert (unsure.val.recall, unsure.val.precision, unsure.met_on_val) == (1, 1, True)
    assert 0.25 < unsure.value < 0.3


def test_false_alarms_can_be_an_aim_and_recall_goes_before_them() -> None:
    val = val_of(rat=[0.9, 0.8, 0.4], fox=[0.85, 0.6, 0.1, 0.1])
    assert threshold_of(val, "rat", AimConfig(max_false_alarms_per_1000=0)).val.false_alarms_per_1000 == 0
    both = threshold_of(val, "rat", AimConfig(recall=1.0, max_false_alarms_per_1000=0))
    assert both.val.recall == 1
    assert not both.met_on_val


def spread(val: pd.DataFrame, locations: int) -> pd.DataFrame:
    """The same crops, divided over so many locations."""
    return val.assign(location=[f"isle/{i % locations}" for i in range(len(val))])


def test_an_aim_is_shown_by_many_locations_and_not_by_many_crops_of_few() -> None:
    rng = np.random.default_rng(0)
    val = val_of(rat=list(rng.uniform(0.3, 1, 120)), fox=list(rng.uniform(0, 0.7, 120)))
    few, many = (threshold_of(spread(val, n), "rat", AimConfig(recall=0.9)) for n in (3, 120))
    for t in (few, many):
        assert t.bound is not None
        assert (t.bound.examples, t.met_on_val) == (120, True)
        assert t.aim_met == ((t.bound.recall or 0) >= 0.9)
    assert (few.aim_met, many.aim_met) == (False, True)
    assert many.value < few.value  # the bound asks for more than the crops alone
    sure = next(t for t in choose_thresholds(spread(val, 120), IDS, ThresholdsConfig(aims={"rat": AimConfig(recall=0.9)}, confidence=0.99)))
    assert sure.value < many.value


def test_aims_hold_at_other_locations_about_as_often_as_the_plan_says() -> None:
    """Locations differ: at each, another share of the crops is easy. Half of 240 locations choose, and the other half is asked."""
    rng, places = np.random.default_rng(1), 240
    spec = ThresholdsConfig(invasive=("rat",), aims={"rat": AimConfig(recall=0.7), "fox": AimConfig(precision=0.6)}, confidence=0.8)
    kept: dict[str, list[bool]] = {"rat": [], "fox": []}
    for _ in range(40):
        easy = rng.random((places, 6)) < rng.beta(3, 1, places)[:, None]
        rat = np.arange(6)[None] % 2 < rng.integers(0, 2, places)[:, None]
        p = np.clip(np.where(easy == rat, 0.75, 0.4) + rng.normal(0, 0.1, rat.shape), 0.01, 0.99).ravel()
        crops = pd.DataFrame({"class_id": np.where(rat, "rat", "fox").ravel(), "p_rat": p, "p_fox": 1 - p})
        crops["location"], crops["predicted"] = np.repeat([f"isle/{i}" for i in range(places)], 6), np.where(p >= 0.5, "rat", "fox")
        other = crops[len(crops) // 2 :]
        for t in choose_thresholds(crops[: len(crops) // 2], IDS, spec):
            if t.aim_met:
                kept[t.id].append(meets_aim(operating_point(other, t.id, t.value), spec.aims[t.id]))
    for shown in kept.values():
        assert len(shown) > 15
        assert np.mean(shown) >= 0.7


def test_a_class_that_val_lacks_does_not_reach_its_aim() -> None:
    t = threshold_of(val_of(rat=[], fox=[0.1, 0.2]), "rat", AimConfig(recall=0.9))
    assert (t.value, t.aim_met, t.val.recall) == (0.5, False, None)


def test_of_thresholds_that_find_as_many_animals_the_highest_is_chosen_for_a_precision() -> None:
    """What lies below the last animal of val would only add animals that val does not show, and false boxes."""
    val = val_of(fox=[0.1, 0.15, 0.2, 0.25], rat=[0.8, 0.9, 0.99])  # the probabilities of rat; those of fox are 0.9 to 0.75, and 0.2 to 0.01
    assert threshold_of(val, "fox", AimConfig(precision=0.5)).value > 0.2


def test_where_no_threshold_reaches_a_precision_the_nearest_is_chosen() -> None:
    t = threshold_of(val_of(rat=[0.6, 0.7, 0.8], fox=[0.65]), "fox", AimConfig(precision=0.9))
    assert (t.aim_met, t.met_on_val, t.val.precision) == (False, False, 0.5)


ROWS = st.lists(st.tuples(st.booleans(), st.integers(1, 999).map(lambda n: n / 1000)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=30)
@given(ROWS, st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_a_recall_aim_is_always_reached_on_val_and_the_answer_is_right(rows: list[tuple[bool, float]], recall: float, precision: float) -> None:
    val = val_of([p for is_rat, p in rows if is_rat], [p for is_rat, p in rows if not is_rat])
    found = threshold_of(val, "rat", AimConfig(recall=recall))
    assert 0 <= found.value <= 1
    if (val["class_id"] == "rat").any():
        assert (found.val.recall or 0) >= recall
    other = threshold_of(val, "fox", AimConfig(precision=precision))
    assert other.met_on_val == meets_aim(operating_point(val, "fox", other.value), AimConfig(precision=precision))
    possible = [operating_point(val, "fox", float(p)) for p in val["p_fox"]]
    assert other.met_on_val == any(meets_aim(reached, AimConfig(precision=precision)) for reached in possible)
    assert not other.aim_met, "one location shows nothing"


def test_the_unknown_floor_keeps_the_share_of_the_plan_and_raises_native_classes_only() -> None:
    val = val_of(rat=[0.99, 0.95, 0.9, 0.55], fox=[0.01, 0.05, 0.1, 0.4])
    assert unknown_floor(val, IDS, UnknownConfig(keep=1.0)) == pytest.approx(0.55)
    assert unknown_floor(val, IDS, UnknownConfig(keep=0.7)) > 0.85
    thresholds = choose_thresholds(val, IDS, ThresholdsConfig(invasive=("rat",), unknown=UnknownConfig(keep=0.7)))
    assert thresholds[1].value > 0.85
    assert thresholds[0].value < 0.85, "the floor does not raise invasive classes"


# -- the step ------------------------------------------------------------------------------------------------------------------


def test_the_step_keeps_the_model_and_its_thresholds_reach_their_aims_on_val(store: Store) -> None:
    drawn, plan = island_crops(each=8), island_plan()
    steps = make_data_steps(store, drawn, plan, tuple(ISLAND))
    model = make_linear_model(store, fit_linear(drawn))
    done = run_evaluation_steps(store, model, steps, plan)
    assert store.path(done.calibrated, "model.onnx").read_bytes() == store.path(model, "model.onnx").read_bytes()
    card = Classifier.load(store.path(done.calibrated, "card.json").parent).card
    thresholds = [Threshold.model_validate(t) for t in json.loads(store.path(done.calibrated, "thresholds.json").read_text())]
    assert card.thresholds == {t.id: t.value for t in thresholds}
    assert all(t.met_on_val for t in thresholds)
    assert (thresholds[0].val.recall or 0) >= 0.95
    assert all((t.val.precision or 0) >= 0.9 for t in thresholds[1:])
    config = json.loads(store.path(done.calibrated, "category_config.json").read_text())
    assert config == {c: {"confThreshold": card.thresholds[c], "disabled": False} for c in ISLAND}
    assert card.plan["thresholds"]["invasive"] == ["rat"]
    tested = read_metrics(done.evaluation, store).thresholds
    page = ReportPage(read_report(done.evaluation, store)).text
    for t in tested:
        assert t.test is not None
        assert t.test.examples == 32
        assert f"{t.aim} {t.describe_aim()} {t.value:.3f}" in page
    assert calibrate_classifier(model, steps.crops, steps.splits, plan.thresholds, store).cached
    assert store.table(done.calibrated, "val.parquet").shape[0] == done.calibrated.counts.kept == 96


def test_other_aims_need_another_calibration(store: Store) -> None:
    drawn, plan = island_crops(), island_plan()
    steps, model = make_data_steps(store, drawn, plan, tuple(ISLAND)), make_linear_model(store, fit_linear(drawn))
    one = calibrate_classifier(model, steps.crops, steps.splits, plan.thresholds, store)
    other = calibrate_classifier(model, steps.crops, steps.splits, island_plan(thresholds={"invasive": ["fox"]}).thresholds, store)
    assert one.key != other.key


def test_calibration_without_val_crops_is_refused(store: Store) -> None:
    drawn, plan = [d for d in island_crops() if d.split != "val"], island_plan()
    steps = make_data_steps(store, drawn, plan, tuple(ISLAND))
    with pytest.raises(EvaluationError) as caught:
        calibrate_classifier(make_linear_model(store, fit_linear(drawn)), steps.crops, steps.splits, plan.thresholds, store)
    assert caught.value.code == "no_val_crop"


@pytest.mark.parametrize(
    ("thresholds", "key"),
    [
        ({"invasive": ["cat"]}, "thresholds.invasive"),
        ({"aims": {"cat": {"recall": 0.9}}}, "thresholds.aims"),
        ({"aims": {"rat": {}}}, "thresholds.aims.rat"),
        ({"unknown": {"held_out_classes": ["cat"]}}, "thresholds.unknown.held_out_classes"),
    ],
)
def test_aims_for_unknown_classes_are_refused(thresholds: dict[str, object], key: str) -> None:
    with pytest.raises(PlanError) as caught:
        island_plan(thresholds=thresholds)
    assert key in str(caught.value)

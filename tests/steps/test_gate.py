"""The verdict: the comparison with the champion, the gate's rules."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from animl_pipeline.config import GateConfig, Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PlanError
from animl_pipeline.core.evaluation_results import ClassComparison, Comparison, Metrics
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.deploy.release_history import ReleaseRecord, close_record, new_record, write_record
from animl_pipeline.deploy.released_model import Champion, find_champion
from animl_pipeline.inference.classifier import Classifier, read_card
from animl_pipeline.steps.evaluation import evaluate_classifier, read_metrics, write_headline
from animl_pipeline.steps.evaluation.compare_champion import compare_with_champion, load_champion
from animl_pipeline.steps.evaluation.gate import decide_verdict
from animl_pipeline.steps.evaluation.score_test_set_and_later_images import join_splits, score_test_crops
from animl_pipeline.storage.store import Store, open_store
from tests.support.colour_models import (
    ISLAND,
    DataSteps,
    EvaluatedModel,
    ReportPage,
    fit_linear,
    island_crops,
    island_plan,
    make_data_steps,
    make_linear_model,
    read_report,
    run_evaluation_steps,
)

Colours = NDArray[np.float32]


@pytest.fixture
def plan() -> Plan:
    return island_plan()


class Evaluated(NamedTuple):
    """The folder of a store with the steps of the island and a good model, evaluated."""

    folder: Path
    steps: DataSteps
    champion: EvaluatedModel


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("evaluated") / "store"
    store = open_store(Settings(store=str(folder)))
    steps = make_data_steps(store, island_crops(), island_plan(), tuple(ISLAND))
    return Evaluated(folder, steps, run_evaluation_steps(store, make_linear_model(store, fit_linear(island_crops())), steps, island_plan()))


@pytest.fixture
def store(evaluated: Evaluated, tmp_path: Path) -> Store:
    """A copy of the island's store."""
    shutil.copytree(evaluated.folder, tmp_path / "store")
    return open_store(Settings(store=str(tmp_path / "store")))


@pytest.fixture
def steps(evaluated: Evaluated) -> DataSteps:
    return evaluated.steps


@pytest.fixture
def champion(evaluated: Evaluated) -> EvaluatedModel:
    return evaluated.champion


def compare(champion: EvaluatedModel, new: tuple[Colours, Colours], steps: DataSteps, store: Store) -> Comparison:
    """Only the comparison of a new model with a package."""
    plan = island_plan()
    classifier = Classifier.load(store.path(make_linear_model(store, new), "model.onnx").parent)
    split = join_splits(store.table(steps.crops, "crops.parquet"), store.table(steps.splits, "splits.parquet"))
    test = score_test_crops(split, classifier, store, plan.model_input)
    return compare_with_champion(test, tuple(ISLAND), {}, champion.package, load_champion(champion.package, store), plan.model_input, store)


def record_release(done: EvaluatedModel, plan: Plan, store: Store, *, state: str = "done") -> None:
    """Write the record of a release."""
    name, version = plan.endpoint_name(), read_card(store.path(done.package, "card.json")).version
    names = {
        "base_name": name, "endpoint": name, "endpoint_config": f"c-{version}", "previous_config": None, "sagemaker_model": "m",
        "version": version, "model": plan.model,
    }  # fmt: skip
    close_record(write_record(new_record("release", **names, package=done.package), store), "done" if state == "done" else "rolled_back", store)


def metrics_and_page(evaluation: Artifact, store: Store) -> tuple[Metrics, str]:
    return read_metrics(evaluation, store), ReportPage(read_report(evaluation, store)).text


# -- comparison with the champion ------------------------------------------------------------------------------------------------


def test_a_first_model_that_breaks_no_rule_is_promoted(store: Store, champion: EvaluatedModel) -> None:
    metrics, page = metrics_and_page(champion.evaluation, store)
    assert (metrics.verdict, metrics.comparison) == ("promote", None)
    assert page.index(write_headline(metrics)) < page.index("mean F1 ")


def test_a_challenger_trained_on_shuffled_labels_of_an_invasive_class_is_held_and_the_report_begins_with_the_reason(
    store: Store, steps: DataSteps, plan: Plan, champion: EvaluatedModel
) -> None:
    record_release(champion, plan, store)
    bad = make_linear_model(store, fit_linear(island_crops(), shuffled="rat"))
    released = find_champion(plan, read_card(store.path(bad, "card.json")), store).package
    assert released == champion.package
    done = run_evaluation_steps(store, bad, steps, plan, released)
    metrics, page = metrics_and_page(done.evaluation, store)
    assert metrics.verdict == "hold"
    assert write_headline(metrics).startswith(f"Hold: do not deploy this model, because {metrics.reasons[0]}")
    assert "invasive class rat" in metrics.reasons[0]
    change = next(d for d in metrics.comparison.classes if d.id == "rat") if metrics.comparison else None
    assert change is not None
    assert change.recall_change < -0.3
    assert change.recall_interval is not None
    assert change.recall_interval[1] < 0
    assert page.index(write_headline(metrics)) < page.index("mean F1 ")
    assert page.index("Missed invaders") < page.index("The worst mistakes")
    assert "label: rat" in page.split("Missed invaders")[1].split("The worst mistakes")[0]
    missed = pd.read_csv(store.path(done.evaluation, "missed_invaders.csv"))
    assert set(missed["class_id"]) == {"rat"}
    assert ((missed["class_probability"] >= missed["threshold"]) == missed["reaches_threshold"]).all()
    assert f"**Hold**: {metrics.reasons[0]}" in store.path(done.package, "MODEL_CARD.md").read_text()


def test_a_challenger_as_good_as_the_champion_is_promoted(store: Store, steps: DataSteps, plan: Plan, champion: EvaluatedModel) -> None:
    weights, bias = fit_linear(island_crops())
    done = run_evaluation_steps(store, make_linear_model(store, (weights * np.float32(1.01), bias)), steps, plan, champion.package)
    metrics, page = metrics_and_page(done.evaluation, store)
    assert metrics.verdict == "promote"
    assert metrics.comparison is not None
    assert metrics.comparison.macro_f1_change == pytest.approx(0, abs=0.02)
    assert "Comparison with the released model" in page
    one = read_metrics(champion.evaluation, store)
    assert metrics.comparison.macro_f1 == pytest.approx((one.macro_f1, metrics.macro_f1))
    assert metrics.comparison.macro_average_precision == pytest.approx((one.macro_average_precision, metrics.macro_average_precision))
    for before, after, d in zip(one.classes, metrics.classes, metrics.comparison.classes, strict=True):
        assert (d.recall, d.f1) == (pytest.approx((before.recall, after.recall)), pytest.approx((before.f1, after.f1)))


def test_crops_are_extracted_again_for_a_champion_with_another_model_input(store: Store, steps: DataSteps) -> None:
    wide = island_plan(model_input={"size": 48, "margin": 0.25, "mean": [0.5] * 3, "std": [0.5] * 3})
    old = run_evaluation_steps(
        store,
        make_linear_model(store, fit_linear(island_crops()), model_input=wide.model_input),
        make_data_steps(store, island_crops(), wide, tuple(ISLAND)),
        wide,
    )
    weights, bias = fit_linear(island_crops())
    found = compare(old, (weights * np.float32(1.01), bias), steps, store)
    assert found.own_model_input
    assert found.macro_f1[0] == pytest.approx(read_metrics(old.evaluation, store).macro_f1)


def test_classes_that_only_one_model_knows_are_reported_and_not_compared(store: Store, steps: DataSteps) -> None:
    weights, bias = fit_linear(island_crops())
    fewer = island_plan(labels={"classes": {"rat": ["rat"], "fox": ["fox"]}})
    some = [d for d in island_crops() if d.class_id != "bird"]
    old = run_evaluation_steps(
        store, make_linear_model(store, (weights[:, :2], bias[:2]), ("rat", "fox")), make_data_steps(store, some, fewer, ("rat", "fox")), fewer
    )
    found = compare(old, (weights, bias), steps, store)
    assert (found.added_classes, found.removed_classes) == (("bird",), ())
    assert (found.examples, found.left_out) == (32, 16)
    assert [d.id for d in found.classes] == ["rat", "fox"]


def test_models_without_a_common_class_have_an_empty_comparison_and_need_more_data(store: Store, champion: EvaluatedModel) -> None:
    plan = island_plan()
    rows = pd.DataFrame({"class_id": ["owl", "cow"], "predicted": ["owl", "cow"], "probability": 1.0, "infrared": False, "p_owl": 1.0, "p_cow": 0.0})
    rows = rows.assign(location="isle/a", source="isle", image_id="i", blob="", image="", ymin=0.0, xmin=0.0, ymax=1.0, xmax=1.0)
    found = compare_with_champion(rows, ("owl", "cow"), {}, champion.package, load_champion(champion.package, store), plan.model_input, store)
    assert (found.examples, found.left_out, found.classes) == (0, 2, ())
    assert found.removed_invasive == ("rat",)
    found = found.model_copy(update={"removed_invasive": ()})
    metrics = read_metrics(champion.evaluation, store).model_copy(update={"comparison": found})
    for gate in (GateConfig(min_examples=6), GateConfig(min_examples=0, min_locations=0)):
        assert decide_verdict(metrics, gate, ())[0] == "need_more_data"
    few = found.model_copy(update={"examples": 9, "locations": 2})
    assert decide_verdict(metrics.model_copy(update={"comparison": few}), GateConfig(min_examples=10), ())[0] == "need_more_data"


def test_a_challenger_without_an_invasive_class_of_the_champion_is_held(store: Store, champion: EvaluatedModel) -> None:
    weights, bias = fit_linear(island_crops())
    fewer = island_plan(labels={"classes": {"fox": ["fox"], "bird": ["bird"]}}, thresholds={"invasive": []})
    some = [d for d in island_crops() if d.class_id != "rat"]
    model = make_linear_model(store, (weights[:, 1:], bias[1:]), ("fox", "bird"))
    new = read_metrics(
        run_evaluation_steps(store, model, make_data_steps(store, some, fewer, ("fox", "bird")), fewer, champion.package).evaluation, store
    )
    assert new.verdict == "hold"
    assert new.comparison is not None
    assert new.comparison.removed_invasive == ("rat",)
    assert "invasive class rat" in new.reasons[0]


def test_a_model_is_held_while_the_champions_package_is_missing(store: Store, steps: DataSteps, plan: Plan, champion: EvaluatedModel) -> None:
    archive = store.path(champion.package, "model.tar.gz")
    whole = archive.read_bytes()
    archive.unlink()
    model = make_linear_model(store, fit_linear(island_crops(seed=9)))
    held = read_metrics(run_evaluation_steps(store, model, steps, plan, champion.package).evaluation, store)
    assert held.verdict == "hold"
    assert "could not be compared" in held.reasons[0]
    archive.write_bytes(whole)
    assert read_metrics(run_evaluation_steps(store, model, steps, plan, champion.package).evaluation, store).comparison is not None


# -- which model is the champion -------------------------------------------------------------------------------------------------


def test_nothing_released_means_no_champion(store: Store, plan: Plan, champion: EvaluatedModel) -> None:
    card = read_card(store.path(champion.package, "card.json"))
    assert find_champion(plan, card, store) == Champion(None)
    record_release(champion, plan, store, state="rolled back")
    assert find_champion(plan, card, store) == Champion(None)


def test_the_released_network_with_other_thresholds_is_compared_with_what_is_released(store: Store, plan: Plan, champion: EvaluatedModel) -> None:
    record_release(champion, plan, store)
    card = read_card(store.path(champion.package, "card.json"))
    for other in ({"thresholds": card.thresholds | {"rat": 0.999}}, {"temperature": card.temperature + 1}, {"parents": {"mammal": ("fox", "rat")}}):
        assert find_champion(plan, card.model_copy(update=other), store) == Champion(champion.package)
    assert find_champion(plan, card, store) == Champion(None), "its own evaluation stays cached"


def test_a_released_model_is_compared_with_the_one_before_it(store: Store, steps: DataSteps, plan: Plan, champion: EvaluatedModel) -> None:
    record_release(champion, plan, store)
    first = read_card(store.path(champion.package, "card.json"))
    assert find_champion(plan, first, store) == Champion(None), "its own evaluation stays cached"
    second = run_evaluation_steps(store, make_linear_model(store, fit_linear(island_crops(seed=5))), steps, plan, champion.package)
    record_release(second, plan, store)
    assert find_champion(plan, read_card(store.path(second.package, "card.json")), store) == Champion(champion.package)
    assert find_champion(plan, first, store) == Champion(second.package)


def other_model(champion: EvaluatedModel, store: Store) -> ModelCard:
    """The card of a model that was never released."""
    return read_card(store.path(champion.package, "card.json")).model_copy(update={"onnx_sha256": "0" * 64})


def test_the_champion_is_found_whatever_the_endpoint_is_called(store: Store, plan: Plan, champion: EvaluatedModel) -> None:
    record_release(champion, plan, store)
    for release in ({"max_concurrency": 6}, {"endpoint": "new-{model}"}):
        assert find_champion(island_plan(release=release), other_model(champion, store), store) == Champion(champion.package)
    same_endpoint = island_plan(model="other", release={"endpoint": plan.endpoint_name()})
    assert find_champion(same_endpoint, other_model(champion, store), store) == Champion(champion.package)
    assert find_champion(island_plan(model="other"), other_model(champion, store), store) == Champion(None)


def test_the_champion_does_not_depend_on_the_clock(store: Store, plan: Plan, champion: EvaluatedModel) -> None:
    """The first record is of an earlier version and two days ahead."""
    record_release(champion, plan, store)
    (name,) = store.object_store.names(f"releases/{plan.endpoint_name()}/")
    first = ReleaseRecord.model_validate_json(store.object_store.read(name) or b"")
    store.object_store.delete(name)
    write_record(first.model_copy(update={"id": f"{time.time_ns() + 2 * 86_400 * 10**9:020d}", "model": ""}), store)
    second = write_record(first.model_copy(update={"id": "", "state": "begun", "package": champion.calibrated}), store)
    close_record(second, "done", store)
    assert find_champion(plan, other_model(champion, store), store) == Champion(champion.calibrated)


def half_written(name: str, store: Store) -> None:
    store.object_store.put(name, b"{half")


def emptied(name: str, store: Store) -> None:
    store.object_store.put(name, b"")


def deleted(name: str, store: Store) -> None:
    store.object_store.delete(name)


def of_another_version(name: str, store: Store) -> None:
    store.object_store.put(name, json.dumps(json.loads(store.object_store.read(name) or b"") | {"surprise": 1}).encode())


def copied_under_another_id(name: str, store: Store) -> None:
    store.object_store.put(f"{name.rpartition('/')[0]}/{7:020d}.json", store.object_store.read(name) or b"")


def rolled_back_to_an_unknown_model(name: str, store: Store) -> None:
    record = ReleaseRecord.model_validate_json(store.object_store.read(name) or b"")
    unknown = record.model_copy(update={"id": "", "kind": "rollback", "version": "unknown", "package": None, "state": "begun"})
    close_record(write_record(unknown, store), "done", store)


@pytest.mark.parametrize("damage", [half_written, emptied, deleted, of_another_version, copied_under_another_id, rolled_back_to_an_unknown_model])
def test_a_model_is_held_while_it_is_not_certain_which_one_is_released(
    store: Store, plan: Plan, champion: EvaluatedModel, damage: Callable[[str, Store], None]
) -> None:
    record_release(champion, plan, store)
    (name,) = store.object_store.names(f"releases/{plan.endpoint_name()}/")
    damage(name, store)
    found = find_champion(island_plan(release={"max_concurrency": 6}), other_model(champion, store), store)
    good = read_metrics(champion.evaluation, store)
    assert decide_verdict(good, GateConfig(min_examples=6), (), champion_problem=found.problem)[0] == "hold"
    named = find_champion(island_plan(gate={"first_model": "isle"}), other_model(champion, store), store)
    assert bool(named.problem) == (damage is copied_under_another_id), "a person may say that nothing is released, but not what"


def test_an_evaluation_without_a_certain_champion_is_made_again_when_it_is_certain(
    store: Store, steps: DataSteps, plan: Plan, champion: EvaluatedModel
) -> None:
    inputs = (champion.calibrated, steps.crops, steps.splits, plan, store)
    assert read_metrics(evaluate_classifier(*inputs, champion_problem="a record is lost"), store).verdict == "hold"
    assert evaluate_classifier(*inputs).digest == champion.evaluation.digest


def test_a_plan_may_call_only_its_own_model_the_first() -> None:
    with pytest.raises(PlanError):
        island_plan(gate={"first_model": "another"})


# -- the gate --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "verdict", "words"),
    [
        ({"min_examples": 17, "min_locations": 2}, "need_more_data", "bird (16 examples from 4 locations)"),
        ({"min_examples": 1, "min_locations": 5}, "need_more_data", "1 example from 5 locations"),
        ({"min_macro_f1": 0.999}, "hold", "at least 1.00"),
        ({"min_examples": 16, "min_locations": 4}, "promote", "at least 16 test examples from 4 locations"),
    ],
)
def test_the_gate_applies_the_rules_of_the_plan(store: Store, champion: EvaluatedModel, gate: dict[str, float], verdict: str, words: str) -> None:
    metrics = read_metrics(champion.evaluation, store)
    found, reasons = decide_verdict(metrics, GateConfig.model_validate(gate), ("rat",))
    assert found == verdict
    assert any(words in reason for reason in reasons)


def test_a_model_that_has_hardly_learnt_is_held_by_the_default_rules(store: Store, champion: EvaluatedModel) -> None:
    poor = read_metrics(champion.evaluation, store).model_copy(update={"macro_f1": 0.09})
    assert decide_verdict(poor, GateConfig(min_examples=6), ())[0] == "hold"


def test_a_lower_mean_f1_is_held_unless_the_plan_allows_it(store: Store, steps: DataSteps, champion: EvaluatedModel) -> None:
    found = compare(champion, fit_linear(island_crops(), shuffled="fox"), steps, store)
    metrics = read_metrics(champion.evaluation, store).model_copy(update={"comparison": found})
    verdict, reasons = decide_verdict(metrics, GateConfig(min_examples=6), ("rat",))
    assert verdict == "hold"
    assert any("mean F1 is lower" in reason for reason in reasons)
    lenient = GateConfig(max_macro_f1_drop=1.0, max_invasive_recall_drop=1.0, min_examples=6)
    assert decide_verdict(metrics, lenient, ("rat",))[0] == "promote"


def test_the_reason_says_that_a_change_may_be_chance_if_its_interval_includes_0() -> None:
    d = ClassComparison(
        id="rat", examples=20, locations=3, recall=(0.9, 0.8), recall_change=-0.1, recall_interval=(-0.3, 0.1),
        f1=(0.9, 0.8), f1_change=-0.1, f1_interval=None, average_precision_change=0, average_precision_interval=None,
    )  # fmt: skip
    comparison = Comparison(
        champion="1", package="0" * 64, examples=20, locations=3, left_out=0, added_classes=(), removed_classes=(), own_model_input=False,
        macro_f1=(0.9, 0.9), macro_f1_change=0, macro_f1_interval=None,
        macro_average_precision=(1, 1), macro_average_precision_change=0, macro_average_precision_interval=None, classes=(d,),
    )  # fmt: skip
    metrics = Metrics(examples=20, locations=3, accuracy=1, macro_precision=1, macro_recall=1, macro_f1=1, macro_average_precision=1, classes=(),
                      confusion=(), comparison=comparison)  # fmt: skip
    verdict, reasons = decide_verdict(metrics, GateConfig(), ("rat",))
    assert verdict == "hold"
    assert "-0.10 (95 % interval -0.30 to +0.10, so it may be chance)" in reasons[0]
    assert "4 of 20 test examples" in reasons[0]
    assert decide_verdict(metrics, GateConfig(), ())[0] == "promote", "a native class may lose recall if the mean does not fall"

"""The verdict: champion against challenger on the same crops, the gate's rules, and the labels to look at again."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from animl_pipeline.config import GateConfig, Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PlanError
from animl_pipeline.core.records import Artifact, ClassComparison, Comparison, Metrics
from animl_pipeline.deploy.history import begin, close, new_record
from animl_pipeline.deploy.released_model import champion_of
from animl_pipeline.inference.classifier import Classifier, read_card
from animl_pipeline.steps.evaluation import evaluate_classifier, fold_splits, headline, read_metrics
from animl_pipeline.steps.evaluation.audit_folds import folds_of
from animl_pipeline.steps.evaluation.bootstrap_intervals import Draws, interval, rates
from animl_pipeline.steps.evaluation.compare_champion import compare
from animl_pipeline.steps.evaluation.error_tables import animl_table
from animl_pipeline.steps.evaluation.gate import judged as gate_of
from animl_pipeline.steps.evaluation.label_audit import image_link, suspects
from animl_pipeline.steps.evaluation.metrics import metrics_of
from animl_pipeline.steps.evaluation.predictions import join_splits, score_test_crops
from animl_pipeline.steps.evaluation.slices import bursts, by_majority, credited, parts_of
from animl_pipeline.steps.evaluation.step import Fold
from animl_pipeline.storage.step_cache import Store, open_store
from tests.support.coloured_squares import ISLAND, Judged, Page, Street, island, island_plan, judged, learnt, linear_step, report, street
from tests.support.packaged_model import CLASSES

Colours = NDArray[np.float32]


@pytest.fixture
def plan() -> Plan:
    return island_plan()


class Home(NamedTuple):
    """A store's folder with an island's steps and a good model, judged."""

    folder: Path
    steps: Street
    champion: Judged


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home") / "store"
    store = open_store(Settings(store=str(folder)))
    steps = street(store, island(), island_plan(), tuple(ISLAND))
    return Home(folder, steps, judged(store, linear_step(store, learnt(island())), steps, island_plan()))


@pytest.fixture
def store(home: Home, tmp_path: Path) -> Store:
    """A copy of the island's store."""
    shutil.copytree(home.folder, tmp_path / "store")
    return open_store(Settings(store=str(tmp_path / "store")))


@pytest.fixture
def steps(home: Home) -> Street:
    return home.steps


@pytest.fixture
def champion(home: Home) -> Judged:
    return home.champion


def against(champion: Judged, new: tuple[Colours, Colours], steps: Street, store: Store) -> Comparison:
    """A model of the island compared with a package, and nothing else of an evaluation."""
    plan = island_plan()
    classifier = Classifier.load(store.path(linear_step(store, new), "model.onnx").parent)
    split = join_splits(store.table(steps.crops, "crops.parquet"), store.table(steps.splits, "splits.parquet"))
    test = score_test_crops(split, classifier, store, plan.model_input)
    return compare(test, tuple(ISLAND), {}, champion.package, plan.model_input, store)[0]


def release_it(done: Judged, plan: Plan, store: Store, *, state: str = "done") -> None:
    """The record that a release of a package leaves."""
    name = plan.endpoint_name()
    version = read_card(store.path(done.package, "card.json")).version
    told = {"line": name, "endpoint": name, "endpoint_config": f"c-{version}", "previous_config": None, "sagemaker_model": "m", "version": version}
    close(begin(new_record("release", **told, package=done.package), store), "done" if state == "done" else "rolled_back", store)


def metrics_and_page(evaluation: Artifact, store: Store) -> tuple[Metrics, str]:
    return read_metrics(evaluation, store), Page(report(evaluation, store)).text


# -- champion against challenger -------------------------------------------------------------------------------------------------


def test_a_first_model_that_breaks_no_rule_is_promoted(store: Store, champion: Judged) -> None:
    metrics, page = metrics_and_page(champion.evaluation, store)
    assert (metrics.verdict, metrics.comparison) == ("promote", None)
    assert headline(metrics).startswith("Promote: it is the first model for its endpoint, and no rule of the plan's gate is broken. ")
    assert page.index("Promote: it is the first model") < page.index("macro F1")


def test_a_challenger_that_learnt_shuffled_labels_of_the_invader_is_held_and_the_report_says_why_first(
    store: Store, steps: Street, plan: Plan, champion: Judged
) -> None:
    release_it(champion, plan, store)
    bad = linear_step(store, learnt(island(), shuffled="rat"))
    released = champion_of(plan.endpoint_name(), read_card(store.path(bad, "card.json")), store)
    assert released == champion.package
    done = judged(store, bad, steps, plan, released)
    metrics, page = metrics_and_page(done.evaluation, store)
    assert metrics.verdict == "hold"
    first = headline(metrics).split(". ")[0]
    assert first.startswith("Hold: it misses the invasive class rat: its recall fell from the released model's ")
    assert "of 16 test examples missed" in first
    change = next(d for d in metrics.comparison.classes if d.id == "rat") if metrics.comparison else None
    assert change is not None
    assert change.recall_change < -0.3
    assert change.recall_interval is not None
    assert change.recall_interval[1] < 0
    opening = page.split("macro F1")[0]
    assert all(sentence in opening for sentence in headline(metrics).split(". ")[:3])
    assert page.index("Missed invaders") < page.index("The worst mistakes")
    assert "labelled rat" in page.split("Missed invaders")[1].split("The worst mistakes")[0]
    missed = pd.read_csv(store.path(done.evaluation, "missed_invaders.csv"))
    assert set(missed["class_id"]) == {"rat"}
    assert ((missed["own"] < missed["threshold"]) == (missed["at_threshold"] == "missed")).all()
    assert "**Hold**: it misses the invasive class rat" in store.path(done.package, "MODEL_CARD.md").read_text()


def test_a_challenger_as_good_as_the_champion_is_promoted(store: Store, steps: Street, plan: Plan, champion: Judged) -> None:
    weights, bias = learnt(island())
    done = judged(store, linear_step(store, (weights * np.float32(1.01), bias)), steps, plan, champion.package)
    metrics, page = metrics_and_page(done.evaluation, store)
    assert metrics.verdict == "promote"
    assert metrics.comparison is not None
    assert metrics.comparison.macro_f1_change == pytest.approx(0, abs=0.02)
    assert "Against the released model" in page
    one = read_metrics(champion.evaluation, store)
    assert metrics.comparison.macro_f1 == pytest.approx((one.macro_f1, metrics.macro_f1))
    assert metrics.comparison.macro_average_precision == pytest.approx((one.macro_average_precision, metrics.macro_average_precision))
    for before, after, d in zip(one.classes, metrics.classes, metrics.comparison.classes, strict=True):
        assert (d.recall, d.f1) == (pytest.approx((before.recall, after.recall)), pytest.approx((before.f1, after.f1)))


def test_a_champion_with_another_view_sees_its_own_cut_anew_from_the_images(store: Store, steps: Street) -> None:
    wide = island_plan(model_input={"size": 48, "margin": 0.25, "mean": [0.5] * 3, "std": [0.5] * 3})
    old = judged(store, linear_step(store, learnt(island()), model_input=wide.model_input), street(store, island(), wide, tuple(ISLAND)), wide)
    weights, bias = learnt(island())
    found = against(old, (weights * np.float32(1.01), bias), steps, store)
    assert found.own_view
    assert found.macro_f1[0] == pytest.approx(read_metrics(old.evaluation, store).macro_f1)


def test_classes_that_only_one_of_them_knows_are_named_and_left_out(store: Store, steps: Street) -> None:
    weights, bias = learnt(island())
    fewer = island_plan(labels={"classes": {"rat": ["rat"], "fox": ["fox"]}})
    some = [d for d in island() if d.class_id != "bird"]
    old = judged(store, linear_step(store, (weights[:, :2], bias[:2]), ("rat", "fox")), street(store, some, fewer, ("rat", "fox")), fewer)
    found = against(old, (weights, bias), steps, store)
    assert (found.new, found.gone) == (("bird",), ())
    assert (found.examples, found.left_out) == (32, 16)
    assert [d.id for d in found.classes] == ["rat", "fox"]


def test_models_without_a_class_in_common_are_compared_on_nothing(store: Store, champion: Judged) -> None:
    plan = island_plan()
    rows = pd.DataFrame({"class_id": ["owl", "cow"], "predicted": ["owl", "cow"], "probability": 1.0, "infrared": False, "p_owl": 1.0, "p_cow": 0.0})
    rows = rows.assign(location="isle/a", source="isle", image_id="i", blob="", image="", ymin=0.0, xmin=0.0, ymax=1.0, xmax=1.0)
    found = compare(rows, ("owl", "cow"), {}, champion.package, plan.model_input, store)[0]
    assert (found.examples, found.left_out, found.classes) == (0, 2, ())


def test_a_challenger_without_an_invasive_class_of_the_champion_is_held(store: Store, champion: Judged) -> None:
    weights, bias = learnt(island())
    fewer = island_plan(labels={"classes": {"fox": ["fox"], "bird": ["bird"]}}, thresholds={"invasive": []})
    some = [d for d in island() if d.class_id != "rat"]
    model = linear_step(store, (weights[:, 1:], bias[1:]), ("fox", "bird"))
    new = read_metrics(judged(store, model, street(store, some, fewer, ("fox", "bird")), fewer, champion.package).evaluation, store)
    assert new.verdict == "hold"
    assert new.reasons[0] == "the released model knows the invasive class rat, this one does not"


def test_a_champion_whose_package_is_gone_means_hold_until_it_is_back(store: Store, steps: Street, plan: Plan, champion: Judged) -> None:
    archive = store.path(champion.package, "model.tar.gz")
    whole = archive.read_bytes()
    archive.unlink()
    model = linear_step(store, learnt(island(seed=9)))
    held = read_metrics(judged(store, model, steps, plan, champion.package).evaluation, store)
    assert held.verdict == "hold"
    assert "the released model could not be asked, so nothing is known of what would be lost" in held.reasons[0]
    archive.write_bytes(whole)
    assert read_metrics(judged(store, model, steps, plan, champion.package).evaluation, store).comparison is not None


# -- who is champion ---------------------------------------------------------------------------------------------------------------


def test_nothing_released_means_no_champion(store: Store, plan: Plan, champion: Judged) -> None:
    card = read_card(store.path(champion.package, "card.json"))
    assert champion_of(plan.endpoint_name(), card, store) is None
    release_it(champion, plan, store, state="rolled back")
    assert champion_of(plan.endpoint_name(), card, store) is None


def test_a_released_model_is_judged_again_against_what_was_there_before_it(store: Store, steps: Street, plan: Plan, champion: Judged) -> None:
    release_it(champion, plan, store)
    first = read_card(store.path(champion.package, "card.json"))
    assert champion_of(plan.endpoint_name(), first, store) is None, "so its evaluation is the cached one"
    second = judged(store, linear_step(store, learnt(island(seed=5))), steps, plan, champion.package)
    release_it(second, plan, store)
    assert champion_of(plan.endpoint_name(), read_card(store.path(second.package, "card.json")), store) == champion.package
    assert champion_of(plan.endpoint_name(), first, store) == second.package


def test_a_record_that_cannot_be_read_is_left_out(store: Store, plan: Plan, champion: Judged) -> None:
    release_it(champion, plan, store)
    store.object_store.put(f"releases/{plan.endpoint_name()}/99999999999999999999.json", b"{half")
    other = read_card(store.path(champion.package, "card.json")).model_copy(update={"onnx_sha256": "0" * 64})
    assert champion_of(plan.endpoint_name(), other, store) == champion.package


# -- the gate ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "verdict", "words"),
    [
        ({"min_examples": 17, "min_locations": 2}, "need_more_data", "the test set is too small to judge bird (16 examples from 4 places), fox"),
        ({"min_examples": 1, "min_locations": 5}, "need_more_data", "where the plan asks for 1 example from 5 places of every class"),
        ({"min_macro_f1": 0.999}, "hold", "and the plan asks for at least 1.00"),
        ({"min_examples": 16, "min_locations": 4}, "promote", "every class has at least 16 test examples from 4 places"),
    ],
)
def test_the_gate_asks_for_what_the_plan_says(store: Store, champion: Judged, gate: dict[str, float], verdict: str, words: str) -> None:
    metrics = read_metrics(champion.evaluation, store)
    said, reasons = gate_of(metrics, GateConfig.model_validate(gate), ("rat",))
    assert said == verdict
    assert any(words in reason for reason in reasons)


def test_a_fall_of_the_mean_is_held_unless_the_plan_allows_it(store: Store, steps: Street, champion: Judged) -> None:
    found = against(champion, learnt(island(), shuffled="fox"), steps, store)
    metrics = read_metrics(champion.evaluation, store).model_copy(update={"comparison": found})
    verdict, reasons = gate_of(metrics, GateConfig(min_examples=6), ("rat",))
    assert verdict == "hold"
    assert any(reason.startswith("its mean F1 fell from the released model's") for reason in reasons)
    lenient = GateConfig(max_macro_f1_drop=1.0, max_invasive_recall_drop=1.0, min_examples=6)
    assert gate_of(metrics, lenient, ("rat",))[0] == "promote"


def test_a_fall_that_may_be_chance_is_said_to_be_one() -> None:
    d = ClassComparison(id="rat", examples=20, locations=3, recall=(0.9, 0.8), f1=(0.9, 0.8), recall_change=-0.1, recall_interval=(-0.3, 0.1), f1_change=-0.1,
                   f1_interval=None, average_precision_change=0, average_precision_interval=None)  # fmt: skip
    comparison = Comparison(
        champion="1", package="0" * 64, examples=20, locations=3, left_out=0, new=(), gone=(), own_view=False, macro_f1=(0.9, 0.9), macro_f1_change=0,
        macro_f1_interval=None, macro_average_precision=(1, 1), macro_average_precision_change=0, macro_average_precision_interval=None, classes=(d,),
    )  # fmt: skip
    metrics = Metrics(examples=20, locations=3, accuracy=1, macro_precision=1, macro_recall=1, macro_f1=1, macro_average_precision=1, classes=(),
                      confusion=(), comparison=comparison)  # fmt: skip
    verdict, reasons = gate_of(metrics, GateConfig(), ("rat",))
    assert verdict == "hold"
    assert "a change of -0.10 (95 % interval -0.30 to +0.10, so it may be chance)" in reasons[0]
    assert "(4 of 20 test examples missed)" in reasons[0]
    assert gate_of(metrics, GateConfig(), ())[0] == "promote", "a native class may lose recall, as long as the mean holds"


# -- intervals -----------------------------------------------------------------------------------------------------------------------


def test_intervals_are_over_locations_not_over_images() -> None:
    one_location_fails = pd.DataFrame({"location": np.repeat(["a", "b", "c", "d"], 50), "right": np.repeat([1, 1, 1, 0], 50)})
    mixed = pd.DataFrame({"location": np.tile(["a", "b", "c", "d"], 50), "right": np.repeat([1, 1, 1, 0], 50)})
    ends = []
    for rows in (one_location_fails, mixed):
        draws = Draws(rows)
        share = draws.sums(rows["right"].to_numpy(np.float64)) / draws.sums(np.ones(len(rows)))
        ends.append(interval(share, draws.locations))
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0][0] <= 0.25
    assert ends[0][1] == 1
    assert ends[1][1] - ends[1][0] < 0.1


def test_drawn_average_precision_and_rates_are_sklearns_on_the_drawn_rows() -> None:
    from sklearn.metrics import average_precision_score, f1_score

    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"location": rng.choice(list("abcdef"), 200)})
    is_one, p = rng.random(200) < 0.3, np.round(rng.random(200), 2)
    named = rng.integers(0, 2, 200)
    draws = Draws(rows)
    found, f1 = draws.average_precisions(p, is_one), rates(draws.confusions(is_one.astype(np.int64), named, 2))[2]
    for i in range(5):
        times = draws.times[i][draws.location].astype(int)
        again = np.repeat(np.arange(200), times)
        assert found[i] == pytest.approx(average_precision_score(is_one[again], p[again]))
        assert f1[i, 1] == pytest.approx(f1_score(is_one[again], named[again]))


def test_a_class_at_one_location_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    location = ["a", "b", "c"] * 20 + ["a"] * 10
    class_id, predicted = ["red"] * 60 + ["green"] * 10, np.where(rng.random(70) < 0.8, ["red"] * 60 + ["green"] * 10, "blue")
    scored = pd.DataFrame(
        {"class_id": class_id, "predicted": predicted, "location": location} | {f"p_{c}": np.where(predicted == c, 0.8, 0.1) for c in CLASSES}
    )
    red, green, _ = metrics_of(scored, CLASSES).classes
    assert (green.locations, green.recall_interval, green.average_precision_interval) == (1, None, None)
    assert red.recall_interval is not None
    assert red.recall_interval[0] <= red.recall <= red.recall_interval[1]


# -- parts ---------------------------------------------------------------------------------------------------------------------------


def scored_of(rows: list[tuple[str, str, float]], **columns: list[object]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["class_id", "predicted", "probability"])
    usual: dict[str, object] = {
        "source": "isle", "image_id": [f"i{n}" for n in range(len(rows))], "location": "isle/a", "sequence": "", "taken": "", "infrared": False,
        "ymin": 0.0, "xmin": 0.0, "ymax": 0.2, "xmax": 0.2,
    }  # fmt: skip
    return table.assign(**(usual | columns))


def test_a_burst_is_a_sequence_or_images_of_one_location_within_a_minute() -> None:
    taken = ["2024-01-01T00:00:00", "2024-01-01T00:00:50", "2024-01-01T00:01:40", "2024-01-01T00:05:00", "", "2024-01-01T00:00:10", ""]
    locations = ["isle/a"] * 5 + ["isle/b"] * 2
    scored = scored_of([("red", "red", 0.9)] * 7, taken=taken, location=locations, sequence=["", "", "", "", "", "", "isle/s1"])
    names = bursts(scored)
    assert names[0] == names[1] == names[2]
    assert len({*names}) == 5


def test_most_crops_of_a_burst_name_it_and_mixed_ones_are_left_out() -> None:
    rows = [
        ("red", "green", 0.9),
        ("red", "red", 0.6),
        ("red", "red", 0.6),
        ("red", "red", 0.5),
        ("red", "green", 0.9),
        ("red", "red", 0.9),
        ("blue", "blue", 0.9),
    ]
    scored = scored_of(rows, sequence=["s1"] * 3 + ["s2"] * 2 + ["s3"] * 2)
    voted, mixed = by_majority(scored, bursts(scored))
    assert list(voted["predicted"]) == ["red", "green"]  # two of three; one each, and green is the surer
    assert mixed == 1


def test_night_is_told_from_the_pixels_and_sizes_from_the_box() -> None:
    scored = scored_of(
        [("red", "red", 0.9), ("red", "green", 0.9), ("green", "green", 0.9)],
        infrared=[False, True, True],
        ymax=[0.05, 0.2, 0.9],
        xmax=[0.05, 0.2, 0.2],
    )
    parts = {p.name.split(" (")[0]: p for p in parts_of(scored, CLASSES)}
    assert {name: (p.examples, p.accuracy) for name, p in parts.items()} == {
        "day": (1, 1), "night": (2, 0.5), "small": (1, 1), "middling": (1, 0), "large": (1, 1), "images": (3, pytest.approx(2 / 3)),
        "bursts": (3, pytest.approx(2 / 3)),
    }  # fmt: skip


def test_equivalents_count_as_right_beside_the_strict_scores() -> None:
    scored = scored_of([("red", "green", 0.9), ("red", "blue", 0.9), ("green", "green", 0.9)])
    found = credited(scored, CLASSES, {"red": ["green"]})
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.classes["red"][:2] == (1.0, 0.5)
    assert found.classes["green"][0] == 1.0


def test_animls_table_has_its_columns_and_counts() -> None:
    scored = scored_of(
        [("red", "red", 0.9), ("red", "green", 0.9), ("green", "green", 0.9)], location=["isle/Cove", "isle/Cove", "isle/CAM7-default"]
    )
    table = animl_table(scored, scored["predicted"], CLASSES)
    assert list(table.columns) == ["cameraId", "deploymentName", "targetClass", "TP", "FP", "FN", "precision", "recall", "f1"]
    rows = {(r.deploymentName, r.targetClass): (r.cameraId, r.TP, r.FP, r.FN) for r in table.itertuples()}
    assert rows["Cove", "red"] == ("", 1, 0, 1)
    assert rows["Cove", "green"] == ("", 0, 1, 0)
    assert rows["default", "green"] == ("CAM7", 1, 0, 0)
    assert rows["ALL", "green"] == ("", 1, 1, 0)


# -- the label audit -----------------------------------------------------------------------------------------------------------------


def test_wrong_labels_are_found_first_with_links_and_never_from_what_the_model_learnt(store: Store, plan: Plan) -> None:
    drawn = island(noise=15)
    wrong = [i for i, d in enumerate(drawn) if d.class_id == "fox" and d.split != "train"][:2]
    wrong.append(next(i for i, d in enumerate(drawn) if d.class_id == "fox" and d.split == "train"))
    mislabelled = [d._replace(class_id="bird") if i in wrong else d for i, d in enumerate(drawn)]
    steps = street(store, mislabelled, plan, tuple(ISLAND))
    model = linear_step(store, learnt(mislabelled))
    evaluation = evaluate_classifier(model, steps.crops, steps.splits, plan, store)
    found = pd.read_csv(store.path(evaluation, "suspect_labels.csv"))
    assert sorted(found["image_id"].head(2)) == sorted(f"image-{i}" for i in wrong[:2])
    assert set(found["class_id"].head(2)) == {"bird"}
    assert set(found["model_says"].head(2)) == {"fox"}
    assert not (found["split"] == "train").any()
    folds = []
    for i in range(3):
        held = fold_splits(steps.crops, steps.splits, 3, i, store)
        sides = store.table(held, "splits.parquet")
        seen = [d for n, d in enumerate(mislabelled) if crop_side(store, steps, sides, n) == "train"]
        folds.append(Fold(linear_step(store, learnt(seen)), held))
    audited = evaluate_classifier(model, steps.crops, steps.splits, plan, store, folds=folds)
    assert f"image-{wrong[2]}" in list(pd.read_csv(store.path(audited, "suspect_labels.csv"))["image_id"].head(3))
    assert f"{len(drawn)} crops of {len(drawn)}: val and test and the train places of each fold" in Page(report(audited, store)).text


def crop_side(store: Store, steps: Street, sides: pd.DataFrame, number: int) -> str:
    """The side of the n-th drawn crop."""
    crops = store.table(steps.crops, "crops.parquet").set_index("image_id")
    return str(sides.set_index("crop_id")["split"][crops.loc[f"image-{number}", "crop_id"]])


def test_folds_share_out_whole_locations_and_never_take_all_of_a_class() -> None:
    rows = [("a", "fox")] * 5 + [("b", "fox")] * 4 + [("c", "fox")] * 3 + [("d", "rat")] * 3 + [("", "fox")] * 2
    train = pd.DataFrame(rows, columns=["location", "class_id"])
    found = folds_of(train, 2)
    assert "d" not in found, "the only place with rats stays in training"
    assert "" not in found
    assert set(found.values()) == {0, 1}


def test_a_link_is_made_for_animls_images_only() -> None:
    pattern = "https://animl.example/app/{project}/all?img={image}"
    assert image_link(pattern, f"isle:{'a' * 32}") == f"https://animl.example/app/isle/all?img=isle%3A{'a' * 32}"
    assert image_link(pattern, "some/file.jpg") == ""
    assert image_link("", f"isle:{'a' * 32}") == ""


def test_a_model_that_is_unsure_of_everything_suspects_nothing() -> None:
    rows = pd.DataFrame({"class_id": ["red", "green"], "p_red": [0.34, 0.33], "p_green": [0.33, 0.34], "p_blue": [0.33, 0.33]})
    scored = rows.assign(split="test", location="isle/a", source="isle", image_id="i", annotation_id="o", crop_id=["a", "b"], blob="0")
    assert suspects(scored, CLASSES).empty


def test_images_that_people_or_the_model_call_a_person_are_never_shown(store: Store) -> None:
    plan = island_plan(labels={"classes": {"rat": ["rat"], "fox": ["Person"], "bird": ["bird"]}})
    drawn = island(noise=80)
    done = judged(store, linear_step(store, learnt(drawn)), street(store, drawn, plan, tuple(ISLAND)), plan)
    html = report(done.evaluation, store)
    shown = [part.split('"')[0] for part in html.split('alt="a crop labelled ')[1:]]
    assert shown
    assert not [alt for alt in shown if "fox" in alt]
    assert "<b>called fox</b>" not in html
    assert "pictures that are called fox" in Page(html).text


# -- in a real browser ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on the path")
def test_a_browser_shows_the_verdict_first_and_every_table_fits_a_phone(
    store: Store, steps: Street, plan: Plan, champion: Judged, tmp_path: Path
) -> None:
    done = judged(store, linear_step(store, learnt(island(), shuffled="rat")), steps, plan, champion.package)
    page = store.path(done.evaluation, "report.html")
    probe = tmp_path / "probe.html"
    look = (
        "const d = this.contentDocument, e = d.documentElement, v = d.querySelector('.verdict'); document.title = [e.scrollWidth - e.clientWidth, "
        "v.className, v.getBoundingClientRect().top < 200, v.querySelector('span').innerText, d.querySelectorAll('.crop').length].join('|')"
    )
    probe.write_text(f'<iframe src="{page.as_uri()}" width="390" height="800" onload="{look}"></iframe>')
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "HOME": str(tmp_path)}).stdout
    wide, kind, at_top, first, crops = dom.split("<title>")[1].split("</title>")[0].split("|")
    assert (wide, kind, at_top) == ("0", "verdict hold", "true")
    assert first.startswith("Hold: it misses the invasive class rat")
    assert int(crops) > 10


def test_one_fold_is_no_fold() -> None:
    with pytest.raises(PlanError, match=r"audit\.folds|expected 0 or at least 2"):
        island_plan(audit={"folds": 1})

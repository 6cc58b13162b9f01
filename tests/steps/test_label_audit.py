"""The label audit: suspect labels, folds of train locations, links to Animl. Images of people are never shown."""

from __future__ import annotations

import pandas as pd
import pytest

from animl_pipeline.config import Plan
from animl_pipeline.core.errors import PlanError
from animl_pipeline.core.report_formats import image_link
from animl_pipeline.steps.evaluation import evaluate_classifier, fold_splits
from animl_pipeline.steps.evaluation.label_audit import assign_folds, find_suspect_labels
from animl_pipeline.steps.evaluation.step import Fold
from animl_pipeline.storage.store import Store
from tests.support.colour_models import (
    ISLAND,
    DataSteps,
    ReportPage,
    fit_linear,
    island_crops,
    island_plan,
    make_data_steps,
    make_linear_model,
    read_report,
    run_evaluation_steps,
)
from tests.support.packaged_model import CLASSES


@pytest.fixture
def plan() -> Plan:
    return island_plan()


def test_wrong_labels_come_first_and_train_labels_are_audited_with_folds_only(store: Store, plan: Plan) -> None:
    specs = island_crops(noise=15)
    wrong = [i for i, d in enumerate(specs) if d.class_id == "fox" and d.split != "train"][:2]
    wrong.append(next(i for i, d in enumerate(specs) if d.class_id == "fox" and d.split == "train"))
    mislabelled = [d._replace(class_id="bird") if i in wrong else d for i, d in enumerate(specs)]
    steps = make_data_steps(store, mislabelled, plan, tuple(ISLAND))
    model = make_linear_model(store, fit_linear(mislabelled))
    evaluation = evaluate_classifier(model, steps.crops, steps.splits, plan, store)
    found = pd.read_csv(store.path(evaluation, "suspect_labels.csv"))
    assert sorted(found["image_id"].head(2)) == sorted(f"image-{i}" for i in wrong[:2])
    assert set(found["class_id"].head(2)) == {"bird"}
    assert set(found["predicted"].head(2)) == {"fox"}
    assert not (found["split"] == "train").any()
    folds = []
    for i in range(3):
        held = fold_splits(steps.crops, steps.splits, 3, i, store)
        split_table = store.table(held, "splits.parquet")
        seen = [d for n, d in enumerate(mislabelled) if split_of_crop(store, steps, split_table, n) == "train"]
        folds.append(Fold(make_linear_model(store, fit_linear(seen)), held))
    audited = evaluate_classifier(model, steps.crops, steps.splits, plan, store, folds=folds)
    assert f"image-{wrong[2]}" in list(pd.read_csv(store.path(audited, "suspect_labels.csv"))["image_id"].head(3))
    assert f"{len(specs)} crops of {len(specs)}, from val, test and the folds of train" in ReportPage(read_report(audited, store)).text


def split_of_crop(store: Store, steps: DataSteps, split_table: pd.DataFrame, number: int) -> str:
    """The split of the n-th crop."""
    crops = store.table(steps.crops, "crops.parquet").set_index("image_id")
    return str(split_table.set_index("crop_id")["split"][crops.loc[f"image-{number}", "crop_id"]])


def test_folds_are_whole_locations_and_never_hold_out_all_of_a_class() -> None:
    rows = [("a", "fox")] * 5 + [("b", "fox")] * 4 + [("c", "fox")] * 3 + [("d", "rat")] * 3 + [("", "fox")] * 2
    train = pd.DataFrame(rows, columns=["location", "class_id"])
    found = assign_folds(train, 2)
    assert "d" not in found, "the only location with rats stays in training"
    assert "" not in found
    assert set(found.values()) == {0, 1}


def test_only_images_of_animl_get_a_link() -> None:
    pattern = "https://animl.example/app/{project}/all?img={image}"
    assert image_link(pattern, f"isle:{'a' * 32}") == f"https://animl.example/app/isle/all?img=isle%3A{'a' * 32}"
    assert image_link(pattern, "some/file.jpg") == ""
    assert image_link("", f"isle:{'a' * 32}") == ""


def test_low_probabilities_for_all_classes_make_no_label_suspect() -> None:
    rows = pd.DataFrame({"class_id": ["red", "green"], "p_red": [0.34, 0.33], "p_green": [0.33, 0.34], "p_blue": [0.33, 0.33]})
    scored = rows.assign(split="test", location="isle/a", source="isle", image_id="i", annotation_id="o", crop_id=["a", "b"], blob="0")
    assert find_suspect_labels(scored, CLASSES).empty


def test_images_labelled_or_predicted_as_people_are_never_shown(store: Store) -> None:
    plan = island_plan(labels={"classes": {"rat": ["rat"], "fox": ["Person"], "bird": ["bird"]}})
    specs = island_crops(noise=80)
    done = run_evaluation_steps(store, make_linear_model(store, fit_linear(specs)), make_data_steps(store, specs, plan, tuple(ISLAND)), plan)
    html = read_report(done.evaluation, store)
    shown = [part.split('"')[0] for part in html.split('alt="crop labelled ')[1:]]
    assert shown
    assert not [alt for alt in shown if "fox" in alt]
    assert "<b>model: fox</b>" not in html
    assert "images with the label or answer fox" in ReportPage(html).text


def test_a_plan_with_one_fold_is_an_error() -> None:
    with pytest.raises(PlanError):
        island_plan(audit={"folds": 1})

"""The recipe head: embeddings that are computed once, folds of locations, one ONNX file, calibration on out-of-fold answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from animl_pipeline.config import Plan, check_plan
from animl_pipeline.config.training import TrainingConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PlanError, TrainingError
from animl_pipeline.core.table_schemas import CROPS, CROSS_VALIDATION, EMBEDDED_CROPS, OUT_OF_FOLD, SPLITS, TRAINED_IMAGES, VAL_PREDICTIONS
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_matrix
from animl_pipeline.inference.classifier import Classifier, softmax
from animl_pipeline.inference.score_crops import score_crops
from animl_pipeline.steps.calibration import calibrate_classifier
from animl_pipeline.steps.embeddings import embed_crops
from animl_pipeline.steps.training import check_backbone_and_weights, train_classifier
from animl_pipeline.steps.training.linear_head import fit_heads
from animl_pipeline.steps.training.location_folds import NEVER_HELD_OUT, assign_folds
from animl_pipeline.storage.manifest import digest_of
from animl_pipeline.storage.store import Store, open_store
from tests.support.paths import ROOT
from tests.support.training_crops import CLASSES, SIZE, draw_crop, plan_with, settings_at, store_crops

NETWORKS: tuple[dict[str, str], ...] = ({"network": "test_resnet", "weights": "none"}, {"network": "test_efficientnet", "weights": "none"})
LOCATIONS = 8


def head_plan(**train: Any) -> Plan:
    return plan_with(**{"recipe": "head", "networks": NETWORKS, "select": "auto", **train})


def project(store: Store, each: int = 3, locations: int = LOCATIONS) -> tuple[Artifact, Artifact]:
    """Crops and splits: at every location each class; the last two locations are test, the two before val."""
    crop_rows, split_rows = [], []
    for number in range(locations * each):
        location = number // each
        for class_id in CLASSES:
            data = draw_crop(class_id, number)
            crop_id = digest_of([class_id, number])
            split = "test" if location >= locations - 2 else "val" if location >= locations - 4 else "train"
            row = {"crop_id": crop_id, "class_id": class_id, "blob": store.put_blob(data), "bytes": len(data), "location": f"drawn/p{location}"}
            crop_rows.append(row | {"image": digest_of([class_id, number, "image"]), "source": "drawn"})
            split_rows.append({"crop_id": crop_id, "split": split})

    return store_crops(store, crop_rows, split_rows, {"each": each, "locations": locations})


def train_head(folder: Path, plan: Plan) -> tuple[Store, Artifact, Artifact, Artifact, Artifact]:
    """Store, crops, splits, embeddings and model of a plan."""
    settings = settings_at(folder)
    store = open_store(settings)
    crops, splits = project(store)
    embeddings = embed_crops(crops, splits, plan.train.networks, SIZE, store, settings) if plan.train.needs_embeddings() else None
    model = train_classifier(crops, splits, plan, store, settings, embeddings=embeddings)
    return store, crops, splits, embeddings or model, model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact, Artifact, Artifact, Artifact]:
    return train_head(tmp_path_factory.mktemp("head"), head_plan())


def loaded(store: Store, model: Artifact) -> Classifier:
    store.path(model, "card.json")
    return Classifier.load(store.path(model, "model.onnx").parent)


def test_the_onnx_file_answers_as_the_head_on_the_embeddings(trained: tuple[Store, Artifact, Artifact, Artifact, Artifact]) -> None:
    store, crops, _splits, embeddings, model = trained
    ids = store.table(embeddings, EMBEDDED_CROPS)["crop_id"]
    blocks = [np.load(store.path(embeddings, f"{i}.npy")) for i in range(2)]
    assert [b.shape[0] for b in blocks] == [len(ids)] * 2
    table = store.table(crops, CROPS).set_index("crop_id").loc[ids].reset_index()
    targets = table["class_id"].map({c: i for i, c in enumerate(CLASSES)}).to_numpy(np.int64)
    classifier = loaded(store, model)
    (head,) = fit_heads(blocks, targets, len(CLASSES), np.full(len(ids), True), [classifier.card.plan["selected"]["regularisation"]])
    expected = softmax(head.logits(np.concatenate(blocks, axis=1).astype(np.float64)).astype(np.float32))
    found = probability_matrix(score_crops(table, classifier, store, classifier.card.model_input), CLASSES)
    assert np.abs(found - expected).max() < 1e-4
    assert classifier.card.agreement.max_abs < 1e-4
    assert classifier.card.agreement.crops == len(ids)


def test_the_model_learns_from_train_and_val_and_never_from_test(trained: tuple[Store, Artifact, Artifact, Artifact, Artifact]) -> None:
    store, _crops, splits, embeddings, model = trained
    learnt = set(store.table(splits, SPLITS).query("split != 'test'")["crop_id"])
    assert set(store.table(embeddings, EMBEDDED_CROPS)["crop_id"]) == learnt
    assert set(store.table(model, TRAINED_IMAGES)["location"]) == {f"drawn/p{i}" for i in range(LOCATIONS - 2)}
    assert model.counts.kept == len(learnt)
    assert set(store.table(model, OUT_OF_FOLD)["crop_id"]) == learnt


def test_every_out_of_fold_answer_is_of_a_model_that_did_not_learn_from_the_location(
    trained: tuple[Store, Artifact, Artifact, Artifact, Artifact],
) -> None:
    store, crops, _, _, model = trained
    answers = store.table(model, OUT_OF_FOLD).merge(store.table(crops, CROPS)[["crop_id", "location"]], on="crop_id")
    assert (answers.groupby("location")["fold"].nunique() == 1).all()
    assert answers["fold"].nunique() == 5
    scores = store.table(model, CROSS_VALIDATION)
    assert scores["chosen"].sum() == 1
    assert scores.loc[scores["chosen"], "log_loss"].item() == scores["log_loss"].min()


def test_thresholds_and_temperature_come_from_out_of_fold_answers(trained: tuple[Store, Artifact, Artifact, Artifact, Artifact]) -> None:
    store, crops, splits, _, model = trained
    calibrated = calibrate_classifier(model, crops, splits, head_plan().thresholds, store)
    card = loaded(store, calibrated).card
    predictions, answers = store.table(calibrated, VAL_PREDICTIONS), store.table(model, OUT_OF_FOLD)
    assert card.out_of_fold
    assert set(predictions["crop_id"]) == set(answers["crop_id"])
    both = predictions.merge(answers, on="crop_id", suffixes=("", "_before"))
    logits = np.log(both[[f"p_{c}_before" for c in CLASSES]].to_numpy()) / card.temperature
    assert both[[f"p_{c}" for c in CLASSES]].to_numpy() == pytest.approx(softmax(logits), abs=1e-5)
    assert set(card.thresholds) == set(CLASSES)


def test_an_embedding_is_computed_once_for_each_crop_and_network(tmp_path: Path) -> None:
    settings, networks = settings_at(tmp_path), head_plan().train.networks
    store = open_store(settings)
    few = embed_crops(*project(store, each=1), networks[:1], SIZE, store, settings)
    assert few.counts.notes == {"embeddings_computed_now": 18}
    more = embed_crops(*project(store, each=1, locations=LOCATIONS + 1), networks, SIZE, store, settings)
    assert more.counts.notes == {"embeddings_computed_now": 3 + 21}  # one location for the known network, all for the new one
    fresh = open_store(settings.model_copy(update={"store": str(tmp_path / "fresh")}))
    again = embed_crops(*project(fresh, each=1, locations=LOCATIONS + 1), networks, SIZE, fresh, settings)
    assert again.digest == more.digest  # whatever was there before, the embeddings are the same


def test_the_blocks_have_the_same_weight_and_the_head_is_scikit_learns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.normal(5, 100, (60, 7)).astype(np.float32), rng.normal(0, 0.01, (60, 90)).astype(np.float32)]
    targets = rng.integers(0, 3, 60)
    (head,) = fit_heads(blocks, targets, 4, np.full(60, True), [0.5])
    scaled = [(b.astype(np.float64) - b.astype(np.float64).mean(0)) / b.astype(np.float64).std(0) / np.sqrt(b.shape[1]) for b in blocks]
    plain = LogisticRegression(C=0.5, class_weight="balanced", max_iter=5000, tol=1e-8).fit(np.concatenate(scaled, axis=1), targets)
    logits = head.logits(np.concatenate(blocks, axis=1).astype(np.float64))
    assert softmax(logits[:, :3].astype(np.float32)) == pytest.approx(plain.predict_proba(np.concatenate(scaled, axis=1)), abs=1e-3)
    assert (logits.argmax(axis=1) < 3).all()  # the class without a crop is never the most probable one


def folds_of(rows: list[dict[str, str]], train_only: tuple[str, ...] = (), folds: int = 3) -> pd.DataFrame:
    """The rows with their fold."""
    table = pd.DataFrame([{"location": "", "image": f"i{n}", "phash": "", "source": "s", "sequence": ""} | row for n, row in enumerate(rows)])
    return table.assign(fold=assign_folds(table, train_only, folds, seed=0))


def test_linked_locations_are_in_one_fold_and_some_crops_in_none() -> None:
    rows = [{"location": f"s/{n}", "class_id": c} for n in range(9) for c in ("fox", "bird")]
    rows += [{"location": "s/0", "class_id": "fox", "sequence": "q"}, {"location": "s/1", "class_id": "fox", "sequence": "q"}]
    rows += [{"location": "s/2", "class_id": "fox", "phash": "ab"}, {"location": "s/3", "class_id": "fox", "phash": "ab"}]
    rows += [{"location": "", "class_id": "fox"}, {"location": "s/7", "class_id": "skunk"}]
    table = folds_of(rows, train_only=("s/8",))
    assert (table[table["location"] != ""].groupby("location")["fold"].nunique() == 1).all()
    of = table.groupby("location")["fold"].first()
    assert of["s/0"] == of["s/1"]
    assert of["s/2"] == of["s/3"]
    assert set(of[["", "s/8", "s/7"]]) == {NEVER_HELD_OUT}  # unknown, train only, and the only location with a skunk
    assert set(of) == {NEVER_HELD_OUT, 0, 1, 2}


@pytest.mark.parametrize("second", ["s/0", "s/1"], ids=["one location", "each class at its only location"])
def test_too_few_locations_for_folds_are_refused(second: str) -> None:
    with pytest.raises(TrainingError) as e:
        folds_of([{"location": "s/0", "class_id": "fox"}, {"location": second, "class_id": "bird"}])
    assert e.value.code == "too_few_locations"


def test_validation_chooses_a_head_that_learns_from_train_only(tmp_path: Path) -> None:
    store, crops, splits, _, model = train_head(tmp_path, head_plan(select="validation", networks=NETWORKS[:1]))
    assert OUT_OF_FOLD.file not in store.files(model)
    assert model.counts.kept == (store.table(splits, SPLITS)["split"] == "train").sum()
    calibrated = calibrate_classifier(model, crops, splits, head_plan().thresholds, store)
    assert calibrated.counts.kept == (store.table(splits, SPLITS)["split"] == "val").sum()


def test_folds_choose_between_a_head_and_fine_tuning(tmp_path: Path) -> None:
    plan = head_plan(recipe=["head", "fine_tune"], networks=NETWORKS[:1], folds=2, epochs=1, head_epochs=0)
    store, _, _splits, _, model = train_head(tmp_path, plan)
    scores = store.table(model, CROSS_VALIDATION)
    assert set(scores["recipe"]) == {"head", "fine_tune"}
    card = loaded(store, model).card
    assert card.plan["selected"]["recipe"] == scores.loc[scores["chosen"], "recipe"].item()


def test_fine_tuning_by_folds_learns_from_val_too_and_keeps_the_last_epoch(tmp_path: Path) -> None:
    plan = plan_with(recipe="fine_tune", select="cross_validation", folds=2, epochs=2, patience=1)
    store, _, splits, _, model = train_head(tmp_path, plan)
    assert model.counts.kept == (store.table(splits, SPLITS)["split"] != "test").sum()
    assert model.counts.notes["epochs"] == 2
    assert loaded(store, model).card.out_of_fold
    assert loaded(store, model).card.architecture == "test_resnet"


KILLED = """
import os, signal, sys
from pathlib import Path
from animl_pipeline.steps.training import trainer
from animl_pipeline.steps.training import train_recipes
from tests.steps.test_heads import train_head
from tests.support.training_crops import plan_with

def train(*args, **options):
    if args[5].name == "fold-1.ckpt":
        os.kill(os.getpid(), signal.SIGKILL)
    return trainer.train_network(*args, **options)

train_recipes.train_network = train
train_head(Path(sys.argv[1]), plan_with(recipe="fine_tune", select="cross_validation", folds=2, epochs=1))
"""


@pytest.mark.slow
def test_a_killed_cross_validation_continues_and_ends_with_the_same_files(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed")], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    scratch = next((tmp_path / "killed" / "store" / "work").glob("training-*")) / "scratch"
    assert (scratch / "fold-0.ckpt").is_file()
    plan = plan_with(recipe="fine_tune", select="cross_validation", folds=2, epochs=1)
    resumed, whole = (train_head(tmp_path / name, plan)[-1] for name in ("killed", "whole"))
    assert resumed.digest == whole.digest


@pytest.mark.parametrize(
    ("train", "word"),
    [
        ({"recipe": "head", "weights": "released"}, "weights"),
        ({"recipe": ["head", "fine_tune"], "select": "validation"}, "select"),
        ({"recipe": ["head", "head"]}, "recipe"),
        ({"networks": []}, "networks"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(train: dict[str, Any], word: str) -> None:
    with pytest.raises((PlanError, ValidationError)) as e:
        head_plan(**train)
    assert word in str(e.value)


@pytest.mark.parametrize("network", ["no_such_network", "megadetector-v5a"])
def test_an_unknown_network_is_refused_before_anything_is_downloaded(network: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as e:
        check_backbone_and_weights(head_plan(networks=[network]), settings_at(tmp_path))
    assert e.value.code in {"unknown_backbone", "unknown_network"}


def test_select_is_by_folds_for_heads_and_for_fine_tuning_at_few_locations() -> None:
    assert TrainingConfig(recipe="head").by_folds(5000)
    assert TrainingConfig(recipe="fine_tune").by_folds(100)
    assert not TrainingConfig(recipe="fine_tune").by_folds(101)
    assert not TrainingConfig(recipe="head", select="validation").by_folds(5)
    always = [TrainingConfig(recipe=r, select=s).always_by_folds() for r in ("head", "fine_tune") for s in ("auto", "cross_validation", "validation")]
    assert always == [True, True, False, False, True, False]


def test_a_fold_without_crops_is_no_fold(tmp_path: Path) -> None:
    settings = settings_at(tmp_path)
    store = open_store(settings)
    crop_rows, split_rows = [], []
    for location, classes in (("p0", ("fox", "bird")), ("p1", ("fox", "bird")), ("z", ("skunk",))):
        for class_id in classes:
            for n in range(2):
                data, crop_id = draw_crop(class_id, crc32(f"{location}{n}".encode()) % 10**6), digest_of([class_id, location, n])
                crop = {"crop_id": crop_id, "class_id": class_id, "blob": store.put_blob(data), "bytes": len(data), "location": f"drawn/{location}"}
                crop_rows.append(crop | {"image": digest_of([crop_id]), "source": "drawn"})
                split_rows.append({"crop_id": crop_id, "split": "val" if location == "p1" else "train"})
    crops, splits = store_crops(store, crop_rows, split_rows, {"fold": "emptied"})
    model = train_classifier(crops, splits, plan_with(select="cross_validation", folds=3, epochs=1, head_epochs=0), store, settings)
    assert set(store.table(model, OUT_OF_FOLD)["fold"]) == {1, 2}


def test_keys_of_the_other_recipe_do_not_train_again(tmp_path: Path) -> None:
    from animl_pipeline.steps.training.step import key_config

    assert key_config(head_plan(epochs=3)) == key_config(head_plan(epochs=4))
    assert key_config(plan_with()) == key_config(plan_with(networks=NETWORKS, folds=3))
    assert key_config(head_plan()) != key_config(head_plan(networks=NETWORKS[:1]))
    assert check_plan(head_plan().model_dump(mode="json", by_alias=True)) == head_plan()


def test_networks_that_threads_load_at_the_same_time_are_the_same(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from animl_pipeline.integrations.frozen_networks import load_frozen_network

    config, settings = head_plan().train.networks[0], settings_at(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        states = [n.state_dict() for n in pool.map(lambda _: load_frozen_network(config, SIZE, settings), range(8))]
    assert all(bool((state[name] == states[0][name]).all()) for state in states for name in state)

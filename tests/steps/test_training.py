"""The step model: it learns, twice the same, and what it ships answers as what was trained."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from animl_pipeline.config import check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core import progress
from animl_pipeline.core.errors import DamagedError, TrainingError, WeightsError
from animl_pipeline.core.imaging import normalise
from animl_pipeline.core.records import Artifact
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.steps.training import recorded_plan, train_classifier
from animl_pipeline.storage.step_cache import Store
from tests.support.blots import CLASSES, STEPS_PER_EPOCH, crops_and_splits, drawn_crop, plan_with, trained_in

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact]:
    """One uninterrupted training that several tests look at."""
    return trained_in(tmp_path_factory.mktemp("trained"))


def test_it_learns_what_drawn_animals_look_like(trained: tuple[Store, Artifact]) -> None:
    store, model = trained
    history = store.table(model, "history.parquet")
    assert list(history.columns) == ["epoch", "train_loss", "val_loss", "val_macro_ap", "val_macro_f1", "lr", "part_size"]
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert history["val_macro_ap"].max() > 0.8  # by chance: about 1/3
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]


def test_its_curves_are_there_for_tensorboard_and_no_part_of_what_was_made(trained: tuple[Store, Artifact]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store, model = trained
    (folder,) = (store.local / "tensorboard" / "island").iterdir()
    curves = EventAccumulator(str(folder)).Reload()
    drawn = [event.value for event in curves.Scalars("val/macro_ap")]
    assert drawn == pytest.approx(store.table(model, "history.parquet")["val_macro_ap"].tolist())
    assert {"train/loss", "train/lr", "val/loss", "val/macro_f1"} <= set(curves.Tags()["scalars"])
    assert store.files(model) == ("card.json", "curves.png", "history.parquet", "model.onnx", "weights.safetensors")


def test_its_counts_say_how_many_crops_it_learnt_from(trained: tuple[Store, Artifact]) -> None:
    _, model = trained
    assert model.counts.kept == 41
    assert model.counts.noted == {"val_crops": 18, "epochs": 4}


def test_the_card_says_what_the_model_is_and_came_from(trained: tuple[Store, Artifact]) -> None:
    store, model = trained
    card = Classifier.load(store.path(model, "model.onnx").parent).card
    assert card.class_ids() == CLASSES
    assert card.version == card.onnx_sha256[:12]
    assert card.architecture == "test_resnet"
    assert card.plan["train"]["epochs"] == 4
    assert card.plan["sources"] == ["drawn"]
    assert "release" not in card.plan
    assert card.agreement.crops == 59
    assert card.agreement.max_abs <= 1e-4


def test_the_shipped_onnx_tells_the_classes_apart(trained: tuple[Store, Artifact]) -> None:
    store, model = trained
    classifier = Classifier.load(store.path(model, "model.onnx").parent)
    views = [Image.open(io.BytesIO(drawn_crop(c, n))) for c in CLASSES for n in range(100, 110)]
    found = classifier.probabilities(normalise(views, classifier.card.model_input)).argmax(1)
    assert (found == np.repeat(range(3), 10)).mean() > 0.6


def test_onnx_answers_as_torch_does_with_the_shipped_weights(trained: tuple[Store, Artifact]) -> None:
    import timm
    import torch
    from safetensors.torch import load_file

    store, model = trained
    network = timm.create_model("test_resnet", num_classes=3).eval()
    network.load_state_dict(load_file(store.path(model, "weights.safetensors")))
    classifier = Classifier.load(store.path(model, "model.onnx").parent)
    inputs = normalise([Image.open(io.BytesIO(drawn_crop(c, 200))) for c in CLASSES], classifier.card.model_input)
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).softmax(1).numpy()
    np.testing.assert_allclose(classifier.probabilities(inputs), expected, atol=1e-4)


def test_the_onnx_file_takes_any_batch_and_names_no_folder_of_this_machine(trained: tuple[Store, Artifact]) -> None:
    store, model = trained
    path = store.path(model, "model.onnx")
    graph = onnx.load(path).graph
    assert [(i.name, i.type.tensor_type.shape.dim[0].dim_value) for i in graph.input] == [("input", 0)]
    assert [o.name for o in graph.output] == ["logits"]
    assert b"site-packages" not in path.read_bytes()


def test_a_second_run_is_the_same_and_from_another_thread_too(trained: tuple[Store, Artifact], store: Store, settings: Settings) -> None:
    made: list[Artifact] = []
    crops, splits = crops_and_splits(store)

    def run() -> None:
        import torch

        torch.set_num_threads(1)
        made.append(train_classifier(crops, splits, plan_with(), store, settings))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert made[0].digest == trained[1].digest
    assert train_classifier(crops, splits, plan_with(), store, settings).cached


def test_worker_processes_change_nothing_of_what_is_learnt(trained: tuple[Store, Artifact], store: Store, settings: Settings) -> None:
    model = train_classifier(*crops_and_splits(store), plan_with(loader_workers=1), store, settings)
    assert store.path(model, "weights.safetensors").read_bytes() == trained[0].path(trained[1], "weights.safetensors").read_bytes()


def test_what_does_not_touch_the_model_does_not_train_it_again(trained: tuple[Store, Artifact]) -> None:
    store, model = trained
    plan = check_plan({**json.loads(plan_with().model_dump_json(by_alias=True)), "release": {"memory_mb": 2048}, "description": "other"})
    settings = Settings(store=str(store.local), data=store.local)
    again = train_classifier(*crops_and_splits(store), plan, store, settings)
    assert again.cached
    assert again.key == model.key


def test_an_unreadable_checkpoint_is_left_behind(tmp_path: Path) -> None:
    from animl_pipeline.steps.training.trainer import read_checkpoint

    path = tmp_path / "checkpoint.ckpt"
    path.write_bytes(b"half a checkp")
    assert read_checkpoint(path) is None
    assert not path.exists()


def test_every_class_is_drawn_alike_often_and_an_epoch_resumes_where_it_stood() -> None:
    from animl_pipeline.steps.training.dataloaders import TrainBatches

    targets = np.repeat([0, 1, 2], [900, 90, 10])
    steps = 0
    drawn = TrainBatches(targets, 3, 32, weighted=True, seed=1, steps_done=lambda: steps)
    first = list(drawn)
    assert np.bincount(targets[[d.crop for batch in first for d in batch]], minlength=3).min() > 250
    steps = 20
    assert list(drawn) == first[20:]
    steps = len(drawn)
    assert list(drawn) != first
    natural = [d.crop for batch in TrainBatches(targets, 3, 32, weighted=False, seed=1) for d in batch]
    assert sorted(natural) == list(range(1000))


def test_no_batch_holds_a_single_crop_unless_asked_for() -> None:
    from animl_pipeline.steps.training.dataloaders import TrainBatches

    targets = np.repeat([0, 1], [9, 8])
    assert [len(b) for b in TrainBatches(targets, 2, 8, weighted=False, seed=0)] == [8, 8]
    assert [len(b) for b in TrainBatches(targets, 2, 1, weighted=False, seed=0)] == [1] * 17
    assert [len(b) for b in TrainBatches(targets, 2, 32, weighted=False, seed=0)] == [17]


def test_batches_are_normalised_exactly_as_the_endpoint_normalises() -> None:
    from animl_pipeline.steps.training.dataloaders import collate

    views = [Image.open(io.BytesIO(drawn_crop("fox", n))).convert("RGB") for n in range(3)]
    model_input = plan_with().model_input
    inputs, targets = collate(model_input)([(np.asarray(v), 0) for v in views])
    np.testing.assert_array_equal(inputs.numpy(), normalise(views, model_input))
    assert targets.tolist() == [0, 0, 0]


def test_classes_that_val_lacks_do_not_count_in_its_means() -> None:
    import torch

    from animl_pipeline.steps.training.lightning_module import score

    found = score(torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]), torch.tensor([0, 1]))
    assert found.macro_ap == pytest.approx(1.0)
    assert found.macro_f1 == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "tf_efficientnet_lite"}, r"train\.backbone: .* found 'tf_efficientnet_lite'; near it are .*tf_efficientnet_lite[0-4]"),
        ({"weights": "efficientnet-lite0-imagenet"}, "fits the backbone tf_efficientnet_lite0 only, found test_resnet"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(change: dict[str, Any], message: str, store: Store, settings: Settings) -> None:
    with pytest.raises(TrainingError, match=message) as caught:
        train_classifier(*crops_and_splits(store), plan_with(**change), store, settings)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_ends_the_training(trained: tuple[Store, Artifact], tmp_path: Path, store: Store, settings: Settings) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(trained[0].path(trained[1], "weights.safetensors"))
    save_file({name: t * float("nan") if name == "layer1.0.conv1.weight" else t for name, t in weights.items()}, tmp_path / "broken.safetensors")
    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 1, step 1; lower train\.lr"):
        train_classifier(*crops_and_splits(store), plan_with(weights="broken.safetensors"), store, settings)


def test_a_class_without_a_crop_to_train_on_is_named(store: Store, settings: Settings) -> None:
    crops, splits = crops_and_splits(store, {"fox": 5, "bird": 5})
    with pytest.raises(TrainingError, match="no crop to train on for skunk"):
        train_classifier(crops, splits, plan_with(), store, settings)


def test_nothing_to_validate_with_is_said(store: Store, settings: Settings) -> None:
    crops, splits = crops_and_splits(store, val=0)
    with pytest.raises(TrainingError, match=r"no crop to validate with .* raise splits\.val"):
        train_classifier(crops, splits, plan_with(), store, settings)


def test_crops_of_another_view_are_refused(store: Store, settings: Settings) -> None:
    crops, splits = crops_and_splits(store, dict.fromkeys(CLASSES, 2), val=1, size=48)
    with pytest.raises(TrainingError, match=r"expected 32 x 32 pixels \(view\.size\), found 48 x 48"):
        train_classifier(crops, splits, plan_with(), store, settings)


def test_a_missing_crop_is_said(store: Store, settings: Settings) -> None:
    crops, splits = crops_and_splits(store)
    blob = store.table(crops, "crops.parquet")["blob"][0]
    store.object_store.delete(f"blobs/{blob[:2]}/{blob}")
    with pytest.raises(DamagedError, match="lacks the blob"):
        train_classifier(crops, splits, plan_with(), store, settings)


def test_the_signature_of_an_address_of_weights_is_not_told(settings: Settings) -> None:
    from animl_pipeline.steps.training.network import build_network

    for location in ("http://127.0.0.1:9/own.safetensors", "http://127.0.0.1:9/own.pt"):
        with pytest.raises((TrainingError, WeightsError), match=r"train\.weights") as caught:
            build_network(plan_with(weights=f"{location}?X-Amz-Signature=secret"), settings)
        assert "secret" not in str(caught.value)


def test_a_missing_weights_file_is_said(store: Store, settings: Settings) -> None:
    with pytest.raises(WeightsError, match=r"train\.weights: expected weights at .*lost\.safetensors"):
        train_classifier(*crops_and_splits(store), plan_with(weights="lost.safetensors"), store, settings)


def test_torch_and_onnx_may_not_differ_by_more_than_the_plan_allows(store: Store, settings: Settings) -> None:
    plan = plan_with(epochs=1).model_copy(update={"package": plan_with().package.model_copy(update={"torch_onnx_tolerance": 1e-12})})
    with pytest.raises(TrainingError, match=r"torch and ONNX differ by .*package\.torch_onnx_tolerance"):
        train_classifier(*crops_and_splits(store), plan, store, settings)


def test_it_stops_early_when_val_gets_no_better_and_stays_stopped(store: Store, settings: Settings) -> None:
    crops, splits = crops_and_splits(store)
    plan = plan_with(epochs=12, patience=1, lr=1e-7)
    strict = plan.model_copy(update={"package": plan.package.model_copy(update={"torch_onnx_tolerance": 1e-12})})
    steps: list[int] = []
    progress.listen(lambda what, done, total: steps.append(done) if what == "training steps" else None)
    try:
        for _ in range(2):  # both tries end after training, at the comparison with ONNX
            with pytest.raises(TrainingError, match="torch and ONNX differ"):
                train_classifier(crops, splits, strict, store, settings)
    finally:
        progress.listen(None)
    assert steps == list(range(len(steps)))  # the second try trained no step
    assert len(steps) < 1 + 12 * STEPS_PER_EPOCH


def test_importing_the_room_loads_no_torch() -> None:
    code = "import sys, animl_pipeline.steps.training; print(sorted({'torch', 'timm', 'lightning', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_signature_in_the_address_of_weights_is_not_recorded() -> None:
    signed = "https://weights.example.org/own.safetensors?X-Amz-Signature=abc123"
    recorded = recorded_plan(plan_with(weights=signed, weights_sha256="0" * 64))
    assert recorded["train"]["weights"] == "https://weights.example.org/own.safetensors"
    assert "abc123" not in json.dumps(recorded)

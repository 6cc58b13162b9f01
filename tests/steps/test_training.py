"""The training step: it learns, it is reproducible, the ONNX model answers as torch does, and errors have clear codes."""

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
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import DamagedError, TrainingError, WeightsError
from animl_pipeline.core.model_input import normalise
from animl_pipeline.core.table_schemas import CROPS, TRAINING_HISTORY
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.steps.training.step import recorded_plan
from animl_pipeline.storage.store import Store
from tests.support.training_crops import CLASSES, STEPS_PER_EPOCH, crops_and_splits, draw_crop, plan_with, train_in

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact]:
    """One uninterrupted training that several tests use."""
    return train_in(tmp_path_factory.mktemp("trained"))


def test_training_learns_to_tell_the_classes_apart(trained: tuple[Store, Artifact]) -> None:
    store, model = trained
    history = store.table(model, TRAINING_HISTORY)
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert history["val_macro_ap"].max() > 0.8  # by chance: about 1/3
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]


def test_tensorboard_curves_are_written_beside_the_store_and_are_not_part_of_the_artifact(trained: tuple[Store, Artifact]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store, model = trained
    (folder,) = (store.local / "tensorboard" / "island").iterdir()
    curves = EventAccumulator(str(folder)).Reload()
    values = [event.value for event in curves.Scalars("val/macro_ap")]
    assert values == pytest.approx(store.table(model, TRAINING_HISTORY)["val_macro_ap"].tolist())
    assert {"train/loss", "train/lr", "val/loss", "val/macro_f1"} <= set(curves.Tags()["scalars"])
    assert store.files(model) == ("card.json", "curves.png", "history.parquet", "model.onnx", "trained_images.parquet", "weights.safetensors")


def test_counts_have_the_number_of_train_and_val_crops(trained: tuple[Store, Artifact]) -> None:
    _, model = trained
    assert model.counts.kept == 41
    assert model.counts.notes == {"val_crops": 18, "epochs": 4}


def test_the_card_describes_the_model_and_its_plan(trained: tuple[Store, Artifact]) -> None:
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


def test_the_exported_model_tells_the_classes_apart(trained: tuple[Store, Artifact]) -> None:
    store, model = trained
    classifier = Classifier.load(store.path(model, "model.onnx").parent)
    crops = [Image.open(io.BytesIO(draw_crop(c, n))) for c in CLASSES for n in range(100, 110)]
    predicted = classifier.probabilities(normalise(crops, classifier.card.model_input)).argmax(1)
    assert (predicted == np.repeat(range(3), 10)).mean() > 0.6


def test_onnx_gives_the_probabilities_that_torch_gives_with_the_exported_weights(trained: tuple[Store, Artifact]) -> None:
    import timm
    import torch
    from safetensors.torch import load_file

    store, model = trained
    network = timm.create_model("test_resnet", num_classes=3).eval()
    network.load_state_dict(load_file(store.path(model, "weights.safetensors")))
    classifier = Classifier.load(store.path(model, "model.onnx").parent)
    inputs = normalise([Image.open(io.BytesIO(draw_crop(c, 200))) for c in CLASSES], classifier.card.model_input)
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).softmax(1).numpy()
        features = network.forward_head(network.forward_features(torch.from_numpy(inputs)), pre_logits=True).numpy()
    np.testing.assert_allclose(classifier.probabilities(inputs), expected, atol=1e-4)
    probabilities, embeddings = classifier.probabilities_and_embeddings(inputs)
    np.testing.assert_array_equal(probabilities, classifier.probabilities(inputs))
    np.testing.assert_allclose(embeddings, features, atol=1e-4)


def test_the_onnx_file_accepts_any_batch_size_and_contains_no_local_path(trained: tuple[Store, Artifact]) -> None:
    store, model = trained
    path = store.path(model, "model.onnx")
    graph = onnx.load(path).graph
    assert [(i.name, i.type.tensor_type.shape.dim[0].dim_value) for i in graph.input] == [("input", 0)]
    assert [o.name for o in graph.output] == ["logits", "embedding"]
    assert b"site-packages" not in path.read_bytes()


def test_a_second_training_has_the_same_digest_also_in_another_thread_with_loader_workers(
    trained: tuple[Store, Artifact], store: Store, settings: Settings
) -> None:
    made: list[Artifact] = []
    crops, splits = crops_and_splits(store)

    def run() -> None:
        import torch

        torch.set_num_threads(1)
        made.append(train_classifier(crops, splits, plan_with(loader_workers=1), store, settings))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert made[0].digest == trained[1].digest
    assert train_classifier(crops, splits, plan_with(), store, settings).cached


def test_plan_keys_that_do_not_shape_the_model_do_not_train_it_again(trained: tuple[Store, Artifact]) -> None:
    store, model = trained
    plan = json.loads(plan_with(checkpoint_steps=3, run_on="sagemaker", sagemaker={"spot": False}).model_dump_json(by_alias=True))
    plan = check_plan({**plan, "release": {"memory_mb": 2048}, "description": "other", "splits": {"val": 0.3}})
    settings = Settings(store=str(store.local), data=store.local)
    again = train_classifier(*crops_and_splits(store), plan, store, settings)
    assert again.cached
    assert again.key == model.key


def test_an_unreadable_checkpoint_is_removed(tmp_path: Path) -> None:
    from animl_pipeline.steps.training.trainer import read_checkpoint

    path = tmp_path / "checkpoint.ckpt"
    path.write_bytes(b"half a checkp")
    assert read_checkpoint(path) is None
    assert not path.exists()


def test_classes_are_drawn_equally_often_and_an_epoch_resumes_at_its_next_batch() -> None:
    from animl_pipeline.steps.training.dataloaders import TrainBatchSampler

    targets = np.repeat([0, 1, 2], [900, 90, 10])
    position = (0, 0)
    sampler = TrainBatchSampler(targets, 3, 32, weighted=True, seed=1, position=lambda: position)
    first = list(sampler)
    assert np.bincount(targets[[d.crop for batch in first for d in batch]], minlength=3).min() > 250
    position = (0, 20)
    assert list(sampler) == first[20:]
    position = (1, 0)
    assert list(sampler) != first
    natural = [d.crop for batch in TrainBatchSampler(targets, 3, 32, weighted=False, seed=1) for d in batch]
    assert sorted(natural) == list(range(1000))


def test_no_batch_has_a_single_crop_unless_the_batch_size_is_one() -> None:
    from animl_pipeline.steps.training.dataloaders import TrainBatchSampler

    targets = np.repeat([0, 1], [9, 8])
    for batch_size, sizes in {8: [8, 8], 1: [1] * 17, 32: [17]}.items():
        sampler = TrainBatchSampler(targets, 2, batch_size, weighted=False, seed=0)
        assert [len(batch) for batch in sampler] == sizes
        assert len(sampler) == len(sizes)


def test_batches_are_normalised_exactly_as_in_the_endpoint() -> None:
    from animl_pipeline.steps.training.dataloaders import NormaliseBatch

    crops = [Image.open(io.BytesIO(draw_crop("fox", n))).convert("RGB") for n in range(3)]
    model_input = plan_with().model_input
    inputs, targets = NormaliseBatch(model_input)([(np.asarray(crop), 0) for crop in crops])
    np.testing.assert_array_equal(inputs.numpy(), normalise(crops, model_input))
    assert targets.tolist() == [0, 0, 0]


def test_classes_that_val_lacks_do_not_count_in_macro_means() -> None:
    import torch

    from animl_pipeline.steps.training.lightning_module import score_logits

    scores = score_logits(torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]), torch.tensor([0, 1]))
    assert scores["val_macro_ap"] == pytest.approx(1.0)
    assert scores["val_macro_f1"] == pytest.approx(1.0)


def test_training_stops_early_when_val_gets_no_better_and_stays_stopped(store: Store, settings: Settings) -> None:
    crops, splits = crops_and_splits(store)
    plan = plan_with(epochs=12, patience=1, lr=1e-7)
    strict = plan.model_copy(update={"package": plan.package.model_copy(update={"torch_onnx_tolerance": 1e-12})})
    steps: list[int] = []
    progress.set_listener(lambda what, done, total: steps.append(done) if what == "training steps" else None)
    try:
        for _ in range(2):  # both tries end after training, at the comparison with ONNX
            with pytest.raises(TrainingError) as caught:
                train_classifier(crops, splits, strict, store, settings)
            assert caught.value.code == "torch_onnx_difference"
    finally:
        progress.set_listener(None)
    assert steps == list(range(len(steps)))  # the second try trains no step
    assert len(steps) < 1 + 12 * STEPS_PER_EPOCH


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, animl_pipeline.steps.training; print(sorted({'torch', 'timm', 'lightning', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# -- errors --------------------------------------------------------------------------------------------------------------


def training_error(*args: Any) -> TrainingError:
    """The error of a training with these arguments; its message is one line."""
    with pytest.raises(TrainingError) as caught:
        train_classifier(*args)
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_unknown_backbone_is_refused_with_similar_names(store: Store, settings: Settings) -> None:
    error = training_error(*crops_and_splits(store), plan_with(backbone="tf_efficientnet_lite"), store, settings)
    assert error.code == "unknown_backbone"
    assert any(name.startswith("tf_efficientnet_lite") for name in error.details["similar"])


def test_weights_of_another_backbone_are_refused(store: Store, settings: Settings) -> None:
    error = training_error(*crops_and_splits(store), plan_with(weights="efficientnet-lite0-imagenet"), store, settings)
    assert error.code == "weights_do_not_fit"


def test_a_loss_that_is_not_finite_ends_the_training(trained: tuple[Store, Artifact], tmp_path: Path, store: Store, settings: Settings) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(trained[0].path(trained[1], "weights.safetensors"))
    save_file({name: t * float("nan") if name == "layer1.0.conv1.weight" else t for name, t in weights.items()}, tmp_path / "broken.safetensors")
    error = training_error(*crops_and_splits(store), plan_with(weights="broken.safetensors"), store, settings)
    assert error.code == "loss_not_finite"


def test_a_class_without_a_train_crop_is_named(store: Store, settings: Settings) -> None:
    error = training_error(*crops_and_splits(store, {"fox": 5, "bird": 5}), plan_with(), store, settings)
    assert error.code == "no_train_crop"
    assert error.details["classes"] == ["skunk"]


def test_training_without_a_val_crop_is_refused(store: Store, settings: Settings) -> None:
    assert training_error(*crops_and_splits(store, val=0), plan_with(), store, settings).code == "no_val_crop"


def test_crops_of_another_size_are_refused(store: Store, settings: Settings) -> None:
    crops, splits = crops_and_splits(store, dict.fromkeys(CLASSES, 2), val=1, size=48)
    assert training_error(crops, splits, plan_with(), store, settings).code == "crop_size"


def test_out_of_memory_says_which_batch_size_to_set(store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from animl_pipeline.steps.training.lightning_module import ClassifierModule

    def allocate(*args: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(ClassifierModule, "training_step", allocate)
    error = training_error(*crops_and_splits(store), plan_with(), store, settings)
    assert error.code == "out_of_memory"
    assert "train.batch_size to 4 and train.accumulate_batches to 2" in str(error)


def test_a_missing_crop_is_a_damaged_store(store: Store, settings: Settings) -> None:
    crops, splits = crops_and_splits(store)
    blob = store.table(crops, CROPS)["blob"][0]
    store.object_store.delete(f"blobs/{blob[:2]}/{blob}")
    with pytest.raises(DamagedError):
        train_classifier(crops, splits, plan_with(), store, settings)


def test_a_missing_weights_file_is_refused(store: Store, settings: Settings) -> None:
    with pytest.raises(WeightsError) as caught:
        train_classifier(*crops_and_splits(store), plan_with(weights="lost.safetensors"), store, settings)
    assert caught.value.code == "no_such_file"


# -- secrets -------------------------------------------------------------------------------------------------------------


def test_the_signature_of_a_weights_url_is_in_no_message(settings: Settings) -> None:
    from animl_pipeline.steps.training.network_and_weights import build_network

    plan = plan_with()
    for location in ("http://127.0.0.1:9/own.safetensors", "http://127.0.0.1:9/own.pt"):
        config = plan_with(weights=f"{location}?X-Amz-Signature=secret").train
        with pytest.raises((TrainingError, WeightsError)) as caught:
            build_network(config, CLASSES, plan.model_input, settings)
        assert "train.weights" in str(caught.value)
        assert "secret" not in str(caught.value)


def test_the_signature_of_a_weights_url_is_not_recorded() -> None:
    signed = "https://weights.example.org/own.safetensors?X-Amz-Signature=abc123"
    recorded = recorded_plan(plan_with(weights=signed, weights_sha256="0" * 64))
    assert recorded["train"]["weights"] == "https://weights.example.org/own.safetensors"
    assert "abc123" not in json.dumps(recorded)

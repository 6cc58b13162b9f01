"""The initial weights of a training: from a file, or from the released model."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import TrainingError
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.deploy.release_history import close_record, new_record
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.support.training_crops import CLASSES, crops_and_splits, plan_with, settings_at, train_in

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact]:
    """A model whose weights other trainings start from."""
    return train_in(tmp_path_factory.mktemp("trained"), epochs=1)


def test_weights_of_a_file_are_loaded_except_the_classifier_layer(trained: tuple[Store, Artifact], settings: Settings) -> None:
    import torch
    from safetensors.torch import load_file

    from animl_pipeline.steps.training.network_and_weights import build_network

    file = trained[0].path(trained[1], "weights.safetensors")
    network = build_network(plan_with(weights=str(file)).train, CLASSES, plan_with().model_input, settings)
    given = load_file(file)
    assert all(torch.equal(t, given[n]) for n, t in network.state_dict().items() if not n.startswith("fc."))
    assert not torch.equal(network.state_dict()["fc.weight"], given["fc.weight"])


def test_a_changed_weights_file_needs_another_training(trained: tuple[Store, Artifact], tmp_path: Path, store: Store, settings: Settings) -> None:
    (tmp_path / "own.safetensors").write_bytes(trained[0].path(trained[1], "weights.safetensors").read_bytes())
    crops, splits = crops_and_splits(store)
    plan = plan_with(weights="own.safetensors", epochs=1)
    first = train_classifier(crops, splits, plan, store, settings)
    assert train_classifier(crops, splits, plan, store, settings).cached
    (tmp_path / "own.safetensors").write_bytes(b"no weights")
    with pytest.raises(TrainingError) as caught:
        train_classifier(crops, splits, plan, store, settings)
    assert caught.value.code == "unreadable_weights"
    assert store.manifest(first).counts.notes["epochs"] == 1


def release(model: Artifact, plan: Plan, store: Store, time: str) -> None:
    """Write what a release writes to the store: a package with a card, and a release record."""
    card = store.path(model, "card.json").read_bytes()

    def package(space: Workspace) -> StepOutput:
        (space.out / "card.json").write_bytes(card)
        return StepOutput(Counts(kept=1))

    made = store.make(Step("package", version=1), inputs={"model": model}, build=package)
    names = {"base_name": plan.endpoint_name(), "endpoint": plan.endpoint_name(), "endpoint_config": f"config-{time}", "previous_config": None}
    record = new_record("release", **names, sagemaker_model=f"model-{time}", version=json.loads(card)["version"], package=made)
    close_record(record.model_copy(update={"id": time}), "done", store)


def weights_of(model: Artifact, store: Store) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(store.path(model, "weights.safetensors")))


def test_without_a_release_the_fallback_weights_are_used_with_a_warning(store: Store, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    crops, splits = crops_and_splits(store)
    plan = plan_with(weights="released", fallback_weights="none", epochs=1)
    with caplog.at_level(logging.WARNING, "animl_pipeline"):
        model = train_classifier(crops, splits, plan, store, settings)
    assert "train.fallback_weights (none)" in caplog.text
    assert json.loads(store.path(model, "card.json").read_text())["weights"] == "none"


def test_a_training_starts_from_the_released_model_and_is_cached_when_nothing_is_new(store: Store, settings: Settings) -> None:
    import torch

    crops, splits = crops_and_splits(store)
    plan = plan_with(weights="released", fallback_weights="none", epochs=1, lr=1e-9, augment="none")
    first = train_classifier(crops, splits, plan, store, settings)
    release(first, plan, store, "1")
    assert train_classifier(crops, splits, plan, store, settings).key == first.key  # nothing is new, so it does not start from itself
    newer, newer_splits = crops_and_splits(store, {"fox": 12, "bird": 8, "skunk": 6})
    second = train_classifier(newer, newer_splits, plan, store, settings)
    before, after = weights_of(first, store), weights_of(second, store)
    assert all(torch.allclose(t, after[name], atol=1e-6) for name, t in before.items() if name.startswith("fc.") or ".conv" in name)
    assert json.loads(store.path(second, "card.json").read_text())["weights"].startswith("released model ")
    release(second, plan, store, "2")
    assert train_classifier(newer, newer_splits, plan, store, settings).key == second.key
    assert train_classifier(crops, splits, plan, store, settings).key != first.key  # it starts from the second model now


def test_the_classifier_rows_of_classes_that_stay_are_kept(trained: tuple[Store, Artifact]) -> None:
    import torch

    from animl_pipeline.steps.training.network_and_weights import build_from_released

    store, model = trained
    plan = plan_with()
    network = build_from_released(plan.train, ("skunk", "fox"), plan.model_input, model, store)
    before, after = weights_of(model, store), network.state_dict()
    rows = [CLASSES.index("skunk"), CLASSES.index("fox")]
    assert torch.equal(after["fc.weight"], before["fc.weight"][rows])
    assert torch.equal(after["fc.bias"], before["fc.bias"][rows])


def test_a_released_model_of_another_backbone_is_not_used(trained: tuple[Store, Artifact], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from animl_pipeline.steps.training.choose_initial_weights import choose_initial_weights

    store, model = trained
    plan = plan_with(weights="released", fallback_weights="timm", backbone="test_efficientnet")
    release(model, plan, store, "1")
    crops, splits = crops_and_splits(store)
    with caplog.at_level(logging.WARNING, "animl_pipeline"):
        initial = choose_initial_weights(plan, {"crops": crops, "splits": splits}, {}, store, settings_at(tmp_path))
    assert (initial.model, initial.config.weights) == (None, "timm")
    assert "test_resnet" in caplog.text

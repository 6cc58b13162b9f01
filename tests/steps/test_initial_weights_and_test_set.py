"""A training never starts from a model that learnt from its test set."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import pytest

from animl_pipeline.config import Plan, SplitsConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import WeightsError
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS, TRAINED_IMAGES
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.splits import split_by_location
from animl_pipeline.steps.training.choose_initial_weights import InitialWeights, choose_initial_weights
from animl_pipeline.steps.training.trained_images import list_trained_images
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.support.colour_models import fit_linear, island_crops, write_linear_model
from tests.support.crops_to_split import CLASSES, Row, crops_step, island
from tests.support.stored_steps import release


class Data(NamedTuple):
    """Crops and their splits."""

    crops: Artifact
    splits: Artifact


def plan_of(model: str = "m", weights: str = "released", endpoint: str = "isle", weights_sha256: str | None = None) -> Plan:
    return check_plan({
        "model": model, "sources": [{"name": "isle", "export": "e.json", "images": "images"}], "labels": {"classes": {c: [c] for c in CLASSES}},
        "train": {"backbone": "test_resnet", "weights": weights, "weights_sha256": weights_sha256, "fallback_weights": "none"},
        "release": {"endpoint": endpoint},
    })  # fmt: skip


def data_of(store: Store, rows: list[Row], test_set: int = 1, model: str = "m", tested: str = "") -> Data:
    """Crops and their splits; the location ``tested`` is in test."""
    crops = crops_step(store, rows)
    config = SplitsConfig(test_set=test_set, test_only=(tested,) if tested else (), max_rounds=2)
    return Data(crops, split_by_location(crops, config, CLASSES, store, model))


def location_in_train(store: Store, data: Data) -> str:
    rows = store.table(data.crops, CROPS).merge(store.table(data.splits, SPLITS), on="crop_id")
    return str(rows.loc[rows["split"] == "train", "location"].iloc[0])


def train(store: Store, data: Data, initial: Artifact | None = None, *, recorded: bool = True) -> Artifact:
    """What a training writes, without its hours, and a release of it by the model m."""
    rows = store.table(data.crops, CROPS).merge(store.table(data.splits, SPLITS), on="crop_id")

    def build(space: Workspace) -> StepOutput:
        write_linear_model(space.out, CLASSES, *fit_linear(island_crops()), plan_of().model_input)
        (space.out / "weights.safetensors").write_bytes(f"weights of {data.splits.digest}".encode())
        if recorded:
            write_table(space.out, TRAINED_IMAGES, list_trained_images(rows[rows["split"] != "test"], [initial] if initial else [], store))
        return StepOutput(Counts(kept=1))

    config = {"train": {"backbone": "test_resnet"}, "again": initial is not None}
    made = store.make(Step("training", version=1), inputs={"splits": data.splits}, config=config, build=build)
    release(store, made, "1", model="m")
    return made


def choose(store: Store, data: Data, plan: Plan, settings: Settings) -> InitialWeights:
    return choose_initial_weights(plan, data._asdict(), {}, store, settings)


def test_a_grown_data_set_with_the_same_test_set_starts_from_the_released_model(store: Store, settings: Settings) -> None:
    model = train(store, data_of(store, island(9)))
    chosen = choose(store, data_of(store, island(12)), plan_of(), settings)
    assert chosen.model is not None
    assert chosen.model.key == model.key


@pytest.mark.parametrize(("model", "test_set"), [("m", 2), ("other", 1)], ids=["another test set", "another model at the endpoint"])
def test_a_released_model_that_learnt_from_the_test_set_is_not_used(store: Store, settings: Settings, model: str, test_set: int) -> None:
    before = data_of(store, island(9))
    train(store, before)
    chosen = choose(store, data_of(store, island(12), test_set, model, location_in_train(store, before)), plan_of(model), settings)
    assert (chosen.model, chosen.config.weights) == (None, "none")


def test_what_a_released_model_learnt_through_its_own_initial_weights_counts(store: Store, settings: Settings) -> None:
    before = data_of(store, island(9))
    first = train(store, before)
    elsewhere: list[Row] = [(f"isle/q{r[0]}", r[1], f"q{r[2]}", f"q{r[3]}") for r in island(9)]
    train(store, data_of(store, elsewhere, model="elsewhere"), first)
    after = data_of(store, island(9), 2, tested=location_in_train(store, before))
    assert choose(store, after, plan_of(), settings).model is None


def test_a_renamed_location_is_recognised_by_its_images(store: Store, settings: Settings) -> None:
    before = data_of(store, island(9))
    train(store, before)
    renamed: list[Row] = [(f"{r[0]}-renamed", *r[1:]) for r in island(9)]
    after = data_of(store, renamed, 2, tested=f"{location_in_train(store, before)}-renamed")
    assert choose(store, after, plan_of(), settings).model is None


def test_a_released_model_of_an_earlier_version_is_not_used_as_it_is_unknown_what_it_learnt(store: Store, settings: Settings) -> None:
    train(store, data_of(store, island(9)), recorded=False)
    assert choose(store, data_of(store, island(12)), plan_of(), settings).model is None


def test_a_weights_file_of_the_store_that_learnt_from_the_test_set_is_refused(store: Store, settings: Settings) -> None:
    before = data_of(store, island(9))
    model = train(store, before)
    plan = plan_of(weights=str(store.path(model, "weights.safetensors")))
    assert choose(store, data_of(store, island(12)), plan, settings).config.weights == plan.train.weights
    with pytest.raises(WeightsError) as caught:
        choose(store, data_of(store, island(12), 2, tested=location_in_train(store, before)), plan, settings)
    assert caught.value.code == "learnt_test_set"


def test_images_of_an_unknown_location_are_compared_by_themselves(store: Store) -> None:
    table = list_trained_images(pd.DataFrame({"location": ["", "isle/a", "isle/a"], "image": ["1" * 64, "2" * 64, "2" * 64]}), [], store)
    assert table.to_dict("list") == {"location": ["", "isle/a"], "image": ["1" * 16, "2" * 16]}


def test_what_a_weights_file_of_the_store_learnt_counts_later(store: Store, settings: Settings) -> None:
    before = data_of(store, island(9))
    first = train(store, before)
    elsewhere: list[Row] = [(f"isle/q{r[0]}", r[1], f"q{r[2]}", f"q{r[3]}") for r in island(9)]
    data = data_of(store, elsewhere, model="elsewhere")
    chosen = choose(store, data, plan_of(weights=str(store.path(first, "weights.safetensors"))), settings)
    assert [training.key for training in chosen.learnt_by] == [first.key]
    train(store, data, chosen.learnt_by[0])
    after = data_of(store, island(9), 2, tested=location_in_train(store, before))
    assert choose(store, after, plan_of(), settings).model is None


def test_a_head_does_not_know_what_the_released_model_learnt_and_fine_tuning_does(store: Store, settings: Settings) -> None:
    first = train(store, data_of(store, island(9)))
    plan = plan_of()
    both = plan.model_copy(update={"train": plan.train.model_copy(update={"recipe": ("head", "fine_tune")})})
    chosen = choose(store, data_of(store, island(12)), both, settings)
    assert ([training.key for training in chosen.learnt_by], chosen.networks_learnt_by) == ([first.key], ())

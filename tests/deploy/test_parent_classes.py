"""A model with a parent class: its release, the live check, and its registration in Animl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from animl_pipeline.config import Plan, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.deploy import deploy_package, invoke_endpoint
from animl_pipeline.deploy.animl_registration import category_config, ml_model_document
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.live_check import check_endpoint
from animl_pipeline.deploy.resource_names import read_package_card
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.conftest import jpeg
from tests.support.animl_images import make_images
from tests.support.animl_server import serve_animl
from tests.support.packaged_model import colour_plan_data, make_package

WARM = {"warm": ("red", "green")}
THRESHOLDS = {"red": 0.7, "green": 0.7, "blue": 0.7, "warm": 0.6}


def plan_with_parent(plan: Plan, **release: Any) -> Plan:
    data = colour_plan_data(endpoint=plan.release.endpoint, **release)
    return check_plan(data | {"labels": data["labels"] | {"parents": WARM}})


def changed_package(package: Artifact, store: Store, file: str, change: Callable[[Any], Any]) -> Artifact:
    """The same package with one of its JSON files changed."""

    def build(space: Workspace) -> StepOutput:
        for name in store.files(package):
            target = space.out / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(store.path(package, name).read_bytes())
        (space.out / file).write_text(json.dumps(change(json.loads((space.out / file).read_bytes()))))
        return StepOutput(Counts(kept=1))

    return store.make(Step("package", version=2), inputs={"package": package}, config={"file": file}, build=build)


def test_the_live_check_asks_that_a_parent_follows_from_the_endpoints_own_answers(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    package = make_package(store, tmp_path, thresholds=THRESHOLDS, parents=WARM)
    released = deploy_package(package, plan_with_parent(plan), store, settings)
    assert released.checked == 3
    answer = invoke_endpoint(plan.endpoint_name(), jpeg(colour=(200, 200, 20)))
    assert list(answer)[-1] == "warm"
    assert list(answer.values()) == sorted(answer.values())
    assert answer["warm"] == pytest.approx(answer["red"] + answer["green"])

    # A child as good as at its threshold: the offline parent is 0 and the live one is not, or the reverse.
    flipped = changed_package(
        package,
        store,
        "reference_predictions.json",
        lambda rows: [r | {"probabilities": r["probabilities"] | {"warm": 0.9 if r["probabilities"]["warm"] == 0 else 0.0}} for r in rows],
    )
    assert check_endpoint(AwsApi(), plan.endpoint_name(), flipped, store, 1e-4, 30).max_difference < 1e-5
    other = changed_package(package, store, "card.json", lambda card: card | {"thresholds": dict.fromkeys(THRESHOLDS, 1.0)})
    with pytest.raises(ReleaseError) as refused:
        check_endpoint(AwsApi(), plan.endpoint_name(), other, store, 0.02, 30)
    assert refused.value.code == "answers_differ"


def test_animl_gets_the_parent_with_its_threshold_colour_and_taxonomy(plan: Plan, store: Store, tmp_path: Path) -> None:
    card = read_package_card(make_package(store, tmp_path, thresholds=THRESHOLDS, parents=WARM), store)
    registered = plan_with_parent(plan, register={"colours": {"warm": "#FF0000"}, "thresholds": {"red": 0.9}})
    document = ml_model_document(card, registered, taxa={"warm": "of the table"})
    assert [c["_id"] for c in document["categories"]] == ["red", "green", "blue", "warm"]
    assert document["categories"][-1] == {"_id": "warm", "name": "warm", "color": "#FF0000", "taxonomy": "of the table"}
    config = category_config(card, registered)
    assert {name: entry["confThreshold"] for name, entry in config.items()} == THRESHOLDS | {"red": 0.9}
    disabled = plan_with_parent(plan, register={"disabled": ["warm"]})
    assert [name for name, entry in category_config(card, disabled).items() if entry["disabled"]] == ["warm"]


def test_a_release_is_refused_while_animl_does_not_know_the_parent(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = make_package(store, tmp_path, thresholds=THRESHOLDS, parents=WARM)
    with serve_animl(make_images(1)) as site:
        categories = [{"_id": c, "name": c, "color": "#000000"} for c in ("red", "green", "blue")]
        site.models = [{"_id": "colours", "version": "0", "defaultConfThreshold": 0.8, "expectsCrops": True, "categories": categories}]
        known = settings.model_copy(update={"api_url": site.url, "id_token": SecretStr("token-of-a-service-user")})
        released = plan_with_parent(plan, register={"rule_projects": ["isle"], "ssm": False})
        with pytest.raises(ReleaseError, match="warm") as refused:
            deploy_package(package, released, store, known)
    assert (refused.value.code, refused.value.details["failed"]) == ("preflight", ["categories"])

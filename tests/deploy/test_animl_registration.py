"""Registration in Animl: SSM parameters, MLModel document, automation rules, checklist."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from pydantic import SecretStr

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError, SettingsError
from animl_pipeline.deploy import deploy_package, register_model
from animl_pipeline.deploy.merge_automation_rules import same_rules
from animl_pipeline.storage.store import Store
from tests.support.animl_images import make_images
from tests.support.animl_server import AnimlServer, serve_animl, with_entry_ids
from tests.support.packaged_model import colour_plan, make_package

RULES: list[dict[str, Any]] = [
    {"_id": "r1", "name": "detect", "event": {"type": "image-added"}, "action": {"type": "run-inference", "mlModel": "megadetector_v5a"}},
    {
        "_id": "r2",
        "name": "classify",
        "event": {"type": "label-added", "label": "animal"},
        "action": {
            "type": "run-inference",
            "mlModel": "colours",
            "country": "USA",
            "categoryConfig": {"red": {"confThreshold": 0.33, "disabled": False}, "purple": {"confThreshold": 0.8, "disabled": False}},
        },
    },
    {
        "_id": "r3",
        "name": "alert",
        "event": {"type": "label-added", "label": "red"},
        "action": {"type": "send-alert", "alertRecipients": ["a@b.org"]},
    },
]


@pytest.fixture
def registered(settings: Settings) -> Iterator[tuple[AnimlServer, Plan, Settings]]:
    """An Animl server with automation rules, a plan that registers everything, and settings with the server's address."""
    parameter = f"/ml/{uuid.uuid4().hex[:6]}-{{purpose}}-{{stage}}"
    plan = colour_plan(
        endpoint=f"reg-{uuid.uuid4().hex[:6]}",
        register={"parameter": parameter, "thresholds": {"green": 0.6}, "disabled": ["blue"], "rule_projects": ["isle"]},
    )
    with serve_animl(make_images(1)) as site:
        site.rules = [with_entry_ids(rule) for rule in RULES]
        known = {"api_url": site.url, "id_token": SecretStr("token-of-a-service-user"), "poll_s": 0.01}
        yield site, plan, settings.model_copy(update=known)


def test_registration_writes_parameters_document_and_rules_and_keeps_thresholds_that_people_set(
    registered: tuple[AnimlServer, Plan, Settings], store: Store, tmp_path: Path
) -> None:
    site, plan, settings = registered
    package = make_package(store, tmp_path)
    with pytest.raises(ReleaseError) as caught:
        register_model(package, plan, store, settings)
    assert caught.value.code == "no_endpoint"
    deploy_package(package, plan, store, settings)
    done = register_model(package, plan, store, settings)
    values = {n: boto3.client("ssm").get_parameter(Name=n)["Parameter"]["Value"] for n in done.parameters}
    assert set(values.values()) == {plan.endpoint_name()}
    assert [n.split("-")[1] for n in values] == ["realtime", "batch"]
    assert {name: {k: v for k, v in e.items() if k != "_id"} for name, e in site.rules[1]["action"]["categoryConfig"].items()} == {
        "red": {"confThreshold": 0.33, "disabled": False},
        "green": {"confThreshold": 0.6, "disabled": False},
        "blue": {"confThreshold": 0.8, "disabled": True},
    }
    assert [site.rules[0], site.rules[2]] == [RULES[0], RULES[2]]
    assert site.rules[1]["action"]["country"] == "USA"
    assert (done.rules, [line.split(" stays")[0] for line in done.kept["isle"]]) == ({"isle": "written"}, ["classify: red"])
    assert register_model(package, plan, store, settings).rules == {"isle": "unchanged"}
    assert site.request_counts["updateAutomationRules"] == 1
    files = {name: (Path(done.folder) / name).read_text() for name in done.files}
    document = json.loads(files["mlmodel.json"])
    assert (document["_id"], document["version"], document["expectsCrops"]) == ("colours", "1", True)
    assert [c["_id"] for c in document["categories"]] == ["red", "green", "blue"]
    assert "db.getCollection('mlmodels').updateOne({ _id: \"colours\" }" in files["mlmodel.js"]
    assert "modelInterfaces.ts" in files["checklist.md"]
    site.models = [document | {"version": "0", "categories": [c | {"color": "#123456"} for c in document["categories"]]}]
    register_model(package, plan, store, settings, only_files=True)
    checklist = (Path(done.folder) / "checklist.md").read_text()
    assert "only version and thresholds change" in checklist
    assert "modelInterfaces.ts" not in checklist
    assert "#123456" in (Path(done.folder) / "mlmodel.json").read_text()


def test_a_release_with_classes_that_animl_does_not_know_is_refused(
    registered: tuple[AnimlServer, Plan, Settings], store: Store, tmp_path: Path
) -> None:
    site, plan, settings = registered
    site.models = [{"_id": "colours", "version": "0", "defaultConfThreshold": 0.8, "expectsCrops": True, "categories": []}]
    with pytest.raises(ReleaseError, match="red, green, blue") as caught:
        deploy_package(make_package(store, tmp_path), plan, store, settings)
    assert (caught.value.code, caught.value.details["failed"]) == ("preflight", ["categories"])
    site.models[0]["categories"] = [{"_id": c, "name": c, "color": "#000000"} for c in ("red", "green", "blue")]
    deploy_package(make_package(store, tmp_path), plan, store, settings)


def test_a_release_for_rules_of_an_unknown_project_is_refused_before_anything_changes(
    registered: tuple[AnimlServer, Plan, Settings], store: Store, tmp_path: Path
) -> None:
    _, plan, settings = registered
    assert plan.release.register_ is not None
    wrong = colour_plan(endpoint=plan.endpoint_name(), register=plan.release.register_.model_dump() | {"rule_projects": ["isles"]})
    with pytest.raises(ReleaseError) as caught:
        deploy_package(make_package(store, tmp_path), wrong, store, settings)
    assert (caught.value.code, caught.value.details["failed"]) == ("preflight", ["rules"])


def test_registration_reports_rules_that_it_may_not_change_or_that_somebody_else_changed(
    registered: tuple[AnimlServer, Plan, Settings], store: Store, tmp_path: Path
) -> None:
    site, plan, settings = registered
    package = make_package(store, tmp_path)
    deploy_package(package, plan, store, settings)
    site.user_is_manager = False
    with pytest.raises(SettingsError, match="manager"):
        register_model(package, plan, store, settings)
    assert same_rules(site.rules, RULES)
    site.user_is_manager, site.concurrent_rule = True, RULES[0] | {"_id": "r4"}
    with pytest.raises(ReleaseError) as caught:
        register_model(package, plan, store, settings)
    assert caught.value.code == "rules_differ"
    with pytest.raises(SettingsError) as no_stage:
        register_model(package, plan, store, settings.model_copy(update={"stage": ""}))
    assert no_stage.value.code == "no_stage"
    with pytest.raises(ReleaseError) as no_register:
        register_model(package, colour_plan(), store, settings)
    assert no_register.value.code == "no_register"

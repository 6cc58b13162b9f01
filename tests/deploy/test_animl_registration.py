"""What Animl is told of a release: SSM parameters, a document, automation rules."""

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
from animl_pipeline.deploy import deploy_endpoint, register_model
from animl_pipeline.storage.step_cache import Store
from tests.support.animl_server import AnimlSite, animl
from tests.support.packaged_model import colour_plan, package_of

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
def registered(settings: Settings) -> Iterator[tuple[AnimlSite, Plan, Settings]]:
    """Animl with automation rules, a plan that tells it everything, and settings that lead there."""
    parameter = f"/ml/{uuid.uuid4().hex[:6]}-{{purpose}}-{{stage}}"
    plan = colour_plan(
        endpoint=f"reg-{uuid.uuid4().hex[:6]}",
        register={"parameter": parameter, "thresholds": {"green": 0.6}, "disabled": ["blue"], "rule_projects": ["isle"]},
    )
    with animl([]) as site:
        site.rules = json.loads(json.dumps(RULES))
        known = {"api_url": site.url, "id_token": SecretStr("token-of-a-service-user"), "poll_s": 0.01}
        yield site, plan, settings.model_copy(update=known)


def test_animl_is_told_by_ssm_a_document_and_rules_in_which_people_keep_their_thresholds(
    registered: tuple[AnimlSite, Plan, Settings], store: Store, tmp_path: Path
) -> None:
    site, plan, settings = registered
    package = package_of(store, tmp_path)
    with pytest.raises(ReleaseError, match=r"SSM shall name the endpoint .*, and there is none"):
        register_model(package, plan, store, settings)
    deploy_endpoint(package, plan, store, settings)
    told = register_model(package, plan, store, settings)
    values = {n: boto3.client("ssm").get_parameter(Name=n)["Parameter"]["Value"] for n in told.parameters}
    assert set(values.values()) == {plan.endpoint_name()}
    assert [n.split("-")[1] for n in values] == ["realtime", "batch"]
    assert site.rules[1]["action"]["categoryConfig"] == {
        "red": {"confThreshold": 0.33, "disabled": False},
        "green": {"confThreshold": 0.6, "disabled": False},
        "blue": {"confThreshold": 0.8, "disabled": True},
    }
    assert [site.rules[0], site.rules[2]] == [RULES[0], RULES[2]]
    assert site.rules[1]["action"]["country"] == "USA"
    assert told.rules == {"isle": "written"}
    assert register_model(package, plan, store, settings).rules == {"isle": "as it was"}
    assert site.asked["updateAutomationRules"] == 1
    files = {name: (Path(told.folder) / name).read_text() for name in told.files}
    document = json.loads(files["mlmodel.json"])
    assert (document["_id"], document["version"], document["expectsCrops"]) == ("colours", "1", True)
    assert [c["_id"] for c in document["categories"]] == ["red", "green", "blue"]
    assert "db.getCollection('mlmodels').updateOne({ _id: \"colours\" }" in files["mlmodel.js"]
    assert "modelInterfaces.ts" in files["checklist.md"]
    site.models = [document | {"version": "0", "categories": [c | {"color": "#123456"} for c in document["categories"]]}]
    register_model(package, plan, store, settings, only_files=True)
    checklist = (Path(told.folder) / "checklist.md").read_text()
    assert "only version and thresholds change" in checklist
    assert "modelInterfaces.ts" not in checklist
    assert "#123456" in (Path(told.folder) / "mlmodel.json").read_text()


def test_classes_that_animl_does_not_know_are_found_before_the_endpoint_answers_them(
    registered: tuple[AnimlSite, Plan, Settings], store: Store, tmp_path: Path
) -> None:
    site, plan, settings = registered
    site.models = [{"_id": "colours", "version": "0", "defaultConfThreshold": 0.8, "expectsCrops": True, "categories": []}]
    with pytest.raises(ReleaseError, match=r"lacks the categories red, green, blue.*--only-files.*nothing was changed"):
        deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    site.models[0]["categories"] = [{"_id": c, "name": c, "color": "#000000"} for c in ("red", "green", "blue")]
    deploy_endpoint(package_of(store, tmp_path), plan, store, settings)


def test_rules_that_somebody_else_changed_or_may_not_be_changed_are_said(
    registered: tuple[AnimlSite, Plan, Settings], store: Store, tmp_path: Path
) -> None:
    site, plan, settings = registered
    package = package_of(store, tmp_path)
    deploy_endpoint(package, plan, store, settings)
    site.managers = False
    with pytest.raises(SettingsError, match="for rules: a manager"):
        register_model(package, plan, store, settings)
    assert site.rules == RULES
    site.managers, site.meddle = True, RULES[0] | {"_id": "r4"}
    with pytest.raises(ReleaseError, match="holds other automation rules of isle than were written; compare"):
        register_model(package, plan, store, settings)
    with pytest.raises(SettingsError, match="ANIML_STAGE"):
        register_model(package, plan, store, settings.model_copy(update={"stage": ""}))
    with pytest.raises(ReleaseError, match="says nothing of registering"):
        register_model(package, colour_plan(), store, settings)

"""Thresholds in Animl's automation rules: which entries a registration replaces, keeps and reports; and what a plan registers by default."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PlanError, SettingsError
from animl_pipeline.deploy import Registration, register_model
from animl_pipeline.deploy.animl_registration import ml_model_document, planned_rules
from animl_pipeline.deploy.merge_automation_rules import same_rules
from animl_pipeline.deploy.resource_names import read_package_card
from animl_pipeline.storage.store import Store
from tests.support.animl_images import make_images
from tests.support.animl_server import AnimlServer, rule_made_in_animl, serve_animl
from tests.support.packaged_model import CLASSES, colour_plan, make_package

MODEL = {
    "_id": "colours",
    "version": "0",
    "defaultConfThreshold": 0.5,
    "expectsCrops": True,
    "categories": [{"_id": c, "name": c, "color": "#000000"} for c in CLASSES],
}
CALIBRATED = {"red": 0.61, "green": 0.0, "blue": 0.97}


class Registry:
    """Registers versions of the colour model at an Animl server, without SSM."""

    def __init__(self, site: AnimlServer, store: Store, settings: Settings, folder: Path) -> None:
        self.site, self.store, self.folder = site, store, folder
        known = {"api_url": site.url, "id_token": SecretStr("token-of-a-service-user"), "poll_s": 0.01}
        self.settings = settings.model_copy(update=known)

    def plan(self, **register: Any) -> Plan:
        return colour_plan(register={"ssm": False, "rule_projects": ["isle"]} | register)

    def register(self, version: str = "1", thresholds: dict[str, float] | None = None, *, only_files: bool = False, **register: Any) -> Registration:
        package = make_package(self.store, self.folder, version, thresholds=thresholds or CALIBRATED)
        return register_model(package, self.plan(**register), self.store, self.settings, only_files=only_files)

    def thresholds(self, rule: int = 0) -> dict[str, float]:
        return {name: entry["confThreshold"] for name, entry in self.site.rules[rule]["action"]["categoryConfig"].items()}

    def set_by_hand(self, name: str, threshold: float | None, *, disabled: bool = False) -> None:
        self.site.rules[0]["action"]["categoryConfig"][name] |= {"confThreshold": threshold, "disabled": disabled}


@pytest.fixture
def animl(store: Store, settings: Settings, tmp_path: Path) -> Iterator[Registry]:
    with serve_animl(make_images(1)) as site:
        site.models, site.rules = [MODEL], [rule_made_in_animl(MODEL)]
        yield Registry(site, store, settings, tmp_path)


def test_entries_that_animl_filled_in_get_the_calibrated_thresholds(animl: Registry) -> None:
    done = animl.register()
    assert animl.thresholds() == {"red": 0.61, "green": 1e-6, "blue": 0.97}
    assert (done.rules, done.kept) == ({"isle": "written"}, {})
    assert animl.register().rules == {"isle": "unchanged"}
    assert animl.site.request_counts["updateAutomationRules"] == 1


def test_a_repeated_registration_keeps_the_rules_from_before_the_first(animl: Registry) -> None:
    animl.register()
    done = animl.register()
    assert done.rules == {"isle": "unchanged"}
    before, after = (json.loads((Path(done.folder) / f"automation-rules-isle{end}.json").read_text()) for end in ("-before", ""))
    assert [rules[0]["action"]["categoryConfig"]["red"]["confThreshold"] for rules in (before, after)] == [0.5, 0.61]


def test_entries_that_a_person_chose_stay_and_are_listed(animl: Registry) -> None:
    animl.set_by_hand("red", 0.33)
    animl.set_by_hand("blue", 0.5, disabled=True)
    done = animl.register()
    assert animl.thresholds() == {"red": 0.33, "green": 1e-6, "blue": 0.5}
    assert len(done.kept["isle"]) == 2
    checklist = (Path(done.folder) / "checklist.md").read_text()
    assert all(line in checklist for line in done.kept["isle"])


def test_what_a_dry_run_shows_is_what_a_registration_does(animl: Registry) -> None:
    animl.set_by_hand("red", 0.33)
    card = read_package_card(make_package(animl.store, animl.folder, thresholds=CALIBRATED), animl.store)
    planned = planned_rules("isle", animl.plan(), card, animl.store, animl.settings)
    assert (animl.thresholds(), planned.changed(), len(planned.kept)) == ({"red": 0.33, "green": 0.5, "blue": 0.5}, 1, 1)
    animl.register()
    assert same_rules(animl.site.rules, planned.after)


def test_the_plan_may_replace_what_a_person_chose(animl: Registry) -> None:
    animl.set_by_hand("red", 0.33)
    done = animl.register(existing_thresholds="replace")
    assert (animl.thresholds(), done.kept) == ({"red": 0.61, "green": 1e-6, "blue": 0.97}, {})


@pytest.mark.parametrize("threshold", [None, 0, 0.5])
def test_a_threshold_of_0_or_none_is_the_default_to_animl_and_is_replaced(animl: Registry, threshold: float | None) -> None:
    animl.set_by_hand("red", threshold)
    animl.register()
    assert animl.thresholds()["red"] == 0.61


def test_what_an_earlier_registration_wrote_is_replaced_by_a_later_one(animl: Registry) -> None:
    animl.register()
    animl.set_by_hand("blue", 0.9)
    done = animl.register("2", {"red": 0.7, "green": 0.2, "blue": 0.8})
    assert animl.thresholds() == {"red": 0.7, "green": 0.2, "blue": 0.9}
    assert len(done.kept["isle"]) == 1
    assert animl.register().rules == {"isle": "written"}, "a rollback registers the version before again"
    assert animl.thresholds() == {"red": 0.61, "green": 1e-6, "blue": 0.9}


def test_an_old_default_is_known_after_the_document_changed(animl: Registry) -> None:
    animl.register(only_files=True, conf_threshold=0.5)
    animl.site.models = [MODEL | {"defaultConfThreshold": 0.7}]
    animl.register("2", {"red": 0.61, "green": 0.62, "blue": 0.63}, conf_threshold=0.7)
    assert animl.thresholds() == {"red": 0.61, "green": 0.62, "blue": 0.63}


def test_rules_of_other_models_and_dropped_classes(animl: Registry) -> None:
    other = rule_made_in_animl(MODEL | {"_id": "mirav2"}, _id="r2")
    animl.site.rules.append(other)
    animl.site.rules[0]["action"]["categoryConfig"]["purple"] = {"confThreshold": 0.5, "disabled": False}
    animl.register()
    assert set(animl.thresholds()) == set(CLASSES)
    assert animl.thresholds(1) == dict.fromkeys(CLASSES, 0.5)


def test_rules_of_an_unknown_project_are_an_error(animl: Registry) -> None:
    with pytest.raises(SettingsError) as caught:
        animl.register(rule_projects=["isles"])
    assert caught.value.code == "unknown_project"
    assert animl.site.request_counts["updateAutomationRules"] == 0


def test_no_threshold_is_0(animl: Registry) -> None:
    card = read_package_card(make_package(animl.store, animl.folder, thresholds=CALIBRATED), animl.store)
    assert ml_model_document(card, animl.plan(conf_threshold=0))["defaultConfThreshold"] == 1e-6
    animl.register(conf_threshold=0, thresholds={"red": 0, "blue": 0})
    assert animl.thresholds() == dict.fromkeys(CLASSES, 1e-6)


# -- what a plan registers by default --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "widths", "warns"),
    [
        ({}, [20], False),
        ({"register": {}}, [20, 80], False),
        ({"register": {}, "batch_endpoint": None}, [20], True),
        ({"register": {}, "batch_endpoint": None, "max_concurrency": 100}, [100], False),
        ({"register": {}, "batch_endpoint": {"max_concurrency": 10}}, [20, 10], True),
        ({"register": {}, "endpoint": "one-name"}, [20], True),
        ({"register": {}, "endpoint": "my-{purpose}"}, [20, 80], False),
        ({"register": {}, "max_concurrency": 80}, [80], False),
        ({"register": {}, "batch_endpoint": None, "instance_type": "ml.c6i.large"}, [20], False),
        ({"register": {"ssm": False}, "batch_endpoint": None}, [20], False),
    ],
)
def test_a_release_that_registers_has_an_endpoint_for_animls_batches(release: dict[str, Any], widths: list[int], warns: bool) -> None:
    plan = colour_plan(**release)
    assert [e.max_concurrency for e in plan.release.endpoints("m", "1")] == widths
    assert (plan.release.batch_warning() is not None) == warns
    assert Plan.model_validate(plan.model_dump(mode="json", by_alias=True)) == plan


@pytest.mark.parametrize("model_id", ["nzi-adsv1", "speciesnet", "speciesnet-all", "megadetector_v5a", "nzdoc", "deepfaune-ne", "alitav3", "ircv2"])
def test_a_model_id_for_which_animl_has_another_interface_is_refused(model_id: str) -> None:
    with pytest.raises(PlanError) as caught:
        colour_plan(register={"model_id": model_id})
    assert model_id in str(caught.value)
    assert colour_plan(register={"model_id": "mirav2"}).release.register_ is not None

"""The plan: what loads, and the one line that says what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from animl_pipeline.config import LabelsConfig, Plan, check_plan, load_plan
from animl_pipeline.core.errors import PlanError
from tests.support.paths import ROOT

PLANS = ROOT / "deployments" / "plans"


def plan_data(**changes: Any) -> dict[str, Any]:
    """The smallest plan, with changes."""
    return {
        "model": "test-model",
        "sources": [{"name": "a", "export": "a.json", "images": "images"}],
        "labels": {"classes": {"fox": ["fox"], "bird": ["bird"]}},
    } | changes


def fault(data: dict[str, Any]) -> str:
    """The line that a faulty plan gives."""
    with pytest.raises(PlanError) as caught:
        check_plan(data, "my.yaml")
    line = str(caught.value)
    assert line.startswith("my.yaml: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_plan_loads_and_says_what_it_is(path: Path) -> None:
    plan = load_plan(path)
    assert plan.model == path.stem.replace("sample", "sample-island")
    assert plan.description
    assert plan.endpoint_name() == f"{plan.model}-concurrency-{plan.release.max_concurrency}"


def test_the_three_plans_are_shipped() -> None:
    assert {p.stem for p in PLANS.glob("*.yaml")} >= {"sample", "santa-cruz-island", "channel-islands-lila"}


def test_santa_cruz_island_is_trained_as_its_people_do() -> None:
    plan = load_plan(PLANS / "santa-cruz-island.yaml")
    assert [c.id for c in plan.classes()] == ["fox", "bird", "skunk", "rodent", "lizard"]
    assert (plan.train.backbone, plan.model_input.size, plan.train.epochs, plan.train.lr) == ("tf_efficientnet_b3", 300, 50, 3e-5)
    assert plan.train.sampling == "label_weighted"
    assert plan.model_input.mean == (0.485, 0.456, 0.406)
    assert plan.sources[0].key == "serving_bucket_key"
    assert (plan.release.memory_mb, plan.endpoint_name()) == (6144, "santa-cruz-island-concurrency-20")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modle": "x"}, ["'modle' is not known", "sources"]),
        ({"train": {"epoch": 3}}, ["'train.epoch' is not known", "epochs", "backbone"]),
        ({"sources": [{"name": "a", "export": "a.json", "images": "i", "keys": "file_name"}]}, ["'sources.0.keys' is not known", "location_field"]),
        ({"labels": {"classes": {"fox": {"form": ["fox"]}, "bird": ["bird"]}}}, ["labels.classes.fox"]),
        ({"labels": {"classes": {"fox": {"from": ["fox"], "max": 3}, "bird": ["bird"]}}}, ["'labels.classes.fox.max' is not known", "max_count"]),
    ],
)
def test_a_wrong_key_is_named_with_the_keys_that_are_known_there(changes: dict[str, Any], words: list[str]) -> None:
    line = fault(plan_data(**changes))
    assert all(word in line for word in words), line


@pytest.mark.parametrize("key", ["model", "sources", "labels"])
def test_a_missing_key_is_named(key: str) -> None:
    data = plan_data()
    del data[key]
    assert f"the key '{key}' is missing" in fault(data)


def test_a_missing_key_inside_a_source_is_named_with_its_location() -> None:
    assert "the key 'sources.0.export' is missing" in fault(plan_data(sources=[{"name": "a", "images": "i"}]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {"classes": {"fox": ["fox", "dog"], "wolf": ["Dog"]}}}, ["'dog'", "'classes.fox'", "'classes.wolf'", "one meaning"]),
        ({"labels": {"classes": {"fox": ["fox"], "bird": ["empty"]}}}, ["'empty'", "'classes.bird'"]),
        ({"labels": {"classes": {"fox": ["fox"], "bird": ["bird"]}, "exclude": ["FOX"]}}, ["'fox'", "'exclude'"]),
        ({"labels": {"classes": {"fox": ["fox"]}}}, ["labels.classes"]),
        ({"labels": {"classes": {"fox": [], "bird": ["bird"]}}}, ["labels.classes.fox.from"]),
        ({"labels": {"classes": {"f.x": ["fox"], "bird": ["bird"]}}}, ["'f.x'", "'.'"]),
        ({"labels": {"classes": ["fox", "bird"]}}, ["labels.classes"]),
        ({"model_input": {"size": 9}}, ["view.size", "9"]),
        ({"model_input": {"mean": [0.5, 0.5]}}, ["view.mean"]),
        ({"train": {"lr": "fast"}}, ["train.lr", "'fast'"]),
        ({"train": {"sampling": "weighted"}}, ["train.sampling", "label_weighted"]),
        ({"splits": {"val": 0.49, "test": 0.49}}, ["splits", "val and test"]),
        ({"release": {"memory_mb": 1500}}, ["release.memory_mb", "1500"]),
        ({"release": {"max_concurrency": 0}}, ["release.max_concurrency"]),
        ({"model": "My Model"}, ["model", "'My Model'"]),
        ({"detections": {"sha256": "abc"}}, ["detections.sha256"]),
        ({"labels": {"classes": {"fox": ["fox"], "empty": ["empty"]}}}, ["'classes.empty'", "'empty'"]),
        ({"train": {"lr": float("inf")}}, ["train.lr"]),
        ({"package": {"torch_onnx_tolerance": float("nan")}}, ["package.torch_onnx_tolerance"]),
        ({"labels": list(range(1000))}, ["labels", "..."]),
        ({"train": {"seed": -1}}, ["train.seed", "-1"]),
        ({"splits": {"seed": 2**64}}, ["splits.seed"]),
        ({"model_input": {"std": [0.5, 0, 0.5]}}, ["view.std.1", "greater than 0"]),
        ({"model_input": {"mean": [float("nan"), 0.5, 0.5]}}, ["view.mean.0", "nan"]),
        ({"detections": {"detector": "a\0b"}}, ["detections.detector"]),
        ({"train": {"weights": ""}}, ["train.weights"]),
        ({"release": {"endpoint": "_" * 1000}}, ["release.endpoint", "..."]),
        ({"sources": []}, ["sources"]),
        ({"sources": [{"name": "a", "export": "e", "images": "i"}] * 2}, ["sources", "'a'"]),
        ({"splits": {"train_only": ["cove"]}}, ["splits.train_only", "expected a/<place>", "'cove'"]),
        ({"splits": {"test_only": ["b/cove"]}}, ["splits.test_only", "expected a/<place>", "'b/cove'"]),
        ({"labels": {"classes": {"f\nx": ["fox"], "bird": ["bird"]}}}, ["labels", "printable", "'f\\nx'"]),
        ({"labels": {"classes": {"fox": [""], "bird": ["bird"]}}}, ["labels.classes.fox", "found an empty one"]),
        (
            {"sources": [{"name": "a", "export": "animl://p", "images": "i", "animl": {"created_from": "2025-01-01", "created_to": "2024-01-01"}}]},
            ["sources.0.animl", "created_from", "is not before created_to"],
        ),
        ({"sources": [{"name": "a", "export": "https://h/x.json?signature=1"}]}, ["'sources.0.images' is missing"]),
    ],
)
def test_a_value_that_does_not_fit_is_named_in_one_line(changes: dict[str, Any], words: list[str]) -> None:
    line = fault(plan_data(**changes))
    assert all(word in line for word in words), line
    assert len(line) < 400


def test_of_several_faults_a_wrong_key_comes_first_since_a_missing_one_may_be_meant() -> None:
    data = plan_data(modle="x")
    del data["model"]
    assert "'modle' is not known" in fault(data)


def test_several_faults_are_counted() -> None:
    assert "(2 more after this)" in fault(plan_data(train={"lr": 0, "epochs": 0, "batch_size": 0}))
    assert "more after this" not in fault(plan_data(sources=[{"name": "A", "export": "e", "images": "i"}]))


@pytest.mark.parametrize("template", ["{", "{model}-{name}", "{0}", "{model.x}", "{}-x", "no}"])
def test_an_endpoint_name_that_cannot_be_filled_in_is_a_fault_of_the_plan(template: str) -> None:
    line = fault(plan_data(release={"endpoint": template}))
    assert "release.endpoint" in line
    assert "{model}" in line


@pytest.mark.parametrize(
    ("release", "words"),
    [
        ({"switch": "ssm"}, "{version} in `endpoint`, and `register`"),
        ({"endpoint": "{model}-{version}"}, "the name must stay the same"),
        ({"endpoint": "{model}", "batch": {}}, "both endpoints would be called"),
        ({"register": {"thresholds": {"unicorn": 0.5}}}, "'unicorn' is no class"),
        ({"register": {"parameter": "/ml/{model}"}}, "{purpose}"),
        ({"register": {"conf_threshold": 2}}, "release.register.conf_threshold"),
        ({"instance_type": "large"}, "release.instance_type"),
    ],
)
def test_a_release_that_cannot_be_meant_is_a_fault_of_the_plan(release: dict[str, object], words: str) -> None:
    assert words in fault(plan_data(release=release))


def test_both_endpoints_have_names_for_good_and_names_for_a_version() -> None:
    register: dict[str, object] = {}
    whole = check_plan(
        plan_data(model="isle", release={"endpoint": "{model}-{purpose}-{version}", "switch": "ssm", "batch": {}, "register": register})
    )
    assert [(e.line, e.endpoint, e.max_concurrency) for e in whole.release.endpoints("isle", "7f")] == [
        ("isle-realtime", "isle-realtime-7f", 20),
        ("isle-batch", "isle-batch-7f", 80),
    ]


def test_an_endpoint_name_that_is_too_long_for_sagemaker_is_a_fault_of_the_plan() -> None:
    assert "63" in fault(plan_data(model="m" * 40, release={"endpoint": "{model}-and-a-very-long-tail-to-it-{concurrency}"}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model: [unclosed", ["is not YAML in line"]),
        (b"model: a\n\tsources: b", ["is not YAML in line 2"]),
        (b"- a\n- b", ["found list"]),
        (b"", ["found", "nothing"]),
        (b"just text", ["found str"]),
        (b"\xff\xfe\x00", ["is not a text file"]),
        (b"a: \x00", ["is not YAML"]),
        (b"model: a\nmodel: b", ["'model' twice", "line 2"]),
        (b"? [a, b]\n: 1", ["is not YAML"]),
        (b"1: x", ["1: keys should be strings"]),
        (b"model: " + b"[" * 5000 + b"]" * 5000, ["is not YAML that a plan can be read from"]),
        (b"model: 2020-99-99", ["is not YAML that a plan can be read from", "month"]),
        (b"model: " + b"9" * 6000, ["is not YAML that a plan can be read from", "digits"]),
        (b"model: !!python/object/apply:os.system [exit]", ["is not YAML", "tag"]),
    ],
)
def test_a_file_that_is_no_plan_gives_one_line_with_its_path(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    line = str(caught.value)
    assert str(path) in line
    assert all(word in line for word in words), line
    assert "\n" not in line


def test_a_folder_and_a_missing_file_say_what_to_give(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(PlanError, match="give the path of a YAML file"):
            load_plan(path)


def test_a_plan_survives_its_own_writing(tmp_path: Path) -> None:
    plan = load_plan(PLANS / "santa-cruz-island.yaml")
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json", by_alias=True)))
    assert load_plan(path) == plan


def test_the_classes_keep_the_order_of_the_plan() -> None:
    plan = check_plan(plan_data(labels={"classes": {"zebra": ["z"], "ape": ["a"], "moth": ["m"]}}))
    assert [c.id for c in plan.classes()] == ["zebra", "ape", "moth"]


NAMES = st.text(min_size=1, max_size=12)


@given(st.lists(st.tuples(NAMES, st.lists(NAMES, min_size=1, max_size=4)), min_size=2, max_size=5, unique_by=lambda pair: pair[0]))
def test_label_names_mean_one_class_or_are_refused(pairs: list[tuple[str, list[str]]]) -> None:
    """Whatever the names: each means its class in any case, or two classes claim it, or a class cannot be called so."""
    folded = [(normalize("NFC", name).casefold(), class_id) for class_id, names in pairs for name in names]
    claimed = {name: {c for n, c in folded if n == name} for name, _ in folded}
    ambiguous = "empty" in claimed or any(len(classes) > 1 for classes in claimed.values())
    unfit = any("." in c or c.startswith("$") or c != c.strip() or not c.isprintable() for c, _ in pairs)
    data = plan_data(labels={"classes": dict(pairs)})
    if ambiguous or unfit:
        fault(data)
        return
    meaning = check_plan(data).labels.class_of()
    assert meaning == {name: next(iter(classes)) for name, classes in claimed.items()}


@given(NAMES, NAMES)
def test_the_short_form_of_a_class_is_the_long_form(one: str, other: str) -> None:
    assume(len({one.casefold(), other.casefold(), "empty"}) == 3)
    short = LabelsConfig.model_validate({"classes": {"a": [one], "b": [other]}})
    assert short == LabelsConfig.model_validate({"classes": {"a": {"from": [one]}, "b": {"from": [other]}}})


WORDS = st.text(max_size=5)
LEAVES = st.none() | st.booleans() | st.floats(allow_nan=False) | WORDS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=8)


@given(VALUES, st.sampled_from([key for key in sorted(Plan.model_fields) if key not in {"model", "description"}]))
def test_whatever_stands_under_a_key_is_a_plan_or_one_line(value: Any, key: str) -> None:
    assume(value != {} or key in {"sources", "labels"})  # an empty part of a plan is its defaults
    assert len(fault(plan_data(**{key: value}))) < 1000


def test_the_sample_plan_shows_every_key_that_a_plan_knows() -> None:
    said = yaml.safe_load((PLANS / "sample.yaml").read_text())
    whole = load_plan(PLANS / "sample.yaml").model_dump(mode="json", by_alias=True)
    assert said.keys() == whole.keys()
    assert said["sources"][0].keys() == whole["sources"][0].keys()
    assert said["labels"]["classes"]["lizard"].keys() == whole["labels"]["classes"]["lizard"].keys()
    for part in set(whole) - {"model", "description", "sources"}:
        assert said[part].keys() == whole[part].keys(), part

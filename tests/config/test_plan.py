"""Plans: which ones load, and how an error is explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from animl_pipeline.config import LabelsConfig, Overrides, Plan, check_plan, load_plan
from animl_pipeline.config.plan_errors import RENAMED
from animl_pipeline.config.strict_yaml import parse_yaml
from animl_pipeline.core.errors import PlanError
from animl_pipeline.core.location_names import tidy_name
from animl_pipeline.steps.labels import class_by_label
from tests.support.paths import ROOT

PLANS = ROOT / "deployments" / "plans"


def plan_data(**changes: Any) -> dict[str, Any]:
    """The smallest plan, with changes."""
    return {
        "model": "test-model",
        "sources": [{"name": "a", "export": "a.json", "images": "images"}],
        "labels": {"classes": {"fox": ["fox"], "bird": ["bird"]}},
    } | changes


def fault(data: dict[str, Any]) -> PlanError:
    """The error of a plan that does not fit: one line that begins with the plan's file."""
    with pytest.raises(PlanError) as caught:
        check_plan(data, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert "\n" not in str(caught.value)
    return caught.value


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
    assert plan.sources[0].path_field == "serving_bucket_key"
    assert (plan.release.memory_mb, plan.endpoint_name()) == (6144, "santa-cruz-island-concurrency-20")


@pytest.mark.parametrize(
    ("changes", "key", "known"),
    [
        ({"modle": "x"}, "modle", "sources"),
        ({"train": {"epoch": 3}}, "train.epoch", "epochs"),
        ({"sources": [{"name": "a", "export": "a.json", "images": "i", "keys": "file_name"}]}, "sources.0.keys", "location_field"),
        ({"labels": {"classes": {"fox": {"from": ["fox"], "max": 3}, "bird": ["bird"]}}}, "labels.classes.fox.max", "max_count"),
    ],
)
def test_an_unknown_key_is_named_with_the_known_keys_of_its_section(changes: dict[str, Any], key: str, known: str) -> None:
    error = fault(plan_data(**changes))
    assert (error.code, error.details["keys"]) == ("extra_forbidden", [key])
    assert known in str(error)


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_an_old_key_is_refused_with_its_new_name(old: str) -> None:
    section, _, key = old.rpartition(".")
    value: Any = {key: 1}
    source: dict[str, Any] = {"name": "a", "export": "animl://p" if "animl" in section else "a.json", "images": "images"}
    if section == "labels.classes":
        data = plan_data(labels={"classes": {"fox": {"from": ["fox"]} | value, "bird": ["bird"]}})
    elif section == "labels":
        data = plan_data(labels={"classes": {"fox": ["fox"], "bird": ["bird"]}} | value)
    elif section.startswith("sources"):
        data = plan_data(sources=[source | ({"animl": value} if section.endswith("animl") else value)])
    else:
        for part in reversed(section.split(".") if section else []):
            value = {part: value}
        data = plan_data(**value)
    error = fault(data)
    assert error.code == "extra_forbidden"
    assert f"is now called {RENAMED[old]!r}" in str(error)


@pytest.mark.parametrize("key", ["model", "sources", "labels"])
def test_a_missing_section_is_named(key: str) -> None:
    data = plan_data()
    del data[key]
    error = fault(data)
    assert (error.code, error.details["keys"]) == ("missing", [key])


def test_a_missing_key_of_a_source_is_named_with_its_position() -> None:
    assert fault(plan_data(sources=[{"name": "a", "images": "i"}])).details["keys"] == ["sources.0.export"]


TWO_CLASSES = {"fox": ["fox"], "bird": ["bird"]}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"labels": {"classes": {"fox": ["fox", "dog"], "wolf": ["Dog"]}}}, "labels"),
        ({"labels": {"classes": {"fox": ["fox"], "bird": ["empty"]}}}, "labels"),
        ({"labels": {"classes": TWO_CLASSES, "exclude": ["FOX"]}}, "labels"),
        ({"labels": {"classes": {"fox": ["fox"]}}}, "labels.classes"),
        ({"labels": {"classes": {"fox": [], "bird": ["bird"]}}}, "labels.classes.fox.from"),
        ({"labels": {"classes": {"f.x": ["fox"], "bird": ["bird"]}}}, "labels"),
        ({"labels": {"classes": ["fox", "bird"]}}, "labels.classes"),
        ({"model_input": {"size": 9}}, "model_input.size"),
        ({"model_input": {"mean": [0.5, 0.5]}}, "model_input.mean.2"),
        ({"train": {"lr": "fast"}}, "train.lr"),
        ({"train": {"sampling": "weighted"}}, "train.sampling"),
        ({"splits": {"val": 0.49, "test": 0.49}}, ""),
        ({"release": {"memory_mb": 1500}}, "release.memory_mb"),
        ({"release": {"max_concurrency": 0}}, "release.max_concurrency"),
        ({"model": "My Model"}, "model"),
        ({"detections": {"sha256": "abc"}}, "detections.sha256"),
        ({"labels": {"classes": {"fox": ["fox"], "empty": ["empty"]}}}, "labels"),
        ({"train": {"lr": float("inf")}}, "train.lr"),
        ({"package": {"torch_onnx_tolerance": float("nan")}}, "package.torch_onnx_tolerance"),
        ({"labels": list(range(1000))}, "labels"),
        ({"train": {"seed": -1}}, "train.seed"),
        ({"splits": {"seed": 2**64}}, "splits.seed"),
        ({"model_input": {"std": [0.5, 0, 0.5]}}, "model_input.std.1"),
        ({"model_input": {"mean": [float("nan"), 0.5, 0.5]}}, "model_input.mean.0"),
        ({"detections": {"detector": "a\0b"}}, "detections.detector"),
        ({"train": {"weights": ""}}, "train.weights"),
        ({"train": {"batch_size": 1}}, "train.batch_size"),
        ({"release": {"endpoint": "_" * 1000}}, "release.endpoint"),
        ({"sources": []}, "sources"),
        ({"sources": [{"name": "a", "export": "e", "images": "i"}] * 2}, ""),
        ({"splits": {"train_only": ["cove"]}}, ""),
        ({"splits": {"test_only": ["b/cove"]}}, ""),
        ({"labels": {"classes": {"f\nx": ["fox"], "bird": ["bird"]}}}, "labels"),
        ({"labels": {"classes": {"fox": [""], "bird": ["bird"]}}}, "labels.classes.fox"),
        (
            {"sources": [{"name": "a", "export": "animl://p", "images": "i", "animl": {"created_from": "2025-01-01", "created_to": "2024-01-01"}}]},
            "sources.0.animl",
        ),
        ({"sources": [{"name": "a", "export": "https://h/x.json?signature=1"}]}, "sources.0.images"),
    ],
)
def test_a_value_that_does_not_fit_is_named_in_one_short_line(changes: dict[str, Any], key: str) -> None:
    error = fault(plan_data(**changes))
    assert error.details["keys"] == [key]
    assert len(str(error)) < 400


def test_of_several_errors_an_unknown_key_comes_first_since_it_may_be_the_missing_one() -> None:
    data = plan_data(modle="x")
    del data["model"]
    assert fault(data).details["keys"] == ["modle", "model"]


def test_all_errors_are_explained() -> None:
    error = fault(plan_data(train={"lr": 0, "epochs": 0, "batch_size": 0}))
    assert sorted(error.details["keys"]) == ["train.batch_size", "train.epochs", "train.lr"]
    assert all(key in str(error) for key in error.details["keys"])


@pytest.mark.parametrize("template", ["{", "{model}-{name}", "{0}", "{model.x}", "{}-x", "no}"])
def test_an_endpoint_name_that_cannot_be_filled_in_is_a_fault_of_the_plan(template: str) -> None:
    assert fault(plan_data(release={"endpoint": template})).details["keys"] == ["release.endpoint"]


@pytest.mark.parametrize(
    ("release", "key"),
    [
        ({"switch": "ssm"}, "release"),
        ({"endpoint": "{model}-{version}"}, "release"),
        ({"endpoint": "{model}", "batch_endpoint": {}}, ""),
        ({"register": {"thresholds": {"unicorn": 0.5}}}, ""),
        ({"register": {"parameter": "/ml/{model}"}}, "release.register.parameter"),
        ({"register": {"conf_threshold": 2}}, "release.register.conf_threshold"),
        ({"instance_type": "large"}, "release.instance_type"),
    ],
)
def test_a_release_section_that_contradicts_itself_is_refused(release: dict[str, object], key: str) -> None:
    assert fault(plan_data(release=release)).details["keys"] == [key]


def test_both_endpoints_have_names_for_good_and_names_for_a_version() -> None:
    register: dict[str, object] = {}
    whole = check_plan(
        plan_data(model="isle", release={"endpoint": "{model}-{purpose}-{version}", "switch": "ssm", "batch_endpoint": {}, "register": register})
    )
    assert [(e.base_name, e.endpoint, e.max_concurrency) for e in whole.release.endpoints("isle", "7f")] == [
        ("isle-realtime", "isle-realtime-7f", 20),
        ("isle-batch", "isle-batch-7f", 80),
    ]


def test_an_endpoint_name_that_is_too_long_for_sagemaker_is_a_fault_of_the_plan() -> None:
    assert "63" in str(fault(plan_data(model="m" * 40, release={"endpoint": "{model}-and-a-very-long-tail-to-it-{concurrency}"})))


def test_a_sha256_that_would_not_be_compared_is_refused() -> None:
    assert fault(plan_data(train={"weights": "timm", "weights_sha256": "0" * 64})).details["keys"] == ["train"]


def nested_aliases(innermost: bytes, outer: bytes) -> bytes:
    """A small file of nine levels that each use the one below nine times."""
    levels = [b"x%d: &x%d " % (i, i) + outer % b",".join([b"*x%d" % (i - 1)] * 9) for i in range(1, 9)]
    return b"\n".join([b"x0: &x0 " + innermost, *levels])


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"model: [unclosed", "not_yaml"),
        (b"model: a\n\tsources: b", "not_yaml"),
        (b"- a\n- b", "not_a_mapping"),
        (b"", "not_a_mapping"),
        (b"just text", "not_a_mapping"),
        (b"\xff\xfe\x00", "not_text"),
        (b"a: \x00", "not_yaml"),
        (b"model: a\nmodel: b", "not_yaml"),
        (b"? [a, b]\n: 1", "not_yaml"),
        (b"1: x", "invalid_key"),
        (b"model: " + b"[" * 5000 + b"]" * 5000, "not_yaml"),
        (b"model: 2020-99-99", "not_yaml"),
        (b"model: " + b"9" * 6000, "not_yaml"),
        (b"model: !!python/object/apply:os.system [exit]", "not_yaml"),
        (b"train: {epochs: 1" + b":59" * 3000 + b"}", "not_yaml"),
        (b"train: {lr: 1" + b":59" * 3000 + b".5}", "not_yaml"),
        (b"train: {epochs: 0x" + b"f" * 9000 + b"}", "not_yaml"),
        (b"train: !!bool abc", "not_yaml"),
        (b"train: !!timestamp abc", "not_yaml"),
        (b"!!set [a]", "not_yaml"),
        (b"model: &a [*a]", "not_yaml"),
        (b"a: &a {b: 1}\nc: &c {<<: *a}\nd: &d {<<: *d}", "not_yaml"),
        (b"".join(b" " * i + b"a:\n" for i in range(99)), "not_yaml"),
        (b"x0: &x0 [1]\n" + b"".join(b"x%d: &x%d [*x%d]\n" % (i, i, i - 1) for i in range(1, 2000)), "too_large"),
        (b"# " + b"x" * 300_000, "too_large"),
        (nested_aliases(b"{a: 1, b: 2}", b"{<<: [%s]}"), "too_large"),
        (nested_aliases(b"[1]", b"[%s]"), "too_large"),
    ],
)
def test_a_file_that_is_not_a_plan_gives_one_line_with_its_path(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    assert caught.value.code == code
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_and_merges_work_and_a_number_with_colons_is_text(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("a: &a {x: 1, y: 2.5e-1}\nb: {<<: *a, y: 1:30}\nc: [*a, *a, 1:59.5]\n")
    same = {"x": 1, "y": 0.25}
    assert parse_yaml(path) == {"a": same, "b": {"x": 1, "y": "1:30"}, "c": [same, same, "1:59.5"]}


@pytest.mark.parametrize("name", ["", "none.yaml"])
def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan(tmp_path / name)
    assert caught.value.code == "no_plan_file"


def test_a_plan_survives_its_own_writing(tmp_path: Path) -> None:
    plan = load_plan(PLANS / "santa-cruz-island.yaml")
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json", by_alias=True)))
    assert load_plan(path) == plan


def test_the_classes_keep_the_order_of_the_plan() -> None:
    plan = check_plan(plan_data(labels={"classes": {"zebra": ["z"], "ape": ["a"], "moth": ["m"]}}))
    assert [c.id for c in plan.classes()] == ["zebra", "ape", "moth"]


NAMES = st.text(min_size=1, max_size=12).map(tidy_name).filter(lambda name: name and ";" not in name)
"""Labels as exports are read; a semicolon separates the parts of a name of SpeciesNet."""


@given(st.lists(st.tuples(NAMES, st.lists(NAMES, min_size=1, max_size=4)), min_size=2, max_size=5, unique_by=lambda pair: pair[0]))
def test_label_names_mean_one_class_or_are_refused(pairs: list[tuple[str, list[str]]]) -> None:
    """Whatever the names: each means its class in any case, or two classes claim it, or a class cannot be called so."""
    folded = [(name.casefold(), class_id) for class_id, names in pairs for name in names]
    claimed = {name: {c for n, c in folded if n == name} for name, _ in folded}
    ambiguous = "empty" in claimed or any(len(classes) > 1 for classes in claimed.values())
    reserved = re.compile("[0-9]+|nothing")
    unfit = any("." in c or c.startswith("$") or not c.isprintable() or reserved.fullmatch(c) for c, _ in pairs)
    data = plan_data(labels={"classes": dict(pairs)})
    if ambiguous or unfit:
        fault(data)
        return
    meaning = class_by_label(check_plan(data).labels)
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
def test_any_value_of_a_section_is_a_plan_or_one_line(value: Any, key: str) -> None:
    assume(value != {} or key in {"sources", "labels"})  # an empty part of a plan is its defaults
    assume(value is not None or key not in {"production", "auto_accept"})  # null turns them off
    assert len(str(fault(plan_data(**{key: value})))) < 2500


def test_the_sample_plan_shows_every_key_that_a_plan_knows() -> None:
    said = yaml.safe_load((PLANS / "sample.yaml").read_text())
    whole = load_plan(PLANS / "sample.yaml").model_dump(mode="json", by_alias=True)
    assert said.keys() == whole.keys()
    assert said["sources"][0].keys() == whole["sources"][0].keys()
    assert said["labels"]["classes"]["lizard"].keys() == whole["labels"]["classes"]["lizard"].keys()
    for part in set(whole) - {"model", "description", "sources"}:
        assert said[part].keys() == whole[part].keys(), part


@pytest.mark.parametrize("change", [{"epochs": 3}, {"batch_size": 8}, {"learning_rate": 0.01}])
def test_a_change_of_fine_tuning_is_refused_where_a_head_is_trained(change: dict[str, Any]) -> None:
    head, tuned = check_plan(plan_data()), check_plan(plan_data(train={"recipe": "fine_tune"}))
    with pytest.raises(PlanError) as refused:
        Overrides.model_validate(change).applied(head)
    assert refused.value.code == "unused_change"
    assert Overrides.model_validate(change).applied(tuned) != tuned
    assert Overrides(seed=3).applied(head).train.seed == 3

"""Retention: nothing that a report, a release or the frozen test set needs ever goes; all else does, whenever it is killed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from animl_pipeline.cli.main import app
from animl_pipeline.config import Plan, load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import DamagedError, PipelineError, StoreError
from animl_pipeline.core.evaluation_results import Metrics, Report
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.step import Step
from animl_pipeline.core.tables import write_parquet
from animl_pipeline.deploy.latest_report import save_report
from animl_pipeline.deploy.release_history import close_record, new_record, write_record
from animl_pipeline.deploy.released_model import find_champion
from animl_pipeline.inference.classifier import read_card
from animl_pipeline.steps.crops import extract_crops
from animl_pipeline.steps.detections import detect_animals
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.labels import SourceArtifacts, resolve_labels, wanted_labels
from animl_pipeline.steps.splits import split_by_location
from animl_pipeline.storage import image_index
from animl_pipeline.storage.gc import GcReport, GcRules, collect_garbage, read_inventory
from animl_pipeline.storage.gc.references import Root, needed_steps
from animl_pipeline.storage.gc.stored_steps import StepId
from animl_pipeline.storage.locks import gc_lock
from animl_pipeline.storage.step_cache import BlobColumn, StepOutput, Store, Workspace, open_store
from tests.steps.test_splits import island, side_of, split
from tests.support.packaged_model import make_package
from tests.support.tiny_project import write_project

DAY = 86_400
RULES = GcRules()
LATER = time.time() + 100 * DAY
"""A day on which all that a test makes is old."""


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    location = str(tmp_path / "store") if request.param == "folder" else f"s3://{request.getfixturevalue('bucket')}/store"
    return open_store(Settings(store=location, cache=tmp_path / "cache"))


def made(store: Store, step: str, inputs: dict[str, Artifact], imgs: tuple[bytes, ...] = (), **config: Any) -> Artifact:
    """A step that names pictures in a table, and whose content is its config."""

    def build(space: Workspace) -> StepOutput:
        names = [store.put_blob(p, durable=False) for p in imgs]
        (space.out / "says.txt").write_text(json.dumps([config, sorted(a.digest for a in inputs.values())]))
        write_parquet(space.out / "t.parquet", pd.DataFrame({"blob": pd.Series(names, dtype=str), "bytes": [len(p) for p in imgs]}))
        return StepOutput(Counts(kept=len(names)), blobs=(BlobColumn(file="t.parquet"),))

    return store.make(Step(step, version=1), inputs=inputs, config=config, build=build)


def report(store: Store, model: str, *steps: Artifact) -> None:
    """Make a report that names steps the newest of a model."""
    one = dict.fromkeys(("accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_average_precision"), 1.0)
    metrics = Metrics(examples=1, locations=1, classes=(), confusion=(), **one)
    names = dict(zip(("model_artifact", "evaluation", "package"), (steps * 3)[:3], strict=True))
    save_report(Report(model=model, version="1", headline="", metrics=metrics, **names), store)


def release(store: Store, package: Artifact | None, version: str, state: str = "done", previous: str | None = None) -> None:
    """A release of a version, as the room endpoint writes it down."""
    names = {"base_name": "isle", "endpoint": "isle", "endpoint_config": f"c-{version}", "previous_config": previous and f"c-{previous}"}
    record = write_record(new_record("release", **names, sagemaker_model=f"m-{version}", version=version, package=package), store)
    if state != "begun":
        close_record(record, state, store)  # type: ignore[arg-type]  # one of the two


def clear(store: Store, rules: GcRules = RULES, now: float = LATER) -> GcReport:
    return collect_garbage(store, rules, dry_run=False, now=now)


def is_there(store: Store, artifact: Artifact) -> bool:
    """Whether a step is there with all that it names; a part of one is a fault."""
    try:
        store.manifest(artifact)
    except DamagedError:
        assert not list(store.object_store.names(f"steps/{artifact.step}/{artifact.key}/"))
        return False
    for name in store.files(artifact):
        store.path(artifact, name)
    for sha256 in store.table(artifact, "t.parquet")["blob"] if "t.parquet" in store.files(artifact) else ():
        store.blob(sha256)
    return True


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def has(store: Store, data: bytes) -> bool:
    return store.has_blob(name_of(data), len(data))


# -- what is needed, over random stores


class Drawn(NamedTuple):
    """A step of a random store: which earlier ones it reads, its pictures, and whether it is young, and what names it."""

    inputs: frozenset[int]
    imgs: frozenset[int]
    young: bool
    named: str
    twin: bool  # with the content of any other twin that reads the same


drawn = st.builds(
    Drawn,
    st.frozensets(st.integers(0, 6), max_size=3),
    st.frozensets(st.integers(0, 5), max_size=3),
    st.sampled_from([False, False, False, True]),
    st.sampled_from(["", "", "", "", "report", "release"]),
    st.booleans(),
)


@given(
    st.lists(st.tuples(st.frozensets(st.integers(0, 29), max_size=4), st.integers(0, 25)), min_size=1, max_size=30), st.frozensets(st.integers(0, 29))
)
def test_all_that_is_reachable_from_a_root_is_needed_and_nothing_else(graph: list[tuple[frozenset[int], int]], named: frozenset[int]) -> None:
    """Steps by number, each with those that it reads and its digest, which several may share."""
    ids = [StepId("labels", f"{i:064d}") for i in range(len(graph))]
    steps = {
        ids[i]: Step(ids[i], f"{digest:064d}", {str(j): f"{graph[j][1]:064d}" for j in inputs if j < i} | {"file": "0" * 64}, {}, frozenset(), 0)
        for i, (inputs, digest) in enumerate(graph)
    }
    reached = named & set(range(len(graph)))
    for _ in graph:
        digests = {graph[j][1] for i in reached for j in graph[i][0] if j < i} | ({0} if reached else set())
        reached |= {j for j, (_, digest) in enumerate(graph) if digest in digests}
    assert {ids.index(i) for i in needed_steps(steps, [Root(StepId("labels", f"{i:064d}"), "") for i in sorted(named)])} == reached


@given(st.lists(drawn, min_size=1, max_size=7), st.frozensets(st.integers(0, 5)), st.frozensets(st.integers(0, 5)))
@hypothesis_settings(max_examples=12)
def test_nothing_that_is_needed_ever_goes_and_all_that_is_old_and_not_needed_does(
    steps: list[Drawn], loose: frozenset[int], new: frozenset[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Settings(store=folder))
        artifacts: list[Artifact] = []
        for i, one in enumerate(steps):
            inputs = {f"in{j}": artifacts[j] for j in one.inputs if j < i}
            imgs = tuple(b"%d" % p for p in sorted(one.images))
            artifacts.append(made(store, "labels", inputs, imgs, n=-1 if one.twin else i, **({"again": i} if one.twin else {})))
        for p in loose | new:
            store.put_blob(b"%d" % p)
        for path in (p for p in Path(folder).rglob("*") if p.is_file()):
            os.utime(path, (0, 0))
        for p in new:
            os.utime(Path(folder) / "blobs" / name_of(b"%d" % p)[:2] / name_of(b"%d" % p))
        for i, (one, artifact) in enumerate(zip(steps, artifacts, strict=True)):
            if one.young:
                store.object_store.touch(f"steps/labels/{artifact.key}/manifest.json")
            if one.named == "report":
                report(store, f"m{i}", artifact)
            elif one.named:
                release(store, artifact, f"v{i}")
        stays = {i for i, one in enumerate(steps) if one.young or one.named}
        for _ in steps:
            digests = {artifacts[k].digest for i in stays for k in steps[i].inputs if k < i}
            stays |= {j for j, a in enumerate(artifacts) if a.digest in digests}
        clear(store, GcRules(keep=100), now=time.time())
        assert [i for i, a in enumerate(artifacts) if is_there(store, a)] == sorted(stays)
        assert {p for p in range(6) if has(store, b"%d" % p)} == new.union(*(steps[i].images for i in stays))


# -- who needs what


def test_a_model_is_kept_with_all_that_it_was_made_from_but_its_champion_alone(any_store: Store) -> None:
    old = made(any_store, "crops", {}, (b"old crop",), n=0)
    champion = made(any_store, "package", {"model": old}, (b"reference",), n=1)
    crops = made(any_store, "crops", {}, (b"crop",), n=2)
    evaluation = made(any_store, "evaluation", {"crops": crops, "champion": champion}, n=3)
    report(any_store, "isle", made(any_store, "package", {"evaluation": evaluation}, n=4))
    said = clear(any_store)
    assert [is_there(any_store, a) for a in (old, champion, crops, evaluation)] == [False, True, True, True]
    assert [has(any_store, p) for p in (b"old crop", b"reference", b"crop")] == [False, True, True]
    assert [(p.what, p.why, p.number) for p in said.deleted if p.what == "steps"] == [("steps", "crops", 1)]
    assert clear(any_store).deleted == ()


def test_the_weights_that_a_training_went_on_from_stay_but_not_what_they_were_made_from(store: Store) -> None:
    """They are named by the content of their file; a rerun looks for them to know its own key again."""
    crops = made(store, "crops", {}, n=0)
    first = made(store, "model", {"crops": crops}, n=1)
    weights = store.manifest(first).files["says.txt"].sha256
    config = {"n": 2}
    second = store.make(Step("training", version=1), digests={"released": weights}, config=config, build=lambda space: StepOutput(Counts(kept=1)))
    report(store, "isle", second)
    clear(store)
    assert [is_there(store, a) for a in (crops, first, second)] == [False, True, True]


def test_of_releases_the_last_ones_stay_and_the_one_under_way(store: Store) -> None:
    packages = [made(store, "package", {}, n=i) for i in range(6)]
    for i, package in enumerate(packages[:5]):
        release(store, package, f"v{i}", previous=f"v{i - 1}" if i else None)
    release(store, packages[5], "v5", "begun")
    clear(store, GcRules(keep=2))
    assert [is_there(store, p) for p in packages] == [False, False, False, True, True, True]


def test_after_a_rollback_what_was_served_before_the_present_version_stays(store: Store) -> None:
    packages = [made(store, "package", {}, n=i) for i in range(4)]
    for i, package in enumerate(packages):
        release(store, package, f"v{i}", previous=f"v{i - 1}" if i else None)
    release(store, packages[1], "v1", previous="v3")  # back again
    clear(store, GcRules(keep=1))
    assert [is_there(store, p) for p in packages] == [True, True, False, True]


def test_the_champion_of_the_model_that_is_served_stays_though_it_was_packaged_twice(store: Store, tmp_path: Path) -> None:
    """A rerun of the plan whose model was released last is compared with the one before its first release, as it was then."""
    other, first, second = made(store, "package", {}, n=0), *(make_package(store, tmp_path, "same", architecture=a) for a in ("mean", "mean-colour"))
    for version, package in (("other", other), ("same", first), ("same", second)):
        release(store, package, version)
    card = read_card(store.path(second, "card.json"))
    assert find_champion("isle", card, store) == other
    clear(store, GcRules(keep=1))
    assert find_champion("isle", card, store) == other
    assert is_there(store, other)


def test_a_step_is_as_old_as_its_last_use(store: Store) -> None:
    used, unused = (made(store, "labels", {}, n=i) for i in range(2))
    for path in (p for p in Path(store.local).rglob("*") if p.is_file()):
        os.utime(path, (0, 0))
    assert made(store, "labels", {}, n=0).cached
    clear(store, now=time.time())
    assert (is_there(store, used), is_there(store, unused)) == (True, False)


def test_a_use_is_noted_in_s3_too(bucket: str, tmp_path: Path) -> None:
    store = open_store(Settings(store=f"s3://{bucket}/store", cache=tmp_path / "cache"))
    artifact = made(store, "labels", {}, n=0)
    name = f"steps/labels/{artifact.key}/manifest.json"
    before, data = next(xmodified for x in store.object_store.objects("steps/") if x.name == name), store.object_store.read(name)
    deadline = time.monotonic() + 30
    while next(xmodified for x in store.object_store.objects("steps/") if x.name == name) == before and time.monotonic() < deadline:
        assert made(store, "labels", {}, n=0).cached  # S3 tells whole seconds
    assert next(xmodified for x in store.object_store.objects("steps/") if x.name == name) > before
    assert store.object_store.read(name) == data


# -- the frozen test set


def test_the_test_set_stays_frozen_when_every_step_went(store: Store) -> None:
    before, _ = split(store, island(12))
    clear(store)
    assert not list(store.object_store.names("steps/"))
    after, _ = split(store, island(24))
    tested = {location for location, side in side_of(before).items() if side == "test"}
    assert {location for location in side_of(before) if side_of(after)[location] == "test"} == tested


# -- pictures, crops and what is remembered of them


class Street(NamedTuple):
    """The first half of the street."""

    export: Artifact
    images: Artifact
    labels: Artifact
    detections: Artifact
    crops: Artifact
    splits: Artifact


def walk(plan: Plan, model_input: ModelInput, store: Store, settings: Settings) -> Street:
    source, classes = plan.sources[0], tuple(plan.labels.classes)
    export = export_annotations(source, store, settings)
    images = download_images(source, export, wanted_labels(plan.labels, source.name, settings), store, settings, plan.images)
    labels = resolve_labels([SourceArtifacts(source, export, images)], plan.labels, store, settings)
    detections = detect_animals(labels, plan.detections, store, settings)
    crops = extract_crops(labels, detections, plan.crops, model_input, store, settings)
    return Street(export, images, labels, detections, crops, split_by_location(crops, plan.splits, classes, store, plan.model))


def test_a_needed_run_is_cached_throughout_and_another_is_made_anew_with_the_same_content(settings: Settings, tmp_path: Path) -> None:
    store, plan = open_store(settings), load_plan(write_project(tmp_path / "isle", locations=6, each=1))
    kept, other = (walk(plan, ModelInput(size=size), store, settings) for size in (32, 48))
    report(store, plan.model, kept.splits)
    said = clear(store, GcRules(images=True))
    assert [(p.why, p.number) for p in said.deleted if p.what == "steps"] == [("crops", 1), ("splits", 1)]
    names = {r["blob"] for n in ("crops", "images") for d in _memories(store, n) for r in store.read_index(d).values()}
    assert all(store.object_store.size(f"blobs/{name[:2]}/{name}") for name in names)
    assert all(a.cached for a in walk(plan, ModelInput(size=32), store, settings))
    again = walk(plan, ModelInput(size=48), store, settings)
    assert [a.cached for a in again] == [True, True, True, True, False, False]
    assert [(a.key, a.digest) for a in again] == [(a.key, a.digest) for a in other]


def _memories(store: Store, kind: str) -> set[str]:
    return {n.removeprefix("index/").rpartition("/")[0] for n in store.object_store.names(f"index/{kind}/")}


def test_fetched_images_stay_unless_they_may_go_and_are_then_fetched_again(settings: Settings, tmp_path: Path) -> None:
    store, plan = open_store(settings), load_plan(write_project(tmp_path / "isle", locations=6, each=1))
    first = walk(plan, ModelInput(size=32), store, settings)
    imgs = store.table(first.images, "images.parquet")
    clear(store)
    assert all(store.has_blobs(imgs["blob"].tolist(), imgs["bytes"].tolist()))
    clear(store, GcRules(images=True))
    assert list(store.object_store.names("blobs/")) == []
    assert not _memories(store, "images") | _memories(store, "crops")
    again = walk(plan, ModelInput(size=32), store, settings)
    assert [a.digest for a in again] == [a.digest for a in first]


def test_what_an_export_answered_stays_while_it_is_remembered(store: Store) -> None:
    store.put_blob(b"answer")
    store.add_to_index("animl/isle", {"exported": {"answers": [{"blob": name_of(b"answer"), "bytes": 6}]}})
    store.put_blob(b"of an attempt")
    store.add_to_index("animl-windows/isle-1", {"w": {"answer": {"blob": name_of(b"of an attempt"), "bytes": 13}}})
    clear(store, GcRules(images=True))
    assert (has(store, b"answer"), has(store, b"of an attempt")) == (True, False)
    assert _memories(store, "animl") == {"animl/isle"}
    assert _memories(store, "animl-windows") == set()


def test_a_image_that_only_json_or_another_column_names_stays(store: Store) -> None:
    def build(space: Workspace) -> StepOutput:
        (space.out / "reference_predictions.json").write_text(json.dumps([{"image": store.put_blob(b"reference")}]))
        table = pd.DataFrame({"image": [store.put_blob(b"whole")], "many": [[store.put_blob(b"listed")]]})
        table["kind"] = pd.Series([store.put_blob(b"coded")], dtype="category")
        write_parquet(space.out / "t.parquet", table)
        return StepOutput(Counts(kept=1))

    report(store, "isle", store.make(Step("evaluation", version=1), build=build))
    store.put_blob(b"loose")
    clear(store)
    assert [has(store, p) for p in (b"reference", b"whole", b"listed", b"coded", b"loose")] == [True, True, True, True, False]


def test_of_a_key_that_is_forgotten_no_earlier_record_counts_again(any_store: Store) -> None:
    any_store.add_to_index("seen", {"a": {"blob": "1"}, "b": {"blob": "2"}, "c": {"blob": "2"}})
    any_store.add_to_index("seen", {"a": {"blob": "2"}, "c": {"blob": "1"}})
    assert image_index.remove_from_index(any_store.object_store, "seen", lambda record: record["blob"] == "2") == 2
    assert any_store.read_index("seen") == {"c": {"blob": "1"}}
    any_store.add_to_index("seen", {"a": {"blob": "3"}})
    assert any_store.read_index("seen") == {"a": {"blob": "3"}, "c": {"blob": "1"}}


# -- what must not be disturbed


def test_nothing_goes_while_a_step_is_made_and_no_step_is_made_while_things_go(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(space: Workspace) -> StepOutput:
        begun.set()
        assert go_on.wait(30)
        return StepOutput(Counts(kept=0))

    with ThreadPoolExecutor(2) as pool, caplog.at_level(logging.INFO, logger="animl_pipeline"):
        building = pool.submit(store.make, Step("training", version=1), build=slow)
        assert begun.wait(30)
        with pytest.raises(StoreError, match=r"a run makes a step in .* now; wait for its end"):
            clear(store)
        go_on.set()
        building.result()
        with gc_lock(store.local / "work"):
            waiting = pool.submit(made, store, "labels", {}, n=0)
            deadline = time.monotonic() + 30
            while "garbage collection is running" not in caplog.text and time.monotonic() < deadline:
                threading.Event().wait(0.02)
            assert not list(store.object_store.names("steps/labels/"))
        assert not waiting.result().cached


@pytest.mark.parametrize("name", ["reports/isle/newest.json", "releases/isle/1.json", "steps/labels/{key}/manifest.json"])
def test_where_it_cannot_be_told_what_is_needed_nothing_goes(store: Store, name: str) -> None:
    artifact = made(store, "labels", {}, (b"image",), n=0)
    store.object_store.put(name.format(key=artifact.key), b'{"step": "labels"}')
    before = {x.name: x.bytes for x in store.object_store.objects("")}
    with pytest.raises(StoreError, match="nothing is cleared"):
        clear(store)
    assert {x.name: x.bytes for x in store.object_store.objects("")} == before


def test_a_damaged_table_of_a_needed_step_stops_it(store: Store) -> None:
    artifact = made(store, "labels", {}, (b"image",), n=0)
    report(store, "isle", artifact)
    store.path(artifact, "t.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(StoreError, match=r"t\.parquet .* cannot be read .* nothing is cleared: run the plan again"):
        clear(store)
    assert has(store, b"image")


def test_a_report_whose_step_is_gone_is_told(store: Store) -> None:
    artifact = made(store, "labels", {}, n=0)
    report(store, "isle", artifact)
    store.object_store.delete(f"steps/labels/{artifact.key}/manifest.json")
    said = clear(store)
    assert [str(r.id) for r in said.missing] == [f"labels {artifact.key[:12]}"]
    assert said.missing[0].why == "newest report of isle"


def test_scratch_goes_when_it_is_old_and_locks_of_others_stay(store: Store) -> None:
    with pytest.raises(PipelineError):
        store.make(Step("training", version=1), build=_broken)
    work = store.local / "work"
    (work / "release-isle.lock").touch()
    (work / "animl-isle.lock").touch()
    assert [p.name for p in work.iterdir() if p.is_dir() and p.name != "parts"]
    clear(store, now=time.time())
    assert [p.name for p in work.iterdir() if p.is_dir() and p.name != "parts"]
    clear(store)
    assert {p.name for p in work.iterdir()} - {"parts"} == {"steps.lock", "release-isle.lock", "animl-isle.lock"}
    assert not made(store, "model", {}, n=0).cached


def test_curves_go_with_their_training_and_local_copies_with_their_step_in_s3(any_store: Store) -> None:
    kept, gone = made(any_store, "model", {}, n=0), made(any_store, "model", {}, n=1)
    report(any_store, "isle", kept)
    curves = [any_store.local / "tensorboard" / "isle" / f"model-{a.key[:16]}" / "events" for a in (kept, gone)]
    for path in curves:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"curve")
    assert is_there(any_store, gone)  # so S3's is copied here
    clear(any_store)
    assert [path.exists() for path in curves] == [True, False]
    assert [(any_store.local / "steps" / "model" / a.key).exists() for a in (kept, gone)] == [True, False]


def _broken(space: Workspace) -> StepOutput:
    (space.scratch / "last.ckpt").write_bytes(b"0" * 1000)
    raise StoreError("broken off")


# -- kills

KILLED = """
import os, signal, sys
from animl_pipeline.core import progress
from animl_pipeline.storage.gc import GcRules, collect_garbage
from animl_pipeline.config.settings import Settings
from animl_pipeline.storage.step_cache import open_store

def die(what, done, total):
    if (what, done) == (sys.argv[2], int(sys.argv[3])):
        os.kill(os.getpid(), signal.SIGKILL)

progress.set_listener(die)
collect_garbage(open_store(Settings(store=sys.argv[1])), GcRules(), dry_run=False, now=float(sys.argv[4]))
"""


@pytest.mark.parametrize(("what", "done"), [("manifests", 2), ("files", 0), ("blobs", 0), ("blobs", 200)])
def test_a_kill_amid_leaves_a_store_that_works_and_the_next_clearing_ends_it(settings: Settings, what: str, done: int) -> None:
    store = open_store(settings)
    kept = made(store, "crops", {}, (b"crop", b"shared"), n=0)
    report(store, "isle", kept)
    many = tuple(b"%d" % i for i in range(300))
    gone = [made(store, "crops", {}, (*many[i::2], b"shared"), n=i + 1) for i in range(2)]
    store.add_to_index("crops/v", {f"{i}|box": {"blob": name_of(p), "bytes": len(p)} for i, p in enumerate((*many, b"crop"))})
    line = [sys.executable, "-c", KILLED, settings.store, f"deleting {what}", str(done), str(LATER)]
    assert subprocess.run(line, check=False, timeout=120).returncode == -signal.SIGKILL
    assert is_there(store, kept)
    for i in range(2):  # whatever is left of it, a run works
        again = made(store, "crops", {}, (*many[i::2], b"shared"), n=i + 1)
        assert again.digest == gone[i].digest
        assert is_there(store, again)
    clear(store)
    assert (is_there(store, kept), [is_there(store, g) for g in gone]) == (True, [False, False])
    assert len(list(store.object_store.names("blobs/"))) == 2
    assert list(store.read_index("crops/v")) == ["300|box"]


# -- the command


def test_the_command_deletes_only_when_told_to_and_says_what_and_why(store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIML_STORE", settings.store)
    monkeypatch.setenv("ANIML_PLANS", str(settings.data / "none"))
    kept, gone = made(store, "crops", {}, (b"crop",), n=0), made(store, "crops", {}, (b"other",), n=1)
    report(store, "isle", kept)
    for path in (p for p in Path(settings.store).rglob("*") if p.is_file()):
        os.utime(path, (0, 0))
    run = CliRunner()
    shown = run.invoke(app, ["store", "show"], catch_exceptions=False)
    assert [line.split()[:4] for line in shown.stdout.splitlines() if line.startswith("step ")] == [["step", "crops", "2", "1"]]
    dry = run.invoke(app, ["store", "gc"], catch_exceptions=False)
    assert "dry run: nothing was deleted" in dry.stdout
    assert "newest report of isle" in dry.stdout
    assert is_there(store, gone)
    done = run.invoke(app, ["store", "gc", "--yes"], catch_exceptions=False)
    assert "freed" in done.stdout
    assert (is_there(store, kept), is_there(store, gone)) == (True, False)
    assert "nothing to delete" in run.invoke(app, ["store", "gc", "--yes"], catch_exceptions=False).stdout


def test_an_inventory_counts_all_that_lies_there(any_store: Store) -> None:
    artifact = made(any_store, "crops", {}, (b"crop",), n=0)
    report(any_store, "isle", artifact)
    found = read_inventory(any_store, keep=3)
    assert [(h.kind, h.number, h.needed) for h in found.steps] == [("crops", 1, 1)]
    assert found.bytes == any_store.object_store.total_bytes()

"""Garbage collection: what a report, a release or the frozen test set needs is never deleted; everything else is, when it is old."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.deploy.released_model import find_champion
from animl_pipeline.inference.classifier import read_card
from animl_pipeline.storage.gc import GcRules, read_inventory
from animl_pipeline.storage.gc.references import Root, needed_steps
from animl_pipeline.storage.gc.stored_steps import StepId, StoredStep
from animl_pipeline.storage.manifest import Manifest
from animl_pipeline.storage.store import StepOutput, Store, open_store
from tests.support.colour_models import island_plan
from tests.support.crops_to_split import island, split, split_of_locations
from tests.support.packaged_model import make_package
from tests.support.stored_steps import collect, has_blob, is_complete, make_step, release, report, sha256_of_bytes

# -- random stores ---------------------------------------------------------------------------------------------------------


class RandomStep(NamedTuple):
    """A step of a random store: the earlier steps that it reads, its images, whether it is young, and what names it."""

    inputs: frozenset[int]
    images: frozenset[int]
    young: bool
    named_by: str
    twin: bool  # has the content of every other twin that reads the same


random_steps = st.builds(
    RandomStep,
    st.frozensets(st.integers(0, 6), max_size=3),
    st.frozensets(st.integers(0, 5), max_size=3),
    st.sampled_from([False, False, False, True]),
    st.sampled_from(["", "", "", "", "report", "release"]),
    st.booleans(),
)


def stored_step(i: int, digest: int, inputs: dict[str, str]) -> StoredStep:
    manifest = Manifest(
        step="labels", key=f"{i:064d}", digest=f"{digest:064d}", inputs=inputs, config={}, version=1, libraries={}, files={}, counts=Counts(kept=0),
        seconds=0, made_at="",
    )  # fmt: skip
    return StoredStep(manifest, (), 0)


@given(
    st.lists(st.tuples(st.frozensets(st.integers(0, 29), max_size=4), st.integers(0, 25)), min_size=1, max_size=30), st.frozensets(st.integers(0, 29))
)
def test_every_step_that_a_root_leads_to_is_needed_and_no_other(graph: list[tuple[frozenset[int], int]], named: frozenset[int]) -> None:
    """The graph: steps by number, each with the steps that it reads and its digest, which several may share."""
    found = [
        stored_step(i, digest, {str(j): f"{graph[j][1]:064d}" for j in inputs if j < i} | {"file": "0" * 64})
        for i, (inputs, digest) in enumerate(graph)
    ]
    reached = named & set(range(len(graph)))
    for _ in graph:
        digests = {graph[j][1] for i in reached for j in graph[i][0] if j < i} | ({0} if reached else set())
        reached |= {j for j, (_, digest) in enumerate(graph) if digest in digests}
    needed = needed_steps({step.id: step for step in found}, [Root(StepId("labels", f"{i:064d}"), "") for i in sorted(named)])
    assert {int(i.key) for i in needed} == reached


@given(st.lists(random_steps, min_size=1, max_size=7), st.frozensets(st.integers(0, 5)), st.frozensets(st.integers(0, 5)))
@hypothesis_settings(max_examples=12)
def test_what_is_needed_stays_and_everything_old_that_is_not_needed_is_deleted(
    steps: list[RandomStep], loose: frozenset[int], new: frozenset[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Settings(store=folder))
        artifacts: list[Artifact] = []
        for i, one in enumerate(steps):
            inputs = {f"in{j}": artifacts[j] for j in one.inputs if j < i}
            images = tuple(b"%d" % p for p in sorted(one.images))
            artifacts.append(make_step(store, "labels", inputs, images, n=-1 if one.twin else i, **({"again": i} if one.twin else {})))
        for p in loose | new:
            store.put_blob(b"%d" % p)
        for path in (p for p in Path(folder).rglob("*") if p.is_file()):
            os.utime(path, (0, 0))
        for p in new:
            os.utime(Path(folder) / "blobs" / sha256_of_bytes(b"%d" % p)[:2] / sha256_of_bytes(b"%d" % p))
        for i, (one, artifact) in enumerate(zip(steps, artifacts, strict=True)):
            if one.young:
                store.object_store.touch(f"steps/labels/{artifact.key}/manifest.json")
            if one.named_by == "report":
                report(store, f"m{i}", artifact)
            elif one.named_by:
                release(store, artifact, f"v{i}")
        kept = {i for i, one in enumerate(steps) if one.young or one.named_by}
        for _ in steps:
            digests = {artifacts[k].digest for i in kept for k in steps[i].inputs if k < i}
            kept |= {j for j, a in enumerate(artifacts) if a.digest in digests}
        collect(store, GcRules(keep=100), now=time.time())
        assert [i for i, a in enumerate(artifacts) if is_complete(store, a)] == sorted(kept)
        assert {p for p in range(6) if has_blob(store, b"%d" % p)} == new.union(*(steps[i].images for i in kept))


# -- what is needed ----------------------------------------------------------------------------------------------------------


def test_a_model_is_kept_with_its_inputs_and_its_champion_without_them(any_store: Store) -> None:
    old = make_step(any_store, "crops", {}, (b"old crop",), n=0)
    champion = make_step(any_store, "package", {"model": old}, (b"reference",), n=1)
    crops = make_step(any_store, "crops", {}, (b"crop",), n=2)
    evaluation = make_step(any_store, "evaluation", {"crops": crops, "champion": champion}, n=3)
    report(any_store, "isle", make_step(any_store, "package", {"evaluation": evaluation}, n=4))
    result = collect(any_store)
    assert [is_complete(any_store, a) for a in (old, champion, crops, evaluation)] == [False, True, True, True]
    assert [has_blob(any_store, p) for p in (b"old crop", b"reference", b"crop")] == [False, True, True]
    assert [(group.what, group.why, group.number) for group in result.deleted if group.what == "steps"] == [("steps", "crops", 1)]
    assert collect(any_store).deleted == ()


def test_the_weights_that_a_training_started_from_stay_without_their_inputs(store: Store) -> None:
    """A training names them by the content of their file. A rerun needs them to find its key again."""
    crops = make_step(store, "crops", {}, n=0)
    first = make_step(store, "training", {"crops": crops}, n=1)
    weights = store.manifest(first).files["content.txt"].sha256
    second = store.make(Step("training", version=1), digests={"released": weights}, config={"n": 2}, build=lambda _: StepOutput(Counts(kept=1)))
    report(store, "isle", second)
    collect(store)
    assert [is_complete(store, a) for a in (crops, first, second)] == [False, True, True]


def test_the_last_releases_stay_and_the_one_under_way(store: Store) -> None:
    packages = [make_step(store, "package", {}, n=i) for i in range(6)]
    for i, package in enumerate(packages[:5]):
        release(store, package, f"v{i}", previous=f"v{i - 1}" if i else None)
    release(store, packages[5], "v5", "begun")
    collect(store, GcRules(keep=2))
    assert [is_complete(store, p) for p in packages] == [False, False, False, True, True, True]


def test_after_a_rollback_the_version_before_the_present_one_stays(store: Store) -> None:
    packages = [make_step(store, "package", {}, n=i) for i in range(4)]
    for i, package in enumerate(packages):
        release(store, package, f"v{i}", previous=f"v{i - 1}" if i else None)
    release(store, packages[1], "v1", previous="v3")  # rolled back
    collect(store, GcRules(keep=1))
    assert [is_complete(store, p) for p in packages] == [True, True, False, True]


def test_the_champion_of_the_released_model_stays_though_the_model_was_packaged_twice(store: Store, tmp_path: Path) -> None:
    """A rerun of the plan whose model is released compares it with the model before its first release, as it was then."""
    other, first, second = (
        make_step(store, "package", {}, n=0),
        *(make_package(store, tmp_path, "same", architecture=a) for a in ("mean", "mean-colour")),
    )
    for version, package in (("other", other), ("same", first), ("same", second)):
        release(store, package, version)
    card = read_card(store.path(second, "card.json"))
    plan = island_plan(release={"endpoint": "isle"})
    assert find_champion(plan, card, store).package == other
    collect(store, GcRules(keep=1))
    assert find_champion(plan, card, store).package == other
    assert is_complete(store, other)


def test_the_test_set_stays_frozen_though_every_step_was_deleted(store: Store) -> None:
    before, _ = split(store, island(12))
    collect(store)
    assert not list(store.object_store.names("steps/"))
    after, _ = split(store, island(24))
    tested = {location for location, name in split_of_locations(before).items() if name == "test"}
    assert {location for location in split_of_locations(before) if split_of_locations(after)[location] == "test"} == tested


# -- age -----------------------------------------------------------------------------------------------------------------------


def test_the_age_of_a_step_counts_from_its_last_use(store: Store) -> None:
    used, unused = (make_step(store, "labels", {}, n=i) for i in range(2))
    for path in (p for p in Path(store.local).rglob("*") if p.is_file()):
        os.utime(path, (0, 0))
    assert make_step(store, "labels", {}, n=0).cached
    collect(store, now=time.time())
    assert (is_complete(store, used), is_complete(store, unused)) == (True, False)


def test_a_use_is_recorded_in_s3_as_well(bucket: str, tmp_path: Path) -> None:
    store = open_store(Settings(store=f"s3://{bucket}/store", cache=tmp_path / "cache"))
    artifact = make_step(store, "labels", {}, n=0)
    name = f"steps/labels/{artifact.key}/manifest.json"

    def modified() -> float:
        return next(found.modified for found in store.object_store.objects("steps/") if found.name == name)

    before, data = modified(), store.object_store.read(name)
    deadline = time.monotonic() + 30
    while modified() == before and time.monotonic() < deadline:
        assert make_step(store, "labels", {}, n=0).cached  # S3's times have whole seconds
    assert modified() > before
    assert store.object_store.read(name) == data


def test_an_inventory_counts_everything(any_store: Store) -> None:
    artifact = make_step(any_store, "crops", {}, (b"crop",), n=0)
    report(any_store, "isle", artifact)
    found = read_inventory(any_store, keep=3)
    assert [(row.kind, row.number, row.needed) for row in found.steps] == [("crops", 1, 1)]
    assert found.bytes == any_store.object_store.total_bytes()

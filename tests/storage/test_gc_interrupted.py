"""Garbage collection beside running steps, with damaged records, and after kills; and its command."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from animl_pipeline.cli.main import app
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.errors import PipelineError, StoreError
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.storage.local_locks import gc_lock
from animl_pipeline.storage.store import StepOutput, Store, Workspace, open_store
from tests.support.stored_steps import LATER, collect, has_blob, is_complete, make_step, report, sha256_of_bytes

TRAINING = Step("training", version=1)


# -- running steps -----------------------------------------------------------------------------------------------------------


def test_nothing_is_deleted_while_a_step_is_built_and_no_step_is_built_meanwhile(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(space: Workspace) -> StepOutput:
        begun.set()
        assert go_on.wait(30)
        return StepOutput(Counts(kept=0))

    with ThreadPoolExecutor(2) as pool, caplog.at_level(logging.INFO, logger="animl_pipeline"):
        building = pool.submit(store.make, TRAINING, build=slow)
        assert begun.wait(30)
        with pytest.raises(StoreError) as caught:
            collect(store)
        assert caught.value.code == "store_in_use"
        go_on.set()
        building.result()
        with gc_lock(store.local / "work"):
            waiting = pool.submit(make_step, store, "labels", {}, n=0)
            deadline = time.monotonic() + 30
            while "garbage collection is running" not in caplog.text and time.monotonic() < deadline:
                threading.Event().wait(0.02)
            assert not list(store.object_store.names("steps/labels/"))
        assert not waiting.result().cached


def test_files_of_interrupted_steps_are_deleted_when_old_and_other_locks_stay(store: Store) -> None:
    with pytest.raises(PipelineError):
        store.make(TRAINING, build=_interrupted)
    work = store.local / "work"
    for path in (work / "release-isle.lock", work / "animl-isle.lock", work / "parts" / ".part-of-a-killed-process"):
        path.touch()

    def folders() -> list[str]:
        return [p.name for p in work.iterdir() if p.is_dir() and p.name != "parts"]

    assert folders()
    collect(store, now=time.time())
    assert folders()
    assert list((work / "parts").iterdir())
    collect(store)
    assert {p.name for p in work.iterdir()} == {"steps.lock", "release-isle.lock", "animl-isle.lock", "parts"}
    assert not list((work / "parts").iterdir())
    assert not make_step(store, "training", {}, n=0).cached


def test_curves_are_deleted_with_their_training_and_local_copies_with_their_step_in_s3(any_store: Store) -> None:
    kept, deleted = make_step(any_store, "training", {}, n=0), make_step(any_store, "training", {}, n=1)
    report(any_store, "isle", kept)
    curves = [any_store.local / "tensorboard" / "isle" / f"training-{a.key[:16]}" / "events" for a in (kept, deleted)]
    for path in curves:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"curve")
    assert is_complete(any_store, deleted)  # this copies it here from S3
    collect(any_store)
    assert [path.exists() for path in curves] == [True, False]
    assert [(any_store.local / "steps" / "training" / a.key).exists() for a in (kept, deleted)] == [True, False]


def _interrupted(space: Workspace) -> StepOutput:
    (space.scratch / "last.ckpt").write_bytes(b"0" * 1000)
    raise StoreError("interrupted")


# -- damaged records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reports/isle/newest.json", "releases/isle/1.json", "steps/labels/{key}/manifest.json"])
def test_nothing_is_deleted_if_a_record_of_what_is_needed_cannot_be_read(store: Store, name: str) -> None:
    artifact = make_step(store, "labels", {}, (b"image",), n=0)
    store.object_store.put(name.format(key=artifact.key), b'{"step": "labels"}')
    before = {found.name: found.bytes for found in store.object_store.objects("")}
    with pytest.raises(StoreError) as caught:
        collect(store)
    assert caught.value.code == "unreadable_record"
    assert {found.name: found.bytes for found in store.object_store.objects("")} == before


def test_nothing_is_deleted_if_a_table_of_a_needed_step_is_damaged(store: Store) -> None:
    artifact = make_step(store, "labels", {}, (b"image",), n=0)
    report(store, "isle", artifact)
    store.path(artifact, "t.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(StoreError) as caught:
        collect(store)
    assert caught.value.code == "unreadable_record"
    assert has_blob(store, b"image")


def test_a_step_that_a_report_names_and_the_store_lacks_is_reported(store: Store) -> None:
    artifact = make_step(store, "labels", {}, n=0)
    report(store, "isle", artifact)
    store.object_store.delete(f"steps/labels/{artifact.key}/manifest.json")
    result = collect(store)
    assert [(str(root.id), root.why) for root in result.missing] == [(f"labels {artifact.key[:12]}", "newest report of isle")]


# -- kills -----------------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from animl_pipeline.config.settings import Settings
from animl_pipeline.core import progress
from animl_pipeline.storage.gc import GcRules, collect_garbage
from animl_pipeline.storage.store import open_store

def die(what, done, total):
    if (what, done) == (sys.argv[2], int(sys.argv[3])):
        os.kill(os.getpid(), signal.SIGKILL)

progress.set_listener(die)
collect_garbage(open_store(Settings(store=sys.argv[1])), GcRules(), dry_run=False, now=float(sys.argv[4]))
"""


@pytest.mark.parametrize(("what", "done"), [("manifests", 2), ("files", 0), ("blobs", 0), ("blobs", 200)])
def test_a_kill_leaves_a_store_that_works_and_the_next_collection_finishes(settings: Settings, what: str, done: int) -> None:
    store = open_store(settings)
    kept = make_step(store, "crops", {}, (b"crop", b"shared"), n=0)
    report(store, "isle", kept)
    many = tuple(b"%d" % i for i in range(300))
    deleted = [make_step(store, "crops", {}, (*many[i::2], b"shared"), n=i + 1) for i in range(2)]
    store.add_to_index("crops/v", {f"{i}|box": {"blob": sha256_of_bytes(p), "bytes": len(p)} for i, p in enumerate((*many, b"crop"))})
    line = [sys.executable, "-c", KILLED, settings.store, f"deleting {what}", str(done), str(LATER)]
    assert subprocess.run(line, check=False, timeout=120).returncode == -signal.SIGKILL
    assert is_complete(store, kept)
    for i in range(2):  # a run works, whatever is left
        again = make_step(store, "crops", {}, (*many[i::2], b"shared"), n=i + 1)
        assert again.digest == deleted[i].digest
        assert is_complete(store, again)
    collect(store)
    assert (is_complete(store, kept), [is_complete(store, a) for a in deleted]) == (True, [False, False])
    assert len(list(store.object_store.names("blobs/"))) == 2
    assert list(store.read_index("crops/v")) == ["300|box"]


# -- the command -------------------------------------------------------------------------------------------------------------------


def test_the_command_deletes_only_with_yes_and_shows_what_and_why(store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIML_STORE", settings.store)
    monkeypatch.setenv("ANIML_PLANS", str(settings.data / "none"))
    kept, deleted = make_step(store, "crops", {}, (b"crop",), n=0), make_step(store, "crops", {}, (b"other",), n=1)
    report(store, "isle", kept)
    for path in (p for p in Path(settings.store).rglob("*") if p.is_file()):
        os.utime(path, (0, 0))
    run = CliRunner()
    shown = run.invoke(app, ["store", "show"], catch_exceptions=False)
    assert [line.split()[:4] for line in shown.stdout.splitlines() if line.startswith("step ")] == [["step", "crops", "2", "1"]]
    dry = run.invoke(app, ["store", "gc"], catch_exceptions=False)
    assert "dry run" in dry.stdout
    assert "newest report of isle" in dry.stdout
    assert is_complete(store, deleted)
    assert run.invoke(app, ["store", "gc", "--yes"], catch_exceptions=False).exit_code == 0
    assert (is_complete(store, kept), is_complete(store, deleted)) == (True, False)
    assert "nothing to delete" in run.invoke(app, ["store", "gc", "--yes"], catch_exceptions=False).stdout

"""The store: whole or not at all, reused while unchanged, made again when not; in a folder and in a real S3 API."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.errors import DamagedError, EvaluationError, SettingsError, StoreError
from animl_pipeline.core.records import Artifact, Counts
from animl_pipeline.core.step import Step
from animl_pipeline.core.tables import write_parquet
from animl_pipeline.deploy.latest_report import newest_report
from animl_pipeline.storage.step_cache import BlobColumn, StepOutput, Store, Workspace, open_store


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    location = str(tmp_path / "store") if request.param == "folder" else f"s3://{request.getfixturevalue('bucket')}/store"
    return open_store(Settings(store=location, cache=tmp_path / "cache"))


class Builder:
    """A step that counts how often it ran."""

    def __init__(self, text: str = "made", fail: bool = False) -> None:
        self.runs, self.text, self.fail = 0, text, fail

    def __call__(self, space: Workspace) -> StepOutput:
        self.runs += 1
        (space.scratch / "begun").write_text("yes")
        if self.fail:
            raise RuntimeError("killed")
        (space.out / "sub").mkdir()
        (space.out / "sub" / "a.txt").write_text(self.text)
        return StepOutput(Counts(kept=1))


def make(store: Store, build: Builder, **config: int) -> Artifact:
    return store.make(Step("labels", version=1), config=config, build=build)


def test_a_step_is_made_once_and_its_file_is_there(any_store: Store) -> None:
    build = Builder()
    first, second = make(any_store, build), make(any_store, build)
    assert build.runs == 1
    assert (first.cached, second.cached) == (False, True)
    assert first == second.model_copy(update={"cached": False})
    assert any_store.path(second, "sub/a.txt").read_text() == "made"


def test_another_config_is_another_step_and_the_same_content_has_the_same_digest(any_store: Store) -> None:
    build = Builder()
    one, two = make(any_store, build, a=1), make(any_store, build, a=2)
    assert build.runs == 2
    assert one.key != two.key
    assert one.digest == two.digest


def test_a_failed_step_leaves_no_step_and_keeps_its_scratch(store: Store) -> None:
    with pytest.raises(RuntimeError):
        make(store, Builder(fail=True))
    assert not list(store.object_store.names("steps/"))
    seen = []

    def second(space: Workspace) -> StepOutput:
        seen.append((space.scratch / "begun").exists())
        return StepOutput(Counts(kept=0))

    store.make(Step("labels", version=1), config={}, build=second)
    assert seen == [True]


@pytest.mark.parametrize("change", ["delete", "alter"])
def test_a_cached_step_whose_file_is_gone_or_changed_is_made_again(store: Store, change: str) -> None:
    build = Builder()
    path = store.path(make(store, build), "sub/a.txt")
    path.unlink() if change == "delete" else path.write_text("evil")
    again = make(store, build)
    assert build.runs == 2
    assert not again.cached
    assert store.path(again, "sub/a.txt").read_text() == "made"


@pytest.mark.parametrize("part", ["step", "key", "digest"])
def test_a_manifest_that_says_other_than_its_files_is_not_believed(store: Store, part: str) -> None:
    build = Builder()
    first = make(store, build)
    name = f"steps/labels/{first.key}/manifest.json"
    told = json.loads(store.object_store.read(name) or b"")
    store.object_store.put(name, json.dumps(told | {part: "0" * 64}).encode())
    again = make(store, build)
    assert (again.cached, again.digest, build.runs) == (False, first.digest, 2)


def test_a_step_whose_blob_is_gone_is_made_again(store: Store) -> None:
    def build(space: Workspace) -> StepOutput:
        sha256 = store.put_blob(b"image")
        write_parquet(space.out / "t.parquet", pd.DataFrame({"blob": [sha256], "bytes": [7]}))
        return StepOutput(Counts(kept=1), blobs=(BlobColumn(file="t.parquet"),))

    first = store.make(Step("images", version=1), build=build)
    sha256 = store.table(first, "t.parquet")["blob"][0]
    assert store.make(Step("images", version=1), build=build).cached
    store.object_store.delete(f"blobs/{sha256[:2]}/{sha256}")
    assert not store.make(Step("images", version=1), build=build).cached
    assert store.blob(sha256) == b"image"


def test_a_changed_blob_is_noticed_and_removed(store: Store) -> None:
    sha256 = store.put_blob(b"image")
    store.object_store.put(f"blobs/{sha256[:2]}/{sha256}", b"pictune")
    with pytest.raises(DamagedError, match="had changed"):
        store.blob(sha256)
    assert not store.has_blob(sha256, 7)


def test_what_is_remembered_is_recalled_and_later_records_win(any_store: Store) -> None:
    any_store.remember("seen", {"a": {"n": 1}, "b": {"n": 2}})
    any_store.remember("seen", {"a": {"n": 3}})
    assert any_store.recall("seen") == {"a": {"n": 3}, "b": {"n": 2}}
    assert any_store.recall("other") == {}


def test_a_store_that_cannot_be_written_says_which_setting_to_turn(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="ANIML_STORE"):
        open_store(Settings(store=str(tmp_path / "file" / "store")))


def test_a_damaged_note_of_the_memory_is_found_out_anew_and_harms_no_other(any_store: Store) -> None:
    any_store.remember("seen", {"a": {"n": 1}})
    for i, damaged in enumerate([b'["b", {"n"', b'{"b": 2}', b"\xff\x00", b'["b", 3]']):
        any_store.object_store.put(f"memory/seen/9{i}.jsonl", damaged)
    assert any_store.recall("seen") == {"a": {"n": 1}}
    assert len(list(any_store.object_store.names("memory/seen/"))) == 1


def test_of_two_runs_at_once_one_makes_the_step_and_the_other_waits_and_says_so(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    begun, go_on = threading.Event(), threading.Event()
    build = Builder()

    def slow(space: Workspace) -> StepOutput:
        begun.set()
        assert go_on.wait(30)
        return build(space)

    with ThreadPoolExecutor(2) as pool, caplog.at_level(logging.INFO, logger="animl_pipeline"):
        first = pool.submit(store.make, Step("labels", version=1), config={}, build=slow)
        assert begun.wait(30)
        second = pool.submit(make, store, build)
        deadline = time.monotonic() + 30
        while "waiting for it" not in caplog.text and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        go_on.set()
        assert (first.result().cached, second.result().cached) == (False, True)
    assert build.runs == 1
    assert "another run makes the same step" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which always answers that the disk is full")
def test_a_disk_that_is_full_while_a_step_writes_its_own_files_is_one_clear_line(store: Store) -> None:
    def build(space: Workspace) -> StepOutput:
        (space.out / "a.txt").symlink_to("/dev/full")
        (space.out / "a.txt").write_bytes(b"x" * 100_000)
        return StepOutput(Counts(kept=1))

    with pytest.raises(StoreError, match=r"is full \(.* MB left\); make room and run again"):
        store.make(Step("labels", version=1), config={}, build=build)
    assert make(store, Builder()).counts.kept == 1


def test_other_faults_of_a_builder_are_not_taken_for_the_disks(store: Store) -> None:
    def build(space: Workspace) -> StepOutput:
        raise ConnectionResetError(104, "reset by peer")

    with pytest.raises(ConnectionResetError):
        store.make(Step("labels", version=1), config={}, build=build)


@pytest.mark.parametrize("location", ["", " ", "s3://", "s3:///", "https://bucket/prefix", "s3:/bucket/prefix", "s3:bucket", "s3:", "file:/folder"])
def test_a_store_that_is_no_location_is_refused_by_name(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIML_STORE", location)
    with pytest.raises(SettingsError, match="ANIML_STORE does not fit: expected a folder or s3://bucket/prefix"):
        load_settings()


def test_a_folder_where_a_file_should_be_is_one_clear_line(store: Store, tmp_path: Path) -> None:
    first = make(store, Builder())
    manifest = tmp_path / "store" / "steps" / "labels" / first.key / "manifest.json"
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read \(Is a directory\); mend or remove it"):
        make(store, Builder())
    (tmp_path / "store" / "blobs").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be read"):
        store.has_blob("0" * 64, 1)


def test_a_report_that_does_not_fit_says_to_retrain(store: Store) -> None:
    store.object_store.put("reports/isle/newest.json", b'{"model": "isle"')
    with pytest.raises(EvaluationError, match="not one of this version; run `animl-pipeline retrain PLAN` again"):
        newest_report("isle", store)


def test_a_full_disk_is_one_clear_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full, which always answers that the disk is full")
    from animl_pipeline.storage.object_store import disk

    with pytest.raises(StoreError, match="is full"), disk(full), full.open("w") as f:
        f.write("x" * 100_000)

"""The step cache: a step is there completely or not at all, reused while unchanged, made again otherwise; in a folder and in S3."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import DamagedError, StoreError
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.tables import write_parquet
from animl_pipeline.storage.store import BlobColumn, StepOutput, Store, Workspace, open_store

LABELS = Step("labels", version=1)
IMAGES = Step("images", version=1)


class Builder:
    """Builds a step with one file, and counts how often it ran."""

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


def make(store: Store, build: Callable[[Workspace], StepOutput], **config: int) -> Artifact:
    return store.make(LABELS, config=config, build=build)


# -- reuse ---------------------------------------------------------------------------------------------------------------


def test_a_step_is_made_once_and_its_file_is_there(any_store: Store) -> None:
    build = Builder()
    first, second = make(any_store, build), make(any_store, build)
    assert build.runs == 1
    assert (first.cached, second.cached) == (False, True)
    assert first == second.model_copy(update={"cached": False})
    assert any_store.path(second, "sub/a.txt").read_text() == "made"


def test_another_config_makes_another_step_and_the_same_content_has_the_same_digest(any_store: Store) -> None:
    build = Builder()
    one, two = make(any_store, build, a=1), make(any_store, build, a=2)
    assert build.runs == 2
    assert one.key != two.key
    assert one.digest == two.digest


def test_a_failed_step_is_not_stored_and_the_next_try_finds_its_scratch(store: Store) -> None:
    with pytest.raises(RuntimeError):
        make(store, Builder(fail=True))
    assert not list(store.object_store.names("steps/"))
    seen = []

    def second(space: Workspace) -> StepOutput:
        seen.append((space.scratch / "begun").exists())
        return StepOutput(Counts(kept=0))

    make(store, second)
    assert seen == [True]


def test_a_step_that_is_not_final_is_made_again_by_the_next_run(store: Store) -> None:
    def build(space: Workspace) -> StepOutput:
        return StepOutput(Counts(kept=0), final=False)

    assert [make(store, build).cached for _ in range(2)] == [False, False]


# -- damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["delete", "alter"])
def test_a_step_whose_file_is_missing_or_changed_is_made_again(store: Store, change: str) -> None:
    build = Builder()
    path = store.path(make(store, build), "sub/a.txt")
    path.unlink() if change == "delete" else path.write_text("evil")
    again = make(store, build)
    assert build.runs == 2
    assert not again.cached
    assert store.path(again, "sub/a.txt").read_text() == "made"


@pytest.mark.parametrize("field", ["step", "key", "digest"])
def test_a_step_whose_manifest_was_changed_is_made_again(store: Store, field: str) -> None:
    build = Builder()
    first = make(store, build)
    name = f"steps/labels/{first.key}/manifest.json"
    manifest = json.loads(store.object_store.read(name) or b"")
    store.object_store.put(name, json.dumps(manifest | {field: "0" * 64}).encode())
    again = make(store, build)
    assert (again.cached, again.digest, build.runs) == (False, first.digest, 2)


def test_a_manifest_with_any_changed_byte_is_never_taken(store: Store) -> None:
    made = make(store, Builder(), n=1)
    name = f"steps/labels/{made.key}/manifest.json"
    data = store.object_store.read(name) or b""
    assert store.manifest(made).counts == made.counts
    for at in range(0, len(data), 7):
        for damaged in (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], data[:at]):
            store.object_store.put(name, damaged, durable=False)
            try:
                found = store.manifest(made)
            except DamagedError:
                continue
            assert json.loads(damaged) == json.loads(data), damaged[at - 20 : at + 20]  # only white space differs
            assert found.counts == made.counts
    store.object_store.put(name, data)
    without = json.loads(data) | {"checksum": ""}
    store.object_store.put(name, json.dumps(without).encode())  # as earlier versions wrote it
    assert make(store, Builder(), n=1).cached


def test_a_step_whose_blob_is_missing_is_made_again(store: Store) -> None:
    def build(space: Workspace) -> StepOutput:
        sha256 = store.put_blob(b"image")
        write_parquet(space.out / "t.parquet", pd.DataFrame({"blob": [sha256], "bytes": [5]}))
        return StepOutput(Counts(kept=1), blobs=(BlobColumn(file="t.parquet"),))

    first = store.make(IMAGES, build=build)
    sha256 = store.table(first, "t.parquet")["blob"][0]
    assert store.make(IMAGES, build=build).cached
    store.object_store.delete(f"blobs/{sha256[:2]}/{sha256}")
    assert not store.make(IMAGES, build=build).cached
    assert store.blob(sha256) == b"image"


def test_a_changed_blob_is_noticed_and_removed(store: Store) -> None:
    sha256 = store.put_blob(b"image")
    store.object_store.put(f"blobs/{sha256[:2]}/{sha256}", b"imape")
    with pytest.raises(DamagedError):
        store.blob(sha256)
    assert not store.has_blob(sha256, 5)


# -- errors of the disk --------------------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError) as caught:
        open_store(Settings(store=str(tmp_path / "file" / "store")))
    assert caught.value.code == "cannot_write"


def test_a_folder_in_place_of_a_file_is_a_clear_error(store: Store, tmp_path: Path) -> None:
    first = make(store, Builder())
    manifest = tmp_path / "store" / "steps" / "labels" / first.key / "manifest.json"
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(StoreError) as caught:
        make(store, Builder())
    assert caught.value.code == "cannot_read"
    (tmp_path / "store" / "blobs").write_text("in the way")
    with pytest.raises(StoreError) as caught:
        store.has_blob("0" * 64, 1)
    assert caught.value.code == "cannot_read"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which always answers that the disk is full")
def test_a_full_disk_while_a_step_writes_is_a_clear_error(store: Store) -> None:
    def build(space: Workspace) -> StepOutput:
        (space.out / "a.txt").symlink_to("/dev/full")
        (space.out / "a.txt").write_bytes(b"x" * 100_000)
        return StepOutput(Counts(kept=1))

    with pytest.raises(StoreError) as caught:
        make(store, build)
    assert caught.value.code == "disk_full"
    assert make(store, Builder()).counts.kept == 1


def test_other_errors_of_a_builder_stay_what_they_are(store: Store) -> None:
    def build(space: Workspace) -> StepOutput:
        raise ConnectionResetError(104, "reset by peer")

    with pytest.raises(ConnectionResetError):
        make(store, build)


# -- several runs at a time ----------------------------------------------------------------------------------------------


def test_of_two_runs_at_once_one_makes_the_step_and_the_other_waits(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    begun, go_on = threading.Event(), threading.Event()
    build = Builder()

    def slow(space: Workspace) -> StepOutput:
        begun.set()
        assert go_on.wait(30)
        return build(space)

    with ThreadPoolExecutor(2) as pool, caplog.at_level(logging.INFO, logger="animl_pipeline"):
        first = pool.submit(make, store, slow)
        assert begun.wait(30)
        second = pool.submit(make, store, build)
        deadline = time.monotonic() + 30
        while "waiting for it to finish" not in caplog.text and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        go_on.set()
        assert (first.result().cached, second.result().cached) == (False, True)
    assert build.runs == 1
    assert "waiting for it to finish" in caplog.text


# -- the store's address and format ---------------------------------------------------------------------------------------


def test_an_explicit_address_wins_over_the_settings(settings: Settings, tmp_path: Path) -> None:
    other = open_store(settings, str(tmp_path / "other"))
    assert other.local == tmp_path / "other"
    with pytest.raises(StoreError) as caught:
        open_store(settings, "s3:/bucket")
    assert caught.value.code == "store_address"


def test_a_new_store_gets_a_format_file(any_store: Store) -> None:
    assert json.loads(any_store.object_store.read("format.json") or b"") == {"format": 2}


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("format.json", b'{"format": 1}', 1),
        ("format.json", b'{"format": 3}', 3),
        ("format.json", b"{", "unreadable"),
        ("steps/labels/0/manifest.json", b"{}", "none"),
        ("memory/images/1.jsonl", b"", "none"),
    ],
)
def test_a_store_of_another_format_is_refused(tmp_path: Path, name: str, data: bytes, found: object) -> None:
    path = tmp_path / "store" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        open_store(Settings(store=str(tmp_path / "store")))
    assert (caught.value.code, caught.value.details) == ("store_format", {"expected": 2, "found": found})
    assert "\n" not in str(caught.value)

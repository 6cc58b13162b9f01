"""Object stores: whole objects in a folder and in S3, and errors that say whether another try may help."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from animl_pipeline.core.errors import StoreError, StoreUnreachableError
from animl_pipeline.storage import atomic_files
from animl_pipeline.storage.atomic_files import disk_errors, write_atomic
from animl_pipeline.storage.object_store import FolderObjectStore, ObjectStore, S3ObjectStore


@pytest.fixture(params=["folder", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return FolderObjectStore(tmp_path / "store")
    return S3ObjectStore(f"s3://{request.getfixturevalue('bucket')}/store")


def test_objects_are_written_listed_and_deleted(objects: ObjectStore) -> None:
    objects.put("a/1", b"one")
    objects.put_new("a/2", b"two", durable=False)
    objects.flush()
    assert [objects.read(name) for name in ("a/1", "a/2", "a/3")] == [b"one", b"two", None]
    assert objects.sizes(["a/3", "a/1"]) == [None, 3]
    assert objects.sizes([f"a/{i}" for i in range(7)]) == [None, 3, 3, None, None, None, None]
    assert list(objects.names("a/")) == ["a/1", "a/2"]
    assert objects.total_bytes() == 6
    objects.delete_many(["a/1", "a/2", "a/3"])
    assert list(objects.objects("")) == []


def test_an_object_of_the_same_size_is_not_written_again(objects: ObjectStore) -> None:
    objects.put("a", b"one")
    objects.put_new("a", b"two")
    assert objects.read("a") == b"one"
    objects.put_new("a", b"three")
    assert objects.read("a") == b"three"


def test_a_file_is_moved_in_and_fetched(objects: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    objects.put_file("steps/file", tmp_path / "file")
    assert not (tmp_path / "file").exists()
    objects.fetch("steps/file", tmp_path / "store" / "steps" / "file")
    assert (tmp_path / "store" / "steps" / "file").read_bytes() == b"data"


def test_an_s3_store_that_does_not_answer_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreUnreachableError):
        S3ObjectStore("s3://bucket/store").read("a")


def test_a_bucket_that_does_not_exist_is_for_a_person_to_fix(bucket: str) -> None:
    with pytest.raises(StoreError) as caught:
        S3ObjectStore(f"s3://{bucket}-no/store").read("a")
    assert (type(caught.value), caught.value.retryable) == (StoreError, False)


def test_a_file_that_cannot_be_renamed_across_disks_is_written_beside_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def across_disks(self: Path, target: Path) -> Path:
        if self.parent != target.parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return replace(self, target)

    monkeypatch.setattr(atomic_files.Path, "replace", across_disks)
    FolderObjectStore(tmp_path).put("a/b", b"data")
    assert (tmp_path / "a" / "b").read_bytes() == b"data"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / "a" / "b"]


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a", b"old")

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError):
        write_atomic(tmp_path / "a", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which always answers that the disk is full")
def test_a_full_disk_is_a_clear_error() -> None:
    with pytest.raises(StoreError) as caught, disk_errors(Path("/dev/full")), Path("/dev/full").open("w") as f:
        f.write("x" * 100_000)
    assert caught.value.code == "disk_full"


def test_a_file_larger_than_the_system_allows_is_the_same_error(tmp_path: Path) -> None:
    writer = """
import resource, signal, sys
from pathlib import Path
from animl_pipeline.core.errors import StoreError
from animl_pipeline.storage.atomic_files import full_disk_errors, write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
folder = Path(sys.argv[1])
for write in (lambda: write_atomic(folder / "a", bytes(5000)), lambda: (folder / "b").write_bytes(bytes(5000))):
    try:
        with full_disk_errors(folder / "b"):
            write()
    except StoreError as e:
        print(e.code)
"""
    done = subprocess.run([sys.executable, "-c", writer, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["disk_full", "disk_full"]
    assert not (tmp_path / "a").exists()


def test_missing_credentials_are_for_a_person_to_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.setup_default_session()
    with pytest.raises(StoreError) as caught:
        S3ObjectStore("s3://bucket/store").read("a")
    assert (caught.value.code, caught.value.retryable) == ("refused", False)


def test_files_of_a_killed_process_go_with_the_next_write_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    writer = """
import os, sys, time
from pathlib import Path
from animl_pipeline.storage.atomic_files import MACHINE, TEMPORARY
(Path(sys.argv[1]) / f"{TEMPORARY}{MACHINE}-{os.getpid()}-x").write_bytes(b"half")
print("ready", flush=True)
time.sleep(600)
"""
    parts = tmp_path / "work" / "parts"
    parts.mkdir(parents=True)
    killed, living = (subprocess.Popen([sys.executable, "-c", writer, str(parts)], stdout=subprocess.PIPE, text=True) for _ in range(2))
    try:
        for process in (killed, living):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        killed.kill()
        killed.wait()
        FolderObjectStore(tmp_path).put("a", b"one")
        assert [p.name.split("-")[-2] for p in parts.iterdir()] == [str(living.pid)]
    finally:
        for process in (killed, living):
            process.kill()
            process.communicate()

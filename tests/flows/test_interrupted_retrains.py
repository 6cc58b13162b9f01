"""Retrains that are killed, or whose disk is full: run again, they end with the digests of a run without interruption.

``ANIML_TEST_KILLS`` is the number of kills (5 if it is not set).
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.storage.manifest import Manifest
from animl_pipeline.storage.store import open_store
from tests.support.command_line import COMMAND
from tests.support.paths import ROOT
from tests.support.tiny_project import write_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

KILLS = int(os.environ.get("ANIML_TEST_KILLS", "5"))
DISK_SIZES = ["50k", "200k", "400k", "700k", "1m", "3m", "10m", "25m", "50m", "75m", "100m"]
"""From the first images of an export to the last files of a training's output."""
ENOUGH = "600m"

Digests = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("island"))


def start_retrain(plan: Path, home: Path, store: Path) -> subprocess.Popen[str]:
    home.mkdir(exist_ok=True)
    own = {"ANIML_STORE": str(store), "ANIML_CACHE": str(home / "cache"), "PREFECT_HOME": str(home / "prefect"), "OMP_NUM_THREADS": "1"}
    line = [*COMMAND, "retrain", str(plan)]
    return subprocess.Popen(line, cwd=ROOT, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def digests_of_steps(store: Path, home: Path) -> Digests:
    """The digest of every artifact in the store, by step and key."""
    objects = open_store(Settings(store=str(store), cache=home / "cache")).object_store
    read = (Manifest.model_validate_json(objects.read(name) or b"") for name in objects.names("steps/") if name.endswith("/manifest.json"))
    return {(m.step, m.key): m.digest for m in read}


@pytest.fixture(scope="module")
def uninterrupted(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Digests:
    home = tmp_path_factory.mktemp("uninterrupted")
    process = start_retrain(plan, home, home / "store")
    shown = process.communicate()[0]
    assert process.returncode == 0, shown
    return digests_of_steps(home / "store", home)


def test_killed_retrains_end_with_the_same_digests(plan: Path, uninterrupted: Digests, tmp_path: Path) -> None:
    """Each retrain is killed when it has written a few files more than the one before."""
    chance, kills, finished = random.Random(0), 0, 0  # noqa: S311 - reproducible, not secret
    while kills < KILLS or not finished:
        home = tmp_path / f"home-{finished}"
        process = start_retrain(plan, home, home / "store")
        if kills < KILLS and kill_after_files(process, home / "store", chance.randint(1, 30)):
            kills += 1
            continue
        shown = process.communicate()[0]
        assert process.returncode == 0, shown
        assert digests_of_steps(home / "store", home) == uninterrupted
        finished += 1
    print(f"{kills} kills, {finished} retrains")  # noqa: T201 - shown with -s


def kill_after_files(process: subprocess.Popen[str], store: Path, more: int) -> bool:
    """Kill a retrain as soon as its store has so many more files. False if it ended before."""
    goal = files_in(store) + more
    while files_in(store) < goal:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
            return False
    os.killpg(process.pid, 9)
    process.communicate()
    return True


def files_in(store: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(store))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own in memory at ``folder``."""
    folder.mkdir()
    mounted = subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["/usr/bin/umount", "--lazy", folder], check=True)


def test_retrains_with_a_full_disk_say_so_and_end_with_the_same_digests(plan: Path, uninterrupted: Digests, tmp_path: Path) -> None:
    disk, full = tmp_path / "disk", 0
    with small_disk(disk, DISK_SIZES[0]):
        for size in [*DISK_SIZES, ENOUGH]:
            subprocess.run(["/usr/bin/mount", "-o", f"remount,size={size}", disk], check=True)
            process = start_retrain(plan, tmp_path, disk / "store")
            shown = process.communicate()[0]
            print(size, process.returncode, shown.strip().splitlines()[-1])  # noqa: T201 - shown with -s
            assert "Traceback" not in shown
            assert process.returncode == 0 or "is full" in shown
            full += process.returncode == 1
            if process.returncode == 0:
                assert digests_of_steps(disk / "store", tmp_path) == uninterrupted
        assert process.returncode == 0
        assert full >= 8

"""Detection and cropping on a Dask cluster of real processes: killed workers change nothing in the result, and workers need no setting."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from distributed import Client
from PIL import Image

from animl_pipeline.config.settings import Settings
from flows.detect_and_crop_on_cluster import cluster_task_runner
from tests.support.coco_export import Export
from tests.support.command_line import COMMAND
from tests.support.detectors import build_checkpoint
from tests.support.endpoint_process import wait_until
from tests.support.team_server import ROOT, free_port, kill, stop
from tests.support.tiny_project import COLOURS, draw_image, write_plan

LOCATIONS, EACH, LARGER, SHARES = 8, 10, 16, 6
IMAGES = LOCATIONS * EACH * len(COLOURS)

WORKERS = ("survivor", "detecting", "cropping")
KILLED = (("detecting", "detect", "detections", "run_detector_share"), ("cropping", "crop", "crops", "extract_crops_share"))
"""One after another: the worker, the tasks that it runs when it is killed, the image index that they fill, and their function."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Cluster(NamedTuple):
    """A scheduler's address, its workers' processes by their names, a client of it, and the folder of their logs."""

    address: str
    workers: dict[str, subprocess.Popen[bytes]]
    client: Client
    folder: Path

    def lost_workers(self) -> list[dict[str, Any]]:
        """What the scheduler noted of each worker that it lost."""
        return [event for _, event in self.client.get_events("all") if event.get("action") == "remove-worker"]

    def shares_of(self, worker: str, kind: str) -> set[int]:
        """The shares that a worker has finished, by its log."""
        log = (self.folder / f"{worker}.log").read_text(errors="replace")
        return {int(share) for share in re.findall(rf"Task run '{kind} (\d+) of {SHARES}' - Finished in state Completed", log)}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose images take some milliseconds to decode. Every second annotation has no box, so that the detector finds one."""
    folder = tmp_path_factory.mktemp("isle")
    e = Export()
    for seed, (location, name) in enumerate((p, c) for p in range(LOCATIONS) for c in COLOURS for _ in range(EACH)):
        data, bbox = draw_image(COLOURS[name], seed)
        image = e.image(f"p{location}", data=enlarge(data), width=96 * LARGER, height=72 * LARGER)
        e.annotation(image, list(COLOURS).index(name) + 1, None if seed % 2 else [v * LARGER for v in bbox])
    e.categories = [{"id": 0, "name": "empty"}, *({"id": i + 1, "name": n} for i, n in enumerate(COLOURS))]
    e.write(folder)
    build_checkpoint(folder / "untrained.pt", {0: "animal"})
    detections = {
        "source": "auto",
        "detector": "untrained.pt",  # relative: the run's data folder reaches the workers
        "image_size": 256,
        "confidence": 1e-6,
        "batch_size": 4,
        "repeat_min_occasions": None,
    }
    sources = [{"name": "isle", "export": "export.json", "images": "images"}]
    return write_plan(folder, sources=sources, detections=detections, crops={"max_per_image_level_label": 1})


def enlarge(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).resize((96 * LARGER, 72 * LARGER), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def environment(prefect_address: str, plan: Path) -> dict[str, str]:
    """The environment of the workers: Prefect's server, a home folder, one thread each, and no variable of this pipeline."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ANIML_", "DASK_"))}
    return ours | {
        "PREFECT_API_URL": prefect_address,
        "PREFECT_HOME": str(plan.parent / "home"),
        "HOME": str(plan.parent / "home"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }


@pytest.fixture(scope="module")
def local_store(plan: Path, environment: dict[str, str]) -> Path:
    """The store of a run without a cluster."""
    store = plan.parent / "local"
    done = subprocess.run(retrain(plan, store), cwd=ROOT, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return store


def retrain(plan: Path, store: Path) -> list[str]:
    return [*COMMAND, "retrain", str(plan), "--store", str(store), "--data", str(plan.parent)]


@contextmanager
def cluster(folder: Path, environment: dict[str, str], workers: tuple[str, ...] = WORKERS) -> Iterator[Cluster]:
    """A Dask scheduler and workers of one thread each, in a folder of their own, without nannies that would restart a killed one."""
    (folder / "elsewhere").mkdir()
    with ExitStack() as running:

        def start(name: str, *words: str) -> subprocess.Popen[bytes]:
            with (folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "dask", *words],
                    cwd=folder / "elsewhere",
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            running.callback(stop, process)
            return process

        port = free_port()
        address, quiet = f"tcp://127.0.0.1:{port}", ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        scheduler = start("scheduler", "scheduler", "--port", str(port), *quiet)
        wait_until(lambda: scheduler.poll() is not None or "Scheduler at" in (folder / "scheduler.log").read_text(), "the scheduler runs")
        options = ["--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--local-directory", str(folder / "dask"), *quiet]
        processes = {name: start(name, "worker", address, "--name", name, *options) for name in workers}
        with Client(address, set_as_default=False, timeout=60) as client:
            if workers:
                client.wait_for_workers(len(workers), timeout=120)
            yield Cluster(address, processes, client, folder)


def flow_runs(address: str, name: str) -> list[dict[str, Any]]:
    """The runs of a flow that Prefect's server knows."""
    answer = requests.post(f"{address}/flow_runs/filter", json={"flows": {"name": {"any_": [name]}}}, timeout=60)
    answer.raise_for_status()
    runs: list[dict[str, Any]] = answer.json()
    return runs


def digests(store: Path) -> dict[str, str]:
    """A step's name → the digest of its artifact."""
    manifests = [json.loads(m.read_text(encoding="utf-8")) for m in store.glob("steps/*/*/manifest.json")]
    return {m["step"]: m["digest"] for m in manifests}


def test_workers_without_settings_that_are_killed_at_work_change_nothing_in_the_result(
    plan: Path, environment: dict[str, str], local_store: Path, tmp_path: Path
) -> None:
    store, run_log = tmp_path / "store", tmp_path / "run.log"
    assert not [name for name in environment if name.startswith("ANIML_")]
    with cluster(tmp_path, environment) as dask, run_log.open("wb") as log:
        ours = environment | {"ANIML_TASK_RUNNER": f"dask:{dask.address}", "ANIML_CLUSTER_BATCHES": str(SHARES)}
        run = subprocess.Popen(
            retrain(plan, store), cwd=ROOT, env=ours, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            for dead, (worker, _, index, _) in enumerate(KILLED, start=1):
                records = store / "index" / index
                wait_until(lambda m=records: run.poll() is not None or list(m.rglob("*.jsonl")), f"the first {index} are recorded", seconds=180)
                kill(dask.workers[worker])
                wait_until(lambda n=dead: len(dask.lost_workers()) == n, f"the scheduler misses the worker {worker!r}")
            wait_until(lambda: run.poll() is not None, "the run ends", seconds=180)
            lost_workers = dask.lost_workers()
        finally:
            kill(run)
        assert run.returncode == 0, run_log.read_text()
    for dead, (_, kind, _, function) in enumerate(KILLED, start=1):
        lost = [key for key in lost_workers[dead - 1]["processing-tasks"] if key.startswith(f"{function}-")]
        finished = {worker: dask.shares_of(worker, kind) for worker in WORKERS}
        left = set(WORKERS) - {worker for worker, *_ in KILLED[:dead]}
        assert lost, f"the killed worker ran no task: {finished} {lost_workers[dead - 1]['processing-tasks']}"
        assert len(set.union(*(finished[worker] for worker in left))) >= len(lost), finished
        assert set.union(*finished.values()) == set(range(SHARES)), finished
        runs = flow_runs(environment["PREFECT_API_URL"], kind)
        assert [(r["state_name"], r["parent_task_run_id"] is not None) for r in runs] == [("Completed", True)], "shown below the training's run"
    finished_earlier = re.findall(r"(\d+) images(?: for \S+)?, (\d+) of them finished earlier", run_log.read_text())
    assert finished_earlier == [(str(IMAGES // 2),) * 2, (str(IMAGES),) * 2], "nothing was left for the steps themselves"
    assert digests(local_store).keys() >= {"detections", "crops", "package"}
    assert digests(store) == digests(local_store)


@pytest.mark.parametrize(("runner", "fault"), [("dask:nonsense", "dask:nonsense"), ("dask:tcp://127.0.0.1:{port}", "Timed out")])
def test_a_missing_cluster_is_one_line(plan: Path, environment: dict[str, str], local_store: Path, runner: str, fault: str) -> None:
    ours = environment | {"ANIML_TASK_RUNNER": runner.format(port=free_port()), "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"}
    other = plan.parent / "other.yaml"
    other.write_text(plan.read_text().replace("confidence: 1.0e-06", "confidence: 2.0e-06"))
    done = subprocess.run(retrain(other, local_store), cwd=ROOT, capture_output=True, text=True, env=ours, timeout=120, check=False)
    line = done.stderr.splitlines()[-1]
    assert (done.returncode, "ANIML_TASK_RUNNER" in line, fault in line) == (2, True, True), done.stderr


def test_a_cluster_without_workers_is_logged(environment: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cluster(tmp_path, environment, workers=()) as dask, caplog.at_level("WARNING", logger="animl_pipeline"):
        cluster_task_runner(Settings(task_runner=f"dask:{dask.address}"))
    assert dask.address in caplog.text

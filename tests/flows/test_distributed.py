"""Looking and cutting spread over a Dask cluster of real processes: a worker that is killed changes nothing of what comes out."""

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
from flows.distributed import task_runner
from tests.support.coco_export import Export
from tests.support.detectors import build_checkpoint
from tests.support.endpoint_process import wait_until
from tests.support.team_server import ROOT, free_port, kill, stop
from tests.support.tiny_project import COLOURS, draw_image, write_plan

LOCATIONS, EACH, LARGER, SHARES = 8, 10, 16, 6
IMAGES = LOCATIONS * EACH * len(COLOURS)

WORKERS = ("survivor", "looker", "cutter")
KILLED = (("looker", "look", "detections"), ("cutter", "cut", "crops"))
"""One after another: the worker, the tasks that it has in hand then, and under what their answers are remembered."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Cluster(NamedTuple):
    """A scheduler's address, its workers' processes by their names, a client of it, and the folder of their logs."""

    address: str
    workers: dict[str, subprocess.Popen[bytes]]
    client: Client
    folder: Path

    def missed(self) -> list[dict[str, Any]]:
        """What the scheduler noted of each worker that it had to do without."""
        return [event for _, event in self.client.get_events("all") if event.get("action") == "remove-worker"]

    def shares_of(self, worker: str, kind: str) -> set[int]:
        """The shares that a worker says it has finished."""
        said = (self.folder / f"{worker}.log").read_text(errors="replace")
        return {int(share) for share in re.findall(rf"Task run '{kind} (\d+) of {SHARES}' - Finished in state Completed", said)}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An island whose pictures take some milliseconds to decode; every second object has no box, which a detector that nobody trained finds."""
    folder = tmp_path_factory.mktemp("isle")
    e = Export()
    for seed, (location, name) in enumerate((p, c) for p in range(LOCATIONS) for c in COLOURS for _ in range(EACH)):
        data, bbox = draw_image(COLOURS[name], seed)
        image = e.image(f"p{location}", data=enlarged(data), width=96 * LARGER, height=72 * LARGER)
        e.annotation(image, list(COLOURS).index(name) + 1, None if seed % 2 else [v * LARGER for v in bbox])
    e.categories = [{"id": 0, "name": "empty"}, *({"id": i + 1, "name": n} for i, n in enumerate(COLOURS))]
    e.write(folder)
    detector = build_checkpoint(folder / "untrained.pt", {0: "animal"})
    seeing = {"source": "auto", "detector": str(detector), "image_size": 256, "confidence": 1e-6, "batch_size": 4, "repeat_min_occasions": None}
    return write_plan(folder, detections=seeing, crops={"max_per_image_level_label": 1})


def enlarged(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).resize((96 * LARGER, 72 * LARGER), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def environment(prefect_address: str, plan: Path) -> dict[str, str]:
    """What runs and workers share: Prefect's server, the cache of weights, one thread each."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ANIML_", "DASK_"))}
    return ours | {
        "PREFECT_API_URL": prefect_address,
        "PREFECT_HOME": str(plan.parent / "home"),
        "ANIML_CACHE": str(plan.parent / "cache"),
        "ANIML_WORKERS": "1",  # so that the work takes longer than a look at it
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }


@pytest.fixture(scope="module")
def alone(plan: Path, environment: dict[str, str]) -> Path:
    """The store of a run in one process."""
    store = plan.parent / "alone"
    told = environment | {"ANIML_STORE": str(store), "ANIML_TASK_RUNNER": "threads"}
    done = subprocess.run(retrain(plan), cwd=ROOT, capture_output=True, text=True, env=told, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return store


def retrain(plan: Path) -> list[str]:
    return [sys.executable, "-m", "animl_pipeline.cli.main", "retrain", str(plan)]


@contextmanager
def cluster(folder: Path, environment: dict[str, str], workers: tuple[str, ...] = WORKERS) -> Iterator[Cluster]:
    """A Dask scheduler and workers of one thread each, without nannies that would start a killed one anew."""
    with ExitStack() as running:

        def started(name: str, *words: str) -> subprocess.Popen[bytes]:
            with (folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "dask", *words],
                    cwd=ROOT,
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
        scheduler = started("scheduler", "scheduler", "--port", str(port), *quiet)
        wait_until(lambda: scheduler.poll() is not None or "Scheduler at" in (folder / "scheduler.log").read_text(), "the scheduler is up")
        options = ["--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--local-directory", str(folder / "dask"), *quiet]
        processes = {name: started(name, "worker", address, "--name", name, *options) for name in workers}
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
    """A step's name → the digest of what it made."""
    made = [json.loads(m.read_text(encoding="utf-8")) for m in store.glob("steps/*/*/manifest.json")]
    return {m["step"]: m["digest"] for m in made}


def test_workers_killed_with_work_in_hand_change_nothing_of_what_comes_out(
    plan: Path, environment: dict[str, str], alone: Path, tmp_path: Path
) -> None:
    store, said = tmp_path / "store", tmp_path / "run.log"
    shared = environment | {"ANIML_STORE": str(store)}
    with cluster(tmp_path, shared) as dask, said.open("wb") as log:
        told = shared | {"ANIML_TASK_RUNNER": f"dask:{dask.address}", "ANIML_CLUSTER_BATCHES": str(SHARES)}
        run = subprocess.Popen(
            retrain(plan), cwd=ROOT, env=told, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            for dead, (worker, _, remembered) in enumerate(KILLED, start=1):
                memory = store / "index" / remembered
                wait_until(lambda m=memory: run.poll() is not None or list(m.rglob("*.jsonl")), f"first {remembered} are remembered", seconds=180)
                kill(dask.workers[worker])
                wait_until(lambda n=dead: len(dask.missed()) == n, f"the scheduler misses the {worker}")
            wait_until(lambda: run.poll() is not None, "the run ends", seconds=180)
            missed = dask.missed()
        finally:
            kill(run)
        assert run.returncode == 0, said.read_text()
    for dead, (_, kind, _) in enumerate(KILLED, start=1):
        lost = [key for key in missed[dead - 1]["processing-tasks"] if key.startswith(f"{kind}_")]
        finished = {worker: dask.shares_of(worker, kind) for worker in WORKERS}
        left = set(WORKERS) - {worker for worker, *_ in KILLED[:dead]}
        assert lost, f"the killed worker had nothing in hand: {finished}"
        assert len(set.union(*(finished[worker] for worker in left))) >= len(lost), finished
        assert set.union(*finished.values()) == set(range(SHARES)), finished
        runs = flow_runs(environment["PREFECT_API_URL"], kind)
        assert [(r["state_name"], r["parent_task_run_id"] is not None) for r in runs] == [("Completed", True)], "shown below the run that spread it"
    known = re.findall(r"(\d+) pictures(?: for \S+)?, (\d+) of them (?:seen|cut) before", said.read_text())
    assert known == [(str(IMAGES // 2),) * 2, (str(IMAGES),) * 2], "the steps themselves had nothing left to look at or to cut"
    assert digests(alone).keys() >= {"detections", "crops", "package"}
    assert digests(store) == digests(alone)


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        ("dask:nonsense", "expected a scheduler's address, such as dask:tcp://10.0.0.5:8786, found dask:nonsense"),
        ("dask:tcp://127.0.0.1:{port}", "expected a cluster that answers at dask:tcp://127.0.0.1:{port}, found none (Timed out"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(plan: Path, environment: dict[str, str], alone: Path, runner: str, message: str) -> None:
    port = free_port()
    told = environment | {"ANIML_STORE": str(alone), "ANIML_TASK_RUNNER": runner.format(port=port), "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"}
    (plan.parent / "more.yaml").write_text(plan.read_text().replace("confidence: 1.0e-06", "confidence: 2.0e-06"))
    done = subprocess.run(retrain(plan.parent / "more.yaml"), cwd=ROOT, capture_output=True, text=True, env=told, timeout=120, check=False)
    assert (done.returncode, message.format(port=port) in done.stderr.splitlines()[-1]) == (2, True), done.stderr


def test_a_cluster_without_workers_is_told(environment: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cluster(tmp_path, environment, workers=()) as dask, caplog.at_level("WARNING", logger="animl_pipeline"):
        task_runner(Settings(task_runner=f"dask:{dask.address}"))
    assert f"the cluster at {dask.address} has no worker yet" in caplog.text

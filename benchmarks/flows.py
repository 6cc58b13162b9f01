"""What Prefect costs: the sample's pipeline as a flow on a running server, beside the same steps called one after the other.

Each side is a process of its own with its own store, by turns. The server's CPU seconds while a flow runs are added to the
flow's, less what it takes idle beside the other side; its start is shown apart. Then the flow runs again with everything in
the store: CPU and wall seconds from the command to its end, beside a flow of as many tasks that do nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import requests
from measure import conclude, measured, show

from animl_pipeline.dev.synthetic_dataset import write_synthetic_dataset

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "deployments" / "plans" / "sample.yaml"
MOST_OVERHEAD = 0.05
MOST_CACHED_S = 3.0
TASKS = 16
"""Tasks of a run of the sample."""


def steps(plan_file: str) -> None:
    """The pipeline without Prefect: what the flow does, step by step."""
    from animl_pipeline.config import load_plan
    from animl_pipeline.config.settings import load_settings
    from animl_pipeline.deploy.released_model import find_champion_for_step
    from animl_pipeline.deploy.trained_versions import record_training
    from animl_pipeline.steps import calibration, crops, detections, evaluation, export, images, labels, package, splits, training
    from animl_pipeline.storage.store import open_store

    begun, plan, settings = datetime.now(UTC), load_plan(Path(plan_file)), load_settings()
    store = open_store(settings)
    (source,) = plan.sources
    exported = export.export_annotations(source, store, settings)
    wanted = labels.wanted_labels(plan.labels, source.name, settings)
    limits = labels.limits_of_classes(source, exported, plan.labels, store, settings)
    downloaded = images.download_images(source, exported, wanted, store, settings, plan.images, limits=limits)
    found = [labels.SourceArtifacts(source, exported, downloaded)]
    labelled = labels.resolve_labels(found, plan.labels, store, settings)
    detected = detections.detect_animals(labelled, plan.detections, store, settings)
    cropped = crops.extract_crops(labelled, detected, plan.crops, plan.model_input, store, settings)
    split = splits.split_by_location(cropped, plan.splits, tuple(plan.labels.classes), store, plan.model)
    assert plan.production
    test = labels.choose_test_images(found, split, plan.labels, plan.production, plan.splits, store, settings)
    seen = images.download_test_images(source, test, store, settings, plan.images)
    boxes = detections.detect_in_test_images(test, {source.name: seen}, plan.detections, plan.production, store, settings)
    trained = training.train_classifier(cropped, split, plan, store, settings)
    calibrated = calibration.calibrate_classifier(trained, cropped, split, plan.thresholds, store)
    made = (exported, downloaded, labelled, detected, cropped, split, test, seen, boxes, trained, calibrated)
    scored = evaluation.evaluate_classifier(
        calibrated, cropped, split, plan, store,
        champion=find_champion_for_step(plan, calibrated, store).package,
        step_counts=tuple((a.step, a.counts) for a in made),
        sequences=evaluation.SequenceArtifacts(test, boxes),
        training=trained,
    )  # fmt: skip
    packed = package.package_model(calibrated, scored, plan.package, store)
    record_training(plan, trained, scored, packed, [(a.step, a.counts) for a in (*made, scored, packed)], begun, store)
    print(json.dumps({"package": packed.digest}))


def empty(_: str) -> None:
    """A flow of ``TASKS`` tasks that do nothing: what Prefect takes whatever is done with it."""
    from prefect import flow, task

    @task
    def nothing(before: int) -> int:
        return before + 1

    @flow
    def chain() -> int:
        made = nothing.submit(0)
        for _ in range(TASKS - 1):
            made = nothing.submit(made)  # Prefect waits for the future and hands over its result
        return made.result()

    begun = time.monotonic()
    assert chain() == TASKS
    print(json.dumps({"s": time.monotonic() - begun}))


def flow(plan_file: str) -> None:
    """The flow, as the command line runs it."""
    from animl_pipeline.cli.prefect_connection import prepare_prefect

    prepare_prefect()
    from flows.retrain import retrain

    begun = time.monotonic()
    report = retrain(plan_file)
    cached = all(a.cached for a in (report.model_artifact, report.package))
    print(json.dumps({"package": report.package.digest, "cached": cached, "s": time.monotonic() - begun}))


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """A Prefect server: its address and its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        command, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        address, last = f"http://127.0.0.1:{port}/api", time.monotonic() + 300
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > last:
                sys.exit("Prefect's server did not start")
            time.sleep(0.2)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=5).ok
    except requests.RequestException:
        return False


def cpu_of(session: int) -> float:
    """User and system seconds of all processes of a session."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            ticks += sum(int(f) for f in fields[11:15])  # utime, stime, and those of children that have ended
    return ticks / os.sysconf("SC_CLK_TCK")


def side(name: str, folder: Path, store: str, **more: str) -> Any:
    """One process: the steps or the flow, on a store."""
    env = (
        os.environ
        | {"ANIML_DATA": str(folder), "ANIML_STORE": str(folder / store), "PREFECT_HOME": str(folder / "client"), "OMP_NUM_THREADS": "1"}
        | {"MALLOC_ARENA_MAX": "1"}  # as the command line and a worker's runs have it
        | {"PYTHONPYCACHEPREFIX": str(folder / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}  # compiled once, like everything installed
        | more
    )
    return measured(Path(__file__), "--side", name, env=env)


def compare(turns: int) -> None:
    """Both sides by turns, then the flow with everything in the store."""
    rows: list[tuple[object, ...]] = []
    without_prefect, with_prefect = [], []
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_synthetic_dataset(folder / "sample")
        with server(folder) as (address, session):
            start = cpu_of(session)
            side("flow", folder, "first", PREFECT_API_URL=address)  # compiles all modules, and the server's first run costs more, too
            for turn in range(turns):
                sides = [lambda t: side("steps", folder, f"steps-{t}"), lambda t: side("flow", folder, f"flow-{t}", PREFECT_API_URL=address)]
                found = [None, None]
                for which in (0, 1) if turn % 2 else (1, 0):  # the machine may become faster or slower meanwhile
                    before = cpu_of(session)
                    found[which] = (sides[which](turn).cpu_s, cpu_of(session) - before)
                (alone, idle), (run, beside) = found
                without_prefect.append(alone)
                with_prefect.append(run + beside - idle)
                rows += [(f"{turn + 1}: steps", alone, f"{idle:.2f} (idle)", alone), (f"{turn + 1}: flow", run, beside, run + beside - idle)]
            before, begun = cpu_of(session), time.monotonic()
            again = side("flow", folder, "flow-0", PREFECT_API_URL=address)
            wall, beside = time.monotonic() - begun, cpu_of(session) - before
            assert again.said["cached"]
            rows.append(("again, all cached", again.cpu_s, beside, again.cpu_s + beside))
            before, begun = cpu_of(session), time.monotonic()
            floor = side("empty", folder, "flow-0", PREFECT_API_URL=address)
            floor_wall, beside = time.monotonic() - begun, cpu_of(session) - before
            rows.append((f"{TASKS} tasks that do nothing", floor.cpu_s, beside, floor.cpu_s + beside))
    overhead = median(flow - steps for flow, steps in zip(with_prefect, without_prefect, strict=True)) / median(without_prefect)
    show("CPU seconds on the sample", ("run", "process", "server", "both, without what the server takes idle"), rows)
    show(
        "and",
        ("what", "figure"),
        [
            ("server's start, CPU s", start),
            ("all cached, wall s", wall),
            ("of it the flow, wall s", again.said["s"]),
            (f"{TASKS} tasks that do nothing, wall s", floor_wall),
            ("load", os.getloadavg()[0]),
        ],
    )
    aim = f"at most {MOST_OVERHEAD:.0%} and {MOST_CACHED_S:.0f} s"
    conclude(
        "flows",
        figure=f"{overhead:.1%} more CPU than without Prefect, all cached in {wall:.1f} s (tasks that do nothing: {floor_wall:.1f} s)",
        aim=aim,
        met=overhead <= MOST_OVERHEAD and wall <= MOST_CACHED_S,
    )


def main() -> None:
    """A side, or the comparison."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--turns", type=int, default=6, help="cold runs of each side")
    options.add_argument("--side", choices=["steps", "flow", "empty"], help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.side:
        sys.path.insert(0, str(ROOT))  # this file has the name of the package
        {"steps": steps, "flow": flow, "empty": empty}[chosen.side](str(PLAN))
    else:
        compare(chosen.turns)


if __name__ == "__main__":
    main()

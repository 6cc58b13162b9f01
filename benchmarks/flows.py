"""What Prefect costs: the sample's whole street as a flow, told to a running server, beside the same rooms called one after the other.

Each side is a process of its own with a store of its own, by turns; the server's CPU seconds while a flow runs are added to
the flow's, less what it takes idle beside the other side; its start is shown apart. Then the same flow again, with
everything in the store: CPU and wall seconds from the command to its end.
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
MOST_CACHED_S = 15.0


def _as_the_command_line() -> None:
    """What a command does with its process's memory first; both sides do, since it has nothing to do with Prefect."""
    sys.path.insert(0, str(ROOT))  # this file has the name of the package
    from flows.lifecycle import collect_seldom, share_one_heap

    share_one_heap()
    collect_seldom()


def rooms(plan_file: str) -> None:
    """The street without Prefect: what the flow does, room by room."""
    from animl_pipeline.config import load_plan
    from animl_pipeline.config.settings import load_settings
    from animl_pipeline.deploy.released_model import find_champion
    from animl_pipeline.inference.classifier import read_card
    from animl_pipeline.steps import calibration, crops, detections, evaluation, export, images, labels, package, splits, training
    from animl_pipeline.storage.step_cache import open_store
    from flows.lifecycle import keep_what_is_loaded

    keep_what_is_loaded()
    plan, settings = load_plan(Path(plan_file)), load_settings()
    store = open_store(settings)
    (source,) = plan.sources
    exported = export.export_annotations(source, store, settings)
    fetched = images.download_images(source, exported, labels.wanted_labels(plan.labels, source.name, settings), store, settings, plan.images)
    labelled = labels.resolve_labels([labels.SourceArtifacts(source, exported, fetched)], plan.labels, store, settings)
    detected = detections.detect_animals(labelled, plan.detections, store, settings)
    cut = crops.extract_crops(labelled, detected, plan.crops, plan.model_input, store, settings)
    split = splits.split_by_location(cut, plan.splits, tuple(plan.labels.classes), store, plan.model)
    trained = training.train_classifier(cut, split, plan, store, settings)
    calibrated = calibration.calibrate_classifier(trained, cut, split, plan.thresholds, store)
    story = tuple((a.step, a.counts) for a in (exported, fetched, labelled, detected, cut, split, trained, calibrated))
    champion = find_champion(plan.endpoint_name(), read_card(store.path(calibrated, "card.json")), store)
    scored = evaluation.evaluate_classifier(calibrated, cut, split, plan, store, champion=champion, folds=[], step_counts=story, image_url="")
    packed = package.package_model(calibrated, scored, plan.package, store, description=plan.description)
    print(json.dumps({"package": packed.digest}))


def flow(plan_file: str) -> None:
    """The flow, as the command line runs it."""
    from animl_pipeline.cli.prefect_server import prepare_prefect

    prepare_prefect()
    from flows.lifecycle import keep_what_is_loaded
    from flows.retrain import retrain

    keep_what_is_loaded()
    begun = time.monotonic()
    report = retrain(plan_file)
    print(
        json.dumps(
            {
                "package": report.package.digest,
                "cached": all(a.cached for a in (report.model_artifact, report.package)),
                "s": time.monotonic() - begun,
            }
        )
    )


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """A Prefect server: its address and process."""
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
    """One process: the rooms or the flow, on a store."""
    env = (
        os.environ
        | {"ANIML_DATA": str(folder), "ANIML_STORE": str(folder / store), "PREFECT_HOME": str(folder / "client"), "OMP_NUM_THREADS": "1"}
        | {"PYTHONPYCACHEPREFIX": str(folder / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}  # compiled once, like everything installed
        | more
    )
    return measured(Path(__file__), "--side", name, env=env)


def compare(turns: int) -> None:
    """Both sides by turns, then the flow over a full store."""
    rows: list[tuple[object, ...]] = []
    plain, told = [], []
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_synthetic_dataset(folder / "sample")
        with server(folder) as (address, session):
            start = cpu_of(session)
            side("flow", folder, "first", PREFECT_API_URL=address)  # compiles all modules, and the server's first run costs more, too
            for turn in range(turns):
                sides = [lambda t: side("rooms", folder, f"rooms-{t}"), lambda t: side("flow", folder, f"flow-{t}", PREFECT_API_URL=address)]
                found = [None, None]
                for which in (0, 1) if turn % 2 else (1, 0):  # the machine may grow faster or slower meanwhile
                    before = cpu_of(session)
                    found[which] = (sides[which](turn).cpu_s, cpu_of(session) - before)
                (alone, idle), (run, beside) = found
                plain.append(alone)
                told.append(run + beside - idle)
                rows += [(f"{turn + 1}: rooms", alone, f"{idle:.2f} (idle)", alone), (f"{turn + 1}: flow", run, beside, run + beside - idle)]
            before, begun = cpu_of(session), time.monotonic()
            again = side("flow", folder, "flow-0", PREFECT_API_URL=address)
            wall, beside = time.monotonic() - begun, cpu_of(session) - before
            assert again.said["cached"]
            rows.append(("again, all cached", again.cpu_s, beside, again.cpu_s + beside))
    overhead = median(flow - rooms for flow, rooms in zip(told, plain, strict=True)) / median(plain)
    show("CPU seconds on the sample", ("run", "process", "server", "both, without what the server takes idle"), rows)
    show(
        "and",
        ("what", "figure"),
        [("server's start, CPU s", start), ("all cached, wall s", wall), ("of it the flow, wall s", again.said["s"]), ("load", os.getloadavg()[0])],
    )
    aim = f"at most {MOST_OVERHEAD:.0%} and {MOST_CACHED_S:.0f} s"
    conclude(
        "flows",
        figure=f"{overhead:.1%} more CPU than without Prefect, all cached in {wall:.1f} s",
        aim=aim,
        met=overhead <= MOST_OVERHEAD and wall <= MOST_CACHED_S,
    )


def main() -> None:
    """A side, or the comparison."""
    told = argparse.ArgumentParser(description=__doc__)
    told.add_argument("--turns", type=int, default=6, help="cold runs of each side")
    told.add_argument("--side", choices=["rooms", "flow"], help=argparse.SUPPRESS)
    said = told.parse_args()
    if said.side:
        _as_the_command_line()
        {"rooms": rooms, "flow": flow}[said.side](str(PLAN))
    else:
        compare(said.turns)


if __name__ == "__main__":
    main()

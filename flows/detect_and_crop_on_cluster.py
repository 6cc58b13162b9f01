"""Detection and cropping on the workers of a Dask or Ray cluster that share the store.

With ANIML_TASK_RUNNER=threads, the default, nothing here happens: the steps do all the work in this process. If a worker dies,
its batch in hand is lost and another worker takes over its share, from where the image index ends.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow, unmapped
from prefect.futures import PrefectFuture

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import SettingsError
from tasks import dataset
from tasks.store_and_data_paths import RunPaths

log = logging.getLogger("animl_pipeline.flows.distributed")

SUBFLOW: dict[str, Any] = {"persist_result": False, "validate_parameters": False}
"""Options of both subflows. They are made when they are needed, because the task runner is a setting."""


def run_detector_on_cluster(labels: PrefectFuture[Artifact], plan: Plan, paths: RunPaths) -> None:
    """Let the cluster's workers run the detector before the step detections, which then finds all images in the image index."""
    settings = load_settings()
    if settings.task_runner != "threads":
        log.info("detections: %d shares go to %s", settings.cluster_batches, settings.task_runner)
        with _cluster_errors(settings):
            subflow = flow(name="detect", description="Runs the detector on a cluster.", task_runner=cluster_task_runner(settings), **SUBFLOW)
            subflow(_detect)(labels.result(), plan, settings.cluster_batches, paths)


def extract_crops_on_cluster(labels: PrefectFuture[Artifact], detections: PrefectFuture[Artifact], plan: Plan, paths: RunPaths) -> None:
    """Let the cluster's workers crop the images before the step crops, which then finds all crops in the image index."""
    settings = load_settings()
    if settings.task_runner != "threads":
        log.info("crops: %d shares go to %s", settings.cluster_batches, settings.task_runner)
        with _cluster_errors(settings):
            subflow = flow(name="crop", description="Crops images on a cluster.", task_runner=cluster_task_runner(settings), **SUBFLOW)
            subflow(_crop)(labels.result(), detections.result(), plan, settings.cluster_batches, paths)


def _detect(labels: Artifact, plan: Plan, shares: int, paths: RunPaths) -> int:
    end = (unmapped(plan.false_box_class()), unmapped(paths))
    done = dataset.run_detector_share.map(unmapped(labels), unmapped(plan.detections), range(shares), unmapped(shares), *end)
    return sum(done.result())


def _crop(labels: Artifact, detections: Artifact, plan: Plan, shares: int, paths: RunPaths) -> int:
    artifacts, config = (unmapped(labels), unmapped(detections)), (unmapped(plan.crops), unmapped(plan.model_input))
    end = (unmapped(plan.labels.nothing_id), unmapped(paths))
    done = dataset.extract_crops_share.map(*artifacts, *config, range(shares), unmapped(shares), *end)
    return sum(done.result())


@contextmanager
def _cluster_errors(settings: Settings) -> Iterator[None]:
    """Say in one line that a cluster does not answer. The steps' own errors are one line already."""
    try:
        yield
    except OSError as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise SettingsError(
            f"ANIML_TASK_RUNNER: expected a cluster that answers at {settings.task_runner}, found none ({reason}). Start its scheduler and workers, "
            "correct the address, or set ANIML_TASK_RUNNER=threads; finished work is kept",
            code="no_cluster",
        ) from e


def cluster_task_runner(settings: Settings) -> Any:
    """Prefect's task runner for the cluster of ANIML_TASK_RUNNER. Without an address it is one of its own on this machine.

    Raises:
        SettingsError: the package for such a cluster is not installed, or the address is not valid.
    """
    kind, _, address = settings.task_runner.partition(":")
    if kind == "dask" and address and not re.search(r".:\d+$", address):
        raise SettingsError(
            f"ANIML_TASK_RUNNER: expected a scheduler's address, such as dask:tcp://10.0.0.5:8786, found {settings.task_runner}", code="no_address"
        )
    try:
        if kind == "dask":
            from prefect_dask.task_runners import DaskTaskRunner

            if address:
                _log_worker_count(address)
            return DaskTaskRunner(address=address or None)
        from prefect_ray import RayTaskRunner

        return RayTaskRunner(address=address or None)
    except ImportError as e:
        raise SettingsError(
            f"ANIML_TASK_RUNNER: {settings.task_runner} needs the package prefect-{kind} ({e}); pip install 'animl-pipeline[{kind}]'"
        ) from e


def _log_worker_count(address: str) -> None:
    """Log how many workers a Dask cluster has: without any, a run would wait for one in silence."""
    from distributed import Client

    connect: Any = Client  # it has no types
    with connect(address, set_as_default=False) as client:
        workers = len(client.nthreads())
    if workers:
        log.info("the cluster at %s has %d workers", address, workers)
    else:
        log.warning("the cluster at %s has no worker yet, and the run waits for one; start some: dask worker %s", address, address)

"""A Prefect worker that carries out the flows of this software and nothing else.

A worker of Prefect's runs what a deployment says: shell commands before the flow, any command in its place, any environment. Who can
write to the server could then do everything that the worker may do, with its AWS and Animl secrets.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from animl_pipeline.cli.prefect_connection import POOL
from animl_pipeline.cli.prefect_deployments import deployments_folder, read_prefect_file
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.errors import SettingsError

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import Flow, FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse

SET_FOLDER = "prefect.deployments.steps.set_working_directory"
"""The pull step that `prefect deploy` adds to a deployment; the only one that is carried out."""


class OwnDeployments(NamedTuple):
    """What the worker's own prefect.yaml declares, and so what a run may ask for.

    Attributes:
        entrypoints: of flows, such as ``flows.retrain.retrain``.
        environment: variables with their values.
        folder: the working directory of runs.
    """

    entrypoints: frozenset[str]
    environment: frozenset[tuple[str, str]]
    folder: Path


def read_own_deployments(deployments: Path) -> OwnDeployments:
    """What the prefect.yaml in a folder of deployments declares.

    Raises:
        SettingsError: it cannot be read.
    """
    file = deployments / "prefect.yaml"
    try:
        found = read_prefect_file(file)["deployments"]
        variables = [entry["work_pool"].get("job_variables", {}).get("env", {}) for entry in found]
        entrypoints = frozenset(str(entry["entrypoint"]) for entry in found)
    except (KeyError, TypeError, AttributeError) as e:
        raise SettingsError(f"{file}: expected Prefect's deployments, each with an entrypoint and a work_pool, found {type(e).__name__}") from e
    environment = frozenset((str(name), str(value)) for one in variables for name, value in one.items())
    return OwnDeployments(entrypoints, environment, deployments.resolve().parent)


class OwnFlowsOnly(ProcessJobConfiguration):
    """How a run's process is started. A run that asks for more than the worker's own prefect.yaml declares is refused."""

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: Flow | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Called by Prefect's worker before a run starts.

        Raises:
            SettingsError: the run asks for too much. Prefect's worker then sets it to Crashed, with the message.
        """
        own = read_own_deployments(deployments_folder(load_settings()))
        wanted = deployment.model_dump() if deployment is not None else {}
        check_run(wanted, {"command": self.command, "working_dir": self.working_dir, "env": self.env}, own)
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id)


def check_run(deployment: Mapping[str, Any], process: Mapping[str, Any], own: OwnDeployments) -> None:
    """Check that a run asks for nothing that the worker's own prefect.yaml does not declare.

    ``process``: ``command``, ``working_dir`` and ``env`` of its process, from the work pool, the deployment and the run.

    Raises:
        SettingsError: it does.
    """
    steps = [{SET_FOLDER: {"directory": str(own.folder)}}]
    environment = {(str(name), str(value)) for name, value in (process["env"] or {}).items()}
    too_much = {
        "entrypoint": deployment.get("entrypoint") not in own.entrypoints,
        "pull steps": bool(deployment.get("pull_steps")) and deployment["pull_steps"] != steps,
        "storage": deployment.get("storage_document_id") is not None,
        "command": process["command"] is not None,
        "working directory": process["working_dir"] is not None,
        "environment": not environment <= own.environment,
    }
    names = [name for name, found in too_much.items() if found]
    if names:
        raise SettingsError(
            f"this worker carries out what its own prefect.yaml declares; expected a deployment with nothing else, found another "
            f"{', '.join(names)}. Run `animl-pipeline deploy` with the same prefect.yaml as the worker's, in the folder {own.folder}",
            code="foreign_run",
            too_much=names,
        )


def work() -> None:
    """Carry out the runs of the pool until a signal."""
    asyncio.run(_work())


async def _work() -> None:
    worker = ProcessWorker(work_pool_name=POOL)
    worker.job_configuration = OwnFlowsOnly
    working = asyncio.current_task()
    assert working is not None  # noqa: S101 - asyncio.run made it
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, working.cancel)
    try:
        await worker.start()
    except asyncio.CancelledError:  # a signal: the runs were stopped, and their states reported
        working.uncancel()

"""Put the deployments and automations on a Prefect server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from animl_pipeline.cli.prefect_connection import POOL, check_server
from animl_pipeline.config.settings import DEPLOYMENTS, Settings, load_settings
from animl_pipeline.core.errors import SettingsError


def deploy(environment: Mapping[str, str] | None = None) -> None:
    """Put the work pool, the deployments and the automations on the server of PREFECT_API_URL, or update them there.

    They come from prefect.yaml and automations.yaml beside the folder of plans, or else as they are shipped.

    Args:
        environment: of the prefect commands that do it; None: this process's.

    Raises:
        SettingsError: the server does not answer, or Prefect refused something; the message holds its last lines.
    """
    from flows.put_automations import put_automations

    settings = load_settings()
    deployments = deployments_folder(settings)
    check_server()
    _prefect(deployments, environment, "work-pool", "create", POOL, "--type", "process", "--overwrite")
    _prefect(deployments, environment, "deploy", "--all", "--prefect-file", str(deployments / "prefect.yaml"))
    put_automations(deployments / "automations.yaml", settings.notification_block)


def deployments_folder(settings: Settings) -> Path:
    """The folder with the prefect.yaml that this machine uses: beside the folder of plans, or else as it is shipped."""
    own = settings.plans.parent
    return own if (own / "prefect.yaml").exists() else DEPLOYMENTS


def _prefect(deployments: Path, environment: Mapping[str, str] | None, *arguments: str) -> None:
    """Run a prefect command beside the folder of deployments: that folder becomes the runs' working directory."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=deployments.resolve().parent, env=environment)
    if done.returncode:
        last_lines = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise SettingsError(f"`prefect {' '.join(arguments)}` failed: {last_lines}")

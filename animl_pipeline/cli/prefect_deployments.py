"""Put the deployments and automations on a Prefect server."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from animl_pipeline.cli.prefect_connection import POOL, check_server
from animl_pipeline.config.settings import DEPLOYMENTS, Settings, load_settings
from animl_pipeline.core.errors import SettingsError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

EACH_PLAN = "{plan}"
"""The name of a deployment in prefect.yaml that is made once for each plan, and what stands for the plan's name in its description."""
MESSAGE = "send-notification"
"""The action that sends a message, for which a block is needed."""


def deploy(environment: Mapping[str, str] | None = None) -> None:
    """Put the work pool, the deployments and the automations on the server of PREFECT_API_URL, or update them there.

    They come from prefect.yaml and automations.yaml beside the folder of plans, or else as they are shipped. Schedules that a person
    switched on in Prefect's UI stay on.

    ``environment``: of the prefect commands that do it; None: this process's.

    Raises:
        SettingsError: the server does not answer, or Prefect refused something; the message holds its last lines.
    """
    settings = load_settings()
    deployments = deployments_folder(settings)
    content = deployments_of_plans(deployments / "prefect.yaml", settings.plans)
    check_server()
    _keep_schedules_on(content["deployments"])
    _prefect(deployments, environment, "work-pool", "create", POOL, "--type", "process", "--overwrite")
    with tempfile.TemporaryDirectory(prefix="animl-deployments-") as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        _prefect(deployments, environment, "deploy", "--all", "--prefect-file", str(file))
    put_automations(deployments / "automations.yaml", settings.notification_block)


def deployments_of_plans(file: Path, plans: Path) -> dict[str, Any]:
    """The content of a prefect.yaml, with one deployment for each plan in place of each that is named ``{plan}``.

    A deployment of the file that has a plan's name replaces that plan's.

    ``plans``: the folder of plans; their names are those of its .yaml files.

    Raises:
        SettingsError: the file cannot be read.
    """
    content = read_prefect_file(file)
    try:
        declared = content["deployments"]
        own = {(entry["entrypoint"], entry["name"]) for entry in declared}
        names = sorted(plan.stem for plan in plans.glob("*.yaml"))
        made = [_for_plan(e, plan) for plan in names for e in declared if e["name"] == EACH_PLAN and (e["entrypoint"], plan) not in own]
        return content | {"deployments": [entry for entry in declared if entry["name"] != EACH_PLAN] + made}
    except (KeyError, TypeError, AttributeError) as e:
        raise SettingsError(f"{file}: expected Prefect's deployments, each with a name and an entrypoint, found {type(e).__name__}") from e


def read_prefect_file(file: Path) -> dict[str, Any]:
    """The content of a prefect.yaml.

    Raises:
        SettingsError: it cannot be read, or is no mapping.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as e:
        raise SettingsError(f"{file}: expected Prefect's deployments, found {type(e).__name__}") from e
    if not isinstance(content, dict):
        raise SettingsError(f"{file}: expected Prefect's deployments, found {type(content).__name__}")
    return content


def _for_plan(entry: dict[str, Any], plan: str) -> dict[str, Any]:
    description = str(entry.get("description", "")).replace(EACH_PLAN, plan)
    return copy.deepcopy(entry) | {"name": plan, "description": description, "parameters": {"plan": plan}, "tags": [*entry.get("tags", []), plan]}


def _keep_schedules_on(deployments: list[dict[str, Any]]) -> None:
    """Switch on the schedules that are on at the server, and warn of deployments there that are not declared any more."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName

    with get_client(sync_client=True) as client:
        there = client.read_deployments(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])))
    on = {(d.entrypoint, d.name, s.slug) for d in there for s in d.schedules if s.active}
    for entry in deployments:
        for schedule in entry.get("schedules", []):
            schedule["active"] = schedule.get("active", True) or (entry["entrypoint"], entry["name"], schedule.get("slug")) in on
    declared = {(entry["entrypoint"], entry["name"]) for entry in deployments}
    if old := sorted({d.name for d in there if (d.entrypoint, d.name) not in declared}):
        log.warning("the server also has deployments that no plan or file declares: %s; delete in its UI what you do not need", ", ".join(old))


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


def put_automations(file: Path, block: str) -> list[str]:
    """Put a file's automations on the server of PREFECT_API_URL. Returns the names of those that are there then.

    ``file``: YAML with ``automations: [...]`` as Prefect takes them, but without the block in actions that send messages. ``block``: the
    block that sends messages, ``<type>/<name>``, such as slack-webhook/rangers. "": no message is sent, and automations that would only send
    one are not there.

    Raises:
        SettingsError: the server has no such block.
    """
    from prefect.client.orchestration import get_client

    automations = yaml.safe_load(file.read_text(encoding="utf-8"))["automations"]
    with get_client(sync_client=True) as client:
        block_id = _find_block(block, client) if block else None
        return [automation["name"] for automation in automations if _put(automation, block_id, client)]


def _put(automation: dict[str, Any], block_id: str | None, client: SyncPrefectClient) -> bool:
    """Put or update an automation, or delete it if it has nothing to do without a block. Returns whether it is there."""
    from prefect.events.schemas.automations import AutomationCore

    actions = [
        a | ({"block_document_id": block_id} if a["type"] == MESSAGE else {}) for a in automation["actions"] if block_id or a["type"] != MESSAGE
    ]
    existing = client.read_automations_by_name(automation["name"])
    for extra in existing[1:] if actions else existing:  # made by hand, or by an earlier version; each of them would act
        client.delete_automation(extra.id)
    if not actions:
        return False
    wanted = AutomationCore.model_validate(automation | {"actions": actions})
    if existing:
        client.update_automation(existing[0].id, wanted)
    else:
        client.create_automation(wanted)
    return True


def _find_block(block: str, client: SyncPrefectClient) -> str:
    from prefect.exceptions import ObjectNotFound

    kind, _, name = block.partition("/")
    try:
        return str(client.read_block_document_by_name(name, kind).id)
    except ObjectNotFound as e:
        raise SettingsError(
            f"ANIML_NOTIFICATION_BLOCK: expected a block of the Prefect server as <type>/<name>, found {block!r}. Make it in Prefect's UI "
            "(Blocks, such as Slack Webhook), then run `animl-pipeline deploy` again",
            code="no_block",
        ) from e

"""Prefect automations from a file onto the server: each is known by its name, made once, and renewed when it comes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from animl_pipeline.core.errors import SettingsError

MESSAGE = "send-notification"


def put_automations(file: Path, block: str) -> list[str]:
    """Put a file's automations on the server of PREFECT_API_URL; their names come back.

    Args:
        file: YAML, ``automations: [...]`` as Prefect takes them, but for the block in actions that send messages.
        block: the block that messages go through, ``<type>/<name>`` such as slack-webhook/rangers; "": nothing is sent, the
            automations are there all the same and show in Prefect's UI when they act.

    Raises:
        SettingsError: the server knows no such block.
    """
    wanted = yaml.safe_load(file.read_text(encoding="utf-8"))["automations"]
    with get_client(sync_client=True) as client:
        through = _block_id(block, client) if block else None
        for automation in wanted:
            actions = [_filled(action, through) for action in automation["actions"]]
            _put(AutomationCore.model_validate(automation | {"actions": actions}), client)
    return [automation["name"] for automation in wanted]


def _put(automation: AutomationCore, client: SyncPrefectClient) -> None:
    there = client.read_automations_by_name(automation.name)
    if not there:
        client.create_automation(automation)
    for known in there[:1]:
        client.update_automation(known.id, automation)
    for twin in there[1:]:  # made by hand or by an earlier version: each would act
        client.delete_automation(twin.id)


def _filled(action: dict[str, Any], block: str | None) -> dict[str, Any]:
    if action["type"] != MESSAGE:
        return action
    return action | {"block_document_id": block} if block else {"type": "do-nothing"}


def _block_id(block: str, client: SyncPrefectClient) -> str:
    kind, _, name = block.partition("/")
    try:
        return str(client.read_block_document_by_name(name, kind).id)
    except ObjectNotFound as e:
        raise SettingsError(
            f"ANIML_NOTIFY: expected a block that the Prefect server knows, <type>/<name>, found {block!r}; make it in Prefect's UI (Blocks, such as "
            "Slack Webhook), then run `animl-pipeline deploy` again"
        ) from e

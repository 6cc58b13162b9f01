"""Put Prefect automations from a YAML file on the server. Each is known by its name and updated when it is put again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from animl_pipeline.core.errors import SettingsError


def put_automations(file: Path, block: str) -> list[str]:
    """Put a file's automations on the server of PREFECT_API_URL. Returns their names.

    Args:
        file: YAML with ``automations: [...]`` as Prefect takes them, but without the block in actions that send messages.
        block: the block that sends messages, ``<type>/<name>``, such as slack-webhook/rangers. "": no message is sent, and
            automations that would only send one are there, switched off.

    Raises:
        SettingsError: the server has no such block.
    """
    automations = yaml.safe_load(file.read_text(encoding="utf-8"))["automations"]
    with get_client(sync_client=True) as client:
        block_id = _find_block(block, client) if block else None
        for automation in automations:
            actions = [_with_block(action, block_id) for action in automation["actions"]]
            does_something = any(action["type"] != "do-nothing" for action in actions)
            enabled = automation.get("enabled", True) and does_something
            _put(AutomationCore.model_validate(automation | {"actions": actions, "enabled": enabled}), client)
    return [automation["name"] for automation in automations]


def _put(automation: AutomationCore, client: SyncPrefectClient) -> None:
    existing = client.read_automations_by_name(automation.name)
    if not existing:
        client.create_automation(automation)
    for known in existing[:1]:
        client.update_automation(known.id, automation)
    for duplicate in existing[1:]:  # made by hand, or by an earlier version; each of them would act
        client.delete_automation(duplicate.id)


def _with_block(action: dict[str, Any], block_id: str | None) -> dict[str, Any]:
    if action["type"] != "send-notification":
        return action
    return action | {"block_document_id": block_id} if block_id else {"type": "do-nothing"}


def _find_block(block: str, client: SyncPrefectClient) -> str:
    kind, _, name = block.partition("/")
    try:
        return str(client.read_block_document_by_name(name, kind).id)
    except ObjectNotFound as e:
        raise SettingsError(
            f"ANIML_NOTIFICATION_BLOCK: expected a block of the Prefect server as <type>/<name>, found {block!r}. Make it in Prefect's UI "
            "(Blocks, such as Slack Webhook), then run `animl-pipeline deploy` again",
            code="no_block",
        ) from e

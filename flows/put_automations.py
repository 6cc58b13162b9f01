"""Put Prefect automations from a YAML file on the server. Each is known by its name and updated when it is put again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from animl_pipeline.core.errors import SettingsError

MESSAGE = "send-notification"
"""The action that sends a message, for which a block is needed."""


def put_automations(file: Path, block: str) -> list[str]:
    """Put a file's automations on the server of PREFECT_API_URL. Returns the names of those that are there then.

    ``file``: YAML with ``automations: [...]`` as Prefect takes them, but without the block in actions that send messages. ``block``: the
    block that sends messages, ``<type>/<name>``, such as slack-webhook/rangers. "": no message is sent, and automations that would only send
    one are not there.
    Raises SettingsError: the server has no such block.
    """
    automations = yaml.safe_load(file.read_text(encoding="utf-8"))["automations"]
    with get_client(sync_client=True) as client:
        block_id = _find_block(block, client) if block else None
        return [automation["name"] for automation in automations if _put(automation, block_id, client)]


def _put(automation: dict[str, Any], block_id: str | None, client: SyncPrefectClient) -> bool:
    """Put or update an automation, or delete it if it has nothing to do without a block. Returns whether it is there."""
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
    kind, _, name = block.partition("/")
    try:
        return str(client.read_block_document_by_name(name, kind).id)
    except ObjectNotFound as e:
        raise SettingsError(
            f"ANIML_NOTIFICATION_BLOCK: expected a block of the Prefect server as <type>/<name>, found {block!r}. Make it in Prefect's UI "
            "(Blocks, such as Slack Webhook), then run `animl-pipeline deploy` again",
            code="no_block",
        ) from e

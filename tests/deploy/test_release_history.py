"""Release records in the store: those of earlier versions, and unreadable ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from animl_pipeline.deploy.release_history import read_records
from animl_pipeline.storage.store import Store

RECORD: dict[str, Any] = {
    "id": "1", "kind": "release", "state": "done", "endpoint": "fox-7", "endpoint_config": "fox-7-abc", "previous_config": None,
    "sagemaker_model": "fox-7-def", "version": "7", "package": None, "begun_at": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
APPROVAL = {"by": "the ranger", "at": "2026-01-01T00:00:00+00:00", "door": "prefect"}


@pytest.mark.parametrize(
    ("older", "base_name"), [({}, "fox-7"), ({"line": "fox"}, "fox"), ({"line": "fox", "approval": APPROVAL}, "fox")], ids=["0.1", "line", "door"]
)
def test_records_of_earlier_versions_are_read(store: Store, older: dict[str, Any], base_name: str) -> None:
    store.object_store.put("releases/fox/1.json", json.dumps(RECORD | older).encode())
    (record,) = read_records("fox", store)
    assert (record.base_name, record.endpoint) == (base_name, "fox-7")
    assert (record.approval.given_in if record.approval else None) == ("prefect" if "approval" in older else None)


def test_an_unreadable_record_is_ignored_with_a_warning(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.object_store.put("releases/fox/1.json", json.dumps(RECORD | {"surprise": 1}).encode())
    assert read_records("fox", store) == ()
    assert "releases/fox/1.json" in caplog.text

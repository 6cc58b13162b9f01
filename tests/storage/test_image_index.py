"""The image index: later records win, damaged shards harm no others, removed keys stay removed."""

from __future__ import annotations

import pytest

from animl_pipeline.storage import image_index
from animl_pipeline.storage.store import Store


def test_later_records_win(any_store: Store) -> None:
    any_store.add_to_index("seen", {"a": {"n": 1}, "b": {"n": 2}})
    any_store.add_to_index("seen", {"a": {"n": 3}})
    assert any_store.read_index("seen") == {"a": {"n": 3}, "b": {"n": 2}}
    assert any_store.read_index("other") == {}


@pytest.mark.parametrize("damage", ["changed", "cut", "emptied", "other version", "renamed"])
def test_a_damaged_shard_is_named_and_removed_and_harms_no_other(any_store: Store, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    objects = any_store.object_store
    any_store.add_to_index("seen", {"a": {"n": 1}})
    (kept,) = objects.names("index/seen/")
    any_store.add_to_index("seen", {"b": {"n": 22}})
    (shard,) = set(objects.names("index/seen/")) - {kept}
    data = objects.read(shard) or b""
    damaged = {"changed": data.replace(b"22", b"23"), "cut": data[:-4], "emptied": b"", "other version": b'["b", 3]\n'}
    if damage == "renamed":
        objects.put("index/seen/9.jsonl", data)
        objects.delete(shard)
        shard = "index/seen/9.jsonl"
    else:
        objects.put(shard, damaged[damage])
    assert any_store.read_index("seen") == {"a": {"n": 1}}
    assert list(objects.names("index/seen/")) == [kept]
    assert shard in caplog.text


def test_of_a_removed_key_no_earlier_record_counts_again(any_store: Store) -> None:
    any_store.add_to_index("seen", {"a": {"blob": "1"}, "b": {"blob": "2"}, "c": {"blob": "2"}})
    any_store.add_to_index("seen", {"a": {"blob": "2"}, "c": {"blob": "1"}})
    assert image_index.remove_from_index(any_store.object_store, "seen", lambda record: record["blob"] == "2") == 2
    assert any_store.read_index("seen") == {"c": {"blob": "1"}}
    any_store.add_to_index("seen", {"a": {"blob": "3"}})
    assert any_store.read_index("seen") == {"a": {"blob": "3"}, "c": {"blob": "1"}}

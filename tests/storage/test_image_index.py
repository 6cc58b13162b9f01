"""The image index: later records win, damaged shards harm no others, removed keys stay removed."""

from __future__ import annotations

import pytest

from animl_pipeline.core.errors import DamagedError
from animl_pipeline.storage import image_index
from animl_pipeline.storage.store import Store


def test_later_records_win(any_store: Store) -> None:
    any_store.add_to_index("seen", {"a": {"n": 1}, "b": {"n": 2}})
    any_store.add_to_index("seen", {"a": {"n": 3}})
    assert any_store.read_index("seen") == {"a": {"n": 3}, "b": {"n": 2}}
    assert any_store.read_index("other") == {}


def test_a_damaged_shard_is_removed_and_harms_no_other(any_store: Store) -> None:
    any_store.add_to_index("seen", {"a": {"n": 1}})
    for i, damaged in enumerate([b'["b", {"n"', b'{"b": 2}', b"\xff\x00", b'["b", 3]']):
        any_store.object_store.put(f"index/seen/9{i}.jsonl", damaged)
    assert any_store.read_index("seen") == {"a": {"n": 1}}
    assert len(list(any_store.object_store.names("index/seen/"))) == 1


def test_a_damaged_shard_of_irreplaceable_records_is_an_error_and_stays(any_store: Store) -> None:
    any_store.object_store.put("index/splits/m/1.jsonl", b"{")
    with pytest.raises(DamagedError):
        any_store.read_index("splits/m", irreplaceable=True)
    assert any_store.object_store.read("index/splits/m/1.jsonl") == b"{"


def test_of_a_removed_key_no_earlier_record_counts_again(any_store: Store) -> None:
    any_store.add_to_index("seen", {"a": {"blob": "1"}, "b": {"blob": "2"}, "c": {"blob": "2"}})
    any_store.add_to_index("seen", {"a": {"blob": "2"}, "c": {"blob": "1"}})
    assert image_index.remove_from_index(any_store.object_store, "seen", lambda record: record["blob"] == "2") == 2
    assert any_store.read_index("seen") == {"c": {"blob": "1"}}
    any_store.add_to_index("seen", {"a": {"blob": "3"}})
    assert any_store.read_index("seen") == {"a": {"blob": "3"}, "c": {"blob": "1"}}

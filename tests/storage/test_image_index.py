"""The image index: later records win, damaged shards harm no others, removed keys stay removed."""

from __future__ import annotations

import time

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


def write_old_shards(store: Store, monkeypatch: pytest.MonkeyPatch, count: int) -> dict[str, dict[str, int]]:
    """Shards of two hours ago, each with a key of its own and one that all have; what the index then holds."""
    now = time.time_ns()
    with monkeypatch.context() as patched:
        for n in range(count):
            patched.setattr(time, "time_ns", lambda n=n: now - 2 * image_index.QUIET_NS + n)
            store.add_to_index("seen", {f"k{n}": {"n": n}, "last": {"n": n}})
    return {f"k{n}": {"n": n} for n in range(count)} | {"last": {"n": count - 1}}


def test_many_small_shards_are_put_together_and_later_records_still_win(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write_old_shards(any_store, monkeypatch, image_index.MANY_SHARDS)
    any_store.add_to_index("seen", {"k0": {"n": 99}})  # of now: it stays a shard of its own
    assert any_store.read_index("seen") == expected | {"k0": {"n": 99}}
    assert len(list(any_store.object_store.names("index/seen/"))) == 2
    assert any_store.read_index("seen") == expected | {"k0": {"n": 99}}


def test_a_few_shards_and_damaged_ones_stay_as_they_are(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_old_shards(store, monkeypatch, image_index.MANY_SHARDS - 1)
    assert image_index.compact_index(store.object_store, "seen") == 0
    expected = write_old_shards(store, monkeypatch, image_index.MANY_SHARDS)
    first = next(iter(store.object_store.names("index/seen/")))
    store.object_store.put(first, b"cut")
    assert image_index.compact_index(store.object_store, "seen") == 0
    assert store.read_index("seen") == expected


def test_an_end_between_writing_and_deleting_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write_old_shards(store, monkeypatch, image_index.MANY_SHARDS)

    def end(_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(store.object_store, "delete_many", end)
        with pytest.raises(SystemExit):
            image_index.compact_index(store.object_store, "seen")
    assert len(list(store.object_store.names("index/seen/"))) == image_index.MANY_SHARDS + 1
    assert dict(image_index.iter_index(store.object_store, "seen")) == expected
    assert len(list(store.object_store.names("index/seen/"))) == 1


def test_a_reader_whose_shards_are_put_together_meanwhile_misses_no_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write_old_shards(store, monkeypatch, image_index.MANY_SHARDS)
    reader = image_index.read_shards(store.object_store, "seen")
    found = dict(next(reader)[1] or {})
    assert image_index.compact_index(store.object_store, "seen") == image_index.MANY_SHARDS - 1
    for _, records in reader:
        found |= records or {}
    assert found == expected

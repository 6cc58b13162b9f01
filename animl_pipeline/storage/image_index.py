"""The image index: what is known of single images (downloaded, detected, cropped) and of locations used in test sets.

An index has a name and consists of shards of JSON lines, ``[key, record]``. A shard is written once and never changed, so several
writers do not disturb each other, and a kill loses at most the shard that is being written. A shard's name ends with the digest of its
content, so a changed, cut or emptied shard is found when it is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from animl_pipeline.storage.object_store import ObjectStore

log = logging.getLogger(__name__)

FOLDER = "index/"
TIME_DIGITS = 20
"""Digits of the time with which a shard's name begins."""


def read_index(object_store: ObjectStore, name: str) -> dict[str, dict[str, Any]]:
    """All records of an index by key. If a key has two records, the one written last counts."""
    return dict(iter_index(object_store, name))


def iter_index(object_store: ObjectStore, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and record of an index, in the order of writing. Only one shard at a time is in memory.

    A damaged shard is removed with a warning, and its work is done again.
    """
    for shard, records in read_shards(object_store, name):
        if records is not None:
            yield from records.items()
        else:
            log.warning("%s in the store has changed and cannot be used; it is removed, and its work is done again", shard)
            object_store.delete(shard)


def read_shards(object_store: ObjectStore, name: str) -> Iterator[tuple[str, dict[str, dict[str, Any]] | None]]:
    """The object name and the records of each shard of an index (None if it is damaged), in the order of writing."""
    for shard in sorted(object_store.names(f"{FOLDER}{name}/")):
        data = object_store.read(shard)
        if data is not None:  # otherwise it was removed meanwhile
            yield shard, _parse(shard, data)


def index_names(object_store: ObjectStore) -> list[str]:
    """The names of all indexes."""
    return sorted({found.name.removeprefix(FOLDER).rpartition("/")[0] for found in object_store.objects(FOLDER)})


def add_to_index(object_store: ObjectStore, name: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Add records to an index, all or none. Several writers may do so at a time."""
    _write(object_store, name, f"{time.time_ns():0{TIME_DIGITS}d}", records)


def remove_from_index(object_store: ObjectStore, name: str, is_removed: Callable[[dict[str, Any]], bool]) -> int:
    """Remove each key of an index whose last record is to be removed; returns how many there were.

    Writers may be at work meanwhile. After a kill some keys are still there with their last record: the earliest shards are
    replaced first, so that an earlier record of a key never counts again.
    """
    keys: set[str] = set()
    for _, records in read_shards(object_store, name):
        for key, record in (records or {}).items():
            (keys.add if is_removed(record) else keys.discard)(key)
    for shard, records in read_shards(object_store, name) if keys else ():
        left = {key: record for key, record in (records or {}).items() if key not in keys}
        if records is not None and len(left) < len(records):
            _write(object_store, name, shard.rpartition("/")[2][:TIME_DIGITS], left)
            object_store.delete(shard)
    return len(keys)


def in_batch(sha256: str, batch: int, of: int) -> bool:
    """Whether a blob belongs to the batch 0 … of - 1 of a cluster's work: the same for the same content, on every machine."""
    return int(sha256[:8], 16) % of == batch


def _write(object_store: ObjectStore, name: str, written_at: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    if records:
        data = "".join(json.dumps([k, records[k]], sort_keys=True, separators=(",", ":")) + "\n" for k in sorted(records)).encode()
        object_store.put_new(f"{FOLDER}{name}/{written_at}-{_digest(data)}.jsonl", data)


def _digest(data: bytes) -> str:
    """The end of a shard's name: the beginning of its content's sha256."""
    return hashlib.sha256(data).hexdigest()[:16]


def _parse(shard: str, data: bytes) -> dict[str, dict[str, Any]] | None:
    """The records of a shard; None if its content is not the one in its name, or is not of this version."""
    if not shard.endswith(f"-{_digest(data)}.jsonl"):
        return None
    try:
        return {str(key): dict(record) for key, record in map(json.loads, data.decode().splitlines())}
    except (ValueError, TypeError):
        return None

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from typing import Any

from animl_pipeline.core.errors import StoreError
from animl_pipeline.storage.object_store import ObjectStore, StoredObject

log = logging.getLogger(__name__)

FOLDER = "index/"
TIME_DIGITS = 20
"""Digits of the time with which a shard's name begins."""
MANY_SHARDS, SMALL_BYTES, MERGED_BYTES = 64, 4_000_000, 16_000_000
"""So many shards below ``SMALL_BYTES`` are put together, into shards of about ``MERGED_BYTES``, which is about 100,000 images."""
QUIET_NS = 3600 * 10**9
"""Shards younger than this are not put together."""


def read_index(object_store: ObjectStore, name: str) -> dict[str, dict[str, Any]]:
    """All records of an index by key. If a key has two records, the one written last counts."""
    return dict(iter_index(object_store, name))


def iter_index(object_store: ObjectStore, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and record of an index, in the order of writing. Only one shard at a time is in memory.

    A damaged shard is removed with a warning, and its work is done again. Many small shards are put together first.
    """
    with suppress(StoreError):  # without the right to write, they stay as they are
        compact_index(object_store, name)
    for shard, records in read_shards(object_store, name):
        if records is not None:
            yield from records.items()
        else:
            log.warning("%s in the store has changed and cannot be used; it is removed, and its work is done again", shard)
            object_store.delete(shard)


def read_shards(object_store: ObjectStore, name: str) -> Iterator[tuple[str, dict[str, dict[str, Any]] | None]]:
    """The object name and the records of each shard of an index (None if it is damaged), in the order of writing.

    If another process puts shards together meanwhile, all are read once more, so a shard may come twice.
    """
    is_complete = False
    while not is_complete:
        is_complete = True
        for shard in object_store.names(f"{FOLDER}{name}/"):
            data = object_store.read(shard)
            if data is None:
                is_complete = False
            else:
                yield shard, _parse(shard, data)


def index_names(object_store: ObjectStore) -> list[str]:
    """The names of all indexes."""
    return sorted({found.name.removeprefix(FOLDER).rpartition("/")[0] for found in object_store.objects(FOLDER)})


def add_to_index(object_store: ObjectStore, name: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Add records to an index, all or none. Several writers may do so at a time."""
    _write(object_store, name, f"{time.time_ns():0{TIME_DIGITS}d}", records)


def compact_index(object_store: ObjectStore, name: str) -> int:
    """Put neighbouring small shards together; returns how many shards there are less. Nothing happens while there are few.

    Each shard costs a request. A new shard gets the time of its last part, so that later records still win; its parts are deleted
    after it was written, so that a kill loses nothing. Shards of the last hour stay: another writer may still add one between them.
    """
    folder, before = f"{FOLDER}{name}/", f"{time.time_ns() - QUIET_NS:0{TIME_DIGITS}d}"
    found = sorted(f for f in object_store.objects(folder) if f.name.removeprefix(folder) < before)
    if sum(f.bytes < SMALL_BYTES for f in found) < MANY_SHARDS:
        return 0
    removed = 0
    for small, run in groupby(found, lambda f: f.bytes < SMALL_BYTES):
        for group in _groups(run) if small else ():
            merged: dict[str, dict[str, Any]] = {}
            for shard in group:
                data = object_store.read(shard)
                records = None if data is None else _parse(shard, data)
                if records is None:  # damaged, or another process is at the same work
                    return removed
                merged |= records
            written = _write(object_store, name, group[-1].removeprefix(folder)[:TIME_DIGITS], merged)
            object_store.delete_many([shard for shard in group if shard != written])
            removed += len(group) - 1
    return removed


def _groups(shards: Iterable[StoredObject]) -> Iterator[list[str]]:
    """Names of consecutive shards that have up to about ``MERGED_BYTES`` together; a shard alone is left out."""
    group, size = [], 0
    for shard in shards:
        group.append(shard.name)
        size += shard.bytes
        if size >= MERGED_BYTES:
            yield group
            group, size = [], 0
    if len(group) > 1:
        yield group


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


def _write(object_store: ObjectStore, name: str, written_at: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """Write a shard, unless there are no records; its object name."""
    data = "".join(json.dumps([k, records[k]], sort_keys=True, separators=(",", ":")) + "\n" for k in sorted(records)).encode()
    shard = f"{FOLDER}{name}/{written_at}-{_digest(data)}.jsonl"
    if records:
        object_store.put_new(shard, data)
    return shard


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

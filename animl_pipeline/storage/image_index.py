"""What is known of single pictures and places, kept beside the steps: fetched, detected, cropped, tested on.

Under each name lie shards of JSON lines, ``[key, record]``; a shard is written whole and never changed, so several writers do
not meet, and a kill loses at most the shard in hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from animl_pipeline.core.errors import DamagedError
from animl_pipeline.storage.object_store import ObjectStore

log = logging.getLogger(__name__)

STAMP = 20
"""Digits of the time that a shard's name begins with."""


def recall(object_store: ObjectStore, name: str, *, irreplaceable: bool = False) -> dict[str, dict[str, Any]]:
    """All that is remembered under ``name``: key → record. Of two records of one key the one stored last counts.

    Args:
        depot: where the shards lie.
        name: what the records are of.
        precious: the records cannot be found out anew; without it a damaged shard is removed, and its work done again.

    Raises:
        DamagedError: a shard of precious records cannot be read.
    """
    return dict(each(object_store, name, irreplaceable=irreplaceable))


def each(object_store: ObjectStore, name: str, *, irreplaceable: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """All that is remembered under ``name``, key and record, the shard stored last at the end; only a shard at a time is in memory.

    Raises:
        DamagedError: as :func:`recall`.
    """
    for shard, records in shards(object_store, name):
        if records is not None:
            yield from records.items()
        elif irreplaceable:
            raise DamagedError(f"{shard} in the store had changed and cannot be made anew; restore it from a copy of the store")
        else:
            log.warning("%s in the store had changed and cannot be read; what it told is found out anew", shard)
            object_store.delete(shard)


def shards(object_store: ObjectStore, name: str) -> Iterator[tuple[str, dict[str, dict[str, Any]] | None]]:
    """Where each shard of what is remembered under ``name`` lies, and its records (None: it cannot be read); the one stored last at the end."""
    for shard in sorted(object_store.names(f"memory/{name}/")):
        try:
            yield shard, _records(object_store.read(shard) or b"")
        except (ValueError, TypeError):
            yield shard, None


def forget(object_store: ObjectStore, name: str, gone: Callable[[dict[str, Any]], bool]) -> int:
    """Forget each key under ``name`` of which the record stored last is gone; how many there were comes back.

    Safe beside writers, and a kill on the way leaves some keys remembered as they were: the earliest shards go first, so that
    no earlier record of a key ever counts again.
    """
    keys: set[str] = set()
    for _, records in shards(object_store, name):
        for key, record in (records or {}).items():
            (keys.add if gone(record) else keys.discard)(key)
    for shard, records in shards(object_store, name) if keys else ():
        left = {key: record for key, record in (records or {}).items() if key not in keys}
        if records is not None and len(left) < len(records):
            _write(object_store, name, shard.rpartition("/")[2][:STAMP], left)
            object_store.delete(shard)
    return len(keys)


def remember(object_store: ObjectStore, name: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Add records to what is remembered under ``name``, all or none; safe with several writers."""
    _write(object_store, name, f"{time.time_ns():0{STAMP}d}", records)


def in_share(sha256: str, share: int, of: int) -> bool:
    """Whether what is known of a blob is for share 0 … of - 1 to find out: the same for the same content, everywhere."""
    return int(sha256[:8], 16) % of == share


def _write(object_store: ObjectStore, name: str, stamp: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    """A shard that counts by its stamp among the others."""
    if records:
        data = "".join(json.dumps([k, records[k]], sort_keys=True, separators=(",", ":")) + "\n" for k in sorted(records)).encode()
        object_store.put_new(f"memory/{name}/{stamp}-{hashlib.sha256(data).hexdigest()[:16]}.jsonl", data)


def _records(shard: bytes) -> dict[str, dict[str, Any]]:
    """The records of a shard; ValueError or TypeError where it does not hold what ``remember`` writes."""
    return {str(key): dict(record) for key, record in map(json.loads, shard.decode().splitlines())}

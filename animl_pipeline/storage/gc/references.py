"""Which blobs are named: in the tables and JSON of steps, and in what the store remembers.

Whatever reads like a blob's name counts as one, in whichever column or key it stands: to keep too much costs room, to keep
too little costs pictures.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from animl_pipeline.core.errors import StoreError
from animl_pipeline.storage import image_index
from animl_pipeline.storage.gc.roots import Root
from animl_pipeline.storage.gc.stored_steps import Id, Step
from animl_pipeline.storage.step_cache import Store

NAME = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
CHUNK = 1 << 22
CROPS, IMAGES, WINDOWS = "crops", "images", "animl-windows"
"""Memories that name blobs and need not keep them: crops are cut anew, pictures fetched again, exports under way are young."""
SILENT = frozenset({"detections", "likeness", "taken", "splits"})
"""Memories whose records name no blob."""


def named_by(step: Step, store: Store) -> Iterator[set[str]]:
    """The names that a step's files hold, a part at a time.

    Raises:
        StoreError: a file cannot be read.
    """
    for name, size in step.files.items():
        if name.endswith((".parquet", ".json")) and name != step.manifest:
            path = store.local / name
            if not path.exists() or path.stat().st_size != size:
                store.object_store.fetch(name, path)
            try:
                yield from _in_table(path) if path.suffix == ".parquet" else _in_text(path)
            except (OSError, ValueError) as e:  # pyarrow's own errors are such
                raise StoreError(
                    f"{name} in the store at {store.object_store} cannot be read ({e}); which pictures it needs is unknown, so nothing is cleared: "
                    f"run the plan again that made it, or delete {step.manifest}"
                ) from e


def remembered(store: Store, but: frozenset[str]) -> Iterator[set[str]]:
    """The names that remembered records hold, a shard at a time; keys do not count.

    Args:
        store: whose memory.
        but: kinds of memory that are left out, such as crops.
    """
    for name in memories(store):
        if name.partition("/")[0] not in but | SILENT:
            for _, records in image_index.shards(store.object_store, name):
                yield set(_texts(list((records or {}).values())))


def memories(store: Store) -> list[str]:
    """Under which names something is remembered."""
    return sorted({lying.name.removeprefix("memory/").rpartition("/")[0] for lying in store.object_store.lying("memory/")})


def _in_table(path: Path) -> Iterator[set[str]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for column in batch.columns:
                flat = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
                if pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type):
                    yield set(flat.filter(pc.equal(pc.utf8_length(flat), 64)).unique().to_pylist())
                elif pa.types.is_nested(flat.type):
                    yield set(_texts(flat.to_pylist()))


def _in_text(path: Path) -> Iterator[set[str]]:
    with path.open("rb") as f:
        rest = b""
        while chunk := f.read(CHUNK):
            text = rest + chunk
            yield {name.decode() for name in NAME.findall(text)}
            rest = text[-66:]


def _texts(value: Any) -> Iterator[str]:
    """Every text of 64 characters inside a JSON value."""
    if isinstance(value, str):
        if len(value) == 64:
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


CHAMPION = ("evaluation", "champion")
"""An evaluation's input that is another model's package: read as it is, so what it was made from is not needed for that."""
RELEASED = ("training", "released")
"""A training's input that is another model's weights, by the content of their file: read as they are, too."""
BESIDE = "compared with, or trained on from, by a model that stays"


def needed(steps: Mapping[Id, Step], roots: Sequence[Root]) -> dict[Id, str]:
    """Each step that is needed, and why: by the first root that leads to it.

    Manifests name their inputs by digest, so every step of that digest counts.

    Args:
        steps: all that lie in the store.
        roots: the steps that somebody needs, the weightiest reason first; those that the store lacks lead nowhere.
    """
    of_digest: dict[str, list[Id]] = defaultdict(list)
    of_file: dict[str, list[Id]] = defaultdict(list)
    for step in steps.values():
        of_digest[step.digest].append(step.id)
        for sha256 in step.made:
            of_file[sha256].append(step.id)
    found: dict[Id, str] = {}
    beside: list[Id] = []
    todo = [root for root in reversed(roots) if root.id in steps]
    while todo:
        at = todo.pop()
        if at.id in found:
            continue
        found[at.id] = at.why
        for name, digest in steps[at.id].inputs.items():
            if (at.id.step, name) == CHAMPION:
                beside += of_digest[digest]
            elif (at.id.step, name) == RELEASED:
                beside += of_file[digest]
            else:
                todo += [Root(i, at.why) for i in of_digest[digest]]
    return found | {i: BESIDE for i in beside if i not in found}

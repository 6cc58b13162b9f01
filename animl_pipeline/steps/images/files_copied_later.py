"""Make a download again where files of this machine that were missing are there now."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.table_schemas import MISSING_IMAGES
from animl_pipeline.storage.store import Store

Key = dict[str, Any]


def make_again_if_copied(make: Callable[[Key], Artifact], key: Key, folder: Path | None, store: Store) -> Artifact:
    """The artifact of a step that downloads images, made again if somebody has copied files since that it did not find.

    Other failures of local files are retried by the step itself, or are those of a file that is as its id says.

    Args:
        make: makes the artifact, or finds it in the store, by its key.
        key: the key without such files.
        folder: where the images are on this machine; None: they are elsewhere.
        store: holds the artifact.
    """
    artifact, copied = make(key), list[list[str | int]]()
    while artifact.cached and folder is not None:
        found = _copied_files(artifact, folder, store)
        if not found or found == copied:
            break
        copied = found
        artifact = make(key | {"copied": copied})
    return artifact


def _copied_files(artifact: Artifact, folder: Path, store: Store) -> list[list[str | int]]:
    """Path, bytes and time of change of each file that was missing for the artifact and is there now."""
    table = store.table(artifact, MISSING_IMAGES, ["path", "reason"])
    found: list[list[str | int]] = []
    for path in table.loc[table["reason"] == "missing", "path"]:
        try:
            file = (folder / path).stat()
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(file.st_mode):
            found.append([path, file.st_size, file.st_mtime_ns])
    return sorted(found)

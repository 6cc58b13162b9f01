"""Make a download again where files of this machine have come, or have been replaced, since it was made."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.table_schemas import DOWNLOADED_IMAGES, MISSING_IMAGES
from animl_pipeline.storage.store import Store

Key = dict[str, Any]


def make_again_if_changed(make: Callable[[Key], Artifact], key: Key, folder: Path | None, store: Store) -> Artifact:
    """The artifact of a step that downloads images, made again if files that it did not find are there now, or others have another size.

    Other failures of local files are retried by the step itself, or are those of a file that is as its id says.

    Args:
        make: makes the artifact, or finds it in the store, by its key.
        key: the key without such files.
        folder: where the images are on this machine; None: they are elsewhere.
        store: holds the artifact.
    """
    artifact, changed = make(key), list[list[str | int]]()
    while artifact.cached and folder is not None:
        found = sorted(_changed_files(artifact, folder, store))
        if not found or found == changed:
            break
        changed = found
        artifact = make(key | {"changed": changed})
    return artifact


def _changed_files(artifact: Artifact, folder: Path, store: Store) -> Iterator[list[str | int]]:
    """Path, bytes and time of change of each file that is not as the artifact says. One that is gone does not count: the store has it."""
    missing = store.table(artifact, MISSING_IMAGES, ["path", "reason"])
    known = store.table(artifact, DOWNLOADED_IMAGES, ["path", "bytes"])
    sizes = dict.fromkeys(missing.loc[missing["reason"] == "missing", "path"], -1) | dict(zip(known["path"], known["bytes"], strict=True))
    for path, size in sizes.items():
        try:
            file = (folder / path).stat()
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(file.st_mode) and file.st_size != size:
            yield [path, file.st_size, file.st_mtime_ns]

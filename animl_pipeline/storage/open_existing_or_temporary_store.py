"""Open a store that must exist already, or one that lasts only as long as a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import StoreError
from animl_pipeline.storage.store import FORMAT_FILE, OLD_FOLDERS, Store, open_store


def open_existing_store(settings: Settings) -> Store:
    """The store of the settings, for a command that only reads it: a mistyped address makes no store.

    Raises:
        StoreError: there is no store (code "no_store"), or as :func:`open_store`.
    """
    address = settings.store
    folder = Path(address).expanduser().resolve()
    if not address.startswith("s3://") and not any((folder / name).exists() for name in (FORMAT_FILE, *OLD_FOLDERS)):
        raise StoreError(
            f"expected a store at {folder}, found {'a folder without one' if folder.is_dir() else 'no such folder'}; correct its address "
            "(ANIML_STORE, --store), or run `animl-pipeline retrain PLAN` first, which makes one",
            code="no_store",
        )
    return open_store(settings)


@contextmanager
def open_store_or_temporary(settings: Settings) -> Iterator[Store]:
    """The store of the settings. If the address is not given and there is none at the usual one, a store that lasts as long as the block.

    So a command that needs a store only to read exports leaves nothing in the folder in which it runs.
    """
    if "store" in settings.model_fields_set or (Path(settings.store) / FORMAT_FILE).exists():
        yield open_store(settings)
        return
    with TemporaryDirectory() as folder:
        yield open_store(settings, folder)

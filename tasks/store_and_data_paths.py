"""Where a run reads and writes. Flows pass it to every task, so that a worker on another machine needs no setting for it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.storage.store import Store, open_store


class RunPaths(Record):
    """The store's address and the data folder of a run, both absolute."""

    store: str = Field(description="folder or s3://bucket/prefix that holds all that steps make")
    data: str = Field(description="folder where relative paths of the plan start")

    def settings(self) -> Settings:
        """This process's settings, with the run's store and data folder."""
        return load_settings().model_copy(update={"store": self.store, "data": Path(self.data)})

    def open_store(self) -> Store:
        """The run's store."""
        return open_store(load_settings(), self.store)


def resolve_run_paths(store: str = "", data: str = "") -> RunPaths:
    """The paths that a flow was given, made absolute; an empty one is that of the settings (ANIML_STORE, ANIML_DATA).

    Raises:
        SettingsError: a setting is not valid.
    """
    settings = load_settings()
    address = store or settings.store
    return RunPaths(
        store=address if address.startswith("s3://") else str(Path(address).expanduser().resolve()),
        data=str(Path(data or settings.data).expanduser().resolve()),
    )

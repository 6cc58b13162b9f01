"""A store in a folder and one in S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.storage.store import Store, open_store


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    address = str(tmp_path / "store") if request.param == "folder" else f"s3://{request.getfixturevalue('bucket')}/store"
    return open_store(Settings(store=address, cache=tmp_path / "cache"))

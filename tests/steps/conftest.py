"""Fixtures of the tests of the steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from animl_pipeline.config.settings import Settings
from tests.support.animl_exports import TOKEN
from tests.support.animl_images import make_images
from tests.support.animl_server import AnimlServer, serve_animl


@pytest.fixture
def site() -> Iterator[AnimlServer]:
    with serve_animl(make_images(200)) as site:
        yield site


@pytest.fixture
def here(site: AnimlServer, tmp_path: Path) -> Settings:
    return Settings(store=str(tmp_path / "store"), data=tmp_path, api_url=site.url, id_token=SecretStr(TOKEN), poll_s=0.01, timeout_s=5)

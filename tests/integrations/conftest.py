"""Animl's test server for the tests of its client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.animl_images import make_images
from tests.support.animl_server import AnimlServer, serve_animl


@pytest.fixture
def site() -> Iterator[AnimlServer]:
    """A project with 30 images."""
    with serve_animl(make_images(30)) as site:
        yield site

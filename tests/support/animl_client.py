"""Clients of Animl's test server."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from animl_pipeline.config.settings import Settings
from animl_pipeline.integrations.animl import AnimlClient
from tests.support.animl_server import AnimlServer

TOKEN = "token-of-a-service-user"  # noqa: S105 - opens the test's own server


def settings_for(site: AnimlServer, **changes: Any) -> Settings:
    """Settings with which the token of the test's service user is sent to the server."""
    values: dict[str, Any] = {"api_url": site.url, "id_token": SecretStr(TOKEN), "poll_s": 0.01, "timeout_s": 5}
    return Settings(**(values | changes))


def client_of(site: AnimlServer, **changes: Any) -> AnimlClient:
    """A client for the project isle."""
    return AnimlClient("isle", settings_for(site, **changes))

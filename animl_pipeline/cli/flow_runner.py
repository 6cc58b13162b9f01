"""Run a flow from a command: show its progress, and say Prefect's own errors in one line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from animl_pipeline.cli import console
from animl_pipeline.cli.embedded_prefect import embedded_server
from animl_pipeline.cli.options import Debug
from animl_pipeline.cli.prefect_connection import api_hint, server_address, unreachable_message
from animl_pipeline.core.errors import SettingsError, redact_url


def run_flow(flow: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A flow's result. Without a Prefect server in the settings, an embedded one runs for as long as this command.

    Raises:
        SettingsError: Prefect's server is not where its settings say, or does not start.
    """
    address = server_address()
    try:
        with console.show_progress(debug=Debug.on), embedded_server() if address is None else nullcontext():
            return flow(*arguments, **options)
    except RuntimeError as e:
        if "Failed to reach API" not in str(e):  # Prefect has no error of its own for this
            raise
        address = address or ""
        raise SettingsError(unreachable_message(redact_url(address), api_hint(address), e.__cause__ or e), code="server_unreachable") from e

"""How a command runs a flow: with its progress on the screen, and Prefect's own faults in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from animl_pipeline.cli import console
from animl_pipeline.cli.prefect_server import not_reached, server_address
from animl_pipeline.config.settings import api_hint, without_secrets
from animl_pipeline.core.errors import SettingsError
from flows import lifecycle
from flows.lifecycle import keep_what_is_loaded


class Debug:
    """Whether --debug was given."""

    on = False


def run(flow: Callable[..., Any], *arguments: Any, **how: Any) -> Any:
    """A flow's result; its progress is shown.

    Raises:
        SettingsError: Prefect's server is not where its settings say, or does not start.
    """
    server_address()
    keep_what_is_loaded()
    try:
        with console.watched(debug=Debug.on), lifecycle.children_spared():
            return flow(*arguments, **how)
    except RuntimeError as e:
        if "ephemeral Prefect API server" in str(e):  # Prefect has no errors of its own for these
            raise SettingsError(f"Prefect's embedded server did not start ({e}); see that PREFECT_HOME (~/.prefect) can be written") from e
        if "Failed to reach API" not in str(e):
            raise
        address = server_address() or ""
        raise SettingsError(not_reached(without_secrets(address), api_hint(address), e.__cause__ or e)) from e

"""How a command runs a flow: with its progress on the screen, and Prefect's own faults in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from animl_pipeline.errors import SettingsError
from animl_pipeline.settings import api_hint, prefect_server, without_secrets
from flows import screen
from flows.heap import keep_what_is_loaded


class Debug:
    """Whether --debug was given."""

    on = False


def run(flow: Callable[..., Any], *arguments: Any, **how: Any) -> Any:
    """A flow's result; its progress is shown."""
    keep_what_is_loaded()
    try:
        with screen.watched(debug=Debug.on):
            return flow(*arguments, **how)
    except RuntimeError as e:
        if "ephemeral Prefect API server" in str(e):  # Prefect has no errors of its own for these
            raise SettingsError(f"Prefect's embedded server did not start ({e}); see that PREFECT_HOME (~/.prefect) can be written") from e
        if "Failed to reach API" not in str(e):
            raise
        address = prefect_server() or ""
        advice = api_hint(address) or "start one (`prefect server start`) or unset it"
        raise SettingsError(f"PREFECT_API_URL: expected a Prefect server at {without_secrets(address)}, reached none; {advice}") from e

"""The error of a request that cannot be answered. Without imports, so that the program listens before it loads starlette."""

from __future__ import annotations

RETRY_STATUSES = frozenset({429, 503})
"""Statuses after which the same request may succeed."""
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that disconnected. Only the log shows it."""


class RequestError(Exception):
    """A request that cannot be answered. The response has ``status`` and the body ``{"error": reason}``."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After, if another try may succeed."""
        return {"Retry-After": "1"} if self.status in RETRY_STATUSES else {}

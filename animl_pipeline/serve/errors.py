"""What the endpoint says when it cannot answer: one status, one reason."""

from __future__ import annotations

TRY_AGAIN = frozenset({429, 503})
"""Statuses after which the same request may succeed: they carry a Retry-After."""


class Refusal(Exception):  # noqa: N818 - it is an answer, not an error of the program
    """A request that gets no answer, and why; becomes ``{"error": reason}`` under ``status``."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason

    @property
    def headers(self) -> dict[str, str]:
        """When to ask again, where that may help."""
        return {"Retry-After": "1"} if self.status in TRY_AGAIN else {}

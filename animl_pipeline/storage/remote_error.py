"""The error of a remote file: why it could not be read, and whether another try may help."""

from __future__ import annotations


class RemoteError(Exception):
    """A file could not be read from a folder, a web server or S3.

    Attributes:
        reason: a word to count by: ``missing``, ``forbidden``, ``refused``, ``unsafe_path``, ``too_large``, ``unreachable``,
            ``timed_out``, ``truncated``.
        retryable: whether a later try may succeed.
        offline: whether there was no connection at all, or no valid credentials, so that other files will fail as well.
        retry_after_s: how long the server asks to wait.
    """

    def __init__(self, reason: str, detail: str, *, retryable: bool = False, offline: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retryable = retryable
        self.offline = offline
        self.retry_after_s = retry_after_s

"""Send a query to Animl, and what its answer says of an error: its status, GraphQL's codes, and the reason in one of several forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import requests

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.errors import ExportError, ExportUnreachableError
from animl_pipeline.storage.read_remote_files import RemoteError

TOKEN_REFUSED = {"UNAUTHENTICATED", "UNAUTHORIZED", "AUTHENTICATION_ERROR"}
"""GraphQL codes of a refused token. The last one comes with the status 500."""


def post_query(
    session: requests.Session,
    url: str,
    query: str,
    variables: Mapping[str, Any],
    add_secret: Callable[[requests.PreparedRequest], requests.PreparedRequest],
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
) -> requests.Response:
    """Animl's answer to a GraphQL query, whatever its status. Nothing is tried twice, and no redirect is followed.

    ``add_secret`` adds the token or key. It is an ``auth`` of requests, so that a .netrc cannot replace it.

    Raises:
        RemoteError: ``timed_out`` or ``unreachable``; Animl may have done what was asked.
    """
    try:
        return session.post(
            url, json={"query": query, "variables": variables}, headers=headers, auth=add_secret, timeout=timeout_s, allow_redirects=False
        )
    except requests.ReadTimeout:
        raise RemoteError("timed_out", f"{url} gave no answer within {timeout_s:.0f} s", retryable=True) from None
    except requests.RequestException as e:
        raise RemoteError("unreachable", f"{url}: {type(e).__name__}", retryable=True) from None


def check_status(status: int, where: str, why: str = "") -> None:
    """Raise the RemoteError of a status that is not 200; ``why`` is what the server said itself."""
    said = f": {why}" if why else ""
    if status == 504:
        raise RemoteError("timed_out", f"{where}: the server answered 504, it took too long{said}", retryable=True)
    if status in {408, 429} or status >= 500:
        raise RemoteError("unreachable", f"{where}: the server answered {status}{said}", retryable=True)
    if status != requests.codes.ok:
        raise RemoteError("refused", f"{where}: the server answered {status}{said}")


def json_body(response: requests.Response) -> Any:
    """A response's JSON; None where it is none."""
    try:
        return response.json()
    except ValueError:
        return None


def graphql_errors(response: requests.Response) -> list[dict[str, Any]]:
    """GraphQL's errors, which also come with status 200."""
    body = json_body(response)
    errors = body.get("errors") if isinstance(body, dict) else None
    return [e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []


def reason_in(error: Any) -> str:
    """The reason in what Animl says of an error: text, an object with a message or a code, or a list of these; "" for none."""
    if isinstance(error, list):
        return next((reason for e in error if (reason := reason_in(e))), "")
    if isinstance(error, dict):
        return next(
            (reason for key in ("message", "errorMessage", "errors", "error", "extensions", "code") if (reason := reason_in(error.get(key)))), ""
        )
    return "" if error is None else str(error)


def codes(errors: list[dict[str, Any]]) -> set[str]:
    """GraphQL's codes of errors."""
    return {str((e.get("extensions") or {}).get("code")) for e in errors}


def token_refused(response: requests.Response) -> bool:
    """Whether Animl refuses the user's token."""
    return response.status_code == 401 or bool(codes(graphql_errors(response)) & TOKEN_REFUSED)


@contextmanager
def animl_errors(source: SourceConfig) -> Iterator[None]:
    """Turn errors of the client into errors of the source's export; retryable ones stay retryable."""
    try:
        yield
    except RemoteError as e:
        kind = ExportUnreachableError if e.retryable else ExportError
        retry = "; run again, what has arrived is kept" if e.retryable else ""
        raise kind(f"source {source.name!r}: Animl did not answer for {source.export}: {e}{retry}", code=e.reason) from e

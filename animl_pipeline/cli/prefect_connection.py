"""Find the Prefect server of this process as Prefect does (settings, profile, certificates, password), and check that it answers."""

from __future__ import annotations

import importlib
import os
import ssl
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from animl_pipeline.cli.prefect_server_password import kept_password
from animl_pipeline.core.errors import SettingsError, redact_url

if TYPE_CHECKING:
    import httpx

POOL = "animl"
"""The work pool of all deployments."""
PROFILES = "profiles.toml of PREFECT_HOME (~/.prefect)"

PREFECT_DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a new database takes 20 s, more on a busy machine
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLIENT_MAX_RETRIES": "12",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "animl_pipeline",  # the steps' log lines reach the run's log
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # lines from outside of a run have no run's log to go to
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command line shows the same lines itself
}
LOCAL_SERVER_DEFAULTS = {
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the second UI calls an analytics host from the browser, whatever is set
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the automation for dead runs listens for it
    # By default a restarted server does not know who holds a deployment's slot, and running flows are cancelled minutes later
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}


def prepare_prefect(command: str | None = None, *, debug: bool = False) -> None:
    """Give Prefect the defaults that suit a command line, before it is imported. What is set already stays.

    If PREFECT_API_URL names a server that this user's `animl-pipeline up` runs, the password is the one that it keeps.

    ``command``: the command that runs: `server` and `worker` show Prefect's own log, which people read.
    """
    defaults = PREFECT_DEFAULTS | (LOCAL_SERVER_DEFAULTS if command == "server" else {})
    for name, value in defaults.items():
        if not ("CONSOLE_LEVEL" in name and (debug or command in {"server", "worker"})):
            os.environ.setdefault(name, value)
    if not os.environ.get("PREFECT_API_URL"):  # an empty one would let Prefect start a server and use another one
        os.environ.pop("PREFECT_API_URL", None)
    if not os.environ.get("PREFECT_API_AUTH_STRING") and not os.environ.get("PREFECT_API_KEY"):
        home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
        password = kept_password(os.environ.get("PREFECT_API_URL", ""), home)
        if password is not None:
            os.environ["PREFECT_API_AUTH_STRING"] = password


def server_password() -> str:
    """The ``user:password`` of the Prefect server, for another server beside it; "" if none is set."""
    return os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or os.environ.get("PREFECT_API_AUTH_STRING", "")


def api_hint(address: str) -> str:
    """A hint if the address of a Prefect server does not end as its API does; "" if it does."""
    scheme, _, rest = redact_url(address).partition("://")
    host, _, path = rest.partition("/")
    if not host or f"/{path}".rstrip("/").endswith("/api") or path.startswith("api/accounts/"):  # the last is Prefect Cloud's
        return ""
    return f"the address of a Prefect server ends in /api, such as {scheme}://{host}/api"


def load_prefect() -> None:
    """Import Prefect, which reads its settings at its import.

    Raises:
        SettingsError: they cannot be read, or one of them is not valid.
    """
    try:
        importlib.import_module("prefect.context")
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in first["loc"])
        which = f"setting {name} (of its {e.title}) is" if name else "settings are"
        variable = f"PREFECT_…_{name.upper()}" if name else "PREFECT_…"
        reason = first["msg"].removeprefix("Value error, ")
        raise SettingsError(
            f"Prefect's {which} not valid: {reason}; correct the variable {variable}, or the profile in {PROFILES}", code="prefect_settings"
        ) from e
    except tomllib.TOMLDecodeError as e:
        raise SettingsError(f"Prefect's profiles in {PROFILES} cannot be read: {e}; correct the file, or remove it", code="prefect_profiles") from e
    from prefect.settings import PREFECT_API_SSL_CERT_FILE

    certificates = PREFECT_API_SSL_CERT_FILE.value()
    try:
        ssl.create_default_context(cafile=certificates or None)
    except OSError as e:  # ssl's own errors are among them
        reason = e.strerror or type(e).__name__
        raise SettingsError(
            f"PREFECT_API_SSL_CERT_FILE: expected a file with a CA's certificate, found {certificates} ({reason})", code="prefect_certificates"
        ) from e


def server_address() -> str | None:
    """The server's address, from PREFECT_API_URL or the active profile; None if there is none, and an embedded server is to be used.

    Raises:
        SettingsError: Prefect's settings cannot be read, or name no server and allow no embedded one.
    """
    load_prefect()
    from prefect.context import get_settings_context
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    address: str = PREFECT_API_URL.value() or ""
    if not address and not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        raise SettingsError(
            f"the Prefect profile {get_settings_context().profile.name!r} names no server and allows no embedded one: set PREFECT_API_URL, or "
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE=true",
            code="no_server",
        )
    return address or None


def require_server() -> str:
    """The server's address, as a message may show it.

    Raises:
        SettingsError: none is set.
    """
    address = server_address()
    if address is None:
        raise SettingsError(
            "PREFECT_API_URL: expected the address of a Prefect server, such as http://127.0.0.1:4200/api, found none", code="no_server"
        )
    return redact_url(address)


def check_server(timeout_s: float | None = None) -> None:
    """Check that the server of PREFECT_API_URL is Prefect's, is healthy, and accepts our password.

    ``timeout_s``: seconds for each of its answers, without another try; None: as Prefect's settings say.

    Raises:
        SettingsError: it is not, or does not.
    """
    address = server_address() or ""
    shown, hint = redact_url(address), api_hint(address)
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    changes = {} if timeout_s is None else {PREFECT_CLIENT_MAX_RETRIES: 0}
    try:
        with temporary_settings(changes), get_client({"timeout": timeout_s} if timeout_s else None, sync_client=True) as client:
            health = client.request("GET", "/health")
            if health.text.strip() != "true":  # a page for people answers 200, too
                raise SettingsError(_not_prefect(shown, hint, health), code="not_prefect")
            client.request("POST", "/flows/count", json={})  # the health check needs no password, this does
    except PrefectHTTPStatusError as e:
        status = e.response.status_code
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise SettingsError(
                f"the Prefect server at {shown} asks for a password, and did not accept ours ({status}): set PREFECT_API_AUTH_STRING=user:password "
                "(PREFECT_API_KEY for Prefect Cloud)",
                code="server_password",
            ) from e
        raise SettingsError(_not_prefect(shown, hint, e.response), code="not_prefect") from e
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as e:  # the last if it is no address at all
        raise SettingsError(unreachable_message(shown, hint, e), code="server_unreachable") from e


def unreachable_message(shown: str, hint: str, error: BaseException) -> str:
    """What to say of a server that did not answer.

    ``shown``: its address, without secrets. ``hint``: what is wrong with the address, if that is known.
    """
    advice = hint or ("start it, or correct the address" if "://" in shown else "correct the address")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        advice = "its certificate is not trusted: set PREFECT_API_SSL_CERT_FILE to a file with its CA's certificate"
    return f"expected a Prefect server at {shown} (PREFECT_API_URL), reached none ({type(error).__name__}); {advice}"


def _not_prefect(shown: str, hint: str, answer: httpx.Response) -> str:
    found = f"found a server that answers {answer.status_code}, not as Prefect's does"
    return f"expected Prefect's API at {shown} (PREFECT_API_URL), {found}; {hint or 'check that server, or correct the address'}"

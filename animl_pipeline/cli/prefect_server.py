"""The Prefect server that runs are told to, found and asked as Prefect does: by its settings, profile, certificates and password."""

from __future__ import annotations

import importlib
import ssl
import tomllib
from typing import TYPE_CHECKING

from pydantic import ValidationError

from animl_pipeline.config.settings import api_hint, without_secrets
from animl_pipeline.core.errors import SettingsError

if TYPE_CHECKING:
    import httpx
    from prefect.client.orchestration import SyncPrefectClient

NONE_SET = "PREFECT_API_URL: expected the address of a Prefect server, such as http://127.0.0.1:4200/api, found none"
PROFILES = "profiles.toml of PREFECT_HOME (~/.prefect)"


def load_prefect() -> None:
    """Import Prefect with its settings, which it reads at its import.

    Raises:
        SettingsError: they cannot be read, or one of them does not fit.
    """
    try:
        importlib.import_module("prefect.context")
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in first["loc"])
        which, where = (f"setting {name} (of its {e.title}) does", f"PREFECT_…_{name.upper()}") if name else ("settings do", "PREFECT_…")
        said = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"Prefect's {which} not fit: {said}; correct the variable {where}, or the profile in {PROFILES}") from e
    except tomllib.TOMLDecodeError as e:
        raise SettingsError(f"Prefect's profiles in {PROFILES} cannot be read: {e}; mend the file, or put it away") from e
    from prefect.settings import PREFECT_API_SSL_CERT_FILE

    certificates = PREFECT_API_SSL_CERT_FILE.value()
    try:
        ssl.create_default_context(cafile=certificates or None)
    except OSError as e:  # ssl's own are among them
        said = e.strerror or type(e).__name__
        raise SettingsError(f"PREFECT_API_SSL_CERT_FILE: expected a file with a CA's certificate, found {certificates} ({said})") from e


def server_address() -> str | None:
    """The server's address, from PREFECT_API_URL or the active profile; None where an embedded one runs for as long as a command.

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
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE=true"
        )
    return address or None


def need_server() -> str:
    """The server's address, as a message may show it.

    Raises:
        SettingsError: none is set.
    """
    address = server_address()
    if address is None:
        raise SettingsError(NONE_SET)
    return without_secrets(address)


def check_server(within_s: float | None = None) -> None:
    """See that the server of PREFECT_API_URL is Prefect's, is well, and lets us in.

    Args:
        within_s: seconds for each of its answers, without another try; None: as patient as Prefect's settings say.

    Raises:
        SettingsError: it is not, or does not.
    """
    address = server_address() or ""
    shown, hint = without_secrets(address), api_hint(address)
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    hurried = {} if within_s is None else {PREFECT_CLIENT_MAX_RETRIES: 0}
    try:
        with temporary_settings(hurried), get_client({"timeout": within_s} if within_s else None, sync_client=True) as client:
            _ask(client, shown, hint)
    except PrefectHTTPStatusError as e:
        if e.response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise SettingsError(_shut(shown, e.response.status_code)) from e
        raise SettingsError(_strange(shown, hint, e.response)) from e
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as e:  # the last for what is no address at all
        raise SettingsError(not_reached(shown, hint, e)) from e


def not_reached(shown: str, hint: str, why: BaseException) -> str:
    """What to say of a server that did not answer.

    Args:
        shown: its address, without secrets.
        hint: what is wrong with the address, if that is known.
        why: what Prefect's client met.
    """
    advice = hint or ("start it, or correct the address" if "://" in shown else "correct the address")
    if "CERTIFICATE_VERIFY_FAILED" in str(why):
        advice = "its certificate is not trusted: let PREFECT_API_SSL_CERT_FILE name a file with its CA's"
    return f"expected a Prefect server at {shown} (PREFECT_API_URL), reached none ({type(why).__name__}); {advice}"


def _ask(client: SyncPrefectClient, shown: str, hint: str) -> None:
    well = client.request("GET", "/health")
    if well.text.strip() != "true":  # a page for people answers 200, too
        raise SettingsError(_strange(shown, hint, well))
    client.request("POST", "/flows/count", json={})  # the password is asked for here, and not before


def _shut(shown: str, status: int) -> str:
    return (
        f"the Prefect server at {shown} asks for a password, and did not take ours ({status}): set PREFECT_API_AUTH_STRING=user:password "
        "(PREFECT_API_KEY for Prefect Cloud)"
    )


def _strange(shown: str, hint: str, answer: httpx.Response) -> str:
    found = f"found a server that answers {answer.status_code}, not as Prefect's does"
    return f"expected Prefect's API at {shown} (PREFECT_API_URL), {found}; {hint or 'see to that server, or correct the address'}"

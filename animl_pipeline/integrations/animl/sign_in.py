"""Sign in to Animl: with a ready Cognito ID token, or with a service user's name and password.

The password itself is never sent (SRP, a proof of the password). Tokens and passwords stay inside ``SecretStr`` until they are
used; no message, log line or repr holds one.
"""

from __future__ import annotations

import logging
import re
from urllib.parse import urlsplit

from pydantic import SecretStr

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import SettingsError

log = logging.getLogger(__name__)
MAX_MESSAGE = 200


class SignIn:
    """The ID token, got when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._token: SecretStr | None = None

    def token(self) -> SecretStr:
        """The ID token to send.

        Raises:
            SettingsError: there is neither a token nor a user in the settings, or Cognito refuses the user.
        """
        if self._token is None:
            ready = self._ready_token()
            self._token = ready if ready.get_secret_value() else _sign_in(self._settings)
        return self._token

    def _ready_token(self) -> SecretStr:
        """ANIML_ID_TOKEN without what is often copied with it: the end of a line, and "Bearer"."""
        token = self._settings.id_token.get_secret_value().strip().removeprefix("Bearer ").strip()
        if token and not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):
            line = "ANIML_ID_TOKEN: expected a token of letters, digits and -._~+/=, found other characters; copy it again, without quotes"
            raise SettingsError(line, code="bad_token")
        return SecretStr(token)

    def renew(self) -> None:
        """Sign in again, because the token was refused.

        Raises:
            SettingsError: there is only a ready token, or Cognito refuses the user.
        """
        if self._ready_token().get_secret_value():
            raise SettingsError(
                "Animl refused ANIML_ID_TOKEN, since a Cognito ID token is valid for about an hour. Set a new one and run again (exported "
                "windows are kept), or set ANIML_USER and ANIML_PASSWORD: then a long export signs in again by itself",
                code="token_expired",
            )
        self._token = _sign_in(self._settings)

    def redact(self, text: str) -> str:
        """A text from elsewhere as one short line without any of our secrets."""
        for secret in (self._token, self._settings.id_token, self._settings.password):
            if secret is not None and secret.get_secret_value():
                text = text.replace(secret.get_secret_value(), "***")
        line = " ".join(text.split())
        return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 3]}..."


def _sign_in(settings: Settings) -> SecretStr:
    """A new ID token from Cognito."""
    needed = {
        "ANIML_USER": settings.user,
        "ANIML_PASSWORD": settings.password.get_secret_value(),
        "ANIML_COGNITO_POOL": settings.cognito_pool,
        "ANIML_COGNITO_CLIENT": settings.cognito_client,
    }
    missing = ["ANIML_ID_TOKEN", *(name for name, value in needed.items() if not value)]
    if len(missing) > 1:
        raise SettingsError(
            "Animl needs a user: set ANIML_ID_TOKEN to a Cognito ID token, or set ANIML_USER, ANIML_PASSWORD, ANIML_COGNITO_POOL and "
            f"ANIML_COGNITO_CLIENT; not set: {', '.join(missing)}",
            code="no_user",
            missing=missing,
        )
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d_[0-9A-Za-z]+", settings.cognito_pool):
        line = f"ANIML_COGNITO_POOL: expected the id of a user pool such as us-west-2_AbCdEf123, found {settings.cognito_pool!r}"
        raise SettingsError(line, code="bad_pool")
    token = _srp(settings)
    log.info("signed in to Animl as %s", settings.user)
    return SecretStr(token)


def _srp(settings: Settings) -> str:
    """The ID token that Cognito gives for a proof of the password (Secure Remote Password).

    Errors are raised without their cause, because a library's exception may hold what was sent.
    """
    try:
        from pycognito.aws_srp import AWSSRP
        from pycognito.exceptions import ForceChangePasswordException, MFAChallengeException
    except ImportError:
        raise SettingsError("signing in with ANIML_USER needs the package pycognito: pip install 'animl-pipeline[cognito]'") from None
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(signature_version=UNSIGNED, connect_timeout=settings.timeout_s, read_timeout=settings.timeout_s)
    client = boto3.client("cognito-idp", region_name=settings.cognito_pool.partition("_")[0], config=config)
    srp = AWSSRP(settings.user, settings.password.get_secret_value(), settings.cognito_pool, settings.cognito_client, client=client)
    try:
        answer = srp.authenticate_user()
        return str(answer["AuthenticationResult"]["IdToken"])
    except ClientError as e:
        code = e.response.get("Error", {}).get("Code", "")
        line = f"Cognito refused the user {settings.user} ({code}); check ANIML_USER, ANIML_PASSWORD, ANIML_COGNITO_POOL and ANIML_COGNITO_CLIENT"
        if code == "InvalidParameterException":
            line = f"{line}; the app client may not allow USER_SRP_AUTH: then set ANIML_ID_TOKEN"
    except BotoCoreError as e:
        code, line = "unreachable", f"Cognito does not answer for the pool {settings.cognito_pool} ({type(e).__name__})"
    except ForceChangePasswordException:
        code, line = "new_password", f"the user {settings.user} must choose a new password first: sign in to Animl once with a browser"
    except MFAChallengeException:
        code = "second_factor"
        line = f"the user {settings.user} has a second factor, which a machine cannot give; use a service user without one, or set ANIML_ID_TOKEN"
    except (NotImplementedError, KeyError, TypeError):
        code, line = "other_challenge", f"Cognito asks the user {settings.user} for more than a password; set ANIML_ID_TOKEN instead"
    raise SettingsError(line, code=code)


def check_api_url(url: str) -> str:
    """The API's URL without a slash at its end. A token is sent over https only, or to this machine."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for an impossible port
    except ValueError:
        parts = urlsplit("")
    safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"})
    if safe and parts.hostname and not (parts.username or parts.password or parts.query):
        return url.rstrip("/")
    found = "another value" if url else "nothing"  # the value itself may hold a password
    line = f"ANIML_API_URL: expected Animl's GraphQL address, https://…/external, without user, password and query; found {found}"
    raise SettingsError(line, code="bad_url")


class _QueryFilter(logging.Filter):
    """Cuts the query off each URL in a log record: with it, everybody could read the export for an hour."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
        return True


def redact_urllib3_logs() -> None:
    """Cut queries off the URLs that the HTTP library logs."""
    log = logging.getLogger("urllib3.connectionpool")
    if not any(isinstance(f, _QueryFilter) for f in log.filters):
        log.addFilter(_QueryFilter())

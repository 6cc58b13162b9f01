"""As whom Animl is asked: a ready Cognito ID token, or a service user's name and password (SRP: the password never travels).

Tokens and passwords stay inside of ``SecretStr`` until the moment they are sent; no message, log line or repr holds one.
"""

from __future__ import annotations

import logging
import re

from pydantic import SecretStr

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import SettingsError

log = logging.getLogger(__name__)


class Access:
    """An ID token, got when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._token: SecretStr | None = None

    def token(self) -> SecretStr:
        """The ID token to send.

        Raises:
            SettingsError: the settings say neither a token nor a user, or Cognito refuses the user.
        """
        if self._token is None:
            ready = self._ready()
            self._token = ready if ready.get_secret_value() else _signed_in(self._settings)
        return self._token

    def _ready(self) -> SecretStr:
        """The ready token, without what comes along when it is copied: a line's end, the word before it in a header."""
        token = self._settings.id_token.get_secret_value().strip().removeprefix("Bearer ").strip()
        if token and not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):
            raise SettingsError(
                "ANIML_ID_TOKEN: expected a token of letters, digits and -._~+/=, found other characters in it; copy it anew, without quotes"
            )
        return SecretStr(token)

    def renew(self) -> None:
        """Sign in anew, since the token was refused.

        Raises:
            SettingsError: there is only a ready token, or Cognito refuses the user.
        """
        if self._ready().get_secret_value():
            raise SettingsError(
                "Animl refused ANIML_ID_TOKEN: a Cognito ID token lives for about an hour; set a new one and run again (windows that "
                "were exported are kept), or set ANIML_USER and ANIML_PASSWORD instead, with which a long export signs in anew by itself"
            )
        self._token = _signed_in(self._settings)

    def scrubbed(self, text: str) -> str:
        """``text``, as others said it, in one short line without any of our secrets."""
        for secret in (self._token, self._settings.id_token, self._settings.password):
            if secret is not None and secret.get_secret_value():
                text = text.replace(secret.get_secret_value(), "***")
        line = " ".join(text.split())
        return line if len(line) <= 200 else f"{line[:197]}..."


def _signed_in(settings: Settings) -> SecretStr:
    """A new ID token from Cognito, by SRP."""
    needed = {
        "ANIML_USER": settings.user,
        "ANIML_PASSWORD": settings.password.get_secret_value(),
        "ANIML_COGNITO_POOL": settings.cognito_pool,
        "ANIML_COGNITO_CLIENT": settings.cognito_client,
    }
    lacking = [name for name, value in needed.items() if not value]
    if lacking:
        raise SettingsError(
            f"Animl needs to know who asks: set ANIML_ID_TOKEN to a Cognito ID token, or ANIML_USER, ANIML_PASSWORD, ANIML_COGNITO_POOL and "
            f"ANIML_COGNITO_CLIENT; not set: {', '.join(['ANIML_ID_TOKEN', *lacking])}"
        )
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d_[0-9A-Za-z]+", settings.cognito_pool):
        raise SettingsError(f"ANIML_COGNITO_POOL: expected a user pool's id such as us-west-2_AbCdEf123, found {settings.cognito_pool!r}")
    token = _srp(settings)
    log.info("signed in to Animl as %s", settings.user)
    return SecretStr(token)


def _srp(settings: Settings) -> str:
    """Cognito's answer to a proof of the password.

    Whatever happens in here is told without its cause: a library's exception may hold what was sent.
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

    quick = Config(signature_version=UNSIGNED, connect_timeout=settings.timeout_s, read_timeout=settings.timeout_s)
    client = boto3.client("cognito-idp", region_name=settings.cognito_pool.partition("_")[0], config=quick)
    prover = AWSSRP(settings.user, settings.password.get_secret_value(), settings.cognito_pool, settings.cognito_client, client=client)
    try:
        answer = prover.authenticate_user()
        return str(answer["AuthenticationResult"]["IdToken"])
    except ClientError as e:
        code = e.response.get("Error", {}).get("Code", "")
        fault = f"Cognito refused the user {settings.user} ({code}); check ANIML_USER, ANIML_PASSWORD, ANIML_COGNITO_POOL and ANIML_COGNITO_CLIENT"
        if code == "InvalidParameterException":
            fault = f"{fault}; the app client may not allow USER_SRP_AUTH: then set ANIML_ID_TOKEN"
    except BotoCoreError as e:
        fault = f"Cognito cannot be reached for the pool {settings.cognito_pool} ({type(e).__name__})"
    except ForceChangePasswordException:
        fault = f"the user {settings.user} must choose a new password first: sign in to Animl once with a browser"
    except MFAChallengeException:
        fault = f"the user {settings.user} has a second factor, which a machine cannot give; use a service user without one, or set ANIML_ID_TOKEN"
    except (NotImplementedError, KeyError, TypeError):
        fault = f"Cognito asks the user {settings.user} for something else than a password; set ANIML_ID_TOKEN instead"
    raise SettingsError(fault)

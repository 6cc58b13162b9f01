"""Where MLflow is. A user and password in the address go to MLflow by its own variables, so that no message repeats them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from animl_pipeline.config.settings import Settings, tell_libraries
from animl_pipeline.core.errors import SettingsError

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the usual seven take minutes, and nobody waits for MLflow
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class Address(NamedTuple):
    """MLflow's address: as MLflow is to be given it, and as a message may show it."""

    given: str
    bare: str


def check_ready(settings: Settings) -> None:
    """See that what is set can be used, before hours are spent.

    Raises:
        SettingsError: MLflow is not installed, or the address is none.
    """
    tracking_address(settings)


def tracking_address(settings: Settings) -> Address | None:
    """The address that the settings name; None where they name none. MLflow finds its credentials and manners in the environment then.

    Raises:
        SettingsError: MLflow is not installed, or the address is none.
    """
    said = settings.mlflow_tracking_uri.get_secret_value().strip()
    if not said:
        return None
    parts = urlsplit(said)
    scheme = parts.scheme.partition("+")[0]
    if scheme not in SCHEMES:
        raise SettingsError(
            f"ANIML_MLFLOW_TRACKING_URI: expected an address of MLflow, such as https://mlflow.example.org or sqlite:////data/mlflow.db,"
            f" found one that begins with {parts.scheme or 'nothing before ://'!r}"
        )
    if find_spec("mlflow") is None:
        raise SettingsError("ANIML_MLFLOW_TRACKING_URI is set, but MLflow is not installed; install animl-pipeline[mlflow], or unset it")
    tell_libraries(**QUIET)
    bare = said.partition("?")[0].replace(parts.netloc, parts.netloc.rpartition("@")[2], 1) if parts.netloc else said.partition("?")[0]
    if scheme not in {"http", "https"}:
        return Address(said, bare)
    if parts.username:
        tell_libraries(MLFLOW_TRACKING_USERNAME=unquote(parts.username), MLFLOW_TRACKING_PASSWORD=unquote(parts.password or ""))
    return Address(bare, bare)

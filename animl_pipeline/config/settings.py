"""Where we are and what we may touch, from the environment: ANIML_* and the usual AWS variables.

The only room, besides the endpoint program's main, that reads the environment. AWS credentials stay with boto3; a token
or password for Animl is kept as ``SecretStr``, which no repr, log line or JSON shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from animl_pipeline.core.errors import SettingsError

WORDED = {
    "runner": (r"threads|(dask|ray)(:.+)?", "threads, dask, dask:<address>, ray or ray:<address>"),
    "stage": (r"[a-z0-9-]*", "small letters, digits and hyphens, such as dev"),
    "image_url": (r"(https?://.*\{image\}.*)?", "an http:// or https:// address that holds {image}"),
    "notify": (r"([a-z0-9-]+/[a-z0-9-]+)?", "a Prefect block as <type>/<name>, such as slack-webhook/rangers"),
}
"""Setting → the pattern of its values, and what a message says instead of the pattern."""


class Settings(BaseSettings):
    """The settings; each is the environment variable ANIML_<NAME>.

    AWS addresses, regions and credentials are boto3's own variables (AWS_REGION, AWS_PROFILE,
    AWS_ENDPOINT_URL_SAGEMAKER, …), which boto3 reads by itself.
    """

    model_config = SettingsConfigDict(env_prefix="ANIML_", extra="ignore", frozen=True)

    store: str = Field(default="runs/store", description="folder or s3://bucket/prefix that holds all that steps make")
    data: Path = Field(default=Path(), description="folder where relative paths of plans start")
    plans: Path = Field(default=Path("deployments/plans"), description="folder of the plans that a run can name without a path")
    cache: Path = Field(default=Path("~/.cache/animl-pipeline"), description="local copies of weights and of an s3 store")
    runner: str = Field(
        default="threads",
        description="who looks at pictures and cuts them: this process, or a cluster that shares the store: dask, dask:<address>, ray, ray:<address>",
    )
    shares: int = Field(default=16, ge=1, le=10_000, description="batches that a cluster's workers are given")
    workers: int = Field(default=8, ge=1, le=64, description="pictures cut or searched at a time")
    connections: int = Field(default=32, ge=1, le=256, description="most pictures asked of one host at a time; fewer while it struggles")
    timeout_s: float = Field(default=30, gt=0, le=3600, description="seconds a server may take to answer")
    models_bucket: str = Field(default="animl-model-zoo", description="bucket for model packages")
    role_arn: str = Field(default="", description="role that SageMaker takes on to read the package")
    endpoint_image: str = Field(default="", description="the endpoint program's image in ECR")
    training_image: str = Field(default="", description="the pipeline's image in ECR, for trainings on SageMaker")
    training_role_arn: str = Field(default="", description="role that a training takes on, which reads and writes the store; without it, role_arn")
    mlflow_tracking_uri: SecretStr = Field(
        default=SecretStr(""), description="MLflow's address, which may hold user:password@; empty: nobody is told"
    )
    stage: str = Field(default="", description="Animl's stage, such as dev or prod: part of SSM parameters' names")
    api_url: str = Field(default="", description="Animl's GraphQL for signed-in users: https://…/external")
    id_token: SecretStr = Field(default=SecretStr(""), description="a Cognito ID token for Animl, or …")
    user: str = Field(default="", description="… the service user that signs in")
    password: SecretStr = Field(default=SecretStr(""), description="and its password")
    cognito_pool: str = Field(default="", description="Animl's Cognito user pool, such as us-west-2_AbCdEf123")
    cognito_client: str = Field(default="", description="the id of an app client of that pool")
    image_url: str = Field(default="", description="where people see an image of Animl's; may hold {project}, must hold {image}")
    lila: str = Field(default="https://storage.googleapis.com/public-datasets-lila", description="the mirror of LILA's sets that lila:// means")
    notify: str = Field(default="", description="the Prefect block that messages go through, such as slack-webhook/rangers")
    poll_s: float = Field(default=2, gt=0, description="first pause between two looks at an export that Animl is making; they grow")

    @field_validator("store")
    @classmethod
    def _is_a_location(cls, value: str) -> str:
        scheme, found, rest = value.rpartition("://")
        half_an_address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(?!//)", value)  # s3:/bucket would be a folder called "s3:"
        if not value.strip() or half_an_address or (found and (scheme != "s3" or not rest.strip("/"))):
            raise ValueError(f"expected a folder or s3://bucket/prefix, found {value!r}")
        return value

    @field_validator(*WORDED)
    @classmethod
    def _fits(cls, value: str, field: ValidationInfo) -> str:
        pattern, expected = WORDED[str(field.field_name)]
        if not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}, found {_host_only(value)!r}")
        return value

    def data_path(self, location: str) -> Path:
        """A plan's path, absolute; relative ones start at ``data``."""
        return Path(os.path.realpath(self.data.expanduser() / Path(location).expanduser()))  # unlike resolve, it bears links in a circle


def without_secrets(address: str) -> str:
    """An address as a message may show it: without user, password, and what follows a question mark."""
    before, found, rest = address.rpartition("://")
    shown = before + found + re.sub(r"^[^/?#]*@", "", rest)
    return "…" if "@" in shown else re.split(r"[?#]", shown)[0]  # what else holds an @ cannot be told from a password


def _host_only(value: str) -> str:
    """A value as a message may show it; of an address its host at most, for the path of a webhook is a secret."""
    scheme, found, rest = without_secrets(value).rpartition("://")
    if found and scheme not in {"http", "https"}:
        return f"{scheme}://…"
    return f"{scheme}{found}{rest.partition('/')[0]}/…" if found or rest.count("/") > 1 else rest


def load_settings() -> Settings:
    """The settings as the environment has them now.

    Raises:
        SettingsError: a variable's value does not fit; the message names the variable.
    """
    try:
        return Settings()
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"the environment variable ANIML_{name} does not fit: {first['msg'].removeprefix('Value error, ')}") from e


def remember(**values: object) -> None:
    """Put settings into this process's environment, so that tasks and child processes find them (the command line's options)."""
    for name, value in values.items():
        if value is not None:
            os.environ[f"ANIML_{name.upper()}"] = str(value)


PREFECT_DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a new database takes 20 s, more on a busy machine
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLIENT_MAX_RETRIES": "12",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "animl_pipeline",  # the rooms' one-line facts reach the run's log
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # facts told outside of a run have no run's log to go to
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command line shows the same facts itself
}


PREFECT_SERVER_DEFAULTS = {
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the second one calls an analytics host from the browser, whatever is set
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # what the automation for zombies listens for
}


def prepare_prefect(*, debug: bool = False) -> None:
    """Give Prefect the defaults that suit a command line, before it is imported; what is set already stays."""
    for name, value in PREFECT_DEFAULTS.items():
        if not (debug and "CONSOLE_LEVEL" in name):
            os.environ.setdefault(name, value)
    if not os.environ.get("PREFECT_API_URL"):  # one that is empty would let Prefect start a server and tell another one
        os.environ.pop("PREFECT_API_URL", None)


def use_local_aws(variables: Mapping[str, str]) -> None:
    """Send this process's boto3 to services on this machine; what AWS alone would need gets a value that opens nothing."""
    os.environ |= variables
    os.environ.setdefault("ANIML_ROLE_ARN", "arn:aws:iam::123456789012:role/local")
    os.environ.setdefault("ANIML_ENDPOINT_IMAGE", "123456789012.dkr.ecr.us-west-2.amazonaws.com/animl-endpoint:local")
    os.environ.setdefault("ANIML_TRAINING_IMAGE", "123456789012.dkr.ecr.us-west-2.amazonaws.com/animl-pipeline:local")


def remember_prefect(address: str, port: int) -> None:
    """Lead this process and its children to a Prefect server on this machine, whose UI asks nobody else; what is set already stays."""
    os.environ["PREFECT_API_URL"] = address
    for name, value in PREFECT_SERVER_DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ["PREFECT_SERVER_UI_API_URL"] = address
    os.environ["PREFECT_SERVER_API_PORT"] = str(port)


def api_hint(address: str) -> str:
    """What to say of a Prefect server's address that does not lead to its API; "" where it seems to."""
    scheme, _, rest = without_secrets(address).partition("://")
    host, _, path = rest.partition("/")
    if not host or f"/{path}".rstrip("/").endswith("/api") or path.startswith("api/accounts/"):  # the last is Prefect Cloud's
        return ""
    return f"the address of a Prefect server ends in /api, such as {scheme}://{host}/api"


def tell_libraries(**variables: str) -> None:
    """Set variables that a library reads from this process's environment; what the user has set stays."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)

"""Settings from the environment: where files are, which cluster works, and the accounts of Animl and AWS.

Only this module and the endpoint program's main read the environment. boto3 reads AWS's own variables by itself. Passwords and
tokens are ``SecretStr``, which no repr, log line or JSON shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from animl_pipeline.core.errors import SettingsError, redact_url

PATTERNS = {
    "task_runner": (r"threads|(dask|ray)(:.+)?", "threads, dask, dask:<address>, ray or ray:<address>"),
    "stage": (r"[a-z0-9-]*", "small letters, digits and hyphens, such as dev"),
    "image_url": (r"(https?://.*\{image\}.*)?", "an http:// or https:// address that holds {image}"),
    "reports_url": (r"(https?://[^/?#@]+(/[^?#]*)?)?", "an http:// or https:// address without a password"),
    "notification_block": (r"([a-z0-9-]+/[a-z0-9-]+)?", "a Prefect block as <type>/<name>, such as slack-webhook/rangers"),
}
"""Setting → the pattern of its values, and how a message describes the pattern."""
RENAMED = {
    "ANIML_RUNNER": "ANIML_TASK_RUNNER",
    "ANIML_SHARES": "ANIML_CLUSTER_BATCHES",
    "ANIML_PICTURE_URL": "ANIML_IMAGE_URL",
    "ANIML_LILA": "ANIML_LILA_URL",
    "ANIML_NOTIFY": "ANIML_NOTIFICATION_BLOCK",
    "ANIML_CONNECTIONS": "ANIML_MAX_CONNECTIONS",
}
"""Old environment variable → its name now."""

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
"""Plans and Prefect's deployments, as they come with the checkout or the installed package."""


class Settings(BaseSettings):
    """The settings. Each is the environment variable ANIML_<NAME>.

    AWS addresses, regions and credentials are boto3's own variables (AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL_SAGEMAKER, …).
    """

    model_config = SettingsConfigDict(env_prefix="ANIML_", extra="ignore", frozen=True)

    store: str = Field(default="runs/store", description="the store: a folder, or s3://bucket/prefix")
    data: Path = Field(default=Path(), description="folder where relative paths of plans start")
    plans: Path = Field(default=DEPLOYMENTS / "plans", description="folder of the plans that a run can name without a path")
    cache: Path = Field(default=Path("~/.cache/animl-pipeline"), description="folder for pretrained weights and local copies of an s3:// store")
    task_runner: str = Field(
        default="threads",
        description="what detects and crops: this process, or a cluster that reads the same store: dask, dask:<address>, ray, ray:<address>",
    )
    cluster_batches: int = Field(default=16, ge=1, le=10_000, description="number of batches that a cluster's workers get")
    workers: int = Field(default=8, ge=1, le=64, description="images that this machine crops or runs through the detector at a time")
    max_connections: int = Field(default=32, ge=1, le=256, description="most downloads from one host at a time; fewer while the host is slow")
    timeout_s: float = Field(default=30, gt=0, le=3600, description="seconds that a server may take to answer")
    max_download_mb: int = Field(
        default=4096, ge=1, le=10**6, description="MB that one file from a server may have, also unpacked in memory: an export, a table, weights"
    )
    max_unpacked_mb: int = Field(default=16_384, ge=1, le=10**6, description="MB that a packed JSON export may unpack to, on disk")
    max_download_s: float = Field(default=3600, gt=0, description="seconds that one file from a server may take")
    models_bucket: str = Field(default="animl-model-zoo", description="bucket for model packages")
    role_arn: str = Field(default="", description="role that SageMaker takes on to read the package")
    endpoint_image: str = Field(default="", description="container image of the endpoint program in ECR")
    training_image: str = Field(default="", description="container image of the pipeline in ECR, for training on SageMaker")
    training_role_arn: str = Field(default="", description="role of a training job, which reads and writes the store; role_arn if empty")
    mlflow_tracking_uri: SecretStr = Field(
        default=SecretStr(""), description="MLflow's address, which may hold user:password@; empty: nothing is sent to MLflow"
    )
    stage: str = Field(default="", description="Animl's stage, such as dev or prod: part of SSM parameters' names")
    api_url: str = Field(default="", description="Animl's GraphQL API for signed-in users: https://…/external")
    id_token: SecretStr = Field(default=SecretStr(""), description="a Cognito ID token for Animl, or …")
    user: str = Field(default="", description="… the name of the service user that signs in")
    password: SecretStr = Field(default=SecretStr(""), description="and its password")
    api_key: SecretStr = Field(
        default=SecretStr(""), description="key of Animl's API for its own programs; only `reinfer` needs it, to write labels (review.write_back)"
    )
    cognito_pool: str = Field(default="", description="Animl's Cognito user pool, such as us-west-2_AbCdEf123")
    cognito_client: str = Field(default="", description="the id of an app client of that pool")
    image_url: str = Field(default="", description="page of an image in Animl, for links; may hold {project}, must hold {image}")
    reports_url: str = Field(default="", description="where people see the reports (`animl-pipeline report-server`), for links to them")
    lila_url: str = Field(
        default="https://storage.googleapis.com/public-datasets-lila", description="the mirror of LILA's data sets that lila:// means"
    )
    notification_block: str = Field(default="", description="the Prefect block that sends messages about runs, such as slack-webhook/rangers")
    poll_s: float = Field(default=2, gt=0, description="seconds before the first check whether Animl's export is ready; later pauses grow")

    @field_validator("store")
    @classmethod
    def _check_store(cls, value: str) -> str:
        return check_store_address(value)

    @field_validator(*PATTERNS)
    @classmethod
    def _check_pattern(cls, value: str, field: ValidationInfo) -> str:
        pattern, expected = PATTERNS[str(field.field_name)]
        if not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}, found {_host_only(value)!r}")
        return value

    def data_path(self, path: str) -> Path:
        """A path of the plan as an absolute path; relative ones start at ``data``."""
        return Path(os.path.realpath(self.data.expanduser() / Path(path).expanduser()))  # unlike Path.resolve, it accepts circular links


def check_store_address(value: str) -> str:
    """``value``, if it is a folder's path or s3://bucket/prefix.

    Raises:
        ValueError: it is neither.
    """
    scheme, found, rest = value.rpartition("://")
    half_an_address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(?!//)", value)  # s3:/bucket would be a folder called "s3:"
    if not value.strip() or half_an_address or (found and (scheme != "s3" or not rest.strip("/"))):
        raise ValueError(f"expected a folder or s3://bucket/prefix, found {redact_url(value)!r}")
    return value


def load_settings() -> Settings:
    """The settings as the environment has them now.

    Raises:
        SettingsError: a variable's value is not valid, or a variable has its old name; the message names the variable.
    """
    for old, new in RENAMED.items():
        if os.environ.get(old):
            raise SettingsError(f"the environment variable {old} is called {new} now; rename it", code="renamed_variable", old=old, new=new)
    try:
        return Settings()
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        name = f"ANIML_{'_'.join(str(part) for part in first['loc']).upper()}"
        raise SettingsError(
            f"the environment variable {name} is not valid: {first['msg'].removeprefix('Value error, ')}", code="invalid_variable", variable=name
        ) from e


def set_library_defaults(**variables: str) -> None:
    """Set variables that a library reads from this process's environment. Those that the user has set stay."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def use_local_aws(variables: Mapping[str, str]) -> None:
    """Make this process's boto3 use services on this machine. Settings that only AWS needs get values that give access to nothing."""
    os.environ |= variables
    set_library_defaults(
        ANIML_ROLE_ARN="arn:aws:iam::123456789012:role/local",
        ANIML_ENDPOINT_IMAGE="123456789012.dkr.ecr.us-west-2.amazonaws.com/animl-endpoint:local",
        ANIML_TRAINING_IMAGE="123456789012.dkr.ecr.us-west-2.amazonaws.com/animl-pipeline:local",
    )


def _host_only(value: str) -> str:
    """A value as a message may show it; of an address at most its host, because the path of a webhook is a secret."""
    scheme, found, rest = redact_url(value).partition("://")
    if not found:
        return f"{value.partition('/')[0]}/…" if value.count("/") > 1 and "@" not in value else redact_url(value)
    return f"{scheme}://{rest.partition('/')[0]}/…" if scheme in {"http", "https"} else f"{scheme}://…"

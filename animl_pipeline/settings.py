"""Where we are and what we may touch, from the environment: ANIML_* and the usual AWS variables.

The only room, besides the endpoint program's main, that reads the environment. Nothing secret is ever shown: tokens are
``SecretStr``, AWS credentials stay with boto3.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from animl_pipeline.errors import SettingsError


class Settings(BaseSettings):
    """The settings; each is the environment variable ANIML_<NAME>.

    AWS addresses, regions and credentials are boto3's own variables (AWS_REGION, AWS_PROFILE,
    AWS_ENDPOINT_URL_SAGEMAKER, …), which boto3 reads by itself.
    """

    model_config = SettingsConfigDict(env_prefix="ANIML_", extra="ignore", frozen=True)

    store: str = Field(default="runs/store", description="folder or s3://bucket/prefix that holds all that steps make")
    data: Path = Field(default=Path(), description="folder where relative paths of plans start")
    cache: Path = Field(default=Path("~/.cache/animl-pipeline"), description="local copies of weights and of an s3 store")
    workers: int = Field(default=8, ge=1, le=64, description="pictures fetched at a time")
    timeout_s: float = Field(default=30, gt=0, description="seconds a server may take to answer")
    token: SecretStr | None = Field(default=None, description="bearer token for https exports and pictures")
    models_bucket: str = Field(default="animl-model-zoo", description="bucket for model packages")
    role_arn: str = Field(default="", description="role that SageMaker takes on to read the package")
    endpoint_image: str = Field(default="", description="the endpoint program's image in ECR")

    def data_path(self, place: str) -> Path:
        """A plan's path, absolute; relative ones start at ``data``."""
        return (self.data.expanduser() / Path(place).expanduser()).resolve()


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
        raise SettingsError(f"the environment variable ANIML_{name} does not fit: {first['msg']}") from e


def remember(**values: object) -> None:
    """Put settings into this process's environment, so that tasks and child processes find them (the command line's options)."""
    for name, value in values.items():
        if value is not None:
            os.environ[f"ANIML_{name.upper()}"] = str(value)

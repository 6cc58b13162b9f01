"""What a release is called. Names of models and configs are made from content, so that a name never means two things.

A retrained model under an old name would serve the old weights in silence: CreateModel is skipped where the name exists.
"""

from __future__ import annotations

import re

from animl_pipeline.errors import PackageError, SettingsError
from animl_pipeline.plan import Plan
from animl_pipeline.records import Artifact, ModelCard, Record
from animl_pipeline.settings import Settings
from animl_pipeline.store import Store, digest_of


class Target(Record):
    """Everything that a release makes, by name."""

    endpoint: str
    endpoint_config: str
    sagemaker_model: str
    version: str
    bucket: str
    key: str
    image: str
    role_arn: str
    memory_mb: int
    max_concurrency: int
    tags: dict[str, str]

    def model_url(self) -> str:
        """Where the package lies."""
        return f"s3://{self.bucket}/{self.key}"


def target_of(package: Artifact, plan: Plan, store: Store, settings: Settings) -> Target:
    """The names for one package under one plan and settings: the same each time.

    Raises:
        SettingsError: ANIML_ROLE_ARN or ANIML_ENDPOINT_IMAGE is missing.
        PackageError: the package's card has no metrics.
    """
    _need(settings)
    card = ModelCard.model_validate_json(store.path(package, "card.json").read_bytes())
    if not card.metrics:
        raise PackageError("the package's card has no metrics, so nobody knows how good it is; run the step 'package' again")
    key = f"{plan.model}/{_slug(card.version)}-{package.digest[:8]}/model.tar.gz"
    model = {"package": package.digest, "bucket": settings.models_bucket, "image": settings.endpoint_image, "role": settings.role_arn}
    config = {"model": digest_of(model), "memory": plan.release.memory_mb, "concurrency": plan.release.max_concurrency}
    return Target(
        endpoint=plan.endpoint_name(),
        endpoint_config=_name(plan.model, card.version, digest_of(config)),
        sagemaker_model=_name(plan.model, card.version, digest_of(model)),
        version=card.version,
        bucket=settings.models_bucket,
        key=key,
        image=settings.endpoint_image,
        role_arn=settings.role_arn,
        memory_mb=plan.release.memory_mb,
        max_concurrency=plan.release.max_concurrency,
        tags={
            "animl:model": plan.model,
            "animl:version": _slug(card.version),
            "animl:package": package.digest,
            "animl:onnx": card.onnx_sha256,
            "animl:data": card.data_digest,
        },
    )


def _need(settings: Settings) -> None:
    wanted = {
        "ANIML_ROLE_ARN": (settings.role_arn, "the ARN of the role with which SageMaker reads the package"),
        "ANIML_ENDPOINT_IMAGE": (settings.endpoint_image, "the endpoint image's address in ECR"),
        "ANIML_MODELS_BUCKET": (settings.models_bucket, "the bucket that keeps packages"),
    }
    for name, (value, meaning) in wanted.items():
        if not value:
            raise SettingsError(f"a release needs {name}, {meaning}; it is not set")


def _name(model: str, version: str, digest: str) -> str:
    """``<model>-<version>-<digest>``, at most the 63 characters that SageMaker allows."""
    return f"{model}-{_slug(version)[: 63 - len(model) - 10]}".rstrip("-") + f"-{digest[:8]}"


def _slug(version: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", version).strip("-") or "0"

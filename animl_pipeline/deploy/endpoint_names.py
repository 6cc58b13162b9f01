"""What a release is called. Names of models and configs are made from content, so that a name never means two things.

A retrained model under an old name would serve the old weights in silence: CreateModel is skipped where the name exists.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from animl_pipeline.config import EndpointConfig, Plan, RegisterConfig
from animl_pipeline.config.release import Purpose
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PackageError, SettingsError
from animl_pipeline.core.records import Artifact, ModelCard, Record
from animl_pipeline.storage.step_cache import Store, digest_of

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.literals import ProductionVariantInstanceTypeType
    from mypy_boto3_sagemaker.type_defs import ProductionVariantServerlessConfigTypeDef, ProductionVariantTypeDef

VARIANT = "AllTraffic"
PACKAGE_FILE = "model.tar.gz"


class Target(Record):
    """Everything that a release of one endpoint makes, by name. ``parameter`` is set where SSM's value is what is switched."""

    where: EndpointConfig
    endpoint_config: str
    sagemaker_model: str
    version: str
    bucket: str
    key: str
    image: str
    role_arn: str
    parameter: str | None
    tags: dict[str, str]

    @property
    def endpoint(self) -> str:
        """The endpoint's name, with this version."""
        return self.where.endpoint

    def model_url(self) -> str:
        """Where the package lies."""
        return f"s3://{self.bucket}/{self.key}"

    def variant(self) -> ProductionVariantTypeDef:
        """The endpoint config's one production variant, as SageMaker wants it."""
        if self.where.instance_type is not None:
            return {
                "VariantName": VARIANT,
                "ModelName": self.sagemaker_model,
                "InstanceType": cast("ProductionVariantInstanceTypeType", self.where.instance_type),
                "InitialInstanceCount": self.where.instances,
                "InitialVariantWeight": 1.0,
            }
        size: ProductionVariantServerlessConfigTypeDef = {"MemorySizeInMB": self.where.memory_mb, "MaxConcurrency": self.where.max_concurrency}
        return {"VariantName": VARIANT, "ModelName": self.sagemaker_model, "ServerlessConfig": size}


def targets_of(package: Artifact, plan: Plan, store: Store, settings: Settings) -> tuple[Target, ...]:
    """The names for one package under one plan and settings, an endpoint each, realtime first: the same each time.

    Raises:
        SettingsError: ANIML_ROLE_ARN or ANIML_ENDPOINT_IMAGE is missing.
        PackageError: the package's card has no metrics.
    """
    _need(settings)
    card = card_of(package, store)
    return tuple(_target(where, card, package, plan, settings) for where in plan.release.endpoints(plan.model, slug(card.version)))


def _target(where: EndpointConfig, card: ModelCard, package: Artifact, plan: Plan, settings: Settings) -> Target:
    model = {"package": package.digest, "bucket": settings.models_bucket, "image": settings.endpoint_image, "role": settings.role_arn}
    config: dict[str, Any] = {"model": digest_of(model), "memory": where.memory_mb, "concurrency": where.max_concurrency}
    if where.instance_type is not None:
        config = {"model": digest_of(model), "instance": where.instance_type, "instances": where.instances}
    return Target(
        where=where,
        endpoint_config=_name(plan.model, card.version, digest_of(config)),
        sagemaker_model=_name(plan.model, card.version, digest_of(model)),
        version=card.version,
        bucket=settings.models_bucket,
        key=f"{plan.model}/{slug(card.version)}-{package.digest[:8]}/{PACKAGE_FILE}",
        image=settings.endpoint_image,
        role_arn=settings.role_arn,
        parameter=switched_parameter(plan, where, settings),
        tags={
            "animl:model": plan.model,
            "animl:version": slug(card.version),
            "animl:package": package.digest,
            "animl:onnx": card.onnx_sha256,
            "animl:data": card.data_digest,
        },
    )


def card_of(package: Artifact, store: Store) -> ModelCard:
    """The package's card.

    Raises:
        PackageError: it has no metrics.
    """
    card = ModelCard.model_validate_json(store.path(package, "card.json").read_bytes())
    if not card.metrics:
        raise PackageError("the package's card has no metrics, so nobody knows how good it is; run the step 'package' again")
    return card


def parameter_of(plan: Plan, purpose: Purpose, settings: Settings) -> str:
    """The SSM parameter in which Animl looks for the name of the endpoint for a purpose.

    Raises:
        SettingsError: the name holds the stage, and ANIML_STAGE is not set.
    """
    spec = plan.release.register_ or RegisterConfig()
    if "{stage}" in spec.parameter and not settings.stage:
        raise SettingsError(f"the SSM parameter {spec.parameter} needs ANIML_STAGE, Animl's stage, such as dev or prod; it is not set")
    return spec.parameter.format(model=spec.model_id or plan.model, purpose=purpose, stage=settings.stage)


def switched_parameter(plan: Plan, where: EndpointConfig, settings: Settings) -> str | None:
    """The SSM parameter whose value a release switches; None where the endpoint behind its name is what changes."""
    return parameter_of(plan, where.purpose, settings) if plan.release.switch == "ssm" else None


def _need(settings: Settings) -> None:
    wanted = {
        "ANIML_ROLE_ARN": (settings.role_arn, "the ARN of the role with which SageMaker reads the package"),
        "ANIML_ENDPOINT_IMAGE": (settings.endpoint_image, "the endpoint image's address in ECR"),
        "ANIML_MODELS_BUCKET": (settings.models_bucket, "the bucket that keeps packages"),
    }
    lacking = [f"{name} ({meaning})" for name, (value, meaning) in wanted.items() if not value]
    if lacking:
        raise SettingsError(f"a release needs {' and '.join(lacking)}; not set in the environment")


def _name(model: str, version: str, digest: str) -> str:
    """``<model>-<version>-<digest>``, at most the 63 characters that SageMaker allows."""
    return f"{model}-{slug(version)[: 63 - len(model) - 10]}".rstrip("-") + f"-{digest[:8]}"


def slug(version: str) -> str:
    """A version as names and tags can hold it."""
    return re.sub(r"[^A-Za-z0-9]+", "-", version).strip("-") or "0"

"""Names of the SageMaker resources of a release: model, endpoint config, package key, SSM parameter, tags.

A name is made of version and content, so a retrained model never shares a name with an older one. Otherwise SageMaker would
keep serving the old weights, because an existing model is not created again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from animl_pipeline.config import Plan, PlannedEndpoint, RegisterConfig
from animl_pipeline.config.package_and_release import Purpose
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PackageError, SettingsError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.storage.store import Store, digest_of

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.literals import ProductionVariantInstanceTypeType
    from mypy_boto3_sagemaker.type_defs import ProductionVariantServerlessConfigTypeDef, ProductionVariantTypeDef

VARIANT = "AllTraffic"
PACKAGE_FILE = "model.tar.gz"


class ReleaseTarget(Record):
    """All resources of one endpoint's release, by name. ``parameter`` is set if the release switches an SSM parameter."""

    planned: PlannedEndpoint
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
        """The endpoint's name for this version."""
        return self.planned.endpoint

    @property
    def model_url(self) -> str:
        """The package's address in S3."""
        return f"s3://{self.bucket}/{self.key}"

    def variant(self) -> ProductionVariantTypeDef:
        """The endpoint config's only production variant, as SageMaker's API expects it."""
        planned = self.planned
        if planned.instance_type is not None:
            return {
                "VariantName": VARIANT,
                "ModelName": self.sagemaker_model,
                "InstanceType": cast("ProductionVariantInstanceTypeType", planned.instance_type),
                "InitialInstanceCount": planned.instances,
                "InitialVariantWeight": 1.0,
            }
        size: ProductionVariantServerlessConfigTypeDef = {"MemorySizeInMB": planned.memory_mb, "MaxConcurrency": planned.max_concurrency}
        return {"VariantName": VARIANT, "ModelName": self.sagemaker_model, "ServerlessConfig": size}


def release_targets(package: Artifact, plan: Plan, store: Store, settings: Settings) -> tuple[ReleaseTarget, ...]:
    """The targets of one package under one plan and settings, realtime first. Equal arguments give equal names.

    Raises:
        SettingsError: ANIML_ROLE_ARN, ANIML_ENDPOINT_IMAGE or ANIML_MODELS_BUCKET is missing.
        PackageError: the package's card has no metrics.
    """
    _check_settings(settings)
    card = read_package_card(package, store)
    return tuple(_target(planned, card, package, plan, settings) for planned in plan.release.endpoints(plan.model, slug(card.version)))


def _target(planned: PlannedEndpoint, card: ModelCard, package: Artifact, plan: Plan, settings: Settings) -> ReleaseTarget:
    model = {"package": package.digest, "bucket": settings.models_bucket, "image": settings.endpoint_image, "role": settings.role_arn}
    config: dict[str, Any] = {"model": digest_of(model), "memory": planned.memory_mb, "concurrency": planned.max_concurrency}
    if planned.instance_type is not None:
        config = {"model": digest_of(model), "instance": planned.instance_type, "instances": planned.instances}
    return ReleaseTarget(
        planned=planned,
        endpoint_config=_resource_name(plan.model, card.version, digest_of(config)),
        sagemaker_model=_resource_name(plan.model, card.version, digest_of(model)),
        version=card.version,
        bucket=settings.models_bucket,
        key=package_key(plan, card.version, package),
        image=settings.endpoint_image,
        role_arn=settings.role_arn,
        parameter=switched_parameter(plan, planned, settings),
        tags={
            "animl:model": plan.model,
            "animl:version": slug(card.version),
            "animl:package": package.digest,
            "animl:onnx": card.onnx_sha256,
            "animl:data": card.data_digest,
        },
    )


def read_package_card(package: Artifact, store: Store) -> ModelCard:
    """The package's model card.

    Raises:
        PackageError: it has no metrics.
    """
    card = ModelCard.model_validate_json(store.path(package, "card.json").read_bytes())
    if not card.metrics:
        raise PackageError("the package's card has no metrics, so its quality is unknown; run the step 'package' again", code="no_metrics")
    return card


def package_key(plan: Plan, version: str, package: Artifact) -> str:
    """The S3 key of a released package."""
    return f"{plan.model}/{slug(version)}-{package.digest[:8]}/{PACKAGE_FILE}"


def ssm_parameter_name(plan: Plan, purpose: Purpose, settings: Settings) -> str:
    """The SSM parameter from which Animl reads the name of the endpoint for a purpose.

    Raises:
        SettingsError: the name contains the stage, and ANIML_STAGE is not set.
    """
    register = plan.release.register_ or RegisterConfig()
    if "{stage}" in register.parameter and not settings.stage:
        raise SettingsError(f"the SSM parameter {register.parameter} needs Animl's stage, such as dev or prod; set ANIML_STAGE", code="no_stage")
    return register.parameter.format(model=animl_model_id(plan), purpose=purpose, stage=settings.stage)


def switched_parameter(plan: Plan, planned: PlannedEndpoint, settings: Settings) -> str | None:
    """The SSM parameter that a release switches to a new endpoint; None if the release updates the endpoint under its name."""
    return ssm_parameter_name(plan, planned.purpose, settings) if plan.release.switch == "ssm" else None


def animl_model_id(plan: Plan) -> str:
    """The MLModel's _id in Animl."""
    return (plan.release.register_.model_id if plan.release.register_ else None) or plan.model


def animl_project(plan: Plan) -> str | None:
    """A project of the plan through which Animl's API can be asked; None if the plan names none."""
    register = plan.release.register_
    named = (*(register.rule_projects if register else ()), *(p for p in (s.project() for s in plan.sources) if p))
    return named[0] if named else None


def slug(version: str) -> str:
    """A version in letters, digits and hyphens only."""
    return re.sub(r"[^A-Za-z0-9]+", "-", version).strip("-") or "0"


def _check_settings(settings: Settings) -> None:
    needed = {
        "ANIML_ROLE_ARN": (settings.role_arn, "the ARN of the role with which SageMaker reads the package"),
        "ANIML_ENDPOINT_IMAGE": (settings.endpoint_image, "the endpoint image's address in ECR"),
        "ANIML_MODELS_BUCKET": (settings.models_bucket, "the bucket of released packages"),
    }
    missing = [name for name, (value, _) in needed.items() if not value]
    if missing:
        names = " and ".join(f"{name} ({needed[name][1]})" for name in missing)
        raise SettingsError(f"a release needs {names}; not set in the environment", code="missing_settings", missing=missing)


def _resource_name(model: str, version: str, digest: str) -> str:
    """``<model>-<version>-<digest>``, at most the 63 characters that SageMaker allows."""
    return f"{model}-{slug(version)[: 63 - len(model) - 10]}".rstrip("-") + f"-{digest[:8]}"

"""What a training job is told: an order in the store, and the request of SageMaker that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import SettingsError, WeightsError
from animl_pipeline.core.records import Artifact, Record
from animl_pipeline.storage.step_cache import Workspace

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.type_defs import CreateTrainingJobRequestTypeDef, MetricDefinitionTypeDef

ENTRY = ("python", "-m", "animl_pipeline.integrations.sagemaker_training")
LOCAL = "/opt/ml/checkpoints"
METRICS = {
    "epoch": r"epoch ([0-9]+) of [0-9]+: loss",
    "train:loss": r"epoch [0-9]+ of [0-9]+: loss ([0-9.]+)",
    "val:loss": r"val loss ([0-9.]+)",
    "val:macro_ap": r"val macro AP ([0-9.]+)",
    "val:macro_f1": r"val macro F1 ([0-9.]+)",
}
"""SageMaker's name of a figure → how it stands in the log of :mod:`animl_pipeline.steps.training.trainer`."""
NAMED_WEIGHTS = ("://", "released", "timm", "none", "efficientnet-lite0-imagenet")
"""What weights say that mean the same on every machine."""


class Order(Record):
    """What a job shall train. ``key`` is the beginning of the step's key, which the job must find, too."""

    key: str
    plan: Plan
    crops: Artifact
    splits: Artifact


def key_of(space: Workspace) -> str:
    """The beginning of the key of the step that is made in a workspace, which the store names by it."""
    return space.out.parent.name.removeprefix("model-")


def base_of(plan: Plan, space: Workspace) -> str:
    """What the names of a step's jobs begin with."""
    return f"{plan.model}-{key_of(space)}"


def folder_of(base: str) -> str:
    """Where the store keeps a job's order, checkpoints and answer; empty once the step is made."""
    return f"jobs/{base}"


def check_ready(plan: Plan, settings: Settings) -> None:
    """See that another machine can do it.

    Raises:
        SettingsError: the store is a folder, or image or role are not set.
        WeightsError: the weights are a file of this machine.
    """
    if not settings.store.startswith("s3://"):
        raise SettingsError(
            f"train.on is sagemaker, but the store is the folder {settings.store}, which a training job cannot see;"
            " set ANIML_STORE to s3://bucket/prefix, or train.on to here"
        )
    if not settings.training_image:
        raise SettingsError("train.on is sagemaker: expected the pipeline's image in ECR in ANIML_TRAINING_IMAGE, found none (docs/training.md)")
    if not role_of(settings):
        raise SettingsError("train.on is sagemaker: expected a role in ANIML_TRAINING_ROLE_ARN (or ANIML_ROLE_ARN), found none (docs/training.md)")
    locations = {"weights": plan.train.weights}
    if plan.train.weights == "released":
        locations["fallback_weights"] = plan.train.fallback_weights
    for key, said in locations.items():
        if not any(said == name or (name == "://" and name in said) for name in NAMED_WEIGHTS):
            raise WeightsError(
                f"train.{key} is {said}, a file of this machine, which a training job cannot see; put it to an s3:// or https:// address"
            )


def role_of(settings: Settings) -> str:
    """The role that a job takes on."""
    return settings.training_role_arn or settings.role_arn


def request(name: str, base: str, plan: Plan, settings: Settings) -> CreateTrainingJobRequestTypeDef:
    """The request that starts a job."""
    spec = plan.train.sagemaker
    location = f"{settings.store.rstrip('/')}/{folder_of(base)}"
    metrics: list[MetricDefinitionTypeDef] = [{"Name": n, "Regex": r} for n, r in METRICS.items()]
    seconds = max(1, round(spec.max_hours * 3600))
    asked: CreateTrainingJobRequestTypeDef = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": settings.training_image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": list(ENTRY),
            "MetricDefinitions": metrics,
        },
        "HyperParameters": {"store": settings.store, "order": f"{folder_of(base)}/order.json"},
        "RoleArn": role_of(settings),
        "OutputDataConfig": {"S3OutputPath": f"{location}/output"},
        "ResourceConfig": {"InstanceType": spec.instance, "InstanceCount": 1, "VolumeSizeInGB": spec.disk_gb},  # type: ignore[misc,typeddict-item]  # the service says which there are
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
        "CheckpointConfig": {"S3Uri": f"{location}/checkpoints", "LocalPath": LOCAL},
        "EnableManagedSpotTraining": spec.spot,
        "Tags": [{"Key": "animl:model", "Value": plan.model}, {"Key": "animl:key", "Value": base.rpartition("-")[2]}],
    }
    if spec.spot:
        asked["StoppingCondition"]["MaxWaitTimeInSeconds"] = seconds + round(spec.wait_hours * 3600)
    return asked

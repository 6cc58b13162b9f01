"""What a training job gets: a spec in the store, and the SageMaker request that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import SettingsError, WeightsError, redact_url
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.storage.store import Workspace

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.type_defs import CreateTrainingJobRequestTypeDef, MetricDefinitionTypeDef

ENTRYPOINT = ("python", "-m", "animl_pipeline.steps.training")
CHECKPOINT_FOLDER = "/opt/ml/checkpoints"
METRICS = {
    "epoch": r"epoch ([0-9]+) of [0-9]+: loss",
    "train:loss": r"epoch [0-9]+ of [0-9]+: loss ([0-9.]+)",
    "val:loss": r"val loss ([0-9.]+)",
    "val:macro_ap": r"val macro AP ([0-9.]+)",
    "val:macro_f1": r"val macro F1 ([0-9.]+)",
}
"""SageMaker metric → its pattern in the log of :mod:`animl_pipeline.steps.training.trainer`."""
WEIGHTS_WITHOUT_FILE = frozenset({"released", "timm", "none", "efficientnet-lite0-imagenet"})


class JobSpec(Record):
    """What a job trains. ``key`` is the beginning of the step's cache key; the job must get the same one."""

    key: str
    plan: Plan
    crops: Artifact
    splits: Artifact
    embeddings: Artifact | None = None


def key_prefix(space: Workspace) -> str:
    """The beginning of the cache key of the step that is built in this workspace. The store names the workspace after it."""
    return space.out.parent.name.rpartition("-")[2]


def job_folder(base_name: str) -> str:
    """The job's folder in the store: spec, checkpoints and result. It is deleted when the step is made."""
    return f"jobs/{base_name}"


def check_job_settings(plan: Plan, settings: Settings) -> None:
    """Check that a job on another machine can train this plan.

    Raises:
        SettingsError: ``store_not_in_s3``, ``no_training_image`` or ``no_role``.
        WeightsError: ``weights_not_shared``: the weights are a file of this machine.
    """
    on = "train.run_on is sagemaker"
    if not settings.store.startswith("s3://"):
        message = f"{on}, but the store is the folder {settings.store}, which a job cannot read; set ANIML_STORE to s3://bucket/prefix"
        raise SettingsError(f"{message}, or train.run_on to local", code="store_not_in_s3")
    if not settings.training_image:
        raise SettingsError(f"{on}: set ANIML_TRAINING_IMAGE to the pipeline's image in ECR (docs/training.md)", code="no_training_image")
    if not job_role(settings):
        raise SettingsError(f"{on}: set ANIML_TRAINING_ROLE_ARN or ANIML_ROLE_ARN to the job's role (docs/training.md)", code="no_role")
    weights = {"weights": plan.train.weights}
    if plan.train.weights == "released":
        weights["fallback_weights"] = plan.train.fallback_weights
    if plan.train.needs_embeddings():
        weights |= {f"networks.{i}.weights": n.weights for i, n in enumerate(plan.train.networks)}
    for key, value in weights.items():
        if value not in WEIGHTS_WITHOUT_FILE and "://" not in value:
            message = f"train.{key} is {redact_url(value)}, a file of this machine, which a job cannot read; copy it to an s3:// or https:// URL"
            raise WeightsError(message, code="weights_not_shared")


def job_role(settings: Settings) -> str:
    """ARN of the role that a job runs as."""
    return settings.training_role_arn or settings.role_arn


def job_request(name: str, base_name: str, plan: Plan, settings: Settings) -> CreateTrainingJobRequestTypeDef:
    """The CreateTrainingJob request.

    ``base_name``: the part of the name that all jobs of a step have.
    """
    config = plan.train.sagemaker
    url = f"{settings.store.rstrip('/')}/{job_folder(base_name)}"
    metrics: list[MetricDefinitionTypeDef] = [{"Name": n, "Regex": r} for n, r in METRICS.items()]
    seconds = max(1, round(config.max_hours * 3600))
    request: CreateTrainingJobRequestTypeDef = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": settings.training_image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": list(ENTRYPOINT),
            "MetricDefinitions": metrics,
        },
        "HyperParameters": {"store": settings.store, "spec": f"{job_folder(base_name)}/spec.json"},
        "RoleArn": job_role(settings),
        "OutputDataConfig": {"S3OutputPath": f"{url}/output"},
        "ResourceConfig": {"InstanceType": config.instance, "InstanceCount": 1, "VolumeSizeInGB": config.disk_gb},  # type: ignore[misc,typeddict-item]  # the service knows the types
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
        "CheckpointConfig": {"S3Uri": f"{url}/checkpoints", "LocalPath": CHECKPOINT_FOLDER},
        "EnableManagedSpotTraining": config.spot,
        "Tags": [{"Key": "animl:model", "Value": plan.model}, {"Key": "animl:key", "Value": base_name.rpartition("-")[2]}],
    }
    if config.spot:
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = seconds + round(config.wait_hours * 3600)
    return request

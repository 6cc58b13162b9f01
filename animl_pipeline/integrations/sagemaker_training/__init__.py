"""Training as a SageMaker training job: the same artifact as training here, made on another machine that shares the store.

::

    order      what the job is told, by its place in the store, and the request that starts it
    following  start it or take it over, watch it, fetch what it made
    stopping   jobs that this process waits for, and their end when it is told to stop
    inside     what runs in the job's container (python -m animl_pipeline.integrations.sagemaker_training)

A job's name comes from the step's key. So a flow that was killed finds its job again instead of starting a second one, and a
job that failed or was interrupted leaves checkpoints that the next one goes on from.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.records import Artifact
from animl_pipeline.integrations.sagemaker_training.job_spec import check_ready

if TYPE_CHECKING:
    from animl_pipeline.storage.step_cache import Store

__all__ = ["check_ready", "train_elsewhere"]


def train_elsewhere(crops: Artifact, splits: Artifact, plan: Plan, store: Store, settings: Settings) -> Artifact:
    """As :func:`animl_pipeline.steps.training.train_classifier`, in a SageMaker training job where the store does not hold the model yet.

    Raises:
        TrainingError: the job failed, was stopped or took too long; the reason is SageMaker's or the container's own.
        SettingsError: the store is a folder, which no job can see, or image or role are not set.
        WeightsError: the plan's weights are a file of this machine.
    """
    from animl_pipeline.integrations.sagemaker_training.job import made_by_job
    from animl_pipeline.steps.training import train_classifier

    return train_classifier(crops, splits, plan, store, settings, by=partial(made_by_job, crops, splits, plan, store, settings))

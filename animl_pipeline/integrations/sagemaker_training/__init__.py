"""Train in a SageMaker training job: the same artifact as a local training, made on another machine that shares the store.

A job's name comes from the step's cache key. So a flow that was killed finds its job again instead of starting a second one. A job
that failed or was interrupted leaves a checkpoint, from which the next job continues.
"""

from animl_pipeline.integrations.sagemaker_training.job import build_in_job, stop_jobs
from animl_pipeline.integrations.sagemaker_training.job_spec import check_job_settings

__all__ = ["build_in_job", "check_job_settings", "stop_jobs"]

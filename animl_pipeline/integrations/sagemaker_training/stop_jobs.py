"""Jobs that this process waits for, so that they end when it is told to end: nobody pays for what nobody wants any more."""

from __future__ import annotations

import logging
import threading

log = logging.getLogger(__name__)

_lock = threading.Lock()
_waited_for: set[str] = set()


def waiting_for(name: str) -> None:
    """This process waits for a job from now on."""
    with _lock:
        _waited_for.add(name)


def waited(name: str) -> None:
    """It does so no longer."""
    with _lock:
        _waited_for.discard(name)


def stop_jobs() -> None:
    """Have SageMaker stop all jobs that this process waits for, in a few seconds; of several callers the first one does it.

    Nothing is lost by it: the next job goes on from the last checkpoint.
    """
    with _lock:
        names = sorted(_waited_for)
        _waited_for.clear()
    for name in names:
        _stop(name)


def _stop(name: str) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    hurried = Config(connect_timeout=2, read_timeout=3, retries={"mode": "standard", "max_attempts": 1})
    try:
        boto3.client("sagemaker", config=hurried).stop_training_job(TrainingJobName=name)
        log.info("the training job %s was told to stop", name)
    except (BotoCoreError, ClientError) as e:
        log.warning("the training job %s could not be stopped (%s); it trains on, and the next run takes it over", name, e)

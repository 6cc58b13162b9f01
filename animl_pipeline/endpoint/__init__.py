"""The last door: a package goes behind a SageMaker endpoint, is checked there, and is rolled back when it does not hold.

``deploy`` tells the story; ``names`` says what things are called, ``aws`` speaks boto3, ``check`` asks the live endpoint,
``history`` keeps what was begun and how it ended. On AWS and on this machine the same calls are made; only the addresses
differ (AWS_ENDPOINT_URL_SAGEMAKER, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME, AWS_ENDPOINT_URL_S3).
"""

from __future__ import annotations

from animl_pipeline.endpoint.check import ask_endpoint
from animl_pipeline.endpoint.deploy import EndpointStatus, deploy_endpoint, endpoint_status, rollback_endpoint
from animl_pipeline.endpoint.history import ReleaseRecord, release_history

__all__ = ["EndpointStatus", "ReleaseRecord", "ask_endpoint", "deploy_endpoint", "endpoint_status", "release_history", "rollback_endpoint"]

"""The last door: a package goes behind SageMaker endpoints, is checked there, and is rolled back when it does not hold.

``deploy`` and ``rollback`` tell the stories; a ``change`` is carried out, seen through or undone, and ``history`` keeps it.
``names`` says what things are called, ``aws`` and ``calls`` speak boto3, ``check`` asks the live endpoint. Before:
``refusal``, ``approving``, ``looking_ahead``, ``difference`` (the dry run) and ``prices``. After: ``registering`` (what Animl is told),
``clearing`` (what nobody needs any more), ``status``. On AWS and on this machine the same calls are made; only the
addresses differ (AWS_ENDPOINT_URL_SAGEMAKER, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME, AWS_ENDPOINT_URL_S3, …).
"""

from __future__ import annotations

from animl_pipeline.endpoint.approving import approval, approval_of, lacks_approval
from animl_pipeline.endpoint.check import ask_endpoint
from animl_pipeline.endpoint.clearing import Cleared, clear_away
from animl_pipeline.endpoint.deploy import deploy_endpoint
from animl_pipeline.endpoint.difference import Outlook, foresee_release
from animl_pipeline.endpoint.history import ReleaseRecord, release_history
from animl_pipeline.endpoint.refusal import held_back
from animl_pipeline.endpoint.registering import Registration, register_model
from animl_pipeline.endpoint.rollback import rollback_endpoint
from animl_pipeline.endpoint.status import EndpointStatus, endpoint_status, endpoints_status, served_package

__all__ = [
    "Cleared",
    "EndpointStatus",
    "Outlook",
    "Registration",
    "ReleaseRecord",
    "approval",
    "approval_of",
    "ask_endpoint",
    "clear_away",
    "deploy_endpoint",
    "endpoint_status",
    "endpoints_status",
    "foresee_release",
    "held_back",
    "lacks_approval",
    "register_model",
    "release_history",
    "rollback_endpoint",
    "served_package",
]

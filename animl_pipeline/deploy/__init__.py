"""The last door: a package goes behind SageMaker endpoints, is checked there, and is rolled back when it does not hold.

``deploy`` and ``rollback`` tell the stories; a ``change`` is carried out, seen through or undone, and ``history`` keeps it.
``names`` says what things are called, ``aws`` and ``calls`` speak boto3, ``check`` asks the live endpoint. Before:
``refusal``, ``approving``, ``looking_ahead``, ``difference`` (the dry run) and ``prices``. After: ``registering`` (what Animl is told),
``clearing`` (what nobody needs any more), ``status``. On AWS and on this machine the same calls are made; only the
addresses differ (AWS_ENDPOINT_URL_SAGEMAKER, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME, AWS_ENDPOINT_URL_S3, …).
"""

from __future__ import annotations

from animl_pipeline.deploy.animl_registration import Registration, register_model
from animl_pipeline.deploy.cleanup import Cleared, clear_away
from animl_pipeline.deploy.deploy_endpoint import deploy_endpoint
from animl_pipeline.deploy.dry_run import Outlook, foresee_release
from animl_pipeline.deploy.endpoint_status import EndpointStatus, endpoint_status, endpoints_status, served_package
from animl_pipeline.deploy.history import ReleaseRecord, release_history
from animl_pipeline.deploy.live_check import ask_endpoint
from animl_pipeline.deploy.release_gate import approval, approval_of, held_back, lacks_approval
from animl_pipeline.deploy.rollback import rollback_endpoint

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

"""Deploy a package to SageMaker endpoints: release, live check, rollback, status, cleanup, registration in Animl.

``deploy_endpoint`` and ``rollback`` are the two main actions. Both use ``update_or_undo``, which keeps the history in
``release_history``. boto3 reads its addresses from its own variables (AWS_ENDPOINT_URL_SAGEMAKER, …), so the same code runs on
AWS and with ``animl-pipeline sagemaker-local``.
"""

from __future__ import annotations

from animl_pipeline.deploy.animl_registration import Registration, register_model
from animl_pipeline.deploy.cleanup import CleanupResult, delete_unused
from animl_pipeline.deploy.deploy_package import deploy_package
from animl_pipeline.deploy.dry_run import DryRun, dry_run_release
from animl_pipeline.deploy.endpoint_status import EndpointStatus, deployed_package, endpoint_statuses, realtime_status
from animl_pipeline.deploy.live_check import invoke_endpoint
from animl_pipeline.deploy.release_gate_and_approval import approval_of, hold_reason, needs_approval, new_approval
from animl_pipeline.deploy.release_history import ReleaseRecord, release_records
from animl_pipeline.deploy.rollback import roll_back

__all__ = [
    "CleanupResult", "DryRun", "EndpointStatus", "Registration", "ReleaseRecord", "approval_of", "delete_unused", "deploy_package",
    "deployed_package", "dry_run_release", "endpoint_statuses", "hold_reason", "invoke_endpoint", "needs_approval", "new_approval",
    "realtime_status", "register_model", "release_records", "roll_back",
]  # fmt: skip

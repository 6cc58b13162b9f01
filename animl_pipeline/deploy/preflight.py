"""Checks before a release changes anything: bucket, role, image, quotas, SSM parameters, Animl's categories.

An error stops the release. If only the permission to look is missing, that is a warning that names the permission.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Literal
from urllib.parse import unquote

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import AwsUnreachableError, PipelineError, ReleaseError, RemoteError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.deploy.aws_api import AwsApi, missing_bucket
from animl_pipeline.deploy.resource_names import ReleaseTarget, animl_model_id, animl_project, ssm_parameter_name
from animl_pipeline.integrations.animl import AnimlClient
from animl_pipeline.integrations.aws_calls import DENIED, error_code, is_temporary, none_if_missing, quick_config

log = logging.getLogger(__name__)

ROLE = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role/(?:[\w+=,.@/-]*/)?([\w+=,.@-]{1,64})")
ECR_IMAGE = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([a-z0-9._/-]+?)(?::([\w.-]+)|@(sha256:[0-9a-f]{64}))?")
PERMISSIONS = {
    "HeadBucket": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "GetRole": "iam:GetRole",
    "DescribeImages": "ecr:DescribeImages",
    "ListServiceQuotas": "servicequotas:ListServiceQuotas",
    "GetParameter": "ssm:GetParameter",
}
"""Operation → the IAM permission that it needs."""
SERVERLESS_QUOTA = re.compile(r"(?=.*serverless)(?=.*concurren)", re.IGNORECASE)
"""Matches the quota's name. Its code is not documented."""


class CheckResult(Record):
    """The result of one check. ``temporary`` means that AWS did not answer, so that another try may succeed."""

    name: str
    state: Literal["ok", "warning", "error"]
    message: str
    temporary: bool = False


def require_preflight(aws: AwsApi, targets: tuple[ReleaseTarget, ...], plan: Plan, settings: Settings) -> None:
    """Run all checks and log the warnings.

    Raises:
        ReleaseError: a check found an error (code "preflight"); the message names the permission or setting to fix. AwsUnreachableError if AWS did
            not answer.
    """
    results = list(run_preflight(aws, targets, plan, settings))
    for result in results:
        if result.state == "warning":
            log.warning("%s: %s", result.name, result.message)
    errors = [r for r in results if r.state == "error"]
    if errors:
        more = f" ({len(errors) - 1} more: {', '.join(r.name for r in errors[1:])})" if len(errors) > 1 else ""
        kind = AwsUnreachableError if all(r.temporary for r in errors) else ReleaseError
        raise kind(f"{errors[0].message}{more}; nothing was changed", code="preflight", failed=[r.name for r in errors])


def run_preflight(aws: AwsApi, targets: tuple[ReleaseTarget, ...], plan: Plan, settings: Settings) -> Iterator[CheckResult]:
    """The results of all checks, one after the other. No check raises."""
    register = plan.release.register_
    yield _run("bucket", lambda: _check_bucket(aws, targets[0]))
    yield _run("role", lambda: _check_role(targets[0].role_arn))
    yield _run("image", lambda: _check_image(targets[0].image))
    if any(t.planned.instance_type is None for t in targets):
        yield _run("quota", lambda: _check_quota(targets))
    if register is not None:
        yield _run("batches", lambda: _check_batches(plan))
    if register is not None and register.rule_projects:
        yield _run("rules", lambda: _check_rule_projects(register.rule_projects, settings))
    if register is not None and register.ssm:
        yield _run("ssm", lambda: _check_parameters(aws, plan, settings))
    if register is not None:
        yield _run("categories", lambda: _check_categories(plan, settings))


def _run(name: str, check: Callable[[], CheckResult]) -> CheckResult:
    """A check's result. If AWS refuses or does not answer, it is a warning, but an error for the bucket, which every release needs."""
    from botocore.exceptions import BotoCoreError, ClientError

    state: Literal["warning", "error"] = "error" if name == "bucket" else "warning"
    try:
        return check()
    except ClientError as e:
        operation = e.operation_name
        if error_code(e) in DENIED:
            permission = PERMISSIONS.get(operation, f"the permission for {operation}")
            message = f"{name}: {operation} was denied; your AWS user or role lacks {permission} (docs/release.md)"
            return CheckResult(name=name, state="warning" if operation == "AbortMultipartUpload" else state, message=message)
        message = f"{name}: could not be checked, {operation} was refused with {error_code(e)}"
        return CheckResult(name=name, state=state, message=message, temporary=is_temporary(e))
    except BotoCoreError as e:
        message = f"{name}: no answer from AWS: {e}; check the network, the region and the AWS variables"
        return CheckResult(name=name, state=state, message=message, temporary=True)
    except RemoteError as e:
        return CheckResult(name=name, state="warning", message=f"could not be checked: {e}")
    except PipelineError as e:
        return _error(name, str(e))


def _check_bucket(aws: AwsApi, target: ReleaseTarget) -> CheckResult:
    """Whether packages can be written: an upload is started and aborted, which leaves nothing behind."""
    if none_if_missing(lambda: aws.s3.head_bucket(Bucket=target.bucket)) is None:
        return _error("bucket", missing_bucket(target.bucket))
    upload = aws.s3.create_multipart_upload(Bucket=target.bucket, Key=target.key)
    aws.s3.abort_multipart_upload(Bucket=target.bucket, Key=target.key, UploadId=upload["UploadId"])
    return _ok("bucket", f"s3://{target.bucket} can be written")


def _check_role(arn: str) -> CheckResult:
    match = ROLE.fullmatch(arn)
    if match is None:
        return _error("role", f"ANIML_ROLE_ARN: expected arn:aws:iam::<account>:role/<name>, found {arn!r}")
    import boto3

    account, name = match.groups()
    own = boto3.client("sts", config=quick_config()).get_caller_identity()["Account"]
    if own != account:
        return _error(
            "role", f"ANIML_ROLE_ARN belongs to the account {account}, but you are signed in to {own}; SageMaker needs a role of its own account"
        )
    role = none_if_missing(lambda: boto3.client("iam", config=quick_config()).get_role(RoleName=name))
    if role is None:
        return _error("role", f"ANIML_ROLE_ARN: expected the role {name} in IAM, found none; create it (docs/release.md) or name another")
    trusts = role["Role"].get("AssumeRolePolicyDocument", {})
    if "sagemaker.amazonaws.com" not in (unquote(trusts) if isinstance(trusts, str) else json.dumps(trusts)):
        return _error(
            "role", f"ANIML_ROLE_ARN: the role {name} does not trust sagemaker.amazonaws.com; add it to the role's trust policy (docs/release.md)"
        )
    return _ok("role", f"{name} exists and trusts SageMaker")


def _check_image(image: str) -> CheckResult:
    match = ECR_IMAGE.fullmatch(image)
    if match is None:
        return _warning("image", f"{image} is not an address in ECR, so it was not checked; SageMaker on AWS takes images from ECR only")
    import boto3

    account, region, repository, tag, digest = match.groups()
    image_id = {"imageDigest": digest} if digest else {"imageTag": tag or "latest"}
    ecr = boto3.client("ecr", region_name=region, config=quick_config())
    known = none_if_missing(lambda: ecr.describe_images(registryId=account, repositoryName=repository, imageIds=[image_id]))
    if not known or not known["imageDetails"]:
        return _error(
            "image",
            f"ANIML_ENDPOINT_IMAGE: expected {repository} with {digest or tag or 'latest'} in ECR in {region}, found none; push it (docs/aws.md) "
            "or name another",
        )
    size = known["imageDetails"][0].get("imageSizeInBytes", 0)
    return _ok("image", f"{repository}:{tag or digest} is in ECR, {size / 1e6:.0f} MB")


def _check_quota(targets: tuple[ReleaseTarget, ...]) -> CheckResult:
    """Whether the account's quota allows the planned serverless concurrency."""
    import boto3

    needed = sum(t.planned.max_concurrency for t in targets if t.planned.instance_type is None)
    pages = boto3.client("service-quotas", config=quick_config()).get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
    quotas = [q for page in pages for q in page["Quotas"] if SERVERLESS_QUOTA.search(q.get("QuotaName", ""))]
    if not quotas:
        return _warning("quota", "the quota of serverless concurrency was not found; AWS refuses a release above it")
    quota = max(quotas, key=lambda q: q["Value"])
    if quota["Value"] < needed:
        return _error(
            "quota",
            f"the account's quota {quota['QuotaName']!r} is {quota['Value']:.0f}, but the plan needs {needed}; request a higher one in Service "
            "Quotas, or lower release.max_concurrency",
        )
    return _ok("quota", f"{needed} of {quota['Value']:.0f} concurrent requests ({quota['QuotaName']})")


def _check_batches(plan: Plan) -> CheckResult:
    """Whether the endpoint for Animl's batches is wide enough."""
    warning = plan.release.batch_warning()
    return _warning("batches", warning) if warning else _ok("batches", "the endpoint for Animl's batches is wide enough")


def _check_rule_projects(projects: tuple[str, ...], settings: Settings) -> CheckResult:
    """Whether the user sees the projects whose automation rules the registration changes after the release."""
    for project in projects:
        with AnimlClient(project, settings) as animl:
            animl.require_project()
    return _ok("rules", f"Animl shows {', '.join(projects)} to this user")


def _check_parameters(aws: AwsApi, plan: Plan, settings: Settings) -> CheckResult:
    names = [ssm_parameter_name(plan, purpose, settings) for purpose in ("realtime", "batch")]
    held = {name: none_if_missing(lambda n=name: aws.ssm.get_parameter(Name=n)) for name in names}  # type: ignore[misc]  # a lambda's default
    missing = [name for name, value in held.items() if value is None]
    return _ok("ssm", f"{', '.join(missing)} will be created" if missing else f"{' and '.join(names)} exist")


def _check_categories(plan: Plan, settings: Settings) -> CheckResult:
    """Whether Animl's MLModel has every class of the model. Animl loses an answer that has an unknown class."""
    project = animl_project(plan)
    if not settings.api_url or project is None:
        needed = "ANIML_API_URL and a project (an animl:// source, or register.rule_projects)"
        return _warning("categories", f"not compared with Animl's MLModel, because that needs {needed}")
    model_id = animl_model_id(plan)
    with AnimlClient(project, settings) as animl:
        document = animl.ml_model(model_id)
    if document is None:
        return _warning("categories", f"Animl has no MLModel {model_id!r} yet; run the registration's mlmodel.js before Animl calls the endpoint")
    known, answered = {str(c["_id"]) for c in document["categories"]}, (*plan.labels.classes, *plan.labels.parents)
    missing = [c for c in answered if c not in known]  # a class for false boxes is not answered
    if missing:
        return _error(
            "categories",
            f"Animl's MLModel {model_id!r} lacks the categories {', '.join(missing)}, and Animl loses an answer with an unknown one; "
            "write the registration with `animl-pipeline release register PLAN --only-files` and run its mlmodel.js first",
        )
    return _ok("categories", f"Animl's MLModel {model_id!r} ({document['version']}) has all {len(answered)} classes")


def _ok(name: str, message: str) -> CheckResult:
    return CheckResult(name=name, state="ok", message=message)


def _warning(name: str, message: str) -> CheckResult:
    return CheckResult(name=name, state="warning", message=message)


def _error(name: str, message: str) -> CheckResult:
    return CheckResult(name=name, state="error", message=message)

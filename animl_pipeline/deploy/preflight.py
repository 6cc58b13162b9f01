"""What a release will need, looked at before anything is touched: bucket, role, image, quotas, SSM, Animl's categories.

A fault stops the release. Where only the permission to look is lacking, that is a warning which names the permission.
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
from animl_pipeline.core.errors import PipelineError, ReleaseError
from animl_pipeline.core.records import Record
from animl_pipeline.deploy.aws_errors import DENIED, code_of, found, hurried
from animl_pipeline.deploy.endpoint_names import Target, parameter_of
from animl_pipeline.deploy.sagemaker_api import Aws
from animl_pipeline.integrations.animl import Animl
from animl_pipeline.storage.remote import RemoteError

log = logging.getLogger(__name__)

ROLE = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role/(?:[\w+=,.@/-]*/)?([\w+=,.@-]{1,64})")
ECR = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([a-z0-9._/-]+?)(?::([\w.-]+)|@(sha256:[0-9a-f]{64}))?")
PERMISSIONS = {
    "HeadBucket": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "GetRole": "iam:GetRole",
    "DescribeImages": "ecr:DescribeImages",
    "ListServiceQuotas": "servicequotas:ListServiceQuotas",
    "GetParameter": "ssm:GetParameter",
}
SHARE_OF_QUOTA = re.compile(r"(?=.*serverless)(?=.*concurren)", re.IGNORECASE)


class Finding(Record):
    """One thing looked at."""

    what: str
    state: Literal["good", "warning", "fault"]
    said: str


def look_ahead(aws: Aws, targets: tuple[Target, ...], plan: Plan, settings: Settings) -> None:
    """Say what may go wrong.

    Raises:
        ReleaseError: something will go wrong; the line names the permission or setting to mend.
    """
    seen = list(findings(aws, targets, plan, settings))
    for finding in seen:
        if finding.state == "warning":
            log.warning("%s: %s", finding.what, finding.said)
    faults = [f for f in seen if f.state == "fault"]
    if faults:
        more = f" ({len(faults) - 1} more after this: {', '.join(f.what for f in faults[1:])})" if len(faults) > 1 else ""
        raise ReleaseError(f"{faults[0].said}{more}; nothing was changed")


def findings(aws: Aws, targets: tuple[Target, ...], plan: Plan, settings: Settings) -> Iterator[Finding]:
    """Everything looked at, in turn; none raises."""
    first = targets[0]
    yield _looked("bucket", lambda: _bucket(aws, first))
    yield _looked("role", lambda: _role(first.role_arn))
    yield _looked("image", lambda: _image(first.image))
    if any(t.where.instance_type is None for t in targets):
        yield _looked("quota", lambda: _quota(targets))
    if plan.release.register_ is not None and plan.release.register_.ssm:
        yield _looked("ssm", lambda: _parameters(aws, plan, settings))
    if plan.release.register_ is not None:
        yield _looked("categories", lambda: _categories(plan, settings))


def _looked(what: str, look: Callable[[], Finding]) -> Finding:
    """A look's finding; a look that is refused or not answered is a warning, but for the bucket, without which nothing goes."""
    from botocore.exceptions import BotoCoreError, ClientError

    needed: Literal["warning", "fault"] = "fault" if what == "bucket" else "warning"
    try:
        return look()
    except ClientError as e:
        if code_of(e) in DENIED:
            permission = PERMISSIONS.get(e.operation_name, f"the permission for {e.operation_name}")
            said = f"{what}: {e.operation_name} was denied; your AWS user or role lacks {permission} (docs/release.md)"
            return Finding(what=what, state="warning" if e.operation_name == "AbortMultipartUpload" else needed, said=said)
        return Finding(what=what, state=needed, said=f"{what}: could not be looked at, {e.operation_name} was answered with {code_of(e)}")
    except BotoCoreError as e:
        return Finding(what=what, state=needed, said=f"{what}: AWS cannot be asked: {e}; check the network, the region and AWS's usual variables")
    except RemoteError as e:
        return Finding(what=what, state="warning", said=f"could not be looked at: {e}")
    except PipelineError as e:
        return Finding(what=what, state="fault", said=str(e))


def _bucket(aws: Aws, target: Target) -> Finding:
    """Whether packages can be written: an upload is begun and broken off, which leaves nothing behind."""
    if found(lambda: aws.s3.head_bucket(Bucket=target.bucket)) is None:
        said = f"expected the bucket s3://{target.bucket}, found none; make it, or set ANIML_MODELS_BUCKET to another"
        return Finding(what="bucket", state="fault", said=said)
    begun = aws.s3.create_multipart_upload(Bucket=target.bucket, Key=target.key)
    aws.s3.abort_multipart_upload(Bucket=target.bucket, Key=target.key, UploadId=begun["UploadId"])
    return Finding(what="bucket", state="good", said=f"s3://{target.bucket} can be written")


def _role(arn: str) -> Finding:
    match = ROLE.fullmatch(arn)
    if match is None:
        said = f"ANIML_ROLE_ARN: expected arn:aws:iam::<account>:role/<name>, found {arn!r}"
        return Finding(what="role", state="fault", said=said)
    import boto3

    account, name = match.groups()
    mine = boto3.client("sts", config=hurried()).get_caller_identity()["Account"]
    if mine != account:
        said = f"ANIML_ROLE_ARN is of the account {account}, you are signed in to {mine}; SageMaker takes on roles of its own account only"
        return Finding(what="role", state="fault", said=said)
    role = found(lambda: boto3.client("iam", config=hurried()).get_role(RoleName=name))
    if role is None:
        return Finding(what="role", state="fault", said=f"ANIML_ROLE_ARN: IAM knows no role {name}; make it (docs/release.md) or name another")
    trusts = role["Role"].get("AssumeRolePolicyDocument", {})
    if "sagemaker.amazonaws.com" not in (unquote(trusts) if isinstance(trusts, str) else json.dumps(trusts)):
        said = f"ANIML_ROLE_ARN: the role {name} does not trust sagemaker.amazonaws.com; add it to the role's trust policy (docs/release.md)"
        return Finding(what="role", state="fault", said=said)
    return Finding(what="role", state="good", said=f"{name} is there and trusts SageMaker")


def _image(image: str) -> Finding:
    match = ECR.fullmatch(image)
    if match is None:
        said = f"{image} is no address in ECR, so it was not looked for; SageMaker on AWS takes images from ECR only"
        return Finding(what="image", state="warning", said=said)
    import boto3

    account, region, repository, tag, digest = match.groups()
    which = {"imageDigest": digest} if digest else {"imageTag": tag or "latest"}
    ecr = boto3.client("ecr", region_name=region, config=hurried())
    known = found(lambda: ecr.describe_images(registryId=account, repositoryName=repository, imageIds=[which]))
    if not known or not known["imageDetails"]:
        said = (
            f"ANIML_ENDPOINT_IMAGE: ECR holds no {repository} with {digest or tag or 'latest'} in {region}; push it (docs/release.md) or name another"
        )
        return Finding(what="image", state="fault", said=said)
    size = known["imageDetails"][0].get("imageSizeInBytes", 0)
    return Finding(what="image", state="good", said=f"{repository}:{tag or digest} is in ECR, {size / 1e6:.0f} MB")


def _quota(targets: tuple[Target, ...]) -> Finding:
    """Whether the account allows so much serverless concurrency; the quota's name is looked for, since its code is not documented."""
    import boto3

    wanted = sum(t.where.max_concurrency for t in targets if t.where.instance_type is None)
    pages = boto3.client("service-quotas", config=hurried()).get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
    fitting = [q for page in pages for q in page["Quotas"] if SHARE_OF_QUOTA.search(q.get("QuotaName", ""))]
    if not fitting:
        return Finding(what="quota", state="warning", said="the quota of serverless concurrency was not found; a release above it is refused by AWS")
    quota = max(fitting, key=lambda q: q["Value"])
    if quota["Value"] < wanted:
        said = (
            f"the account's quota {quota['QuotaName']!r} is {quota['Value']:.0f}, the plan wants {wanted}; have it raised in Service Quotas, "
            "or lower release.max_concurrency"
        )
        return Finding(what="quota", state="fault", said=said)
    return Finding(what="quota", state="good", said=f"{wanted} of {quota['Value']:.0f} at a time ({quota['QuotaName']})")


def _parameters(aws: Aws, plan: Plan, settings: Settings) -> Finding:
    names = [parameter_of(plan, purpose, settings) for purpose in ("realtime", "batch")]
    held = {name: found(lambda n=name: aws.ssm.get_parameter(Name=n)) for name in names}  # type: ignore[misc]  # a lambda's default
    lacking = [name for name, value in held.items() if value is None]
    return Finding(what="ssm", state="good", said=f"{', '.join(lacking)} will be made" if lacking else f"{' and '.join(names)} are there")


def _categories(plan: Plan, settings: Settings) -> Finding:
    """Whether Animl's MLModel knows every class that the endpoint will answer: an unknown one ends in the dead-letter queue."""
    project = asked_project(plan)
    if not settings.api_url or project is None:
        said = "not compared with Animl's MLModel: that needs ANIML_API_URL and a project (an animl:// source, or register.rule_projects)"
        return Finding(what="categories", state="warning", said=said)
    model_id = model_id_of(plan)
    with Animl(project, settings) as animl:
        document = animl.ml_model(model_id)
    if document is None:
        said = f"Animl knows no MLModel {model_id!r} yet; run mlmodel.js of the registration before its API calls the endpoint"
        return Finding(what="categories", state="warning", said=said)
    known = {str(c["_id"]) for c in document["categories"]}
    lacking = [c.id for c in plan.classes() if c.id not in known]
    if lacking:
        said = (
            f"Animl's MLModel {model_id!r} lacks the categories {', '.join(lacking)}, and an answer with an unknown one is lost in Animl; "
            "write the registration with `animl-pipeline release register PLAN --only-files` and run its mlmodel.js first"
        )
        return Finding(what="categories", state="fault", said=said)
    return Finding(
        what="categories", state="good", said=f"Animl's MLModel {model_id!r} ({document['version']}) knows all {len(plan.classes())} classes"
    )


def asked_project(plan: Plan) -> str | None:
    """A project as whose member Animl can be asked, None where the plan names none."""
    register = plan.release.register_
    named = (*(register.rule_projects if register else ()), *(p for p in (s.project() for s in plan.sources) if p))
    return named[0] if named else None


def model_id_of(plan: Plan) -> str:
    """The MLModel's _id in Animl."""
    return (plan.release.register_.model_id if plan.release.register_ else None) or plan.model

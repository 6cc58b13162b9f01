"""Delete old endpoints, configs, models and packages, except those in use or needed for a rollback.

Only resources from this release history that also have the pipeline's tag are deleted. "In use" covers every endpoint of the
account, including those of other people, and the configs to which they are being updated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from animl_pipeline.config import Plan
from animl_pipeline.config.package_and_release import Purpose
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.progress import track
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.endpoint_status import current_endpoint
from animl_pipeline.deploy.release_history import ReleaseRecord, read_records
from animl_pipeline.deploy.resource_names import package_key, ssm_parameter_name, switched_parameter
from animl_pipeline.integrations.aws_calls import explain_aws_errors, none_if_missing
from animl_pipeline.storage.local_locks import release_locks
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)


class CleanupResult(Record):
    """Names of what was deleted (or would be), and for everything else the reason to keep it."""

    endpoints: tuple[str, ...]
    configs: tuple[str, ...]
    models: tuple[str, ...]
    packages: tuple[str, ...]
    kept: dict[str, str]

    def all(self) -> tuple[str, ...]:
        """All names to delete."""
        return (*self.endpoints, *self.configs, *self.models, *self.packages)


def delete_unused(plan: Plan, store: Store, settings: Settings, *, keep_versions: int | None = None, dry_run: bool = False) -> CleanupResult:
    """Delete what no endpoint uses and no rollback to the last ``keep_versions`` released versions needs.

    ``keep_versions``: None: the plan's ``release.keep_versions``.

    Raises:
        ReleaseError: a release is unfinished (code "unfinished_release"), or AWS refused a call.
    """
    aws, planned = AwsApi(), plan.release.endpoints(plan.model)
    with release_locks([p.base_name for p in planned], store, plan.release.timeout_s):
        histories = {p.base_name: read_records(p.base_name, store) for p in planned}
        records = [r for history in histories.values() for r in history]
        unfinished = [r for r in records if r.state == "begun"]
        if unfinished:
            raise ReleaseError(
                f"a {unfinished[0].kind} of {unfinished[0].endpoint_config} is unfinished; run `animl-pipeline release PLAN` first, "
                "which finishes or undoes it",
                code="unfinished_release",
            )
        current = {current_endpoint(aws, p, histories[p.base_name], switched_parameter(plan, p, settings))[0] for p in planned}
        current |= _endpoints_in_ssm(aws, plan, records, settings)
        needed = [r for history in histories.values() for r in _last_versions(history, keep_versions or plan.release.keep_versions)]
        result = _select(aws, plan, settings, records, needed, current)
        if not dry_run:
            _delete(aws, result, settings, plan.release.timeout_s)
    return result


def _endpoints_in_ssm(aws: AwsApi, plan: Plan, records: Iterable[ReleaseRecord], settings: Settings) -> set[str]:
    """The endpoints that Animl's SSM parameters name: those of this stage, and those of other stages that a release has set."""
    if plan.release.switch != "ssm":
        return set()
    purposes: tuple[Purpose, ...] = ("realtime", "batch")
    names = {ssm_parameter_name(plan, purpose, settings) for purpose in purposes} | {r.parameter for r in records if r.parameter}
    return {name for name in map(aws.parameter, sorted(names)) if name}


def _last_versions(records: Iterable[ReleaseRecord], count: int) -> list[ReleaseRecord]:
    """The last ``count`` configs that were released successfully, newest first, with one record each."""
    last: dict[str, ReleaseRecord] = {}
    for record in reversed([r for r in records if r.state == "done"]):
        last.setdefault(record.endpoint_config, record)
    return list(last.values())[:count]


def _select(
    aws: AwsApi, plan: Plan, settings: Settings, records: list[ReleaseRecord], needed: list[ReleaseRecord], current: set[str]
) -> CleanupResult:
    """What to delete, and what to keep and why."""
    kept = {name: "needed for a rollback" for r in needed for name in (r.endpoint_config, r.sagemaker_model)}
    used = _configs_in_use(aws)
    endpoints: list[str] = []
    if plan.release.switch == "ssm":
        kept |= {r.endpoint: "needed for a rollback" for r in needed} | dict.fromkeys(current, "used by Animl")
        endpoints = [name for name in sorted({r.endpoint for r in records} & used.keys() - kept.keys()) if _is_tagged(aws, name, plan)]
    for endpoint, in_use in used.items():
        if endpoint not in endpoints:
            kept |= {name: f"in use by {endpoint}" for config in in_use for name in (config, aws.model_of_config(config)) if name}
    existing = _existing_names(aws, plan)
    own = existing & {name for r in records for name in (r.endpoint_config, r.sagemaker_model)}
    unused = sorted(own - kept.keys())
    configs = {name: aws.config(name) for name in unused}
    models = {name: aws.model(name) for name in unused}
    old_configs = [name for name, c in configs.items() if c and aws.tags(c["EndpointConfigArn"]).get("animl:model") == plan.model]
    old_models = [name for name, m in models.items() if m and aws.tags(m["ModelArn"]).get("animl:model") == plan.model]
    packages = _unused_packages(aws, plan, settings, records, existing - set(old_models))
    return CleanupResult(endpoints=tuple(endpoints), configs=tuple(old_configs), models=tuple(old_models), packages=packages, kept=kept)


def _is_tagged(aws: AwsApi, endpoint: str, plan: Plan) -> bool:
    """Whether an endpoint has the tag of the plan's model: a parameter may have held somebody else's endpoint before the first release."""
    state = aws.endpoint_state(endpoint)
    return state is not None and bool(state.arn) and aws.tags(state.arn).get("animl:model") == plan.model


def _configs_in_use(aws: AwsApi) -> dict[str, set[str]]:
    """Every endpoint of the account, with the configs that it serves or is being updated to."""
    with explain_aws_errors("the account's endpoints"):
        names = [e["EndpointName"] for page in aws.sagemaker.get_paginator("list_endpoints").paginate() for e in page["Endpoints"]]
    states = {name: aws.endpoint_state(name) for name in names}
    return {name: {c for c in (s.endpoint_config, s.pending_config) if c} for name, s in states.items() if s is not None}


def _existing_names(aws: AwsApi, plan: Plan) -> set[str]:
    """All configs and models whose names begin with the plan's model."""
    with explain_aws_errors("the account's models and endpoint configs"):
        configs = aws.sagemaker.get_paginator("list_endpoint_configs").paginate(NameContains=plan.model)
        models = aws.sagemaker.get_paginator("list_models").paginate(NameContains=plan.model)
        names = {c["EndpointConfigName"] for page in configs for c in page["EndpointConfigs"]}
        return {n for n in names | {m["ModelName"] for page in models for m in page["Models"]} if n.startswith(f"{plan.model}-")}


def _unused_packages(aws: AwsApi, plan: Plan, settings: Settings, records: list[ReleaseRecord], remaining: set[str]) -> tuple[str, ...]:
    """Released packages in the bucket that none of the remaining models reads."""
    models_of: dict[str, set[str]] = {}
    for r in records:
        if r.package is not None:
            models_of.setdefault(package_key(plan, r.version, r.package), set()).add(r.sagemaker_model)
    bucket = settings.models_bucket
    with explain_aws_errors(f"s3://{bucket}"):
        pages = aws.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{plan.model}/")
        existing = {o["Key"] for page in pages for o in page.get("Contents", [])}
    return tuple(f"s3://{bucket}/{k}" for k in sorted(models_of) if k in existing and not models_of[k] & remaining)


def _delete(aws: AwsApi, result: CleanupResult, settings: Settings, timeout_s: float) -> None:
    """Delete endpoints first and packages last, so that no existing resource ever names a deleted one."""
    with track("deleting old versions", len(result.all())) as progress:
        for name in result.endpoints:
            aws.delete_endpoint(name, timeout_s)
            progress(1)
        for name in result.configs:
            with explain_aws_errors(f"the endpoint config {name}"):
                none_if_missing(lambda n=name: aws.sagemaker.delete_endpoint_config(EndpointConfigName=n))  # type: ignore[misc]  # a lambda's default
            progress(1)
        for name in result.models:
            with explain_aws_errors(f"the SageMaker model {name}"):
                none_if_missing(lambda n=name: aws.sagemaker.delete_model(ModelName=n))  # type: ignore[misc]  # a lambda's default
            progress(1)
        for address in result.packages:
            with explain_aws_errors(address):
                aws.s3.delete_object(Bucket=settings.models_bucket, Key=address.removeprefix(f"s3://{settings.models_bucket}/"))
            progress(1)
    counts = map(len, (result.endpoints, result.configs, result.models, result.packages))
    log.info("deleted %d endpoints, %d configs, %d models, %d packages", *counts)

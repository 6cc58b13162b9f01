"""What nobody needs any more is cleared away: old endpoints, configs, models and packages; never what is in use or may be gone back to.

Only things that this history made and that carry our tag are taken; what other histories or people made is left alone.
In use is what any endpoint of the account serves or is being updated to, whoever it belongs to.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.progress import track
from animl_pipeline.core.records import Record
from animl_pipeline.deploy.aws_errors import found, spoken
from animl_pipeline.deploy.endpoint_names import PACKAGE_FILE, parameter_of, slug, switched_parameter
from animl_pipeline.deploy.history import ReleaseRecord, all_at_rest, records_of
from animl_pipeline.deploy.rollback import present
from animl_pipeline.deploy.sagemaker_api import Aws
from animl_pipeline.storage.step_cache import Store

log = logging.getLogger(__name__)


class Cleared(Record):
    """What was (or would be) taken away, and why the rest stays, by name."""

    endpoints: tuple[str, ...]
    configs: tuple[str, ...]
    models: tuple[str, ...]
    packages: tuple[str, ...]
    kept: dict[str, str]

    def all(self) -> tuple[str, ...]:
        """Every name that is taken away."""
        return (*self.endpoints, *self.configs, *self.models, *self.packages)


def clear_away(plan: Plan, store: Store, settings: Settings, *, keep: int | None = None, look_only: bool = False) -> Cleared:
    """Delete what no endpoint uses and no rollback to the last ``keep`` released versions needs.

    Args:
        plan: names the model and its endpoints.
        store: holds the history.
        settings: bucket and stage.
        keep: how many released versions stay; without it, the plan's ``release.keep``.
        look_only: delete nothing, only say what would go.

    Raises:
        ReleaseError: a release is half done, or AWS refused.
    """
    aws, wheres = Aws(), plan.release.endpoints(plan.model)
    with all_at_rest([w.line for w in wheres], store, plan.release.timeout_s):
        history = {w.line: records_of(w.line, store) for w in wheres}
        half = [r for records in history.values() for r in records if r.state == "begun"]
        if half:
            raise ReleaseError(
                f"a {half[0].kind} of {half[0].endpoint_config} is half done; run `animl-pipeline release PLAN` first, which settles it"
            )
        asked = {present(aws, w, list(history[w.line]), switched_parameter(plan, w, settings))[0] for w in wheres} | _asked(aws, plan, settings)
        targets = {line: _to_go_back_to(records, keep or plan.release.keep) for line, records in history.items()}
        cleared = _sorted_out(aws, plan, settings, [r for records in history.values() for r in records], targets, asked)
        if not look_only:
            _delete(aws, cleared, settings, plan.release.timeout_s)
    return cleared


def _asked(aws: Aws, plan: Plan, settings: Settings) -> set[str]:
    """What Animl's SSM parameters name, whichever release wrote them."""
    if plan.release.switch != "ssm":
        return set()
    held = {aws.parameter(parameter_of(plan, "realtime", settings)), aws.parameter(parameter_of(plan, "batch", settings))}
    return {name for name in held if name}


def _to_go_back_to(records: Iterable[ReleaseRecord], keep: int) -> list[ReleaseRecord]:
    """The last ``keep`` versions that held, newest first, one record each."""
    last: dict[str, ReleaseRecord] = {}
    for record in reversed([r for r in records if r.state == "done"]):
        last.setdefault(record.endpoint_config, record)
    return list(last.values())[:keep]


def _sorted_out(
    aws: Aws, plan: Plan, settings: Settings, records: list[ReleaseRecord], targets: dict[str, list[ReleaseRecord]], asked: set[str]
) -> Cleared:
    back = [r for line in targets.values() for r in line]
    kept = {r.endpoint_config: "to go back to" for r in back} | {r.sagemaker_model: "to go back to" for r in back}
    used = _in_use(aws)
    endpoints: list[str] = []
    if plan.release.switch == "ssm":
        kept |= {r.endpoint: "to go back to" for r in back} | dict.fromkeys(asked, "asked by Animl")
        endpoints = sorted({r.endpoint for r in records} & used.keys() - kept.keys())
    for endpoint, configs in used.items():
        if endpoint not in endpoints:
            kept |= {name: f"in use by {endpoint}" for config in configs for name in (config, aws.model_of(config)) if name}
    there = _named(aws, plan)
    ours = there & ({r.endpoint_config for r in records} | {r.sagemaker_model for r in records})
    unused = sorted(c for c in ours if c not in kept and _config_is_ours(aws, c, plan))
    models = sorted(m for m in ours if m not in kept and _model_is_ours(aws, m, plan))
    packages = _packages(aws, plan, settings, records, there - set(models))
    return Cleared(endpoints=tuple(endpoints), configs=tuple(unused), models=tuple(models), packages=packages, kept=kept)


def _in_use(aws: Aws) -> dict[str, set[str]]:
    """Every endpoint of the account with the configs that it serves or will serve."""
    with spoken("the account's endpoints"):
        names = [e["EndpointName"] for page in aws.sagemaker.get_paginator("list_endpoints").paginate() for e in page["Endpoints"]]
    states = {name: aws.endpoint(name) for name in names}
    return {name: {c for c in (s.endpoint_config, s.coming) if c} for name, s in states.items() if s is not None}


def _named(aws: Aws, plan: Plan) -> set[str]:
    """Every config and model whose name begins as ours do."""
    with spoken("the account's models and endpoint configs"):
        configs = aws.sagemaker.get_paginator("list_endpoint_configs").paginate(NameContains=plan.model)
        models = aws.sagemaker.get_paginator("list_models").paginate(NameContains=plan.model)
        known = {c["EndpointConfigName"] for page in configs for c in page["EndpointConfigs"]}
        return {n for n in known | {m["ModelName"] for page in models for m in page["Models"]} if n.startswith(f"{plan.model}-")}


def _config_is_ours(aws: Aws, name: str, plan: Plan) -> bool:
    known = aws.config(name)
    return known is not None and aws.tags(known["EndpointConfigArn"]).get("animl:model") == plan.model


def _model_is_ours(aws: Aws, name: str, plan: Plan) -> bool:
    with spoken(f"the SageMaker model {name}"):
        known = found(lambda: aws.sagemaker.describe_model(ModelName=name))
    return known is not None and aws.tags(known["ModelArn"]).get("animl:model") == plan.model


def _packages(aws: Aws, plan: Plan, settings: Settings, records: list[ReleaseRecord], staying: set[str]) -> tuple[str, ...]:
    """Packages in the models' bucket that this history put there and no model that stays reads."""
    keys: dict[str, set[str]] = {}
    for r in records:
        if r.package is not None:
            keys.setdefault(_key(plan, r), set()).add(r.sagemaker_model)
    with spoken(f"s3://{settings.models_bucket}"):
        pages = aws.s3.get_paginator("list_objects_v2").paginate(Bucket=settings.models_bucket, Prefix=f"{plan.model}/")
        there = {o["Key"] for page in pages for o in page.get("Contents", [])}
    return tuple(f"s3://{settings.models_bucket}/{k}" for k in sorted(keys) if k in there and not keys[k] & staying)


def _key(plan: Plan, record: ReleaseRecord) -> str:
    return f"{plan.model}/{slug(record.version)}-{record.package.digest[:8] if record.package else ''}/{PACKAGE_FILE}"


def _delete(aws: Aws, cleared: Cleared, settings: Settings, timeout_s: float) -> None:
    """Endpoints first and packages last, so that nothing ever names what is gone."""
    with track("clearing away", len(cleared.all())) as step:
        for name in cleared.endpoints:
            aws.remove(name, timeout_s)
            step(1)
        for name in cleared.configs:
            with spoken(f"the endpoint config {name}"):
                found(lambda n=name: aws.sagemaker.delete_endpoint_config(EndpointConfigName=n))  # type: ignore[misc]  # a lambda's default
            step(1)
        for name in cleared.models:
            with spoken(f"the SageMaker model {name}"):
                found(lambda n=name: aws.sagemaker.delete_model(ModelName=n))  # type: ignore[misc]  # a lambda's default
            step(1)
        for address in cleared.packages:
            with spoken(address):
                aws.s3.delete_object(Bucket=settings.models_bucket, Key=address.removeprefix(f"s3://{settings.models_bucket}/"))
            step(1)
    log.info(
        "cleared away %d endpoints, %d configs, %d models, %d packages",
        *map(len, (cleared.endpoints, cleared.configs, cleared.models, cleared.packages)),
    )

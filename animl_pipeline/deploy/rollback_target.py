"""What a rollback goes back to: which config is meant, and whether all is there that it needs, before any endpoint is touched."""

from __future__ import annotations

import re

from animl_pipeline.core.errors import PipelineError, ReleaseError
from animl_pipeline.core.records import Artifact
from animl_pipeline.deploy.history import ReleaseRecord
from animl_pipeline.deploy.live_check import reference_crops
from animl_pipeline.deploy.sagemaker_api import Aws
from animl_pipeline.storage.step_cache import Store

NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
"""What SageMaker takes as a config's name."""
LISTED = 8
"""Versions that a message names at most, the newest first."""

History = tuple[ReleaseRecord, ...]


def earlier_config(now: str, to: str | None, history: History) -> str:
    """The config to go back to.

    Args:
        now: what is served.
        to: a config or a version that a person names; None: what was served before.
        history: the endpoint's.

    Raises:
        ReleaseError: there is none, it is what is served now, or its release did not hold.
    """
    done = [r for r in history if r.state == "done"]
    if to is not None:
        config = _meant(to, done, history)
        if config == now:
            raise ReleaseError(f"the endpoint serves {to} already, so nothing was changed; {_others(history, now)}")
        return config
    before = [config for config in (_before(r, done) for r in done if r.kind == "release" and r.endpoint_config == now) if config]
    if not before:
        raise ReleaseError(f"the history knows no config before {now}, so nothing was changed; {_others(history, now)}")
    return before[-1]


def need_config(config: str, now: str, history: History, aws: Aws) -> str:
    """The SageMaker model that a config names, which shall be served instead of ``now``.

    Raises:
        ReleaseError: there is no such config.
    """
    model = aws.model_of(config) if NAME.fullmatch(config) else None
    if model is not None:
        return model
    others = f"nothing was changed; {_others(tuple(r for r in history if r.endpoint_config != config), now)}"
    of = next((r.version for r in reversed(history) if r.endpoint_config == config), None)
    if of is not None:
        gone = "`animl-pipeline release gc` clears old ones"
        raise ReleaseError(f"expected the endpoint config {config} (version {of}) in SageMaker, found none: {gone}; {others}")
    raise ReleaseError(f"expected a version or an endpoint config that was released before, found {config!r}; {others}")


def need_package(package: Artifact, version: str, now: str, history: History, store: Store) -> None:
    """See that the endpoint can be checked once it serves a version again.

    Raises:
        ReleaseError: what the check needs is not in the store.
    """
    if _is_whole(package, store):
        return
    there = tuple(r for r in history if r.package is not None and _is_whole(r.package, store))
    raise ReleaseError(
        f"expected the package of {version}, which the endpoint is checked with, whole in the store at {store.object_store}, found it gone or damaged "
        f"(`animl-pipeline store gc` clears those of old versions); nothing was changed; bring back steps/package/{package.key} from a copy of "
        f"the store, or take another version: {_others(there, now)}"
    )


def _is_whole(package: Artifact, store: Store) -> bool:
    try:
        reference_crops(package, store)
    except PipelineError:
        return False
    return True


def _meant(to: str, done: list[ReleaseRecord], history: History) -> str:
    """The config that a person means by its name or by a version."""
    meant = [r.endpoint_config for r in done if to in {r.version, r.endpoint_config}]
    undone = [r for r in history if r.state == "rolled_back" and r.kind == "release" and to in {r.version, r.endpoint_config}]
    if not meant and undone:
        raise ReleaseError(
            f"expected a version that has held, found {to}, whose release was undone ({undone[-1].reason}); nothing was changed; release it anew"
        )
    return meant[-1] if meant else to


def _before(record: ReleaseRecord, done: list[ReleaseRecord]) -> str | None:
    """What was asked before a release: behind the same name, or behind the name that SSM held."""
    if record.previous_endpoint is None or record.previous_endpoint == record.endpoint:
        return record.previous_config
    return next((r.endpoint_config for r in reversed(done) if r.endpoint == record.previous_endpoint and r.id < record.id), None)


def _others(history: History, but: str) -> str:
    """The versions that have held, the newest first."""
    known = list(dict.fromkeys(r.version for r in reversed(history) if r.kind == "release" and r.state == "done" and r.endpoint_config != but))
    if not known:
        return "no other version was released from here: `animl-pipeline release PLAN` puts the newest package there"
    return f"--to takes {', '.join(known[:LISTED])}{', …' if len(known) > LISTED else ''} (animl-pipeline release history PLAN)"

"""One change of what answers: carried out and seen through, or undone; also what a killed process left half done.

::

    begun (written first)  →  point the endpoint, wait, ask all golden crops  →  switch SSM where the plan says so  →  done
                           →  it does not hold: everything back to what it was                                      →  rolled_back

Every part may be done twice, so a change that was killed anywhere is finished or undone by whoever comes next.
"""

from __future__ import annotations

import logging

from animl_pipeline.config import Plan
from animl_pipeline.core.errors import PipelineError, ReleaseError
from animl_pipeline.core.records import Artifact, Release
from animl_pipeline.deploy.history import ReleaseRecord, begin, close, records_of
from animl_pipeline.deploy.live_check import Checked, check_endpoint
from animl_pipeline.deploy.sagemaker_api import Aws
from animl_pipeline.storage.step_cache import Store

log = logging.getLogger(__name__)


class Changer:
    """Carries changes out for one plan."""

    def __init__(self, aws: Aws, plan: Plan, store: Store) -> None:
        self.aws = aws
        self.plan = plan
        self.store = store
        self.patience_s = plan.release.timeout_s

    def carry_out(self, record: ReleaseRecord) -> ReleaseRecord:
        """Write the record, change what answers, and see it through: the record, done.

        Raises:
            ReleaseError: it did not hold and was undone.
        """
        begin(record, self.store)
        try:
            self.aws.point(record.endpoint, record.endpoint_config)
            return self._see_through(record)
        except PipelineError as e:
            now = self._undo(record, str(e))
            raise ReleaseError(f"{e}; {now}") from e

    def settle(self, line: str) -> None:
        """Finish or undo what killed releases left half done; what cannot be undone stays open and stops nobody."""
        for record in records_of(line, self.store):
            if record.state != "begun":
                continue
            log.warning("found a half-done %s of %s from %s", record.kind, record.endpoint_config, record.begun_at)
            state = self.aws.settled(record.endpoint, self.patience_s)
            if state is None or state.endpoint_config != record.endpoint_config:
                close(record, "rolled_back", self.store, reason="it was broken off before the endpoint served it")
                continue
            try:
                self._see_through(record)
            except PipelineError as e:
                self._try_to_undo(record, f"it was broken off before its check, which failed: {e}")

    def check(self, endpoint: str, package: Artifact) -> Checked:
        """Ask the live endpoint all golden crops of a package."""
        return check_endpoint(self.aws, endpoint, package, self.store, self.plan.release.tolerance, self.patience_s)

    def _see_through(self, record: ReleaseRecord) -> ReleaseRecord:
        """Wait until the endpoint serves the record's config, check it there, switch SSM if that is how, and close the record."""
        state = self.aws.settled(record.endpoint, self.patience_s)
        if state is None or not state.serves(record.endpoint_config):
            said = f"{state.status}: {state.failure_reason or 'no reason given'}" if state else "it is gone"
            raise ReleaseError(f"the endpoint {record.endpoint} did not come up on {record.endpoint_config} ({said})")
        checked = self.check(record.endpoint, record.package) if record.package is not None else Checked(0, 0.0)
        if record.parameter is not None:
            self.aws.set_parameter(record.parameter, record.endpoint)
        done = close(record, "done", self.store, checked=checked)
        self.aws.label(record.endpoint, record.endpoint_config)
        log.info(
            "%s serves %s; %d golden crops differ by %.2g at most", record.endpoint, record.endpoint_config, checked.crops, checked.max_difference
        )
        return done

    def _undo(self, record: ReleaseRecord, reason: str) -> str:
        """Make everything what it was before the record, and close the record; what is so now comes back. Idempotent.

        Raises:
            ReleaseError: it cannot be undone now; the record stays open, so that the next call tries again.
        """
        log.warning("%s: undoing %s: %s", record.endpoint, record.endpoint_config, reason)
        try:
            now = self._put_back(record)
        except ReleaseError as e:
            raise ReleaseError(f"{reason}; AND it could not be undone: {e}; the next release or rollback tries again, or act by hand") from e
        close(record, "rolled_back", self.store, reason=reason)
        return now

    def _put_back(self, record: ReleaseRecord) -> str:
        if record.parameter is not None and record.previous_endpoint is not None:
            self.aws.set_parameter(record.parameter, record.previous_endpoint)
        state = self.aws.settled(record.endpoint, self.patience_s)
        moved = state is not None and state.endpoint_config == record.endpoint_config != record.previous_config
        if record.previous_config is None:
            asked = record.parameter is not None and self.aws.parameter(record.parameter) == record.endpoint
            if moved and record.kind == "release" and not asked:
                self.aws.remove(record.endpoint, self.patience_s)
            if record.parameter is not None:
                return f"{record.parameter} holds {record.previous_endpoint or 'nothing'} as before"
            return "the endpoint was removed, it had no earlier config"
        if moved:
            self.aws.point(record.endpoint, record.previous_config)
            state = self.aws.settled(record.endpoint, self.patience_s)
        if state is None or not state.serves(record.previous_config):
            raise ReleaseError(f"the endpoint {record.endpoint} does not serve {record.previous_config} again ({state})")
        self.aws.label(record.endpoint, record.previous_config)
        return f"rolled back to {record.previous_config}"

    def _try_to_undo(self, record: ReleaseRecord, reason: str) -> None:
        try:
            self._undo(record, reason)
        except ReleaseError as e:
            log.warning("%s", e)


def as_release(record: ReleaseRecord, *, changed: bool) -> Release:
    """What a record tells the outside."""
    return Release(
        endpoint=record.endpoint,
        endpoint_config=record.endpoint_config,
        sagemaker_model=record.sagemaker_model,
        version=record.version,
        package_digest=record.package.digest if record.package else None,
        previous_config=record.previous_config,
        checked=record.checked,
        max_difference=record.max_difference,
        changed=changed,
        latency=record.latency,
        approval=record.approval,
    )

"""Update an endpoint and check it live, or undo the update; also finish or undo updates of killed processes.

::

    write record (begun)  →  update endpoint, wait, live check  →  switch the SSM parameter if the plan says so  →  done
                          →  a check fails: restore the previous config and parameter                           →  rolled_back

Every part may run twice, so the next process can finish or undo an update that was killed anywhere.
"""

from __future__ import annotations

import logging

from animl_pipeline.config import Plan
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import AwsUnreachableError, PipelineError, ReleaseError
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.live_check import LiveCheckResult, check_endpoint
from animl_pipeline.deploy.release_history import ReleaseRecord, close_record, read_records, write_record
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)


class EndpointUpdater:
    """Updates the endpoints of one plan."""

    def __init__(self, aws: AwsApi, plan: Plan, store: Store) -> None:
        self.aws = aws
        self.plan = plan
        self.store = store
        self.timeout_s = plan.release.timeout_s

    def apply(self, record: ReleaseRecord) -> ReleaseRecord:
        """Write the record, update the endpoint and check it; the closed record comes back.

        Raises:
            ReleaseError: the update or its check failed, and the endpoint is as it was. AwsUnreachableError if AWS did not answer, so that another
                try may succeed.
        """
        record = self.begin(record)
        try:
            self.aws.start_update(record.endpoint, record.endpoint_config)
            return self._finish(record)
        except PipelineError as e:
            result = self._undo(record, str(e))
            kind = AwsUnreachableError if isinstance(e, AwsUnreachableError) else ReleaseError
            raise kind(f"{e}; {result}", code=e.code, rolled_back=True) from e

    def begin(self, record: ReleaseRecord) -> ReleaseRecord:
        """Write a new record of the plan's model, and return it."""
        return write_record(record.model_copy(update={"model": self.plan.model}), self.store)

    def finish_interrupted(self, base_name: str) -> list[ReleaseRecord]:
        """Finish or undo the updates that killed processes left; returns the records of those that were finished.

        An update that cannot be undone now stays open for the next call.
        """
        finished: list[ReleaseRecord] = []
        for record in read_records(base_name, self.store):
            if record.state != "begun":
                continue
            log.warning("found an unfinished %s of %s, started at %s", record.kind, record.endpoint_config, record.begun_at)
            state = self.aws.wait_until_stable(record.endpoint, self.timeout_s)
            if state is None or state.endpoint_config != record.endpoint_config:
                close_record(record, "rolled_back", self.store, reason="it was interrupted before the endpoint served it")
                continue
            try:
                finished.append(self._finish(record))
            except PipelineError as e:
                try:
                    self._undo(record, f"it was interrupted before its check, which failed: {e}")
                except ReleaseError as failure:
                    log.warning("%s", failure)
        return finished

    def check(self, endpoint: str, package: Artifact) -> LiveCheckResult:
        """Compare the live endpoint with the reference predictions of a package."""
        return check_endpoint(self.aws, endpoint, package, self.store, self.plan.release.tolerance, self.timeout_s)

    def _finish(self, record: ReleaseRecord) -> ReleaseRecord:
        """Wait until the endpoint serves the record's config, check it, switch the SSM parameter if there is one, close the record."""
        state = self.aws.wait_until_stable(record.endpoint, self.timeout_s)
        if state is None or not state.serves(record.endpoint_config):
            reason = f"{state.status}: {state.failure_reason or 'no reason given'}" if state else "it no longer exists"
            raise ReleaseError(f"the endpoint {record.endpoint} did not start with {record.endpoint_config} ({reason})", code="not_in_service")
        check = self.check(record.endpoint, record.package) if record.package is not None else LiveCheckResult(0, 0.0)
        if record.parameter is not None:
            self.aws.set_parameter(record.parameter, record.endpoint)
        done = close_record(record, "done", self.store, check=check)
        self.aws.copy_tags(record.endpoint, record.endpoint_config)
        log.info(
            "%s serves %s; largest difference of %d reference images: %.2g",
            record.endpoint, record.endpoint_config, check.images, check.max_difference,
        )  # fmt: skip
        return done

    def _undo(self, record: ReleaseRecord, reason: str) -> str:
        """Restore what was there before the record, and close it; a text about the present state comes back.

        Raises:
            ReleaseError: it cannot be undone now. The record stays open, so the next call tries again.
        """
        log.warning("%s: undoing %s: %s", record.endpoint, record.endpoint_config, reason)
        try:
            result = self._restore(record)
        except ReleaseError as e:
            raise type(e)(
                f"{reason}; AND it could not be undone: {e}; run the release or rollback again, or restore the endpoint yourself", code="not_undone"
            ) from e
        close_record(record, "rolled_back", self.store, reason=reason)
        return result

    def _restore(self, record: ReleaseRecord) -> str:
        if record.parameter is not None and record.previous_endpoint is not None:
            self.aws.set_parameter(record.parameter, record.previous_endpoint)
        state = self.aws.wait_until_stable(record.endpoint, self.timeout_s)
        updated = state is not None and state.endpoint_config == record.endpoint_config != record.previous_config
        if record.previous_config is None:
            in_use = record.parameter is not None and self.aws.parameter(record.parameter) == record.endpoint
            if updated and record.kind == "release" and not in_use:
                self.aws.delete_endpoint(record.endpoint, self.timeout_s)
            if record.parameter is not None:
                return f"{record.parameter} holds {record.previous_endpoint or 'nothing'} as before"
            return "the endpoint was removed, because it had no earlier config"
        if updated:
            self.aws.start_update(record.endpoint, record.previous_config)
            state = self.aws.wait_until_stable(record.endpoint, self.timeout_s)
        if state is None or not state.serves(record.previous_config):
            raise ReleaseError(f"the endpoint {record.endpoint} does not serve {record.previous_config} again ({state})", code="not_in_service")
        self.aws.copy_tags(record.endpoint, record.previous_config)
        return f"rolled back to {record.previous_config}"

"""Everything that can go wrong and that a user can fix, as one tree.

::

    PipelineError
    ├── PlanError                   the plan (YAML) has a key or value that does not fit
    ├── SettingsError               an environment variable is missing or does not fit
    ├── ExportError                 an export cannot be read, or no record of it can be used
    │   └── ExportUnreachableError  * Animl, or the host of the export, does not answer now
    ├── ImagesError                 no image could be downloaded
    │   └── ImagesUnreachableError  * the host of the images does not answer now
    ├── LabelsError                 no annotation has a class, or a class has no annotation
    │   └── TaxonomyUnreachableError * the host of the taxonomy does not answer now
    ├── WeightsError                pretrained weights are missing, wrong or not verified
    │   └── WeightsUnreachableError * the host of the weights does not answer now
    ├── DetectionsError             the detector cannot run
    │   └── DetectorUnreachableError * the endpoint of the detector does not answer now
    ├── ImageError                  an image does not decode, or a box lies outside of it
    ├── CropsError                  no crop could be made
    ├── SplitsError                 the locations do not suffice for train, val and test
    │   └── SplitsTableUnreachableError * the host of the table of splits does not answer now
    ├── TrainingError               training cannot start or did not end
    │   └── TrainingInterruptedError * the machine that trained was taken away
    ├── EvaluationError             there is nothing to score, or no model to score
    ├── PackageError                the package must not ship
    ├── ReleaseError                the endpoint was not updated, or was rolled back
    │   └── AwsUnreachableError     * AWS does not answer now, or throttles
    └── StoreError                  the store cannot be read or written
        ├── StoreUnreachableError   * the store does not answer now
        ├── TableError              a table does not have the columns that its step declares
        └── DamagedError            * a stored file differs from its manifest; it is removed, and the next try makes it again

The classes with a star are retryable: the same call may succeed later without anybody doing anything. All others are not, and
neither is any exception outside of this tree.

A message says what was expected, what was found, and what to do. The command line prints it as one line and exits with
``exit_code``.
"""

from __future__ import annotations

import re
from typing import Any


class PipelineError(Exception):
    """The root of the tree.

    Attributes:
        code: a short name of the fault for programs and tests, such as ``too_few_locations``; "" where the class says enough.
        details: values that the message holds, by name.
    """

    exit_code = 1
    retryable = False

    def __init__(self, message: str, code: str = "", **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.code, self.details)


def _rebuild(kind: type[PipelineError], message: str, code: str, details: dict[str, Any]) -> PipelineError:
    """An error that came from another process."""
    return kind(message, code, **details)


class PlanError(PipelineError):
    """The plan has a key or value that does not fit."""

    exit_code = 2


class SettingsError(PipelineError):
    """An environment variable is missing or does not fit."""

    exit_code = 2


class ExportError(PipelineError):
    """An export cannot be read, or no record of it can be used."""


class ExportUnreachableError(ExportError):
    """Animl, or the host of the export, does not answer now."""

    retryable = True


class ImagesError(PipelineError):
    """No image could be downloaded."""


class ImagesUnreachableError(ImagesError):
    """The host of the images does not answer now."""

    retryable = True


class LabelsError(PipelineError):
    """No annotation has a class, or a class has no annotation."""


class TaxonomyUnreachableError(LabelsError):
    """The host of the plan's taxonomy does not answer now."""

    retryable = True


class WeightsError(PipelineError):
    """Pretrained weights are missing, wrong or not verified."""


class WeightsUnreachableError(WeightsError):
    """The host of the weights does not answer now."""

    retryable = True


class DetectionsError(PipelineError):
    """The detector cannot run."""


class DetectorUnreachableError(DetectionsError):
    """The endpoint of the detector does not answer now."""

    retryable = True


class ImageError(PipelineError):
    """An image does not decode, or a box lies outside of it."""


class CropsError(PipelineError):
    """No crop could be made."""


class SplitsError(PipelineError):
    """The locations do not suffice for train, val and test."""


class SplitsTableUnreachableError(SplitsError):
    """The host of the plan's table of splits does not answer now."""

    retryable = True


class TrainingError(PipelineError):
    """Training cannot start or did not end."""


class TrainingInterruptedError(TrainingError):
    """The machine that trained was taken away."""

    retryable = True


class EvaluationError(PipelineError):
    """There is nothing to score, or no model to score."""


class PackageError(PipelineError):
    """The package must not ship."""


class ReleaseError(PipelineError):
    """The endpoint was not updated, or was rolled back."""


class AwsUnreachableError(ReleaseError):
    """AWS does not answer now, or throttles."""

    retryable = True


class StoreError(PipelineError):
    """The store cannot be read or written."""


class StoreUnreachableError(StoreError):
    """The store does not answer now."""

    retryable = True


class TableError(StoreError):
    """A table does not have the columns that its step declares."""


class DamagedError(StoreError):
    """A stored file differs from its manifest. It is removed, and the next try makes it again."""

    retryable = True


def redact_url(address: str) -> str:
    """An address as a message may show it: without user, password, query and fragment. A path comes back unchanged."""
    scheme, found, rest = address.partition("://")
    if not found:
        return "…" if "@" in address.partition("/")[0] else address
    shown = re.split(r"[?#]", re.sub(r"^[^/]*@", "", rest))[0]
    if "@" in shown and ":" in shown.partition("/")[0]:  # perhaps a password with a slash in it
        return f"{scheme}://…@{shown.rpartition('@')[2]}"
    return f"{scheme}://{shown}"


class RemoteError(Exception):
    """A file could not be read from a folder, a web server or S3.

    Attributes:
        reason: a word to count by: ``missing``, ``forbidden``, ``refused``, ``unsafe_path``, ``too_large``, ``unreachable``,
            ``timed_out``, ``truncated``.
        retryable: whether a later try may succeed.
        offline: whether there was no connection at all, or no valid credentials, so that other files will fail as well.
        retry_after_s: how long the server asks to wait.
    """

    def __init__(self, reason: str, detail: str, *, retryable: bool = False, offline: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retryable = retryable
        self.offline = offline
        self.retry_after_s = retry_after_s

"""Everything that can go wrong and is the user's to mend, as one tree.

::

    PipelineError
    ├── PlanError           the plan (YAML) does not say what it must
    ├── SettingsError       the environment does not say where we are, or may not say it
    ├── ExportError         an export cannot be read, or nothing of it is left
    │   └── AwayError           who is asked does not answer now
    ├── ImagesError         no picture arrived
    ├── LabelsError         no object has a class, or a class has none
    ├── WeightsError        pretrained weights are missing, wrong or unverified
    ├── DetectionsError     the detector cannot run
    ├── PictureError        a picture does not decode, or a box lies outside of it
    ├── CropsError          nothing was left to cut out
    ├── SplitsError         the places do not suffice for train, val and test
    ├── TrainingError       training cannot start or did not end
    ├── EvaluationError     there is nothing to score, or no model to score
    ├── PackageError        the package is not fit to ship
    ├── ReleaseError        the endpoint was not updated, or was rolled back
    └── StoreError          the store cannot be read or written
        ├── StoreUnreachableError   the store does not answer now
        ├── TableError              a table does not have the columns that its step declares
        └── DamagedError            what the store holds is not what its manifest says

A message says what was expected, what was found, and what to do: which step makes the missing thing or which setting
to turn. The command line prints it as one line and exits with ``exit_code``.
"""

from __future__ import annotations


class PipelineError(Exception):
    """The root: a fault that one clear line explains."""

    exit_code = 1
    retryable = False
    """Whether the same may succeed later without anybody's doing."""


class PlanError(PipelineError):
    """The plan does not say what it must."""

    exit_code = 2


class SettingsError(PipelineError):
    """The environment does not say where we are."""

    exit_code = 2


class ExportError(PipelineError):
    """An export cannot be read, or nothing of it is left."""


class AwayError(ExportError):
    """Who is asked does not answer now."""

    retryable = True


class ImagesError(PipelineError):
    """No picture arrived."""


class LabelsError(PipelineError):
    """No object has a class, or a class has no object."""


class WeightsError(PipelineError):
    """Pretrained weights are missing, wrong or unverified."""


class DetectionsError(PipelineError):
    """The detector cannot run."""


class ImageError(PipelineError):
    """A picture does not decode, or a box lies outside of it."""


class CropsError(PipelineError):
    """Nothing was left to cut out."""


class SplitsError(PipelineError):
    """The places do not suffice for train, val and test."""


class TrainingError(PipelineError):
    """Training cannot start or did not end."""


class EvaluationError(PipelineError):
    """There is nothing to score, or no model to score."""


class PackageError(PipelineError):
    """The package is not fit to ship."""


class ReleaseError(PipelineError):
    """The endpoint was not updated, or was rolled back."""


class StoreError(PipelineError):
    """The store cannot be read or written."""


class DamagedError(StoreError):
    """What the store holds is not what its manifest says; it is removed, and made anew by the next try."""

    retryable = True


class StoreUnreachableError(StoreError):
    """The store does not answer now."""

    retryable = True


class TableError(StoreError):
    """A table does not have the columns that its step declares."""

"""The label specification applied: one class for each object, and the reason for every object left out.

Public doors: :func:`resolve_labels`; :func:`wanted_names`, which says before whose pictures are needed; :func:`previewed`,
which counts what a plan would give before any picture is fetched.
"""

from animl_pipeline.labels.meaning import wanted_names
from animl_pipeline.labels.preview import Preview, previewed
from animl_pipeline.labels.step import SourceSteps, resolve_labels
from animl_pipeline.labels.table import ClassRow

__all__ = ["ClassRow", "Preview", "SourceSteps", "previewed", "resolve_labels", "wanted_names"]

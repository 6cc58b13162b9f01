"""The label specification applied: one class for each object, and the reason for every object left out.

Public doors: :func:`resolve_labels`; :func:`wanted_names`, which says before whose pictures are needed; :func:`previewed`,
which counts what a plan would give before any picture is fetched.
"""

from animl_pipeline.steps.labels.class_counts import ClassRow
from animl_pipeline.steps.labels.class_mapping import wanted_names
from animl_pipeline.steps.labels.preview import Preview, previewed
from animl_pipeline.steps.labels.step import SourceSteps, resolve_labels

__all__ = ["ClassRow", "Preview", "SourceSteps", "previewed", "resolve_labels", "wanted_names"]

"""The step `labels`: apply the plan's labels, so that each annotation has a class, or a reason why it is left out.

:func:`resolve_labels` is the step; :func:`wanted_labels` says before whose images are needed; :func:`preview_labels` counts what a
plan would give before any image is downloaded.
"""

from animl_pipeline.steps.labels.choose_test_images import choose_test_images
from animl_pipeline.steps.labels.class_counts import ClassCounts
from animl_pipeline.steps.labels.class_mapping import class_by_label, wanted_labels, wanted_samples
from animl_pipeline.steps.labels.class_taxa import class_taxa
from animl_pipeline.steps.labels.images_within_class_limits import limits_of_classes
from animl_pipeline.steps.labels.preview import LabelsPreview, preview_labels
from animl_pipeline.steps.labels.read_annotations import SourceArtifacts
from animl_pipeline.steps.labels.step import resolve_labels

__all__ = [
    "ClassCounts", "LabelsPreview", "SourceArtifacts", "choose_test_images", "class_by_label", "class_taxa", "limits_of_classes",
    "preview_labels", "resolve_labels", "wanted_labels", "wanted_samples",
]  # fmt: skip

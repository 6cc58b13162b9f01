"""The evaluation step: score the packaged model on the test set, compare it with the released model, decide the verdict, write the report."""

from __future__ import annotations

from animl_pipeline.steps.evaluation.label_audit import fold_splits
from animl_pipeline.steps.evaluation.report_wording import write_headline
from animl_pipeline.steps.evaluation.step import Fold, SequenceArtifacts, evaluate_classifier, read_metrics

__all__ = ["Fold", "SequenceArtifacts", "evaluate_classifier", "fold_splits", "read_metrics", "write_headline"]

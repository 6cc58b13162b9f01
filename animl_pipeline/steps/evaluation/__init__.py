"""The evaluation step: score the packaged model on the test set, compare it with the released model, decide the verdict, write the report.

::

    step                   evaluate_classifier, read_metrics
    score_test_set         check and score the test crops
    metrics                scores per class and overall; the headline in words
    bootstrap_intervals    95 % intervals by bootstrap over locations
    slices                 scores by light, box size, image and sequence; with equivalent classes
    calibration_metrics    calibration error on test; recall and precision at the thresholds
    compare_champion       the released model on the same crops
    production_score       detector and classifier together on sequences of images, as in Animl
    auto_accept            above which probabilities images may go without review
    gate                   the plan's rules: promote, hold or need_more_data, with reasons
    error_tables           false alarms, missed invasive animals, Animl's own table
    label_audit            labels that may be wrong
    audit_folds            splits that leave out a part of the train locations, for the audit
    reference_predictions  test crops whose answers the live check of a release compares
    plots                  confusion.png and precision-recall curves
    report, report_images  report.html and the crops in it
"""

from __future__ import annotations

from animl_pipeline.steps.evaluation.label_audit import fold_splits
from animl_pipeline.steps.evaluation.report_wording import write_headline
from animl_pipeline.steps.evaluation.step import Fold, SequenceArtifacts, evaluate_classifier, read_metrics

__all__ = ["Fold", "SequenceArtifacts", "evaluate_classifier", "fold_splits", "read_metrics", "write_headline"]

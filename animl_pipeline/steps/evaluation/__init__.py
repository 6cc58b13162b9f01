"""The packaged model on the frozen test set: scores, the gate's verdict, golden answers, and a page that a biologist can read.

::

    judging      the verb: evaluate_classifier, and read_metrics
    predictions  the test crops, seen to be fit and scored
    scores       rows → Metrics, the headline in words, and what calls for caution
    intervals    95 % intervals by bootstrap over places
    parts        scores by light, box size, picture and burst; with the plan's equivalents
    sureness     calibration on test, and what the thresholds reach there
    contest      the model released last on the same crops, compared pair by pair
    gate         figures → promote, hold or need_more_data, with reasons
    alarms       false alarms, missed invaders, Animl's own table
    auditing     labels that the model firmly disbelieves
    folding      train without a k-th of its places, for the audit
    golden       the test crops whose answers a release checks
    charts       precision-recall curves and confusion.png
    pictures     the crops that the page shows
    page         all of it → report.html
"""

from __future__ import annotations

from animl_pipeline.steps.evaluation.audit_folds import fold_splits
from animl_pipeline.steps.evaluation.metrics import headline
from animl_pipeline.steps.evaluation.step import Fold, evaluate_classifier, read_metrics

__all__ = ["Fold", "evaluate_classifier", "fold_splits", "headline", "read_metrics"]

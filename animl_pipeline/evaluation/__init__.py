"""The packaged model on the frozen test set: scores, golden answers, and a page that a biologist can read.

::

    judging      the verb: evaluate_classifier, and read_metrics
    predictions  test crops → one row a crop with every class's probability
    scores       rows → Metrics, the headline in words, and what calls for caution
    golden       the test crops whose answers a release checks
    charts       precision-recall curves and confusion.png
    page         all of it → report.html
"""

from __future__ import annotations

from animl_pipeline.evaluation.judging import evaluate_classifier, read_metrics
from animl_pipeline.evaluation.scores import headline

__all__ = ["evaluate_classifier", "headline", "read_metrics"]

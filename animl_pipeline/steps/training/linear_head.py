"""A linear classifier (logistic regression) on the embeddings of frozen networks.

Each network's embedding is a block: standardised, and divided by the root of its width, so that all blocks have the same weight.
Classes have the same weight, however many crops they have. How strong the regularisation is, folds of locations choose.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
REGULARISATIONS = tuple(10.0 ** (e / 2) for e in range(-5, 5))
"""Values of scikit-learn's C that are tried, from strong to weak: 0.003 to 100."""
ABSENT_LOGIT = -30.0
"""The logit of a class without a crop to learn from."""
CONSTANT = 1e-4
"""A number of the embedding whose standard deviation is below this share of its mean is left out: it would be noise."""


class Standardisation(NamedTuple):
    """Mean and divisor of each number of the embeddings of all networks side by side, float64 [width]."""

    mean: Floats
    divisor: Floats

    def apply(self, embeddings: Floats) -> Floats:
        """Standardised embeddings [n, width]."""
        return (embeddings - self.mean) / self.divisor


class LinearHead(NamedTuple):
    """Logits are ``embeddings @ weight.T + bias``; the standardisation is part of both. float64 [classes, width] and [classes]."""

    weight: Floats
    bias: Floats

    def logits(self, embeddings: Floats) -> Floats:
        """Logits [n, classes]."""
        return embeddings @ self.weight.T + self.bias


def fit_standardisation(blocks: Sequence[NDArray[np.float32]], learnt: NDArray[np.bool_]) -> Standardisation:
    """Mean and divisor over the crops that are learnt from."""
    means, divisors = [], []
    for block in blocks:
        values = block[learnt].astype(np.float64)
        deviation = values.std(axis=0)
        mean = values.mean(axis=0)
        means.append(mean)
        divisors.append(np.where(deviation > CONSTANT * np.abs(mean), deviation, np.inf) * np.sqrt(block.shape[1]))
    return Standardisation(np.concatenate(means), np.concatenate(divisors))


def fit_heads(
    blocks: Sequence[NDArray[np.float32]], targets: Ints, classes: int, learnt: NDArray[np.bool_], regularisations: Sequence[float]
) -> Iterator[LinearHead]:
    """A head for each regularisation, learnt from some of the crops.

    Args:
        blocks: for each network the embeddings float32 [n, width].
        targets: class numbers int64 [n].
        classes: the number of classes.
        learnt: which crops are learnt from.
        regularisations: values of C in ascending order; each fit starts from the one before.
    """
    from sklearn.linear_model import LogisticRegression

    scale = fit_standardisation(blocks, learnt)
    inputs = scale.apply(np.concatenate([block[learnt] for block in blocks], axis=1).astype(np.float64))
    rotation: Floats | None = None
    if len(inputs) < inputs.shape[1]:  # the solution lies in the span of the crops, which has fewer dimensions than the embedding
        rotation, triangle = np.linalg.qr(inputs.T)
        inputs = triangle.T
    present = np.unique(targets[learnt])
    model = LogisticRegression(class_weight="balanced", max_iter=1000, tol=1e-4, warm_start=True)
    for regularisation in regularisations:
        if len(present) == 1:
            coefficients, intercepts = np.zeros((1, inputs.shape[1])), np.zeros(1)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a fit that stops after max_iter is scored as any other
                model.set_params(C=regularisation).fit(inputs, targets[learnt])
            coefficients, intercepts = model.coef_, model.intercept_
        if len(present) == 2:  # of two classes scikit-learn gives the second one only
            coefficients, intercepts = np.concatenate([0 * coefficients, coefficients]), np.concatenate([0 * intercepts, intercepts])
        if rotation is not None:
            coefficients = coefficients @ rotation.T
        weight, bias = np.zeros((classes, coefficients.shape[1])), np.full(classes, ABSENT_LOGIT)
        weight[present] = coefficients / scale.divisor
        bias[present] = intercepts - weight[present] @ scale.mean
        yield LinearHead(weight, bias)


def out_of_fold_logits(blocks: Sequence[NDArray[np.float32]], targets: Ints, classes: int, fold: Ints) -> Floats:
    """Logits of the crops by heads that did not learn from their fold, for each of ``REGULARISATIONS``: float64 [values, n, classes].

    Crops of no fold (-1) have NaN.
    """
    logits = np.full((len(REGULARISATIONS), len(targets), classes), np.nan)
    everything = np.concatenate(blocks, axis=1)
    for number in range(int(fold.max()) + 1):
        held_out = fold == number
        log.info("head: fold %d of %d, %d crops held out", number + 1, int(fold.max()) + 1, int(held_out.sum()))
        for i, head in enumerate(fit_heads(blocks, targets, classes, ~held_out, REGULARISATIONS)):
            logits[i, held_out] = head.logits(everything[held_out].astype(np.float64))
    return logits

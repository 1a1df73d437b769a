"""Scores of answers that are there already, by scikit-learn, in float64: classes and numbers.

scikit-learn takes a second to import, which nobody pays for who scores nothing.

Legend: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

NUM_BINS = 15  # of confidence, as in Guo et al. 2017


def of_classes(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Scores of ``[B, C]`` logits against ``[B]`` classes; nothing for no examples.

    accuracy
        share of examples whose class has the largest logit.
    macro_f1
        F1 of every class that is among the targets or the answers, and their plain mean.
    calibration_error
        expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3), see `calibration_error`.
    """
    if not len(targets):
        return {}
    from sklearn.metrics import accuracy_score, f1_score

    probabilities = logits.double().softmax(1)
    confidence, answers = (x.numpy() for x in probabilities.max(1))
    truth = targets.numpy()
    return {
        "accuracy": float(accuracy_score(truth, answers)),
        "macro_f1": float(f1_score(truth, answers, average="macro", zero_division=0)),
        "calibration_error": calibration_error(confidence, answers == truth),
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean over examples of how far the accuracy in their bin is from the confidence in it, 0 to 1.

    ``confidence`` (``[B]``, the probability of the answer) falls into `NUM_BINS` bins of equal width; ``right`` (``[B]``) says which
    answers are right.
    """
    from sklearn.calibration import calibration_curve

    share_right, mean_confidence = calibration_curve(right, confidence, pos_label=True, n_bins=NUM_BINS)
    edges = np.linspace(0, 1, NUM_BINS + 1)
    sizes = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=NUM_BINS)
    return float(np.abs(share_right - mean_confidence) @ sizes[sizes > 0] / len(right))


def by_class(logits: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """``precision``, ``recall``, ``f1`` and ``support`` (examples) of every class among the targets, by its name."""
    from sklearn.metrics import precision_recall_fscore_support

    there = np.unique(targets.numpy())
    answers = logits.argmax(1).numpy()
    rows = precision_recall_fscore_support(targets.numpy(), answers, labels=there, average=None, zero_division=0)
    columns = ("precision", "recall", "f1", "support")
    return {
        names[c]: dict(zip(columns, map(float, values), strict=True))
        for c, *values in zip(there.tolist(), *rows, strict=True)
    }


def of_numbers(predicted: Tensor, targets: Tensor) -> dict[str, float]:
    """Scores of numbers ``[B]`` or ``[B, *]`` against those that are wanted; nothing for no examples.

    mse, mae
        mean squared and mean absolute error, over all numbers.
    r2
        1 minus the squared error over that of the mean of the targets, of each number and then their mean; it needs two examples.
    """
    if not len(targets):
        return {}
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    wanted, got = (
        x.double().flatten(1).numpy() if x.dim() > 1 else x.double()[:, None].numpy() for x in (targets, predicted)
    )
    found = {"mse": float(mean_squared_error(wanted, got)), "mae": float(mean_absolute_error(wanted, got))}
    return found | {"r2": float(r2_score(wanted, got))} if len(targets) > 1 else found

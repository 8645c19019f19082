"""Scores of this field, as pure functions of labels and predictions.

Convention: labels and predictions are integer class indices (N,), pooled over all folds.
Source of UF1 and UAR: See et al., "MEGC 2019", FG 2019.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["IntArray", "accuracy", "bootstrap_interval", "confusion", "uar", "uf1"]

IntArray = NDArray[np.integer]


def confusion(labels: IntArray, predictions: IntArray, classes: int) -> NDArray[np.int64]:
    """Count pairs by (true class, predicted class): (K, K)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def uf1(labels: IntArray, predictions: IntArray, classes: int) -> float:
    """Mean over classes of 2·TP / (2·TP + FP + FN).

    A class that is neither present nor predicted has no F1 and is left out.
    """
    counts = confusion(labels, predictions, classes)
    hits = np.diag(counts)
    total = counts.sum(axis=0) + counts.sum(axis=1)
    known = total > 0
    return float(np.mean(2 * hits[known] / total[known])) if known.any() else 0.0


def uar(labels: IntArray, predictions: IntArray, classes: int) -> float:
    """Mean over the classes present in `labels` of TP / N."""
    counts = confusion(labels, predictions, classes)
    present = counts.sum(axis=1)
    known = present > 0
    return float(np.mean(np.diag(counts)[known] / present[known])) if known.any() else 0.0


def accuracy(labels: IntArray, predictions: IntArray) -> float:
    """Share of pairs whose prediction is their label; 0 for no pairs."""
    return float(np.mean(labels == predictions)) if len(labels) else 0.0


def bootstrap_interval(
    score: Callable[[IntArray], float],
    subjects: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of a score when subjects, not pairs, are drawn with replacement.

    Pairs of one subject resemble one another, so an interval over pairs would be too narrow.
    `score` takes the row indices of a resample. Returns the two percentiles.
    """
    names = np.asarray(subjects)
    rows = [np.flatnonzero(names == name) for name in np.unique(names)]
    draw = np.random.default_rng(seed)
    scores = [
        score(np.concatenate([rows[who] for who in draw.integers(len(rows), size=len(rows))]))
        for _ in range(resamples)
    ]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""Scores of this field, as pure functions of confusion counts, and the bootstrap over people.

Convention: counts are (..., K, K), true class in rows, predicted class in columns, summed over all
folds before anything is divided; a function of them keeps the leading dimensions. Labels and
predictions are integer class indices (N,). Source of UF1 and UAR: See et al., "MEGC 2019", FG 2019.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Counts",
    "FloatArray",
    "IntArray",
    "accuracy",
    "accuracy_of",
    "bootstrap_interval",
    "bootstrap_weights",
    "confusion",
    "f1_of",
    "interval",
    "mean_of_known",
    "recall_of",
    "share_interval",
    "uar",
    "uar_of",
    "uf1",
    "uf1_of",
]

IntArray = NDArray[np.integer]
FloatArray = NDArray[np.float64]
Counts = NDArray[Any]
"""Integers, or floats after resampling."""


def confusion(labels: IntArray, predictions: IntArray, classes: int) -> NDArray[np.int64]:
    """Count pairs by (true class, predicted class): (K, K)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def f1_of(counts: Counts) -> FloatArray:
    """2·TP / (2·TP + FP + FN) of each class: (..., K, K) → (..., K).

    NaN for a class that is neither present nor predicted.
    """
    return _ratio(2 * _hits(counts), counts.sum(axis=-1) + counts.sum(axis=-2))


def recall_of(counts: Counts) -> FloatArray:
    """TP / N of each class: (..., K, K) → (..., K); NaN for a class that is not present."""
    return _ratio(_hits(counts), counts.sum(axis=-1))


def uf1_of(counts: Counts) -> FloatArray:
    """Mean of the classes' F1: (..., K, K) → (...).

    A class that is neither present nor predicted has no F1 and is left out; one that is only
    predicted counts as 0. 0 for no pairs at all.
    """
    return mean_of_known(f1_of(counts), empty=0.0)


def uar_of(counts: Counts) -> FloatArray:
    """Mean of the recalls of the classes that are present: (..., K, K) → (...); 0 for no pairs."""
    return mean_of_known(recall_of(counts), empty=0.0)


def accuracy_of(counts: Counts) -> FloatArray:
    """Share of pairs on the diagonal: (..., K, K) → (...); 0 for no pairs."""
    share = _ratio(_hits(counts).sum(axis=-1), counts.sum(axis=(-2, -1)))
    return mean_of_known(share[..., None], empty=0.0)


def _hits(counts: Counts) -> Counts:
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _ratio(part: Counts, whole: Counts) -> FloatArray:
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def mean_of_known(values: FloatArray, empty: float = np.nan) -> FloatArray:
    """Mean over the last axis of what is not NaN; `empty` where nothing is known."""
    known = ~np.isnan(values)
    count = np.asarray(known.sum(axis=-1))
    total = np.where(known, values, 0.0).sum(axis=-1)
    mean = np.full(count.shape, empty, np.float64)
    np.divide(total, count, out=mean, where=count > 0)
    return mean


def uf1(labels: IntArray, predictions: IntArray, classes: int) -> float:
    """`uf1_of` of labels and predictions."""
    return float(uf1_of(confusion(labels, predictions, classes)))


def uar(labels: IntArray, predictions: IntArray, classes: int) -> float:
    """`uar_of` of labels and predictions."""
    return float(uar_of(confusion(labels, predictions, classes)))


def accuracy(labels: IntArray, predictions: IntArray) -> float:
    """Share of pairs whose prediction is their label; 0 for no pairs."""
    return float(np.mean(labels == predictions)) if len(labels) else 0.0


def bootstrap_weights(people: int, resamples: int = 2000, seed: int = 0) -> NDArray[np.int64]:
    """Say how often each person is in each resample: (resamples, people), rows sum to `people`.

    People, not pairs, are drawn with replacement: pairs of one person resemble one another, so an
    interval over pairs would be too narrow.
    """
    drawn = np.random.default_rng(seed).integers(people, size=(resamples, people))
    cells = np.arange(resamples)[:, None] * people + drawn
    return np.bincount(cells.ravel(), minlength=resamples * people).reshape(resamples, people)


def interval(samples: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """Return the two percentiles of (resamples,) scores; NaNs are left out, NaN if all are."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    score: Callable[[IntArray], float],
    subjects: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of any score when subjects, not pairs, are drawn with replacement.

    `score` takes the row indices of a resample. Returns the two percentiles.
    """
    names = np.asarray(subjects)
    rows = [np.flatnonzero(names == name) for name in np.unique(names)]
    scores = [
        score(np.concatenate([np.tile(rows[who], times) for who, times in enumerate(weights)]))
        for weights in bootstrap_weights(len(rows), resamples, seed)
    ]
    return interval(np.asarray(scores, np.float64), level)


def share_interval(hits: Sequence[bool], people: Sequence[str]) -> tuple[float, float]:
    """95 % interval of the share of clips that hit; `people` says whose each clip is.

    People are drawn with replacement, as in `bootstrap_weights`.
    """
    names, who = np.unique(np.asarray(people), return_inverse=True)
    weights = bootstrap_weights(len(names)).astype(np.float64)
    hit = np.bincount(who, np.asarray(hits, np.float64))
    return interval(weights @ hit / (weights @ np.bincount(who)))

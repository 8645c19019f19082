"""Whether a probability means what it says: reliability and expected calibration error."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.metrics import bootstrap_weights, interval

__all__ = ["BINS", "Bin", "Reliability", "reliability"]

BINS = 15
"""Of equal mass: answers crowd near certainty, where bins of equal width would hold them all."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of about one confidence."""

    confidence: float
    """Mean probability of the likeliest class."""
    accuracy: float
    """Share that is right."""
    clips: int


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far confidence and accuracy are apart."""

    ece: float
    """Expected calibration error: mean over clips of |accuracy - confidence| of their bin."""
    low: float
    """Of the 95 % bootstrap interval over people."""
    high: float
    bins: tuple[Bin, ...]
    """By rising confidence."""
    clips: int
    people: int


def reliability(
    confidence: Sequence[float], right: Sequence[bool], people: Sequence[str]
) -> Reliability:
    """Measure how well confidence tells accuracy (Guo et al. 2017), in BINS bins of equal mass.

    Convention: one entry a clip each; confidence is the probability of the likeliest class. The
    bins are fixed by all clips; for the interval people are drawn with replacement. The error of
    few clips is biased upwards, since each bin's noise counts. Raises: ValueError without clips.
    """
    if not len(confidence):
        raise ValueError("no clip whose confidence could be measured")
    sure, hit = np.array(confidence, np.float64), np.array(right, np.float64)
    order = np.argsort(sure, kind="stable")
    place = np.empty(len(sure), np.int64)
    place[order] = np.arange(len(sure)) * min(BINS, len(sure)) // len(sure)
    names = sorted(set(people))
    who = np.array([names.index(name) for name in people])
    shape = (len(names), int(place.max()) + 1)
    gaps, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(gaps, (who, place), hit - sure)
    np.add.at(counts, (who, place), 1.0)
    # Of a bin, |accuracy - confidence| times its clips is |sum of hits - sum of confidences|.
    weights = bootstrap_weights(len(names)).astype(np.float64)
    drawn = np.abs(weights @ gaps).sum(axis=1) / (weights @ counts).sum(axis=1)
    low, high = interval(drawn)
    bins = tuple(
        Bin(float(sure[place == b].mean()), float(hit[place == b].mean()), int((place == b).sum()))
        for b in range(shape[1])
    )
    ece = float(np.abs(gaps.sum(axis=0)).sum() / len(sure))
    return Reliability(ece, low, high, bins, len(sure), len(names))

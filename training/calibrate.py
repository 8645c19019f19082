"""Temperature and gates of a model: chosen on people kept from training, stored in its file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from model.spec import ModelSpec
from training.evaluate import Answer
from training.onnx_file import write_model

__all__ = ["Calibration", "calibrate", "fit_temperature", "largest_threshold", "rewrite_gates"]

STILL_SHARE = 0.965
"""Of the pairs in which nothing happens, at least this share must abstain: 95 % and a margin, for
those that are scored are other people."""
GATE_SHARE = 0.08
"""Without such pairs: of the genuine ones at most this share may be taken for motionless."""
CONFIDENCE_SHARE = 0.05
"""Likewise: of those that pass the gate, at most this share may be too uncertain."""
_TEMPERATURES = (0.05, 20.0)
_SUREST = 0.999
"""A threshold of 1 would answer nothing."""
_LEAST = 1e-30
"""Probabilities below have lost their logarithm to single precision."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was chosen on the calibration identities, and what it does there."""

    temperature: float
    motion_gate_px: float
    abstention_threshold: float
    pairs: int
    genuine_abstain: float
    """Share of the pairs with an expression that are not answered."""
    nothing_abstains: float
    """Share of the pairs without one that are not answered; NaN without such pairs."""

    def applied_to(self, spec: ModelSpec) -> ModelSpec:
        """Return a spec with what was chosen; its scores, now stale, go."""
        return replace(
            spec,
            temperature=self.temperature,
            motion_gate_px=self.motion_gate_px,
            abstention_threshold=self.abstention_threshold,
            scores=(),
            reference=None,
        )


def largest_threshold(values: Sequence[float], share: float) -> float:
    """Return the largest threshold below which at most `share` of the values lie."""
    ordered = sorted(values)
    below = int(share * len(ordered))
    if below / len(ordered) > share:  # the product was rounded up
        below -= 1
    return ordered[below]


def calibrate(answers: Sequence[Answer], spec: ModelSpec) -> Calibration:
    """Fit the temperature of a spec, and choose both gates at that temperature.

    The gates are those that lose the fewest genuine pairs while STILL_SHARE of the still ones
    abstain, for whatever reason. Where there are no still pairs, as in data sets that show
    expressions only, fixed shares of the genuine ones choose. Clips of ready-made pictures of
    flow, whose motion is unknown, pass any gate and choose none.
    Raises: ValueError where no pair with an expression has a known motion.
    """
    known = [a for a in answers if not math.isnan(a.row.motion.moved_px)]
    if not any(a.genuine for a in known):
        raise ValueError("no pair with an expression, and a known motion, to calibrate on")
    temperature = _floor(fit_temperature(answers, spec))
    sure = [a.at(spec, temperature) for a in known]
    still = any(not a.genuine for a in sure)
    gate, threshold = _best_gates(sure, spec) if still else _shares(sure)
    chosen = Calibration(
        temperature, _floor(gate), min(_floor(threshold), _SUREST), len(answers), math.nan, math.nan
    )
    shares = _abstention([a.at(spec, temperature) for a in answers], chosen.applied_to(spec))
    return replace(chosen, genuine_abstain=shares[0], nothing_abstains=shares[1])


def fit_temperature(answers: Sequence[Answer], spec: ModelSpec) -> float:
    """Return the temperature that makes the genuine pairs' labels likeliest (Guo et al. 2017).

    The answers were given at the spec's own temperature. As in Platt 1999 a label counts for a
    little less than certain, the less the fewer pairs there are: a few that are all right do not
    make the network infallible. Raises: ValueError without such pairs.
    """
    genuine = [a for a in answers if a.genuine]
    if not genuine:
        raise ValueError("no pair with an expression to fit a temperature to")
    truth = np.array([spec.classes.index(a.label) for a in genuine])
    rows = np.array([a.probabilities for a in genuine], np.float64)
    # Logarithms of probabilities are the network's outputs, but for a shift and the temperature.
    outputs = spec.temperature * np.log(np.maximum(rows, _LEAST))

    certain = (len(truth) + 1) / (len(truth) + len(spec.classes))
    targets = np.full(rows.shape, (1 - certain) / (len(spec.classes) - 1))
    targets[np.arange(len(truth)), truth] = certain

    def surprise(logarithm: float) -> float:
        scaled = outputs / math.exp(logarithm)
        top = scaled.max(axis=1, keepdims=True)
        total = np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0]
        return float((total - (targets * scaled).sum(axis=1)).mean())

    low, high = map(math.log, _TEMPERATURES)
    return math.exp(float(minimize_scalar(surprise, bounds=(low, high), method="bounded").x))


def _shares(answers: Sequence[Answer]) -> tuple[float, float]:
    """Choose gate and threshold by shares of the genuine pairs alone."""
    genuine = [a for a in answers if a.genuine]
    gate = _floor(largest_threshold([a.row.motion.moved_px for a in genuine], GATE_SHARE))
    moving = [float(a.probabilities.max()) for a in genuine if a.row.motion.moved_px >= gate]
    return gate, largest_threshold(moving, CONFIDENCE_SHARE)


def _best_gates(answers: Sequence[Answer], spec: ModelSpec) -> tuple[float, float]:
    """Choose gate and threshold jointly; of equals the lower gate."""
    ungated = replace(spec, motion_gate_px=1e-9, abstention_threshold=0.0)
    passing = [a for a in answers if not a.verdict(ungated).abstained]
    genuine = np.array([a.genuine for a in passing], bool)
    moved = np.array([a.row.motion.moved_px for a in passing])
    sure = np.array([a.probabilities.max() for a in passing], np.float64)
    still = sum(not a.genuine for a in answers)
    may_pass = still - math.ceil(STILL_SHARE * still)
    best = (math.inf, 0.0, 0.0)
    for gate in sorted({spec.motion_gate_px, *map(_floor, moved[genuine])}):
        open_ = moved >= gate
        threshold = _threshold(sure[open_ & ~genuine], may_pass)
        lost = float((~(open_ & (sure >= threshold)) & genuine).sum())
        best = min(best, (lost, gate, threshold))
    return best[1:]


def _threshold(sure: FloatArray, may_pass: int) -> float:
    """Return the least threshold, in thousandths, that so many of the values may reach."""
    ordered = np.sort(sure)[::-1]
    if len(ordered) <= may_pass:
        return 0.0
    return math.floor(1000 * float(ordered[may_pass]) + 1) / 1000


def _floor(value: float) -> float:
    """Three decimals are enough; rounded down, a threshold keeps its promise."""
    return float(np.floor(value * 1000 + 1e-6) / 1000)


def _abstention(answers: Sequence[Answer], spec: ModelSpec) -> tuple[float, float]:
    """Return the shares that abstain, of genuine pairs and of those where nothing happens."""
    shares = []
    for kind in (True, False):
        abstained = [a.verdict(spec).abstained for a in answers if a.genuine is kind]
        shares.append(float(np.mean(abstained)) if abstained else float("nan"))
    return shares[0], shares[1]


def rewrite_gates(model: Path, spec: ModelSpec, calibration: Calibration, people: str) -> ModelSpec:
    """Store what was chosen, and on which people, in the model's metadata and sidecar.

    The scores, now stale, go.
    """
    spec = calibration.applied_to(spec)
    spec = replace(spec, provenance=replace(spec.provenance, gates=people))
    return write_model(onnx.load(model), spec, model)

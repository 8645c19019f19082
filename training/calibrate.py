"""The gates of a model: chosen on people kept from training, stored in its file and spec."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from model.spec import ModelSpec
from training.evaluate import Answer
from training.onnx_file import write_model

__all__ = ["Calibration", "calibrate", "largest_threshold", "rewrite_gates"]

GATE_SHARE = 0.08
"""Of the genuine pairs, at most this share may be taken for motionless."""
CONFIDENCE_SHARE = 0.05
"""Of the genuine pairs that pass the gate, at most this share may be too uncertain."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Gates chosen on the calibration identities, and what they do there."""

    motion_gate_px: float
    abstention_threshold: float
    pairs: int
    genuine_abstain: float
    """Share of the pairs with an expression that are not answered."""
    nothing_abstains: float
    """Share of the pairs without one that are not answered; NaN without such pairs."""


def largest_threshold(values: Sequence[float], share: float) -> float:
    """Return the largest threshold below which at most `share` of the values lie."""
    ordered = sorted(values)
    below = int(share * len(ordered))
    if below / len(ordered) > share:  # the product was rounded up
        below -= 1
    return ordered[below]


def calibrate(answers: Sequence[Answer], spec: ModelSpec) -> Calibration:
    """Choose both gates of a spec.

    Clips of ready-made pictures of flow, whose motion is unknown, pass any gate and choose none.
    Raises: ValueError where no pair with an expression has a known motion.
    """
    genuine = [a for a in answers if a.genuine and not math.isnan(a.row.motion.p95_px)]
    if not genuine:
        raise ValueError("no pair with an expression, and a known motion, to calibrate on")
    gate = _floor(largest_threshold([a.row.motion.p95_px for a in genuine], GATE_SHARE))
    moving = [float(a.probabilities.max()) for a in genuine if a.row.motion.p95_px >= gate]
    threshold = _floor(largest_threshold(moving, CONFIDENCE_SHARE))
    spec = replace(spec, motion_gate_px=gate, abstention_threshold=threshold)
    return Calibration(gate, threshold, len(answers), *_abstention(answers, spec))


def _floor(value: float) -> float:
    """Three decimals are enough; rounded down, a threshold keeps its promise."""
    return float(np.floor(value * 1000) / 1000)


def _abstention(answers: Sequence[Answer], spec: ModelSpec) -> tuple[float, float]:
    """Return the shares that abstain, of genuine pairs and of those where nothing happens."""
    shares = []
    for kind in (True, False):
        abstained = [a.verdict(spec).abstained for a in answers if a.genuine is kind]
        shares.append(float(np.mean(abstained)) if abstained else float("nan"))
    return shares[0], shares[1]


def rewrite_gates(model: Path, spec: ModelSpec, calibration: Calibration, people: str) -> ModelSpec:
    """Store the gates, and on which people they were chosen, in the model's metadata and sidecar.

    The scores, now stale, go.
    """
    spec = replace(
        spec,
        provenance=replace(spec.provenance, gates=people),
        motion_gate_px=calibration.motion_gate_px,
        abstention_threshold=calibration.abstention_threshold,
        scores=(),
    )
    return write_model(onnx.load(model), spec, model)

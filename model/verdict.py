"""What is answered for one face, and why it is not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.movement import Motion
from model.quality import Quality, faults
from model.spec import ModelSpec

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is answered for one face."""

    label: str
    """The likeliest class, also when the answer abstains."""
    probabilities: dict[str, float]
    reasons: tuple[str, ...] = ()
    """All that speaks against an answer, what matters most first; none when the answer stands."""

    @property
    def abstained(self) -> bool:
        """Whether the answer does not stand."""
        return bool(self.reasons)

    @property
    def reason(self) -> str | None:
        """The first of the reasons, None when the answer stands."""
        return self.reasons[0] if self.reasons else None


def judge(
    spec: ModelSpec,
    probabilities: NDArray[np.float32],
    motion: Motion,
    quality: Quality | None,
) -> Verdict:
    """Turn the (K,) probabilities of one pair into a verdict.

    The gate reads the motion itself: to the network, which sees it normalised, noise on a still
    face may look like an expression. A motion that nobody knows (NaN), and a quality that nobody
    measured (None), pass. What makes the motion itself doubtful comes first among the reasons.
    """
    by_class = dict(zip(spec.classes, map(float, probabilities), strict=True))
    label = max(by_class, key=by_class.__getitem__)
    found: tuple[str, ...] = () if quality is None else faults(quality, motion, spec.quality)
    doubts = {
        **dict.fromkeys((reason for reason in found if reason != _TOO_LARGE), True),
        "no_movement": motion.moved_px < spec.motion_gate_px,
        _TOO_LARGE: _TOO_LARGE in found,
        "low_confidence": by_class[label] < spec.abstention_threshold,
    }
    return Verdict(label, by_class, tuple(reason for reason, holds in doubts.items() if holds))


_TOO_LARGE = "too_large_motion"

"""A head of measured blendshapes that can be worked out by hand."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_head(path: Path, without: str = "") -> NDArray[np.float32]:
    """Write a flat head of 68 points with blendshapes that all lift it, and return it."""
    rng = np.random.default_rng(3)
    neutral = np.column_stack([rng.uniform(-5, 5, (68, 2)), np.zeros(68)]).astype(np.float32)
    stems = ["browDown", "browInnerUp", "browOuterUp", "cheekRaiser", "eyeBlink", "eyeSquint"]
    stems += ["eyeWide", "mouthDimple", "mouthFrown", "mouthLowerDown", "mouthSmile"]
    stems += ["mouthUpperUp", "noseSneer"]
    names = [f"{stem}_{side}" for stem in stems for side in "LR"] + ["jawOpen", "mouthShrugLower"]
    names = [name for name in names if name != without]
    deltas = np.zeros((len(names), 68, 3), np.float16)
    deltas[..., 1] = 1
    np.savez(path, neutral=neutral, neutral_lm=neutral, deltas=deltas, names=names)
    return neutral[:, :2]

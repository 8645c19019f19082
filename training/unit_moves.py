"""Where points of a face go when an action unit is fully active, from two sources.

`table_moves` uses the project's own table over the face mesh; `Blendshapes` uses measured
displacements (ICT-FaceKit, Li et al., arXiv 2004.02711).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.spatial import KDTree

from training.action_units import TABLE, UNITS, ActionUnit, number_of
from training.face_mesh import MESH_OF_LM68, MIRROR, FaceAxes

__all__ = ["Blendshapes", "table_moves"]

FloatArray = NDArray[np.float64]

_BLENDSHAPES: Mapping[int, Mapping[str, float]] = {
    1: {"browInnerUp": 1.0},
    2: {"browOuterUp": 1.0},
    4: {"browDown": 1.0},
    5: {"eyeWide": 1.0},
    6: {"cheekRaiser": 1.0, "eyeSquint": 0.3},
    7: {"eyeSquint": 1.0},
    9: {"noseSneer": 1.0},
    10: {"mouthUpperUp": 1.0},
    12: {"mouthSmile": 1.0},
    14: {"mouthDimple": 1.0},
    15: {"mouthFrown": 1.0},
    17: {"mouthShrugLower": 1.0},
    25: {"mouthLowerDown": 1.0, "mouthUpperUp": 0.3},
    26: {"jawOpen": 0.3},
    43: {"eyeBlink": 1.0},
}
"""Ours: the named blendshapes that stand for each unit."""


def table_moves(landmarks: NDArray[np.floating]) -> FloatArray:
    """Return where the 468 landmarks of a face go at full activation, by the table.

    Convention: landmarks (468, 2) in pixels. Returns (len(UNITS), 468, 2), pixels.
    A landmark follows the movers by Gaussian weights, at most as far as they go; a
    one-sided unit fades over the midline.
    """
    axes = FaceAxes.of(landmarks)
    return np.stack([_unit_moves(unit, landmarks, axes) for unit in UNITS])


def _unit_moves(unit: str, landmarks: NDArray[np.floating], axes: FaceAxes) -> FloatArray:
    action = TABLE[number_of(unit)]
    if not action.paired:
        both = [_half_moves(action, landmarks, axes, left=left) for left in (False, True)]
        return np.asarray(both[0] + both[1])
    return _half_moves(action, landmarks, axes, left=unit.endswith("L"))


def _half_moves(
    action: ActionUnit, landmarks: NDArray[np.floating], axes: FaceAxes, *, left: bool
) -> FloatArray:
    """Move the landmarks of one half of the face; the two halves sum to the whole."""
    place = axes.from_pixels(landmarks)
    total = np.zeros_like(place)
    weight = np.zeros(len(place))
    for mover in action.movers:
        landmark = MIRROR[mover.landmark] if left else mover.landmark
        distance = np.linalg.norm(place - place[landmark], axis=1)
        share = np.exp(-0.5 * (distance / mover.reach) ** 2)
        total += share[:, None] * axes.vector(mover.out if left else -mover.out, mover.up)
        weight += share
    moves = total / np.maximum(weight, 1.0)[:, None]
    still = list(action.still)
    moves[still + [MIRROR[i] for i in still if i in MIRROR]] = 0.0
    sideways = place[:, 0] if left else -place[:, 0]
    return np.asarray(moves * _smooth_step(sideways, 0.08)[:, None])


def _smooth_step(x: FloatArray, half_width: float) -> FloatArray:
    """Rise from 0 to 1 over [-half_width, half_width]; f(x) + f(-x) = 1."""
    t = np.clip((x / half_width + 1) / 2, 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t))


class Blendshapes:
    """Measured displacements of a generic head, fitted to a face.

    Places go through a thin-plate map of 60 common points (the 68 of iBUG but the inner lips),
    displacements through the affine camera that best explains all 68.
    """

    def __init__(self, path: Path) -> None:
        """Read an npz.

        It holds `neutral` (V, 3), the vertices of the head at rest (x to the person's left, y up,
        z to the front, any one unit), `neutral_lm` (68, 3), the iBUG points on it, `deltas`
        (B, V, 3), where each of B blendshapes takes the vertices at full activation, and `names`
        (B,), ICT-FaceKit's, such as mouthSmile_L. Raises: ValueError, naming what is missing.
        """
        with np.load(path) as data:
            missing = {"neutral", "neutral_lm", "deltas", "names"} - set(data.files)
            if missing:
                raise ValueError(f"{path.name} has no {', '.join(sorted(missing))}")
            neutral = data["neutral"].astype(np.float64)
            front = _front(neutral)
            names = {str(name): i for i, name in enumerate(data["names"])}
            deltas = data["deltas"][:, front].astype(np.float64)
            self._landmarks = data["neutral_lm"].astype(np.float64)
        self._vertices = neutral[front]
        self._moves = np.stack([_blend(unit, names, deltas) for unit in UNITS])

    def moves(self, landmarks: NDArray[np.floating]) -> tuple[FloatArray, FloatArray]:
        """Return vertices of the head on a face, and where they go at full activation.

        Convention: landmarks (468, 2) in pixels. Returns (V, 2) places and
        (len(UNITS), V, 2) displacements, pixels.
        """
        target = landmarks[list(MESH_OF_LM68)].astype(np.float64)
        homogeneous = np.column_stack([self._landmarks, np.ones(68)])
        camera = np.linalg.lstsq(homogeneous, target, rcond=None)[0][:3]
        # An open mouth tears at the inner lips, which touch on the neutral head: leave them out.
        common = slice(0, 60)
        rough = self._landmarks[:, :2]
        warp = RBFInterpolator(rough[common], target[common], smoothing=0.1)
        return np.asarray(warp(self._vertices[:, :2])), self._moves @ camera


def _front(neutral: FloatArray) -> NDArray[np.intp]:
    """Return the vertices that nothing lies in front of, by index."""
    neighbours = KDTree(neutral[:, :2]).query_ball_point(neutral[:, :2], r=0.35)
    nearest = np.array([neutral[near, 2].max() for near in neighbours])
    return np.flatnonzero(neutral[:, 2] > nearest - 0.7)


def _blend(unit: str, names: Mapping[str, int], deltas: FloatArray) -> FloatArray:
    number = number_of(unit)
    sides: Sequence[str] = (unit[-1],) if TABLE[number].paired else ("L", "R")
    moves = np.zeros(deltas.shape[1:])
    for shape, weight in _BLENDSHAPES[number].items():
        for name in {shape} & set(names) or {f"{shape}_{side}" for side in sides}:
            if name not in names:
                raise ValueError(f"the blendshapes have no {name}")
            moves += weight * deltas[names[name]]
    return moves

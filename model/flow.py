"""Optical flow between two aligned grey crops, and what is read off a flow field.

Convention everywhere: a flow field is (2, H, W) float32, channels (u, v) in pixels, x right,
y down, from onset to apex: apex(x + u, y + v) shows what onset(x, y) shows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError
from model.spec import FlowMethod

__all__ = [
    "RIGID_FLOOR_PX",
    "RIGID_STEPS",
    "RIGID_STRIDE",
    "RigidMotion",
    "compute_flow",
    "fit_rigid_motion",
    "magnitude",
    "optical_strain",
    "point_flow",
    "remove_rigid_motion",
    "to_grey",
]

FloatArray = NDArray[np.float32]
_FLOW_NDIM = 3


def to_grey(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the (H, W) luma of an (H, W, 3) RGB frame (ITU-R BT.601)."""
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def compute_flow(
    onset: NDArray[np.uint8], apex: NDArray[np.uint8], method: FlowMethod
) -> FloatArray:
    """Estimate the flow that carries the onset to the apex.

    Convention: onset and apex are (H, W) uint8 of one size; see the module for the field.
    `method.parameters` are OpenCV's own names; a missing one has OpenCV's default.
    Raises: ShapeError; ValueError for a parameter that the algorithm does not have, and for Brox,
    which the CPU does not have (`model.solver`).
    Source: TV-L1, Zach et al. 2007 (the paper's choice); Farnebäck 2003; DIS, Kroeger 2016.
    """
    if onset.ndim != 2 or onset.shape != apex.shape:  # noqa: PLR2004 - a grey image
        raise ShapeError(f"two grey images of one size are needed: {onset.shape}, {apex.shape}")
    if method.algorithm not in _SOLVERS:
        raise ValueError(f"OpenCV has no {method.algorithm} on the CPU")
    field = _SOLVERS[method.algorithm](onset, apex, method.parameters)
    return np.ascontiguousarray(field.transpose(2, 0, 1), dtype=np.float32)


def _tvl1(
    onset: NDArray[np.uint8], apex: NDArray[np.uint8], parameters: Mapping[str, Any]
) -> NDArray[Any]:
    solver = cv2.optflow.DualTVL1OpticalFlow_create()  # type: ignore[attr-defined] # contrib
    for name, value in parameters.items():
        setter = getattr(solver, "set" + name[:1].upper() + name[1:], None)
        if setter is None:
            raise ValueError(f"TV-L1 has no parameter {name!r}")
        setter(value)
    return np.asarray(solver.calc(onset, apex, None))


FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}
"""The function has no defaults; these are the ones of OpenCV's class of the same name but for
`winsize`, 13 there, and `iterations`, 10 there."""


def _farneback(
    onset: NDArray[np.uint8], apex: NDArray[np.uint8], parameters: Mapping[str, Any]
) -> NDArray[Any]:
    if unknown := parameters.keys() - FARNEBACK:
        raise ValueError(f"Farneback has no parameter {min(unknown)!r}")
    chosen = FARNEBACK | dict(parameters)
    return np.asarray(cv2.calcOpticalFlowFarneback(onset, apex, None, **chosen))  # type: ignore[call-overload] # keywords from a mapping


_DIS_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


def _dis(
    onset: NDArray[np.uint8], apex: NDArray[np.uint8], parameters: Mapping[str, Any]
) -> NDArray[Any]:
    if unknown := parameters.keys() - {"preset"}:
        raise ValueError(f"DIS has no parameter {min(unknown)!r}")
    preset = parameters.get("preset", "medium")
    if preset not in _DIS_PRESETS:
        raise ValueError(f"DIS has no preset {preset!r}; there are {', '.join(_DIS_PRESETS)}")
    solver = cv2.DISOpticalFlow_create(_DIS_PRESETS[preset])  # type: ignore[attr-defined] # untyped
    return np.asarray(solver.calc(onset, apex, None))


_SOLVERS: dict[str, Callable[..., NDArray[Any]]] = {
    "tvl1": _tvl1,
    "farneback": _farneback,
    "dis": _dis,
}


_POINT_STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.01)


def point_flow(
    onset: NDArray[np.uint8],
    apex: NDArray[np.uint8],
    points: FloatArray,
    expected: FloatArray,
    window: int,
) -> FloatArray:
    """Follow single points from the onset to the apex.

    Convention: onset and apex are (H, W) uint8 of one size; points and their expected
    displacements are (N, 2), (x, y), pixels; window is the odd side of the square that each point
    is recognised by. Returns (N, 2), the displacement of each, NaN where it was lost. A tenth of
    the cost of a dense field; where there is no texture it is noise.
    Source: Lucas and Kanade 1981, in pyramids by Bouguet 2001. Raises: ShapeError.
    """
    if onset.ndim != 2 or onset.shape != apex.shape:  # noqa: PLR2004 - a grey image
        raise ShapeError(f"two grey images of one size are needed: {onset.shape}, {apex.shape}")
    moved, found, _ = cv2.calcOpticalFlowPyrLK(
        onset,
        apex,
        np.ascontiguousarray(points, np.float32),
        np.ascontiguousarray(points + expected, np.float32),
        winSize=(window, window),
        maxLevel=1,
        criteria=_POINT_STEPS,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return np.where(found.astype(bool), moved - points, np.float32(np.nan)).astype(np.float32)


def _check_flow(flow: FloatArray) -> None:
    if flow.ndim != _FLOW_NDIM or flow.shape[0] != 2:  # noqa: PLR2004 - u and v
        raise ShapeError(f"a flow field is (2, H, W), got {flow.shape}")


def magnitude(flow: FloatArray) -> FloatArray:
    """Return the (H, W) length of each flow vector, in pixels. Raises: ShapeError."""
    _check_flow(flow)
    return np.asarray(np.hypot(flow[0], flow[1]), np.float32)


def optical_strain(flow: FloatArray) -> FloatArray:
    """Return the magnitude of the infinitesimal strain of a flow field.

    Convention: flow is (2, H, W) in pixels. Returns (H, W), unitless, never negative.
    |e| = sqrt(u_x² + v_y² + ½ (u_y + v_x)²) (MFDAN's third flow channel). A shift and a small
    rotation have none. Raises: ShapeError.
    """
    _check_flow(flow)
    u_y, u_x = np.gradient(flow[0])  # numpy yields rows (y) first
    v_y, v_x = np.gradient(flow[1])
    return np.asarray(np.sqrt(u_x**2 + v_y**2 + 0.5 * (u_y + v_x) ** 2), np.float32)


@dataclass(frozen=True, slots=True)
class RigidMotion:
    """The motion of the head between two aligned crops, seen as a small similarity."""

    shift_x: float
    """Of the crop's middle, pixels, right."""
    shift_y: float
    """Of the crop's middle, pixels, down."""
    turn: float
    """Radians, clockwise as seen (x towards y)."""
    zoom: float
    """Relative growth; 0.01 is one per cent larger."""
    mean_px: float
    """Mean length of the motion over the crop, pixels."""

    def at(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Return the motion, (2, ...) pixels, at places given from the crop's middle, (x, y)."""
        across = self.shift_x + self.zoom * x - self.turn * y
        down = self.shift_y + self.turn * x + self.zoom * y
        return np.stack([across, down]).astype(np.float32)

    def over(self, flow: FloatArray) -> FloatArray:
        """Return the motion at every pixel of a crop as large as a flow field, (2, H, W) pixels."""
        return self.at(*_from_middle(flow))


def _from_middle(flow: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return x and y, (H, W) each, of every pixel of a field, from its middle."""
    _, height, width = flow.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x -= (width - 1) / 2
    y -= (height - 1) / 2
    return x, y


RIGID_STEPS = 8
"""Of reweighting."""
RIGID_FLOOR_PX = 0.05
"""Least scale of what may deviate from the head's motion."""
RIGID_STRIDE = 4
"""A smooth field needs no more than every so many pixels."""


def remove_rigid_motion(
    flow: FloatArray, mask: NDArray[np.bool_] | None = None
) -> tuple[FloatArray, RigidMotion]:
    """Subtract the head's motion from a flow field.

    A four-parameter field (shift, turn, zoom about the middle) is fitted by iteratively
    reweighted least squares with Geman–McClure weights, so that the few muscles that move
    do not count as head (ours; the paper assumes aligned frames).

    Convention: flow is (2, H, W) in pixels; mask is (H, W), true where the fit may look
    (default: everywhere). Returns the residual flow, (2, H, W), and the motion removed.
    Raises: ShapeError.
    """
    _check_flow(flow)
    _, height, width = flow.shape
    x, y = _from_middle(flow)
    rows = np.zeros((height, width), bool)
    rows[::RIGID_STRIDE, ::RIGID_STRIDE] = True
    if mask is not None:
        if mask.shape != (height, width):
            raise ShapeError(f"mask is {mask.shape}, flow is {flow.shape}")
        rows &= mask
    head = RigidMotion(
        *_fit_similarity(x[rows], y[rows], flow[0][rows], flow[1][rows]), mean_px=0.0
    )
    rigid = head.at(x, y)
    return flow - rigid, replace(head, mean_px=float(magnitude(rigid).mean()))


def fit_rigid_motion(points: FloatArray, moves: FloatArray, side: int) -> RigidMotion:
    """Fit the head's motion to the displacements of points, as `remove_rigid_motion` does.

    Convention: points and moves are (N, 2), (x, y), pixels of a crop of `side`; points whose
    motion is NaN are left out.
    """
    kept = ~np.isnan(moves).any(axis=1)
    x, y = (points[kept] - (side - 1) / 2).T
    head = RigidMotion(*_fit_similarity(x, y, *moves[kept].T), mean_px=0.0)
    return replace(head, mean_px=float(np.hypot(*head.at(x, y)).mean()) if x.size else 0.0)


def _fit_similarity(
    x: FloatArray, y: FloatArray, u: FloatArray, v: FloatArray
) -> tuple[float, float, float, float]:
    """Solve u = shift_x + zoom·x - turn·y, v = shift_y + turn·x + zoom·y robustly.

    In complex numbers that is w = shift + (zoom + i turn) z: weighted least squares of one
    unknown slope has a closed form, and no linear-algebra library starts threads of its own.
    """
    if x.size == 0:
        return 0.0, 0.0, 0.0, 0.0
    z, w = x + 1j * y, u + 1j * v
    weights = np.ones(x.size)
    shift = slope = 0j
    for _ in range(RIGID_STEPS):
        total = weights.sum()
        mean_z, mean_w = (weights * z).sum() / total, (weights * w).sum() / total
        centred = z - mean_z
        spread = (weights * (centred * centred.conj()).real).sum()
        slope = (weights * centred.conj() * (w - mean_w)).sum() / max(spread, 1e-12)
        shift = mean_w - slope * mean_z
        length = np.abs(w - shift - slope * z)
        scale = max(1.4826 * float(np.median(length)), RIGID_FLOOR_PX)
        weights = 1 / (1 + (length / scale) ** 2) ** 2
    return float(shift.real), float(shift.imag), float(slope.imag), float(slope.real)

"""What lies between flow and network, as an ONNX graph: a batch of what the numpy functions do.

Each function names the one that it repeats; what that one says of units and sources holds here.
Convention everywhere: N pairs of S × S crops, float32 unless said otherwise; no row looks at
another. Plain sums and products alone, no Conv and no MatMul: where TF32 is allowed, a GPU would
compute those with ten bits.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import spox.opset.ai.onnx.v20 as op
from numpy.typing import NDArray
from spox import Var

from model.flow import RIGID_FLOOR_PX, RIGID_STEPS, RIGID_STRIDE
from model.magnify import INVERSION_STEPS
from model.spec import ModelSpec, Normalisation

__all__ = ["Front", "front"]

_LINEAR_GRID = 32
"""OpenCV's `remap` looks at so many places between two pixels where it interpolates linearly."""
_FAR_PX = 1e6
"""Longer than any motion: sorts what the mask leaves out behind the rest."""
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Front:
    """What `front` computes."""

    image: Var
    """(N, 3, S, S), in [-1, 1]: the network's input of that name."""
    flow_tensor: Var
    """(N, 3, S, S): u and v in [-1, 1], strain in [0, 1]; the network's input `flow`."""
    residual: Var
    """(N, 2, S, S), pixels: the flow without the head's motion."""
    head: Var
    """(N, 5): shift_x, shift_y, turn, zoom, mean_px, as `model.flow.RigidMotion` has them."""


def front(onset: Var, total: Var, face: Var, spec: ModelSpec) -> Front:
    """Make the network's inputs of aligned pairs whose flow is known.

    Convention: onset is (N, S, S, 3) uint8 RGB; total is (N, 2, S, S), pixels; face is (N, S, S)
    bool, true where the head's motion may be looked for. An empty mask is a head that stood still,
    as in `remove_rigid_motion`. S is the spec's input size.
    """
    size = spec.input_size
    residual, head = _remove_rigid_motion(total, face, size)
    image = _magnify(onset, residual, spec.magnification, size)
    scaled = op.sub(op.div(image, _number(127.5)), _number(1))
    flow_tensor = _flow_tensor(residual, spec.normalisation, size)
    return Front(scaled, flow_tensor, residual, head)


def _remove_rigid_motion(total: Var, face: Var, size: int) -> tuple[Var, Var]:
    """Repeat `model.flow.remove_rigid_motion`; return (N, 2, S, S) residual and (N, 5) motion."""
    points = _places(size)[:, ::RIGID_STRIDE, ::RIGID_STRIDE].reshape(1, 2, -1)
    moves = op.reshape(_every(total, RIGID_STRIDE, (2, 3)), _ints(0, 2, -1))
    mask = op.reshape(_every(face, RIGID_STRIDE, (1, 2)), _ints(0, 1, -1))
    shift, turn, zoom = _fit_similarity(points, moves, op.cast(mask, to=np.float32))
    places = _places(size)[None]
    four = _ints(0, 0, 1, 1)
    across = op.mul(op.reshape(zoom, four), _const(places))
    round_ = op.mul(op.reshape(turn, four), _const(_quarter_turn(places)))
    rigid = op.sum([op.reshape(shift, four), across, round_])
    mean = op.reduce_mean(_length(rigid), _ints(2, 3), keepdims=0)
    parts = [op.reshape(part, _ints(0, -1)) for part in (shift, turn, zoom, mean)]
    return op.sub(total, rigid), op.concat(parts, axis=1)


def _fit_similarity(points: NDArray[np.float32], moves: Var, mask: Var) -> tuple[Var, Var, Var]:
    """Repeat `model.flow._fit_similarity`, where vectors stand for its complex numbers.

    Convention: points is (1, 2, P), moves (N, 2, P), mask (N, 1, P), 0 or 1. Returns shift
    (N, 2, 1), turn and zoom (N, 1, 1).
    """
    at, most = _const(points), points.shape[2] // 2 + 1
    middle = _median_places(mask, most)
    weights = mask
    for step in range(RIGID_STEPS):
        whole = op.max([_sum(weights, 2), _number(_TINY)])
        mean_z = op.div(_sum(op.mul(weights, at), 2), whole)
        mean_w = op.div(_sum(op.mul(weights, moves), 2), whole)
        z, w = op.sub(at, mean_z), op.sub(moves, mean_w)
        weighted = op.mul(weights, z)
        spread = op.max([_sum(op.mul(weighted, z), 1, 2), _number(_TINY)])
        zoom = op.div(_sum(op.mul(weighted, w), 1, 2), spread)
        turn = op.div(_sum(op.mul(_turned(weighted), w), 1, 2), spread)
        if step < RIGID_STEPS - 1:
            length = _length(op.sub(w, _similar(z, turn, zoom)))
            median = _masked_median(length, mask, middle, most)
            weights = op.mul(mask, _geman_mcclure(length, median))
    return op.sub(mean_w, _similar(mean_z, turn, zoom)), turn, zoom


def _geman_mcclure(length: Var, median: Var) -> Var:
    scale = op.max([op.mul(median, _number(1.4826)), _number(RIGID_FLOOR_PX)])
    ratio = op.div(length, scale)
    root = op.add(op.mul(ratio, ratio), _number(1))
    return op.reciprocal(op.mul(root, root))


def _similar(z: Var, turn: Var, zoom: Var) -> Var:
    """Return (zoom + i turn) z of vectors (N, 2, P)."""
    return op.add(op.mul(zoom, z), op.mul(turn, _turned(z)))


def _turned(z: Var) -> Var:
    """Return i z of vectors (N, 2, P): (-y, x)."""
    signs = np.array([-1, 1], np.float32).reshape(1, 2, 1)
    return op.mul(op.gather(z, _ints(1, 0), axis=1), _const(signs))


def _median_places(mask: Var, most: int) -> Var:
    """Return (N, 1, 2) int64: where the two middle ones of each row's masked values stand."""
    last = op.sub(_sum(mask, 2), _number(1))
    below = op.floor(op.mul(last, _number(0.5)))
    above = op.floor(op.mul(op.add(last, _number(1)), _number(0.5)))
    places = op.cast(op.concat([below, above], axis=2), to=np.int64)
    return op.clip(
        places, op.const(np.int64(0)), op.const(np.int64(most - 1))
    )  # of nothing there is none below the first


def _masked_median(values: Var, mask: Var, middle: Var, most: int) -> Var:
    """Return the (N, 1, 1) median of values (N, 1, P) where the mask is 1."""
    kept = op.where(op.cast(mask, to=np.bool_), values, _number(_FAR_PX))
    lower, _ = op.top_k(kept, _ints(most), axis=2, largest=0)
    return op.reduce_mean(op.gather_elements(lower, middle, axis=2), _ints(2))


def _magnify(onset: Var, flow: Var, alpha: float, size: int) -> Var:
    """Repeat `model.magnify.magnify`; return (N, 3, S, S) whole numbers, 0 to 255."""
    moved = _carry(op.mul(flow, _number(1 + alpha)), size)
    frame = op.cast(op.transpose(onset, perm=(0, 3, 1, 2)), to=np.float32)
    sampled = _sampled(frame, op.sub(_const(_pixels(size)), moved), size, "cubic")
    return op.clip(op.round(sampled), _number(0), _number(255))


def _carry(flow: Var, size: int) -> Var:
    """Repeat `model.magnify.carry`."""
    moved = flow
    for _ in range(INVERSION_STEPS):
        source = op.sub(_const(_pixels(size)), moved)
        snapped = op.div(op.round(op.mul(source, _number(_LINEAR_GRID))), _number(_LINEAR_GRID))
        moved = _sampled(flow, snapped, size, "linear")
    return moved


def _sampled(frame: Var, source: Var, side: int, mode: str) -> Var:
    """Sample (N, C, side, side) at source (N, 2, H, W), pixels; outside the border repeats."""
    scaled = op.sub(op.mul(source, _number(2 / (side - 1))), _number(1))
    grid = op.transpose(scaled, perm=(0, 2, 3, 1))
    return op.grid_sample(frame, grid, align_corners=1, mode=mode, padding_mode="border")


def _flow_tensor(flow: Var, normalisation: Normalisation, size: int) -> Var:
    """Repeat `model.tensors.flow_tensor`."""
    strain = _optical_strain(flow, size)
    percentile = normalisation.percentile
    flow_scale = _scale(_length(flow), percentile, normalisation.flow_floor, size)
    strain_scale = _scale(strain, percentile, normalisation.strain_floor, size)
    parts = [op.div(flow, flow_scale), op.div(strain, strain_scale)]
    return op.clip(op.concat(parts, axis=1), _number(-1), _number(1))


def _optical_strain(flow: Var, size: int) -> Var:
    """Repeat `model.flow.optical_strain` of (N, 2, S, S); return (N, 1, S, S)."""
    u_x, v_x = op.split(_gradient(flow, 3, size), num_outputs=2, axis=1)
    u_y, v_y = op.split(_gradient(flow, 2, size), num_outputs=2, axis=1)
    shear = op.add(u_y, v_x)
    squares = [op.mul(u_x, u_x), op.mul(v_y, v_y), op.mul(op.mul(shear, shear), _number(0.5))]
    return op.sqrt(op.sum(squares))


def _gradient(field: Var, axis: int, size: int) -> Var:
    """Repeat `np.gradient` of (N, 2, S, S) along an axis: one-sided at the border."""
    weights = np.full(size, 0.5, np.float32)
    weights[[0, -1]] = 1
    shape = [1, 1, 1, 1]
    shape[axis] = size
    padded = op.pad(field, _ints(1, 1), axes=_ints(axis), mode="edge")
    after = op.slice(padded, _ints(2), _ints(size + 2), _ints(axis))
    before = op.slice(padded, _ints(0), _ints(size), _ints(axis))
    return op.mul(op.sub(after, before), _const(weights.reshape(shape)))


def _scale(values: Var, percentile: float, floor: float, size: int) -> Var:
    """Return the (N, 1, 1, 1) percentile of values (N, 1, S, S), as numpy's, or the floor."""
    flat = op.reshape(values, _ints(0, -1))
    place, last = (size**2 - 1) * percentile / 100, size**2 - 1
    low = min(int(place), last - 1)
    from_above = percentile >= 50  # noqa: PLR2004 - of two halves the smaller is sorted
    ranks = (last - low, last - low - 1) if from_above else (low, low + 1)
    sorted_, _ = op.top_k(flat, _ints(max(ranks) + 1), axis=1, largest=int(from_above))
    below, above = (op.gather(sorted_, _ints(rank), axis=1) for rank in ranks)
    between = op.add(below, op.mul(op.sub(above, below), _number(place - low)))
    return op.reshape(op.max([between, _number(floor)]), _ints(0, 1, 1, 1))


def _length(field: Var) -> Var:
    """Return the length of vectors along axis 1, which is kept."""
    return op.reduce_l2(field, _ints(1))


def _sum(values: Var, *axes: int) -> Var:
    return op.reduce_sum(values, _ints(*axes))


def _every(values: Var, stride: int, axes: tuple[int, int]) -> Var:
    end = np.iinfo(np.int64).max
    return op.slice(values, _ints(0, 0), _ints(end, end), _ints(*axes), _ints(stride, stride))


def _pixels(size: int) -> NDArray[np.float32]:
    """Return (1, 2, S, S): x and y of every pixel."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return np.stack([x, y])[None]


def _places(size: int) -> NDArray[np.float32]:
    """Return (2, S, S): x and y of every pixel, from the middle of the crop."""
    return np.asarray(_pixels(size)[0] - np.float32((size - 1) / 2), np.float32)


def _quarter_turn(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (-y, x) of places (1, 2, ...)."""
    return np.stack([-places[:, 1], places[:, 0]], axis=1)


def _const(values: NDArray[np.float32]) -> Var:
    return op.const(np.asarray(values, np.float32))


@cache
def _number(value: float) -> Var:
    return op.const(np.float32(value))


@cache
def _ints(*values: int) -> Var:
    return op.const(np.array(values, np.int64))

"""TV-L1 optical flow of a batch of pairs as an ONNX graph (Zach et al. 2007).

It solves what OpenCV's `DualTVL1OpticalFlow` solves, step by step, for N pairs at once and with
a fixed number of iterations. Every operator is elementwise or a copy: no product of matrices
and no convolution, which a GPU may round to TF32.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Final, TypeAlias

import numpy as np
import spox.opset.ai.onnx.v20 as op
from spox import Tensor, Var, argument, build, inline

from model.spec import check_parameters

__all__ = ["Tvl1Parameters", "scale_sides", "tvl1"]

_OPSET = 20
_SMALLEST_SIDE = 16
_UNROLLED_OPERATORS = 8000
"""Iterations of up to so many operators stand in the graph one after another. Above it they are
Loops: the graph stays small, but ONNX Runtime comes back to the host for every iteration and
cannot capture the graph for CUDA."""
_MOST_WARPS = 64
"""On all scales together; each is built into the graph by itself, in up to a tenth of a second."""
_NO_GRADIENT: Final = float(np.finfo(np.float32).eps)
"""Squared grey levels per pixel: OpenCV moves no pixel with less by its brightness."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tvl1Parameters:
    """What fixes the flow; names and defaults are those of `DualTVL1OpticalFlow`."""

    tau: float = 0.25
    lambda_: float = 0.15
    theta: float = 0.3
    scales: int = 5
    warps: int = 5
    outer: int = 10
    inner: int = 30
    scale_step: float = 0.8
    median: int = 5
    """Side of the median filter of the flow, pixels; 1 for none."""

    @classmethod
    def read(cls, parameters: Mapping[str, Any]) -> "Tvl1Parameters":
        """Take the parameters of a spec, by the names of OpenCV's setters.

        `epsilon` is read over: OpenCV ends the iterations of a pair early when they move less,
        here all pairs of a batch get all of them. Only with `epsilon` 0 do both do the same.

        Raises: ValueError for one that TV-L1 does not have, or that this one cannot follow
        (`gamma` other than 0, `useInitialFlow`), or is of a size that nothing is computed with.
        """
        fields = {name: field for field, name in _SETTERS.items()}
        if unknown := parameters.keys() - fields.keys() - _IGNORED.keys():
            raise ValueError(f"TV-L1 has no parameter {min(unknown)!r}")
        for name in _IGNORED.keys() & parameters.keys() - {"epsilon"}:
            if parameters[name] != _IGNORED[name]:
                raise ValueError(f"TV-L1 as ONNX takes no {name} but {_IGNORED[name]}")
        given = {name: parameters[name] for name in parameters.keys() & fields.keys()}
        for name in given.keys() | parameters.keys() & {"epsilon"}:
            _check_number(name, parameters[name], whole=fields.get(name) in _WHOLE)
        check_parameters("tvl1", parameters)
        if (side := given.get("medianFiltering", 1)) not in _MEDIANS:
            raise ValueError(f"TV-L1 needs medianFiltering 1, 3 or 5, not {side}")
        return cls(**{fields[name]: value for name, value in given.items()})


_SETTERS = {
    "tau": "tau",
    "lambda_": "lambda",
    "theta": "theta",
    "scales": "scalesNumber",
    "warps": "warpingsNumber",
    "outer": "outerIterations",
    "inner": "innerIterations",
    "scale_step": "scaleStep",
    "median": "medianFiltering",
}
_WHOLE = {"scales", "warps", "outer", "inner", "median"}
_MEDIANS = (1, 3, 5)
_IGNORED = {"epsilon": 0.01, "gamma": 0, "useInitialFlow": False}


def _check_number(name: str, value: object, *, whole: bool) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = "a whole number" if whole else "a number"
        raise ValueError(  # noqa: TRY004 - a spec is wrong, not a call
            f"TV-L1 needs {wanted} for {name}, not {value!r}"
        )


def scale_sides(parameters: Tvl1Parameters, size: int) -> list[int]:
    """Return the side of every scale of the pyramid, pixels, the finest first.

    As OpenCV has them: rounded to even, and none below 16 but the first.
    """
    sides = [size]
    while len(sides) < parameters.scales:
        side = round(sides[-1] * parameters.scale_step)
        if side < _SMALLEST_SIDE:
            break
        sides.append(side)
    return sides


def tvl1(onset: Var, apex: Var, parameters: Mapping[str, Any], size: int) -> Var:
    """Return the flow that carries each onset to its apex.

    Convention: onset and apex are (N, S, S), grey, 0 to 255, uint8 or float32, S = `size`.
    The flow is (N, 2, S, S) float32, (u, v) in pixels, x right, y down, as in `model.flow`.
    Pairs do not know of one another.
    Raises: ValueError for parameters that cannot be followed, see `Tvl1Parameters.read`.
    Source: Zach, Pock, Bischof 2007; the scheme of Sánchez, Meinhardt-Llopis, Facciolo 2013
    (IPOL 26) with OpenCV's changes.
    """
    chosen = Tvl1Parameters.read(parameters)
    sides = scale_sides(chosen, size)
    if (warps := len(sides) * chosen.warps) > _MOST_WARPS:
        raise ValueError(
            f"TV-L1 as ONNX makes at most {_MOST_WARPS} warps, not {warps}: "
            f"{len(sides)} scales with warpingsNumber {chosen.warps}"
        )
    solver = _Solver(chosen, warps)
    pair = op.concat([_as_channel(onset), _as_channel(apex)], axis=1)
    pyramid = [pair]
    for side, smaller in pairwise(sides):
        pyramid.append(_resized(pyramid[-1], side, smaller, 1 / chosen.scale_step))
    flow: Var | None = None
    for level in reversed(range(len(sides))):
        flow = solver.refine(pyramid[level], flow, sides[level])
        if level:
            ratio = sides[level] / sides[level - 1]
            flow = _resized(flow, sides[level], sides[level - 1], ratio)
            flow = op.mul(flow, _number(1 / chosen.scale_step))
    assert flow is not None  # noqa: S101 - a pyramid has at least one level
    return flow


def _as_channel(grey: Var) -> Var:
    return op.unsqueeze(op.cast(grey, to=np.float32), op.const(np.array([1])))


@cache
def _number(value: float) -> Var:
    return op.const(np.float32(value))


def _shift(x: Var, *, rows: int = 0, columns: int = 0, mode: str = "edge") -> Var:
    """Return x with every pixel replaced by its neighbour so many rows down and columns right."""
    return op.pad(x, _pads(rows, columns), mode=mode)


@cache
def _pads(rows: int, columns: int) -> Var:
    return op.const(np.array([0, 0, -rows, -columns, 0, 0, rows, columns]))


def _resized(x: Var, side: int, wanted: int, step: float) -> Var:
    """Resize squares linearly; `step` is the distance of new pixels in old ones.

    Not `Resize`: where a side is not a whole multiple, OpenCV keeps the asked-for step and
    clamps, which its modes cannot say.
    """
    at = np.clip((np.arange(wanted) + 0.5) * step - 0.5, 0, side - 1)
    first = np.minimum(at.astype(np.int32), side - 1)
    second = np.minimum(first + 1, side - 1)
    weight = (at - first).astype(np.float32)
    for axis, weights in ((3, weight), (2, weight[:, None])):
        low, high = (op.gather(x, op.const(index), axis=axis) for index in (first, second))
        x = op.add(low, op.mul(op.sub(high, low), op.const(weights)))
    return x


_Piece: TypeAlias = Callable[..., Sequence[Var]]


class _BuiltOnce:
    """A piece of graph to be put in many times: spox would infer every operator anew.

    Its arguments are (N, channels, H, W) of any size.
    """

    def __init__(self, piece: _Piece, channels: Sequence[int]) -> None:
        self._inputs = {
            f"x{place}": argument(Tensor(np.float32, ("batch", count, "height", "width")))
            for place, count in enumerate(channels)
        }
        results = piece(*self._inputs.values())
        self._model = build(self._inputs, {f"y{at}": one for at, one in enumerate(results)})
        # Else spox takes every copy through ONNX's version converter.
        self._model.opset_import[0].version = _OPSET
        self.operators = sum(node.op_type != "Constant" for node in self._model.graph.node)

    def __call__(self, *values: Var) -> list[Var]:
        return list(inline(self._model)(**dict(zip(self._inputs, values, strict=True))).values())


@dataclass(frozen=True, slots=True)
class _Linear:
    """The brightness constancy of one warp, linear in the flow, ready for the iterations.

    slope · U + offset is how far along its gradient a pixel would have to go.
    """

    slope: Var
    offset: Var
    back: Var
    """Minus the warped gradient, in units of U."""


@dataclass(frozen=True, slots=True)
class _State:
    """U, the flow times tau / theta so that the dual step needs no factor, and U's dual."""

    flow: Var
    dual_x: Var
    dual_y: Var


_ITERATED = (2, 1, 2, 2, 2, 2)
"""Channels of the fields of `_Linear` and of `_State`."""


class _Solver:
    """The iterations of one set of parameters, on any scale."""

    def __init__(self, parameters: Tvl1Parameters, warps: int) -> None:
        """Take the parameters, and how many warps all scales make together."""
        self._parameters = parameters
        self._unit = parameters.tau / parameters.theta
        step = _BuiltOnce(self._iterate, _ITERATED)
        median = _BuiltOnce(self._filtered, (2,))
        outer = parameters.inner * step.operators + median.operators
        self._unrolled = warps * parameters.outer * outer <= _UNROLLED_OPERATORS
        self._step: _Piece = step if self._unrolled else self._iterate
        self._filter: _Piece = median if self._unrolled else self._filtered
        self._warp: _Piece = self._iterations
        if not self._unrolled:  # where a copy is one Loop
            self._warp = _BuiltOnce(self._iterations, _ITERATED)

    def refine(self, pair: Var, flow: Var | None, side: int) -> Var:
        """Return the flow of one scale, (N, 2, side, side), from that of the scale above."""
        onset, apex = op.split(pair, num_outputs=2, axis=1)
        fields = _with_gradient(apex)
        padded = _pad_to_power_of_two(fields, side)
        still = op.mul(pair, _number(0))
        state = _State(still if flow is None else op.mul(flow, _number(self._unit)), still, still)
        for warp in range(self._parameters.warps):
            # Nothing has moved yet at the coarsest scale: the warp would copy.
            unmoved = flow is None and warp == 0
            warped = fields if unmoved else self._warped(padded, state.flow, side)
            linear = self._linearised(onset, warped, state.flow)
            given = (linear.slope, linear.offset, linear.back)
            state = _State(*self._warp(*given, state.flow, state.dual_x, state.dual_y))
        return op.mul(state.flow, _number(1 / self._unit))

    def _warped(self, padded: Var, flow: Var, side: int) -> Var:
        """Look up apex and gradient, (N, 3, H, W), where the flow leads, by cubic weights.

        The picture is padded with the border's zeros to a side that is a power of two: then a
        pixel that stays is exact in GridSample's units, and what is still has no flow at all.
        """
        padded_side = _power_of_two(side)
        y, x = np.mgrid[:side, :side].astype(np.float32)
        here = op.const((2 * np.stack([x, y]) + 1) / padded_side - 1)
        units = op.add(op.mul(flow, _number(2 / (padded_side * self._unit))), here)
        places = op.transpose(units, perm=[0, 2, 3, 1])
        return op.grid_sample(padded, places, mode="cubic", padding_mode="zeros")

    def _linearised(self, onset: Var, warped: Var, flow: Var) -> _Linear:
        apex, gradient = op.split(warped, op.const(np.array([1, 2])), axis=1)
        squared = op.max([_summed(op.mul(gradient, gradient)), _number(_NO_GRADIENT)])
        slope = op.div(gradient, op.mul(squared, _number(self._unit)))
        offset = op.div(op.sub(apex, onset), squared)
        offset = op.sub(offset, _summed(op.mul(slope, flow)))
        return _Linear(slope, offset, op.mul(gradient, _number(-self._unit)))

    def _iterations(self, *given: Var) -> Sequence[Var]:
        """Run the outer iterations, each a filter and the inner ones; as `_iterate`."""
        linear, start = given[:3], given[3:]

        def outer(now: Sequence[Var]) -> Sequence[Var]:
            return self._repeated(
                self._parameters.inner,
                lambda now: self._step(*linear, *now),
                [*self._filter(now[0]), *now[1:]],
            )

        return self._repeated(self._parameters.outer, outer, start)

    def _repeated(
        self, times: int, step: Callable[[Sequence[Var]], Sequence[Var]], now: Sequence[Var]
    ) -> Sequence[Var]:
        if self._unrolled:
            for _ in range(times):
                now = step(now)
            return now
        return op.loop(
            op.const(np.int64(times)),
            v_initial=now,
            body=lambda _, going, *carried: [going, *step(carried)],
        )

    def _filtered(self, flow: Var) -> list[Var]:
        side = self._parameters.median
        return [flow if side == 1 else _median(flow, side)]

    def _iterate(self, *given: Var) -> tuple[Var, Var, Var]:
        """Go one iteration, the thresholding step and then the dual one.

        Takes the fields of `_Linear` and of `_State`, returns those of `_State`.
        """
        linear, state = _Linear(*given[:3]), _State(*given[3:])
        flow = self._primal(linear, state)
        across = op.sub(_shift(flow, columns=1), flow)
        down = op.sub(_shift(flow, rows=1), flow)
        length = op.sqrt(op.add(op.mul(across, across), op.mul(down, down)))
        divisor = op.add(length, _number(1))
        return (
            flow,
            op.div(op.add(state.dual_x, across), divisor),
            op.div(op.add(state.dual_y, down), divisor),
        )

    def _primal(self, linear: _Linear, state: _State) -> Var:
        limit = self._parameters.lambda_ * self._parameters.theta
        u_part, v_part = op.split(op.mul(linear.slope, state.flow), num_outputs=2, axis=1)
        along = op.clip(op.sum([u_part, v_part, linear.offset]), _number(-limit), _number(limit))
        before = op.add(
            _shift(state.dual_x, columns=-1, mode="constant"),
            _shift(state.dual_y, rows=-1, mode="constant"),
        )
        divergence = op.sub(op.add(state.dual_x, state.dual_y), before)
        pulled = op.mul(divergence, _number(self._parameters.tau))
        return op.sum([state.flow, op.mul(linear.back, along), pulled])


def _summed(x: Var) -> Var:
    """Add the two channels of (N, 2, H, W) into (N, 1, H, W)."""
    return op.add(*op.split(x, num_outputs=2, axis=1))


def _with_gradient(image: Var) -> Var:
    """Return (N, 3, H, W): the image and its central differences, (x, y)."""
    half = _number(0.5)
    across = op.sub(_shift(image, columns=1), _shift(image, columns=-1))
    down = op.sub(_shift(image, rows=1), _shift(image, rows=-1))
    return op.concat([image, op.mul(across, half), op.mul(down, half)], axis=1)


def _power_of_two(side: int) -> int:
    return 1 << (side - 1).bit_length()


def _pad_to_power_of_two(x: Var, side: int) -> Var:
    more = _power_of_two(side) - side
    return op.pad(x, op.const(np.array([0, 0, 0, 0, 0, 0, more, more])))


_Exchange: TypeAlias = tuple[int, int]
_SORT: Final[Mapping[int, tuple[_Exchange, ...]]] = {
    3: ((0, 1), (1, 2), (0, 1)),
    5: ((0, 3), (1, 4), (0, 2), (1, 3), (0, 1), (2, 4), (1, 2), (3, 4), (2, 3)),
}
"""By the number of values: which two to put in order, one after another, until all are."""
_TAKE_MEDIAN: Final[Mapping[int, tuple[_Exchange, ...]]] = {
    3: ((0, 1), (1, 2), (3, 4), (4, 5), (3, 4), (7, 8), (6, 7), (2, 4), (4, 6), (2, 4)),
    5: (
        (0, 3),
        (1, 4),
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 4),
        (2, 3),
        (5, 8),
        (6, 9),
        (6, 8),
        (5, 6),
        (7, 9),
        (6, 7),
        (8, 9),
        (7, 8),
        (10, 13),
        (11, 14),
        (10, 12),
        (11, 13),
        (10, 11),
        (12, 14),
        (11, 12),
        (13, 14),
        (12, 13),
        (15, 18),
        (16, 19),
        (15, 17),
        (16, 18),
        (15, 16),
        (17, 19),
        (16, 17),
        (17, 18),
        (20, 23),
        (21, 24),
        (20, 22),
        (21, 23),
        (20, 21),
        (22, 24),
        (21, 22),
        (3, 16),
        (4, 17),
        (7, 20),
        (15, 12),
        (4, 11),
        (16, 9),
        (8, 16),
        (8, 12),
        (20, 11),
        (16, 13),
        (15, 16),
        (12, 16),
        (11, 21),
        (8, 20),
        (12, 11),
        (20, 16),
        (20, 12),
    ),
}
"""By the side of the window, whose columns are sorted: until the middle one is the median."""


def _median(x: Var, side: int) -> Var:
    """Filter every channel by the median of a square window, the border repeated.

    Columns are sorted once for all the windows that share them.
    """
    reach = side // 2
    offsets = range(-reach, reach + 1)
    columns = _sorted([_shift(x, rows=offset) for offset in offsets], _SORT[side])
    window = [_shift(rank, columns=offset) for rank in columns for offset in offsets]
    return _sorted(window, _TAKE_MEDIAN[side])[side * side // 2]


def _sorted(values: Sequence[Var], exchanges: Iterable[_Exchange]) -> list[Var]:
    """Put pairs of values in order. What nobody reads afterwards never enters the graph."""
    ordered = list(values)
    for low, high in exchanges:
        pair = [ordered[low], ordered[high]]
        ordered[low], ordered[high] = op.min(pair), op.max(pair)
    return ordered

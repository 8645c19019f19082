"""TV-L1 as ONNX against OpenCV's, against warps with known truth, and on fields solved by hand."""

import itertools
import subprocess
import sys
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from cuda_kernels import without_cuda_kernel

from model import tvl1 as tvl1_module
from model.errors import ModelError, ShapeError, SpecInvalid, SpecMismatch
from model.flow import compute_flow, magnitude
from model.flow_onnx import OnnxFlow, flow_model
from model.runtime import Placement
from model.spec import FlowMethod
from model.tvl1 import Tvl1Parameters, scale_sides

SIDE = 64
ONE_THREAD = Placement(threads=1)
Grey = np.ndarray[Any, np.dtype[np.uint8]]
Field = np.ndarray[Any, np.dtype[np.float32]]


def parameters(scales: int, warps: int, outer: int, inner: int, median: int) -> dict[str, Any]:
    return {
        "scalesNumber": scales,
        "scaleStep": 0.5,
        "warpingsNumber": warps,
        "outerIterations": outer,
        "innerIterations": inner,
        "medianFiltering": median,
        "epsilon": 0,  # OpenCV would end early, each pair by itself
    }


QUICK = parameters(2, 2, 2, 8, 1)
SETS = {
    "no median": parameters(3, 2, 2, 8, 1),
    "median 3": parameters(3, 2, 3, 10, 3),
    "median 5": parameters(3, 2, 2, 8, 5),
    "step 0.8": QUICK | {"scaleStep": 0.8, "scalesNumber": 3},
    "other weights": QUICK | {"tau": 0.2, "lambda": 0.05, "theta": 0.4},
}


@cache
def solver(name: str) -> OnnxFlow:
    return OnnxFlow.open(FlowMethod(algorithm="tvl1", parameters=SETS[name]), SIDE, ONE_THREAD)


def texture(seed: int, side: int = SIDE) -> Grey:
    noise = np.random.default_rng(seed).normal(0, 1, (side, side))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def swell(side: int = SIDE) -> Field:
    """A push to the right here, one upwards there, on a shift of the whole."""
    y, x = np.mgrid[:side, :side] / side
    across = 1.2 * np.exp(-((x - 0.35) ** 2 + (y - 0.4) ** 2) / 0.03)
    up = -1.4 * np.exp(-((x - 0.6) ** 2 + (y - 0.6) ** 2) / 0.03)
    return np.stack([across + 0.3, up - 0.2]).astype(np.float32)


def warp(image: Grey, flow: Field) -> Grey:
    """Return the apex for which apex(x + flow(x)) = image(x)."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    back = flow
    for _ in range(20):
        at = (x - back[0], y - back[1])
        back = np.stack([cv2.remap(c, *at, 1, borderMode=cv2.BORDER_REPLICATE) for c in flow])
    at = (x - back[0], y - back[1])
    return np.asarray(cv2.remap(image, *at, 2, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def assert_same_flow(ours: Field, theirs: Field) -> None:
    """A pixel whose brightness hardly changes can go either way; no more than one in a hundred."""
    difference = magnitude(ours - theirs)
    assert np.quantile(difference, 0.99) < 1e-3
    assert difference.max() < 0.1


@pytest.mark.parametrize("name", SETS)
def test_the_flow_is_that_of_opencv(name: str) -> None:
    onset = texture(1)
    apex = warp(onset, swell())
    method = FlowMethod(algorithm="tvl1", parameters=SETS[name])
    assert_same_flow(solver(name).solve(onset, apex), compute_flow(onset, apex, method))


@pytest.mark.parametrize("name", SETS)
def test_the_flow_is_as_near_to_the_truth_as_that_of_opencv(name: str) -> None:
    onset = texture(2)
    apex = warp(onset, swell())
    method = FlowMethod(algorithm="tvl1", parameters=SETS[name])
    ours, theirs = (
        magnitude(flow - swell()).mean()
        for flow in (solver(name).solve(onset, apex), compute_flow(onset, apex, method))
    )
    assert ours < 0.15
    assert ours < 1.01 * theirs


def test_opencv_s_own_defaults_give_its_flow_by_loops() -> None:
    side = 36
    onset = texture(3, side)
    apex = warp(onset, swell(side))
    method = FlowMethod(algorithm="tvl1", parameters={"epsilon": 0, "warpingsNumber": 2})
    ours = OnnxFlow.open(method, side, ONE_THREAD).solve(onset, apex)
    assert_same_flow(ours, compute_flow(onset, apex, method))


def test_a_loop_and_a_row_of_iterations_give_the_same_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    onset = texture(4)
    apex = warp(onset, swell())
    monkeypatch.setattr(tvl1_module, "_UNROLLED_OPERATORS", 0)
    method = FlowMethod(algorithm="tvl1", parameters=SETS["no median"])
    graph = flow_model(method, SIDE)
    assert "Loop" in {node.op_type for node in graph.graph.node}
    assert without_cuda_kernel(graph) == set()
    looped = OnnxFlow.open(method, SIDE, ONE_THREAD).solve(onset, apex)
    np.testing.assert_allclose(looped, solver("no median").solve(onset, apex), atol=1e-4)


@pytest.mark.parametrize("name", SETS)
def test_what_stands_still_has_no_flow_at_all(name: str) -> None:
    np.testing.assert_array_equal(solver(name).solve(texture(5), texture(5)), 0)


def test_pictures_without_any_texture_have_no_flow() -> None:
    black, white = np.zeros((SIDE, SIDE), np.uint8), np.full((SIDE, SIDE), 255, np.uint8)
    flow = solver("no median").solve(black, white)
    np.testing.assert_array_equal(flow, 0)


@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (2, 1)])
def test_a_shifted_picture_flows_by_its_shift(shift: tuple[int, int]) -> None:
    onset = texture(6)
    flow = solver("median 3").solve(onset, np.roll(onset, shift, axis=(1, 0)))
    inner = flow[:, 16:-16, 16:-16]
    np.testing.assert_allclose(np.median(inner, axis=(1, 2)), shift, atol=0.1)


def test_turned_pictures_have_the_turned_flow() -> None:
    onset = texture(7)
    apex = warp(onset, swell())
    upright = solver("median 3").solve(onset, apex)
    turned = solver("median 3").solve(onset.T.copy(), apex.T.copy())
    # Forward and backward differences look to the same side of both axes.
    np.testing.assert_allclose(turned, upright[::-1].transpose(0, 2, 1), atol=1e-3)


def test_a_pair_has_the_same_flow_in_every_batch() -> None:
    onsets = np.stack([texture(seed) for seed in range(3)])
    apexes = np.stack(
        [warp(onset, swell() * f) for onset, f in zip(onsets, (1, 0, -1), strict=True)]
    )
    together = solver("median 5").solve_batch(onsets, apexes)
    assert together.shape == (3, 2, SIDE, SIDE)
    for row, onset, apex in zip(together, onsets, apexes, strict=True):
        np.testing.assert_allclose(row, solver("median 5").solve(onset, apex), atol=1e-5)
    np.testing.assert_allclose(
        solver("median 5").solve_batch(onsets[::-1], apexes[::-1]), together[::-1], atol=1e-5
    )


@pytest.mark.parametrize("side", [3, 5])
def test_the_median_s_network_is_right_for_every_order(side: int) -> None:
    """By the 0-1 principle: on sorted columns of zeros and ones, in every number of each."""
    counts = np.array(list(itertools.product(range(side + 1), repeat=side)))
    window = np.stack([counts[:, c] >= side - r for r in range(side) for c in range(side)])
    for low, high in tvl1_module._TAKE_MEDIAN[side]:  # noqa: SLF001 - a table to be proven
        window[[low, high]] = window[low] & window[high], window[low] | window[high]
    np.testing.assert_array_equal(window[side * side // 2], 2 * counts.sum(1) > side * side)


def test_the_pyramid_has_opencv_s_sides() -> None:
    assert scale_sides(Tvl1Parameters(), 224) == [224, 179, 143, 114, 91]
    assert scale_sides(Tvl1Parameters(scale_step=0.5), 100) == [100, 50, 25]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"sparkle": 3}, "no parameter 'sparkle'"),
        ({"gamma": 1.0}, "no gamma but 0"),
        ({"useInitialFlow": True}, "no useInitialFlow but False"),
        ({"medianFiltering": 7}, "medianFiltering 1, 3 or 5"),
        ({"innerIterations": 2.5}, "whole number for innerIterations, not 2.5"),
        ({"tau": "0.25"}, "number for tau, not '0.25'"),
        ({"epsilon": "none"}, "number for epsilon, not 'none'"),
        ({"warpingsNumber": 40}, "at most 64 warps, not 80: 2 scales with warpingsNumber 40"),
    ],
)
def test_a_parameter_that_cannot_be_followed_is_named(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecInvalid, match=words):
        OnnxFlow.open(FlowMethod(algorithm="tvl1", parameters=QUICK | extra), SIDE, ONE_THREAD)


def test_medians_count_where_it_is_chosen_what_stands_in_a_row() -> None:
    rows, loops = (
        flow_model(FlowMethod(algorithm="tvl1", parameters=parameters(1, 1, 60, 1, side)), SIDE)
        for side in (1, 5)
    )
    assert "Loop" not in {node.op_type for node in rows.graph.node}
    assert "Loop" in {node.op_type for node in loops.graph.node}


def test_another_algorithm_is_refused() -> None:
    with pytest.raises(SpecMismatch, match="TV-L1, not dis"):
        OnnxFlow.open(FlowMethod(algorithm="dis"), SIDE, ONE_THREAD)


def test_pictures_of_another_size_are_a_shape_error() -> None:
    onset = texture(9)
    with pytest.raises(ShapeError, match=r"\(64, 64\)"):
        solver("no median").solve(onset, onset[:, 1:])
    with pytest.raises(ShapeError, match=r"\(64, 64\)"):
        solver("no median").solve(onset[1:, 1:], onset[1:, 1:])
    with pytest.raises(ShapeError, match="one or more"):
        solver("no median").solve_batch(onset[None][:0], onset[None][:0])


def test_without_spox_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spox", None)
    with pytest.raises(ModelError, match=r"needs spox: pip install 'mfdan\[onnx-flow\]'"):
        flow_model(FlowMethod(algorithm="tvl1", parameters=QUICK), SIDE)


def test_what_opens_a_flow_needs_no_spox_before() -> None:
    code = "import sys; sys.modules['spox'] = None; import model.flow_onnx"
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own words


@pytest.mark.parametrize("name", ["median 5", "step 0.8"])
def test_every_operator_has_a_kernel_on_cuda(name: str) -> None:
    graph = flow_model(FlowMethod(algorithm="tvl1", parameters=SETS[name]), SIDE)
    assert without_cuda_kernel(graph) == set()


def test_nothing_in_the_graph_may_be_rounded_to_tf32() -> None:
    graph = flow_model(FlowMethod(algorithm="tvl1", parameters=QUICK), SIDE)
    products = {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}
    assert not products & {node.op_type for node in graph.graph.node}


def nothing_runs_on_cuda() -> bool:
    """Whether a graph as small as can be is left to the CPU."""
    least = FlowMethod(algorithm="tvl1", parameters=parameters(1, 1, 1, 1, 1))
    return OnnxFlow.open(least, 16, Placement(device="cuda")).fell_back


@pytest.mark.skipif(
    nothing_runs_on_cuda(),
    reason="ONNX Runtime runs nothing on CUDA here: `mfdan doctor` says what is missing",
)
@pytest.mark.parametrize("name", SETS)
def test_a_gpu_gives_the_flow_of_the_cpu(name: str) -> None:
    method = FlowMethod(algorithm="tvl1", parameters=SETS[name])
    on_gpu = OnnxFlow.open(method, SIDE, Placement(device="cuda"))
    onset = texture(8)
    apex = warp(onset, swell())
    assert_same_flow(on_gpu.solve(onset, apex), solver(name).solve(onset, apex))

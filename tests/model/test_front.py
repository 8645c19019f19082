from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np
import pytest
from cuda_kernels import without_cuda_kernel
from onnx import ModelProto
from spox import Tensor, argument, build
from tiny_model import tiny_spec

from model.flow import remove_rigid_motion
from model.front import front
from model.pipeline import network_inputs
from model.runtime import Placement, Runtime
from model.spec import ModelSpec, Normalisation

SIDE = 90  # no multiple of what the fit skips
FLOW_PX, TENSOR, GREY_SHARE = 1e-4, 1e-4, 1e-3
SPEC = tiny_spec(input_size=SIDE)


def graph(spec: ModelSpec) -> ModelProto:
    side = spec.input_size
    inputs = {
        "onset": argument(Tensor(np.uint8, ("batch", side, side, 3))),
        "total": argument(Tensor(np.float32, ("batch", 2, side, side))),
        "face": argument(Tensor(np.bool_, ("batch", side, side))),
    }
    made = front(inputs["onset"], inputs["total"], inputs["face"], spec)
    outputs = {
        "image": made.image,
        "flow": made.flow_tensor,
        "residual": made.residual,
        "head": made.head,
    }
    return build(inputs, outputs)


@cache
def runtime(spec: str) -> Runtime:
    return Runtime.open(
        graph(ModelSpec.from_json(spec)).SerializeToString(), "front", Placement(threads=1)
    )


@dataclass(frozen=True)
class Made:
    image: np.ndarray
    flow: np.ndarray
    residual: np.ndarray
    head: np.ndarray


def run(
    onset: np.ndarray, total: np.ndarray, face: np.ndarray, spec: ModelSpec = SPEC
) -> list[Made]:
    outputs = ("image", "flow", "residual", "head")
    rows = runtime(spec.to_json()).run(outputs, {"onset": onset, "total": total, "face": face})
    return [Made(*row) for row in zip(*rows, strict=True)]


def smooth(seed: int, peak: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(SIDE, SIDE, 2)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 9)
    return np.ascontiguousarray((blurred / abs(blurred).max() * peak).transpose(2, 0, 1))


def head_motion(shift: float, turn: float, zoom: float) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return np.float32([shift + zoom * x - turn * y, -shift + turn * x + zoom * y])


def oval(width: int = 30) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    return cv2.ellipse(mask, (46, 42), (width, 38), 0, 0, 360, 1, -1).astype(bool)


def picture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 1.5), None, 0, 255, cv2.NORM_MINMAX)


FLOWS = {
    "nothing": np.zeros((2, SIDE, SIDE), np.float32),
    "noise": np.random.default_rng(0).normal(0, 0.1, (2, SIDE, SIDE)).astype(np.float32),
    "expression": smooth(1, 1.5),
    "head": head_motion(2, 0.03, -0.02),
    "expression of a moving head": smooth(2, 1.5) + head_motion(-1, 0.02, 0.01),
    "out of the picture": smooth(3, 9),
}


def assert_same(made: Made, onset: np.ndarray, total: np.ndarray, face: np.ndarray) -> None:
    flow, head = remove_rigid_motion(total, face)
    image, tensor = network_inputs(onset, flow, SPEC)
    np.testing.assert_allclose(made.residual, flow, atol=FLOW_PX)
    motion = [head.shift_x, head.shift_y, head.turn, head.zoom, head.mean_px]
    np.testing.assert_allclose(made.head, motion, atol=FLOW_PX)
    np.testing.assert_allclose(made.flow, tensor, atol=TENSOR)
    apart = abs(made.image - image) * 127.5
    assert apart.max() < 1.001
    assert (apart > 0.5).mean() < GREY_SHARE


def test_a_batch_equals_what_the_numpy_functions_make_of_each_pair() -> None:
    totals = np.stack(list(FLOWS.values()))
    onsets = np.stack([picture(seed) for seed in range(len(totals))])
    faces = np.stack([oval(width) for width in range(20, 20 + len(totals))])
    rows = run(onsets, totals, faces)
    for row, onset, total, face in zip(rows, onsets, totals, faces, strict=True):
        assert_same(row, onset, total, face)


@pytest.mark.parametrize("samples", [0, 1, 2, 3, 4, 7, 8])
def test_the_head_is_fitted_to_as_few_samples_as_the_mask_leaves(samples: int) -> None:
    face = np.zeros((SIDE, SIDE), bool)
    places = np.random.default_rng(samples).permutation(23 * 23)[:samples]
    face[places // 23 * 4, places % 23 * 4] = True
    total = FLOWS["expression of a moving head"]
    (row,) = run(picture(0)[None], total[None], face[None])
    _, head = remove_rigid_motion(total, face)
    motion = [head.shift_x, head.shift_y, head.turn, head.zoom, head.mean_px]
    np.testing.assert_allclose(row.head, motion, atol=1e-3)


def test_what_moves_in_a_few_places_does_not_count_as_head() -> None:
    total = head_motion(2, 0.03, 0.01)
    total[:, 60:80, 30:60] += 3
    (row,) = run(picture(0)[None], total[None], np.ones((1, SIDE, SIDE), bool))
    np.testing.assert_allclose(row.head[:4], [2, -2, 0.03, 0.01], atol=0.02)


def test_no_row_depends_on_another() -> None:
    onsets = np.stack([picture(seed) for seed in range(3)])
    totals = np.stack([smooth(seed, 2) for seed in range(3)])
    faces = np.stack([oval(width) for width in (20, 25, 30)])
    together = run(onsets, totals, faces)
    for place in range(3):
        (alone,) = run(onsets[[place]], totals[[place]], faces[[place]])
        np.testing.assert_allclose(alone.residual, together[place].residual, atol=1e-6)
        np.testing.assert_allclose(alone.flow, together[place].flow, atol=1e-6)
        np.testing.assert_array_equal(alone.image, together[place].image)


@pytest.mark.parametrize("percentile", [0.5, 30.0, 50.0, 95.0, 99.9, 100.0])
def test_any_percentile_is_numpys(percentile: float) -> None:
    spec = replace(
        SPEC,
        normalisation=Normalisation(percentile=percentile, flow_floor=1e-3, strain_floor=1e-4),
    )
    total, face = smooth(5, 2), oval()
    (row,) = run(picture(0)[None], total[None], face[None], spec)
    _, tensor = network_inputs(picture(0), remove_rigid_motion(total, face)[0], spec)
    np.testing.assert_allclose(row.flow, tensor, atol=TENSOR)


def test_without_magnification_the_apex_is_made_as_the_flow_explains_it() -> None:
    spec = replace(SPEC, magnification=0.0)
    total, face = smooth(6, 3), oval()
    (row,) = run(picture(0)[None], total[None], face[None], spec)
    image, _ = network_inputs(picture(0), remove_rigid_motion(total, face)[0], spec)
    assert abs(row.image - image).max() * 127.5 < 1.001


def test_every_operator_has_a_kernel_for_cuda() -> None:
    assert not without_cuda_kernel(graph(SPEC))

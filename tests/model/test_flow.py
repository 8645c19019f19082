"""Fields solved by hand, on arrays that are never square, and warps with known truth."""

import numpy as np
import pytest
from drawn_warp import bump, grid, texture, warp
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ShapeError
from model.flow import compute_flow, magnitude, optical_strain, remove_rigid_motion, to_grey
from model.spec import DEFAULT_FLOW, FlowMethod

SHAPE = HEIGHT, WIDTH = 96, 128
METHODS = {
    "tvl1": FlowMethod(algorithm="tvl1", parameters={"scalesNumber": 3, "warpingsNumber": 2}),
    "farneback": FlowMethod(algorithm="farneback"),
    "dis": FlowMethod(algorithm="dis"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (2, 1)])
def test_a_shifted_picture_flows_by_its_shift(name: str, shift: tuple[int, int]) -> None:
    onset = texture(SHAPE)
    apex = np.roll(onset, shift, axis=(1, 0))
    flow = compute_flow(onset, apex, METHODS[name])
    assert flow.shape == (2, HEIGHT, WIDTH)
    assert flow.dtype == np.float32
    inner = flow[:, 16:-16, 16:-16]
    np.testing.assert_allclose(np.median(inner, axis=(1, 2)), shift, atol=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_a_small_known_warp_is_found_to_a_quarter_of_its_peak(name: str) -> None:
    truth = np.stack([bump(SHAPE, 0.8, (45, 40)), bump(SHAPE, -1.2, (80, 55))]).astype(np.float32)
    onset = texture(SHAPE, 1)
    flow = compute_flow(onset, warp(onset, truth), METHODS[name])
    error, length = magnitude(flow - truth), magnitude(truth)
    peak = length.max()
    assert error[length > 0.3 * peak].mean() < 0.25 * peak
    assert error[length < 0.02 * peak].mean() < 0.12 * peak


def test_the_same_frame_twice_does_not_flow() -> None:
    assert np.abs(compute_flow(texture(SHAPE), texture(SHAPE), DEFAULT_FLOW)).max() < 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_parameter_is_named(name: str) -> None:
    method = FlowMethod(algorithm=METHODS[name].algorithm, parameters={"sparkle": 3})
    with pytest.raises(ValueError, match="sparkle"):
        compute_flow(texture(SHAPE), texture(SHAPE), method)


def test_frames_of_two_sizes_are_a_shape_error() -> None:
    with pytest.raises(ShapeError):
        compute_flow(texture(SHAPE), texture(SHAPE)[:-1], DEFAULT_FLOW)


def test_a_flow_that_no_cpu_has_is_refused() -> None:
    with pytest.raises(ValueError, match="brox"):
        compute_flow(texture(SHAPE), texture(SHAPE), FlowMethod(algorithm="brox"))


def test_magnitude_of_three_and_four_is_five() -> None:
    flow = np.stack([np.full((3, 5), 3.0), np.full((3, 5), -4.0)]).astype(np.float32)
    np.testing.assert_array_equal(magnitude(flow), np.full((3, 5), 5.0))


def test_horizontal_stretch_has_constant_strain() -> None:
    x, _ = grid((24, 32))
    np.testing.assert_allclose(
        optical_strain(np.stack([0.1 * x, 0 * x])), np.full((24, 32), 0.1), atol=1e-6
    )


def test_vertical_stretch_has_constant_strain() -> None:
    x, y = grid((24, 32))
    np.testing.assert_allclose(
        optical_strain(np.stack([0 * x, 0.2 * y])), np.full((24, 32), 0.2), atol=1e-6
    )


def test_shear_counts_half_its_square() -> None:
    x, y = grid((24, 32))
    strain = optical_strain(np.stack([0.1 * y, 0.1 * x]))
    np.testing.assert_allclose(strain, np.full((24, 32), np.sqrt(0.5) * 0.2), atol=1e-6)


@given(turn=st.floats(-0.05, 0.05), sx=st.floats(-3, 3), sy=st.floats(-3, 3))
def test_shift_and_small_rotation_have_no_strain(turn: float, sx: float, sy: float) -> None:
    x, y = grid((24, 32))
    flow = np.stack([sx - turn * y, sy + turn * x]).astype(np.float32)
    assert optical_strain(flow).max() < 1e-5


@given(
    sx=st.floats(-3, 3),
    sy=st.floats(-3, 3),
    turn=st.floats(-0.02, 0.02),
    zoom=st.floats(-0.02, 0.02),
)
def test_rigid_motion_is_removed_whole(sx: float, sy: float, turn: float, zoom: float) -> None:
    x, y = grid(SHAPE)
    x, y = x - (WIDTH - 1) / 2, y - (HEIGHT - 1) / 2
    flow = np.stack([sx + zoom * x - turn * y, sy + turn * x + zoom * y]).astype(np.float32)
    residual, head = remove_rigid_motion(flow)
    assert np.abs(residual).max() < 1e-3
    np.testing.assert_allclose(
        (head.shift_x, head.shift_y, head.turn, head.zoom), (sx, sy, turn, zoom), atol=1e-4
    )
    np.testing.assert_allclose(head.mean_px, magnitude(flow).mean(), rtol=1e-3, atol=1e-3)


def test_what_was_removed_and_what_is_left_make_the_whole() -> None:
    x, y = grid(SHAPE)
    flow = np.stack([0.5 + 0.01 * x - 0.02 * y, bump(SHAPE, 1.0, (40, 50))]).astype(np.float32)
    residual, head = remove_rigid_motion(flow)
    np.testing.assert_allclose(residual + head.over(residual), flow, atol=1e-6)


def test_an_expression_is_not_taken_for_the_head() -> None:
    expression = np.stack([bump(SHAPE, 0, (0, 0)), bump(SHAPE, 2.0, (40, 60), spread=10)]).astype(
        np.float32
    )
    head = np.broadcast_to(np.float32([[[1.5]], [[-0.5]]]), expression.shape)
    residual, found = remove_rigid_motion(expression + head)
    np.testing.assert_allclose((found.shift_x, found.shift_y), (1.5, -0.5), atol=0.05)
    np.testing.assert_allclose(residual, expression, atol=0.1)


def test_the_rigid_fit_looks_only_where_the_mask_says() -> None:
    flow = np.zeros((2, HEIGHT, WIDTH), np.float32)
    flow[0, :, WIDTH // 3 :] = 2.0  # a background that moves, and more of it than face
    face = np.zeros((HEIGHT, WIDTH), bool)
    face[:, : WIDTH // 3] = True
    residual, head = remove_rigid_motion(flow, face)
    assert head.mean_px < 1e-4
    assert np.abs(residual[:, face]).max() < 1e-4


@pytest.mark.parametrize("shape", [(3, 8, 9), (8, 9), (2, 8)])
def test_what_is_not_a_flow_field_is_a_shape_error(shape: tuple[int, ...]) -> None:
    field = np.zeros(shape, np.float32)
    for function in (magnitude, optical_strain, remove_rigid_motion):
        with pytest.raises(ShapeError):
            function(field)


def test_luma_weighs_green_most() -> None:
    colours = np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]])
    np.testing.assert_allclose(to_grey(colours), [[76, 150, 29]], atol=1)

"""Augmentation, on fields that can be solved by hand."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from drawn_pairs import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.magnify import carry, magnify
from training.augment import (
    augment,
    flow_noise,
    image_noise,
    mirror,
    relight,
    reverse_time,
    similarity,
)

HEIGHT, WIDTH = 96, 128


def smooth(channels: int, seed: int, grain: float = 9.0) -> NDArray[np.float32]:
    """Smooth random fields (H, W, channels), each of standard deviation 1."""
    drawn = np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH, channels), np.float32)
    field = cv2.GaussianBlur(drawn, (0, 0), grain).reshape(HEIGHT, WIDTH, channels)
    return np.asarray(field / field.std(axis=(0, 1)), np.float32)


def smooth_pair(seed: int, pixels: float = 1.0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    onset = np.clip(128 + 40 * smooth(3, seed, 5.0), 0, 255).astype(np.uint8)
    return onset, np.ascontiguousarray(pixels * smooth(2, seed + 1).transpose(2, 0, 1))


def constant(u: float, v: float, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.float32]:
    flow = np.empty((2, height, width), np.float32)
    flow[0], flow[1] = u, v
    return flow


def blank(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    return np.zeros((height, width, 3), np.uint8)


def interior(picture: NDArray[np.generic], margin: int) -> NDArray[np.float64]:
    return picture[..., margin:-margin, margin:-margin].astype(np.float64)


def test_mirroring_turns_u_round_and_keeps_v() -> None:
    onset = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    flow = np.arange(2 * 2 * 3, dtype=np.float32).reshape(2, 2, 3)
    mirrored_onset, mirrored_flow = mirror(onset, flow)
    np.testing.assert_array_equal(mirrored_onset[0, 0], onset[0, 2])
    np.testing.assert_array_equal(mirrored_flow[0], [[-2, -1, 0], [-5, -4, -3]])
    np.testing.assert_array_equal(mirrored_flow[1], [[8, 7, 6], [11, 10, 9]])


@given(seed=st.integers(0, 1000))
def test_mirroring_twice_changes_nothing(seed: int) -> None:
    onset, flow = smooth_pair(seed)
    for twice, once in zip(mirror(*mirror(onset, flow)), (onset, flow), strict=True):
        np.testing.assert_array_equal(twice, once)


def test_a_quarter_turn_makes_motion_to_the_right_motion_downwards() -> None:
    _, flow = similarity(blank(), constant(1, 0), degrees=90.0, zoom=1.0, shift=(0, 0))
    np.testing.assert_allclose(flow, constant(0, 1), atol=1e-6)


def test_zooming_by_half_as_much_again_lengthens_vectors_likewise() -> None:
    _, flow = similarity(blank(), constant(2, -1), degrees=0.0, zoom=1.5, shift=(0, 0))
    np.testing.assert_allclose(flow, constant(3, -1.5), atol=1e-6)


def test_a_quarter_turn_takes_the_right_border_to_the_bottom() -> None:
    onset = blank(64, 64)
    onset[20, 50] = 255
    flow = np.zeros((2, 64, 64), np.float32)
    flow[:, 20, 50] = 3, 5
    turned, moved = similarity(onset, flow, degrees=90.0, zoom=1.0, shift=(0, 0))
    # (x, y) = (50, 20) → (63 - 20, 50)
    assert np.argwhere(turned[..., 0] > 200).tolist() == [[50, 43]]
    np.testing.assert_allclose(moved[:, 50, 43], [-5, 3], atol=1e-3)


def test_a_shift_moves_picture_and_field_and_leaves_vectors_alone() -> None:
    onset, flow = smooth_pair(3)
    moved_onset, moved_flow = similarity(onset, flow, degrees=0.0, zoom=1.0, shift=(7, -4))
    np.testing.assert_array_equal(moved_onset[:-4, 7:], onset[4:, :-7])
    np.testing.assert_allclose(moved_flow[:, :-4, 7:], flow[:, 4:, :-7], atol=1e-6)


def test_a_zoom_keeps_the_middle_and_doubles_distances_from_it() -> None:
    flow = np.zeros((2, 65, 97), np.float32)
    flow[0] = np.arange(97) - 48  # u is the distance from the middle
    _, moved = similarity(blank(65, 97), flow, degrees=0.0, zoom=2.0, shift=(0, 0))
    np.testing.assert_allclose(moved[0], flow[0], atol=1e-4)  # half the distance, twice as long


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    degrees=st.floats(-45, 45),
    zoom=st.floats(0.8, 1.3),
    x=st.floats(-8, 8),
    y=st.floats(-8, 8),
)
def test_onset_and_apex_are_moved_alike(
    seed: int, degrees: float, zoom: float, x: float, y: float
) -> None:
    """The apex of the moved pair is the moved apex: flow and picture still tell one story."""
    onset, flow = smooth_pair(seed, pixels=1.5)
    how = {"degrees": degrees, "zoom": zoom, "shift": (x, y)}
    apex = magnify(onset, flow, 0.0)
    moved_apex, _ = similarity(apex, flow, **how)
    explained = magnify(*similarity(onset, flow, **how), 0.0)
    # Inside, where no border was repeated: what comes from outside has no right answer.
    seen, _ = similarity(np.full_like(onset, 255) * _inner_mask(), flow, **how)
    inside = seen[..., 0] == 255
    gap = np.abs(explained.astype(float) - moved_apex)[inside]
    unmoved = np.abs(explained.astype(float) - similarity(onset, flow, **how)[0])[inside]
    assert gap.mean() < 1.0
    assert gap.mean() < 0.2 * unmoved.mean()


def _inner_mask() -> NDArray[np.uint8]:
    mask = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    mask[12:-12, 12:-12] = 1
    return mask


def test_carrying_takes_each_vector_to_where_it_arrives() -> None:
    flow = np.zeros((2, 48, 64), np.float32)
    flow[0] = 0.25 * np.arange(64)  # x → 1.25 x, so at y stands y / 5
    carried = carry(flow)
    np.testing.assert_allclose(carried[0, :, :60], np.tile(np.arange(60) / 5, (48, 1)), atol=0.02)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_reversing_time_twice_gives_the_flow_back(seed: int) -> None:
    onset, flow = smooth_pair(seed, pixels=0.7)
    back_onset, back_flow = reverse_time(*reverse_time(onset, flow))
    np.testing.assert_allclose(interior(back_flow, 10), interior(flow, 10), atol=0.05)
    assert np.abs(interior(back_onset[..., 0], 10) - interior(onset[..., 0], 10)).mean() < 0.5


def test_a_reversed_pair_begins_with_the_apex_and_ends_with_the_onset() -> None:
    onset, flow = smooth_pair(5, pixels=1.5)
    apex = magnify(onset, flow, 0.0)
    begin, back = reverse_time(onset, flow)
    np.testing.assert_array_equal(begin, apex)
    ended = interior(magnify(begin, back, 0.0)[..., 0], 10)
    start = interior(onset[..., 0], 10)
    assert np.abs(ended - start).mean() < 0.2 * np.abs(interior(apex[..., 0], 10) - start).mean()


def test_light_scales_about_the_middle_grey() -> None:
    onset = np.array([[[100, 127, 200]]], np.uint8)
    np.testing.assert_array_equal(relight(onset, 2.0, 1.0)[0, 0], [72, 126, 255])
    np.testing.assert_array_equal(relight(onset, 1.0, 1.1)[0, 0], [113, 140, 213])


def test_image_noise_has_the_given_deviation_and_keeps_the_mean() -> None:
    noisy = image_noise(np.full((80, 120, 3), 128, np.uint8), 6.0, np.random.default_rng(0))
    assert noisy.std() == pytest.approx(6.0, rel=0.03)
    assert noisy.mean() == pytest.approx(128, abs=0.1)


def test_image_noise_stays_within_the_levels() -> None:
    onset = np.where(np.arange(60)[:, None, None] % 2, 255, 0).astype(np.uint8)
    noisy = image_noise(np.broadcast_to(onset, (60, 40, 3)), 20.0, np.random.default_rng(0))
    # Wrapping round would turn white into black.
    assert noisy[1::2].min() > 128 > noisy[::2].max()


def test_flow_noise_has_the_given_size_and_is_smooth() -> None:
    noisy = flow_noise(constant(1, -2), 0.5, np.random.default_rng(0))
    noise = noisy - constant(1, -2)
    np.testing.assert_allclose(np.sqrt((noise**2).mean(axis=(1, 2))), 0.5, rtol=1e-4)
    assert np.abs(np.diff(noise, axis=2)).max() < 0.25
    assert not np.array_equal(noise[0], noise[1])


def test_a_config_without_the_later_fields_draws_what_it_always_drew() -> None:
    onset, flow = smooth_pair(1)
    config = replace(TINY, flip_probability=0.5, brightness=0.2)
    flips = set()
    for number in range(8):
        changed_onset, changed_flow, alpha = augment(
            onset, flow, config, np.random.default_rng((config.seed, number))
        )
        random = np.random.default_rng((config.seed, number))
        flips.add(flip := random.random() < 0.5)
        expected = mirror(onset, flow) if flip else (onset, flow)
        contrast, brightness = random.uniform(0.8, 1.2, size=2)
        np.testing.assert_array_equal(changed_onset, relight(expected[0], contrast, brightness))
        np.testing.assert_array_equal(changed_flow, expected[1])
        assert alpha == random.uniform(config.alpha_min, config.alpha_max)
    assert flips == {True, False}


@pytest.mark.parametrize(
    "change",
    [
        {"rotation_degrees": 10.0},
        {"zoom": 0.1},
        {"shift": 0.1},
        {"image_noise": 5.0},
        {"flow_noise_px": 0.5},
        {"time_reversal_probability": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_later_field_changes_the_pair_and_none_of_what_is_drawn_before_it(
    change: dict[str, float],
) -> None:
    onset, flow = smooth_pair(1)
    plain = replace(TINY, flip_probability=0.0)
    before = augment(onset, flow, plain, np.random.default_rng(4))
    after = augment(onset, flow, replace(plain, **change), np.random.default_rng(4))
    assert before[2] == after[2]
    same = [np.array_equal(one, other) for one, other in zip(before[:2], after[:2], strict=True)]
    assert same == [next(iter(change)) == "flow_noise_px", next(iter(change)) == "image_noise"]
    assert (after[0].shape, after[0].dtype) == (onset.shape, np.uint8)
    assert (after[1].shape, after[1].dtype) == (flow.shape, np.float32)


def test_a_zoom_of_the_config_goes_both_ways_and_no_further() -> None:
    config = replace(TINY, flip_probability=0.0, zoom=0.2)
    field = np.zeros((2, 65, 65), np.float32)
    field[:] = 1.0
    sizes = [
        augment(blank(65, 65), field, config, np.random.default_rng(number))[1][0, 32, 32]
        for number in range(60)
    ]
    assert 0.8 <= min(sizes) < 0.85
    assert 1.15 < max(sizes) <= 1.2

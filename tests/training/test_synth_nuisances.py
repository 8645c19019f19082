from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from training.nuisances import (
    Camera,
    Light,
    Shot,
    draw_camera,
    draw_head,
    draw_light,
    encode,
    expose,
)

PLAIN = Camera(
    eye_distance=85.0,
    side=3.0,
    angle=0.0,
    shift=(0.0, 0.0),
    grey=False,
    gain=1.0,
    gamma=1.0,
    cast=(1.0, 1.0, 1.0),
    defocus=0.0,
    read_noise=0.0,
    shot_noise=0.0,
    quality=95,
)
STEADY = Light(gain=1.0, gamma=1.0, slope=(0.0, 0.0))
SHARP = Shot(blur_length=0.0, blur_angle=0.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def scene(level: float = 100.0) -> NDArray[np.float32]:
    return np.full((60, 80, 3), level, np.float32)


def test_a_plain_camera_records_the_scene() -> None:
    picture = rng().integers(0, 256, (60, 80, 3)).astype(np.float32)
    recorded = expose(picture, PLAIN, STEADY, SHARP, rng())
    np.testing.assert_array_equal(recorded, picture)


def test_noise_has_the_asked_spread() -> None:
    camera = replace(PLAIN, read_noise=2.0, shot_noise=0.05)
    recorded = expose(scene(), camera, STEADY, SHARP, rng()).astype(float)
    assert recorded.mean() == pytest.approx(100, abs=0.1)
    # read² + shot · level + rounding
    assert recorded.var() == pytest.approx(4 + 5 + 1 / 12, rel=0.05)


def test_two_exposures_have_their_own_noise() -> None:
    camera, source = replace(PLAIN, read_noise=2.0), rng()
    first, second = (expose(scene(), camera, STEADY, SHARP, source) for _ in range(2))
    assert (first != second).any()


def test_light_may_fall_from_one_side() -> None:
    lit = expose(scene(), PLAIN, replace(STEADY, slope=(0.1, 0.0)), SHARP, rng())
    np.testing.assert_array_equal(lit[0, [0, -1], 0], [95, 105])


def test_cast_colours_and_grey_has_none() -> None:
    warm = replace(PLAIN, cast=(0.9, 1.0, 1.1))
    np.testing.assert_array_equal(expose(scene(), warm, STEADY, SHARP, rng())[0, 0], [90, 100, 110])
    grey = expose(scene(), replace(warm, grey=True), STEADY, SHARP, rng())
    assert grey.shape == (60, 80)
    assert (grey == 100).all()


def test_motion_blurs_along_its_direction_only() -> None:
    stripes = scene(50.0)
    stripes[:, 40:] = 150.0
    along = expose(stripes, PLAIN, STEADY, Shot(blur_length=2.0, blur_angle=np.pi / 2), rng())
    np.testing.assert_array_equal(along, stripes)
    across = expose(stripes, PLAIN, STEADY, Shot(blur_length=2.0, blur_angle=0.0), rng())
    assert 50 < across[30, 39, 0] < 100 < across[30, 40, 0] < 150


def test_drawn_motion_stays_a_micro_motion() -> None:
    source = rng()
    for _ in range(200):
        head = draw_head(source)
        assert np.hypot(*head.shift) <= 1.5
        assert np.hypot(*head.turn) <= 0.6
        assert abs(head.angle) <= 0.01
        light = draw_light(source)
        assert abs(light.gain - 1) <= 0.05


def test_drawn_cameras_differ_in_colour_and_compression() -> None:
    source = rng()
    cameras = [draw_camera(source) for _ in range(100)]
    assert {camera.grey for camera in cameras} == {True, False}
    assert all(70 <= camera.quality <= 97 for camera in cameras)
    assert len({camera.quality for camera in cameras}) > 10


def test_lower_quality_makes_smaller_files_of_the_same_shape() -> None:
    noisy = expose(scene(), replace(PLAIN, read_noise=5.0), STEADY, SHARP, rng())
    small, large = encode(noisy, 70), encode(noisy, 97)
    assert len(small) < len(large)
    decoded = cv2.imdecode(np.frombuffer(small, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == noisy.shape

import numpy as np
import pytest

from model.errors import ShapeError
from model.magnify import magnify

HEIGHT, WIDTH = 60, 90


def ramp() -> np.ndarray:
    """Grey that grows by two a pixel to the right: a shift of one pixel takes two away."""
    row = np.arange(WIDTH, dtype=np.uint8) * 2
    return np.repeat(np.tile(row, (HEIGHT, 1))[..., None], 3, axis=2)


def constant(u: float, v: float) -> np.ndarray:
    return np.broadcast_to(np.float32([[[u]], [[v]]]), (2, HEIGHT, WIDTH)).copy()


@pytest.mark.parametrize("alpha", [0, 1, 4])
def test_a_shift_is_multiplied_by_one_plus_alpha(alpha: int) -> None:
    moved = magnify(ramp(), constant(1, 0), alpha)
    inner = moved[:, 12:-4, 0].astype(int)
    np.testing.assert_array_equal(inner, ramp()[:, 12:-4, 0].astype(int) - 2 * (1 + alpha))


def test_downward_flow_moves_the_picture_down() -> None:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[20, 40] = 255
    moved = magnify(picture, constant(0, 2), 1)
    assert np.unravel_index(moved[..., 0].argmax(), (HEIGHT, WIDTH)) == (24, 40)


def test_no_flow_returns_the_onset() -> None:
    np.testing.assert_array_equal(magnify(ramp(), constant(0, 0), 7), ramp())


def test_a_point_of_a_smooth_field_lands_where_its_own_flow_says() -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    peak = np.exp(-((x - 40) ** 2 + (y - 30) ** 2) / (2 * 12**2))
    flow = np.stack([0 * peak, 1.5 * peak]).astype(np.float32)
    # Shade the onset by height: the shade found below the bump tells where it came from.
    shade = np.repeat((3 * y).astype(np.uint8)[..., None], 3, axis=2)
    moved = magnify(shade, flow, 2)
    # The bump's centre moves (1 + 2) times 1.5 down, from row 30 to row 34.5.
    below, above = moved[34, 40, 0], moved[35, 40, 0]
    assert below / 3 < 30 + 0.2
    assert above / 3 > 30 - 0.2


def test_flow_of_another_size_is_a_shape_error() -> None:
    with pytest.raises(ShapeError):
        magnify(ramp(), constant(0, 0)[:, :-1], 1)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ShapeError
from model.spec import Normalisation
from model.tensors import flow_tensor, image_tensor

HEIGHT, WIDTH = 24, 32
PLAIN = Normalisation(percentile=100, flow_floor=0.5, strain_floor=0.05)


def test_black_is_minus_one_and_white_is_one() -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, 16:] = 255
    tensor = image_tensor(image)
    assert tensor.shape == (3, HEIGHT, WIDTH)
    assert tensor.dtype == np.float32
    assert (tensor[..., :16] == -1).all()
    assert (tensor[..., 16:] == 1).all()


def test_channels_stay_red_green_blue() -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 0] = 255
    np.testing.assert_array_equal(image_tensor(image).mean(axis=(1, 2)), [1, -1, -1])


def stretch(rate: float) -> np.ndarray:
    x = np.arange(WIDTH, dtype=np.float32) * rate
    return np.stack([np.tile(x, (HEIGHT, 1)), np.zeros((HEIGHT, WIDTH))]).astype(np.float32)


def test_u_v_and_strain_are_scaled_by_hand_computed_values() -> None:
    tensor = flow_tensor(stretch(0.1), PLAIN)  # peak 3.1 px, strain 0.1 everywhere
    assert tensor.shape == (3, HEIGHT, WIDTH)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0, 5], np.arange(WIDTH) / 31, atol=1e-6)
    np.testing.assert_array_equal(tensor[1], 0)
    np.testing.assert_allclose(tensor[2], 1, atol=1e-5)


def test_u_and_v_share_one_scale_so_that_directions_survive() -> None:
    flow = np.stack([np.full((HEIGHT, WIDTH), 3.0), np.full((HEIGHT, WIDTH), -4.0)])
    tensor = flow_tensor(flow.astype(np.float32), PLAIN)
    np.testing.assert_allclose(tensor[:, 0, 0], [0.6, -0.8, 0], atol=1e-6)


def test_a_near_static_pair_is_not_stretched_to_full_scale() -> None:
    tensor = flow_tensor(stretch(0.001), PLAIN)  # peak 0.031 px, floor 0.5 px
    assert np.abs(tensor[0]).max() == pytest.approx(0.062)
    assert tensor[2].max() == pytest.approx(0.001 / 0.05, rel=1e-3)


@given(factor=st.floats(1, 20))
def test_above_the_floors_the_tensor_forgets_the_size_of_the_motion(factor: float) -> None:
    np.testing.assert_allclose(
        flow_tensor(stretch(0.1 * factor), PLAIN), flow_tensor(stretch(0.1), PLAIN), atol=1e-4
    )


def test_a_grey_image_is_a_shape_error() -> None:
    with pytest.raises(ShapeError):
        image_tensor(np.zeros((HEIGHT, WIDTH), np.uint8))

import numpy as np
import pytest
from drawn_face import draw_face
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ShapeError
from model.lids import LID_SHARE, lid_rise
from model.pipeline import Preprocessor
from model.spec import ModelSpec, Provenance

SPEC = ModelSpec(
    name="tiny",
    version="1",
    classes=("negative", "positive", "surprise"),
    provenance=Provenance(data="none", licence="MIT", training_commit="abc"),
)
STILL = draw_face()
PREPROCESSOR = Preprocessor(SPEC)
(PAIR,) = PREPROCESSOR.align_pair(STILL, STILL)
LEFT = slice(112, 224)


def test_the_lid_that_rose_more_is_told() -> None:
    flow = np.zeros((2, 224, 224), np.float32)
    flow[1] = -0.5
    flow[1, :, LEFT] = -2.0
    flow[0] = 3.0  # sideways is the gaze
    assert lid_rise(flow, PAIR.landmarks) == 2.0


@given(down=st.floats(0, 30), aside=st.floats(-30, 30))
def test_lids_that_close_or_look_aside_have_not_risen(down: float, aside: float) -> None:
    flow = np.zeros((2, 224, 224), np.float32)
    flow[0], flow[1] = aside, down
    assert lid_rise(flow, PAIR.landmarks) == 0


def test_lids_outside_of_the_crop_have_not_risen() -> None:
    flow = np.full((2, 60, 60), -3.0, np.float32)
    assert lid_rise(flow, PAIR.landmarks) == 0


def test_widened_eyes_move_a_face_and_closing_ones_do_not() -> None:
    half = draw_face(lids=0.4)
    (opening,) = PREPROCESSOR.align_pair(half, STILL)
    (closing,) = PREPROCESSOR.align_pair(STILL, half)
    rise = lid_rise(opening.flow, opening.landmarks)
    assert opening.motion.moved_px == pytest.approx(LID_SHARE * rise)
    assert opening.motion.moved_px > 0.5
    assert closing.motion.moved_px < 0.2


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="468"):
        lid_rise(np.zeros((2, 9, 9), np.float32), np.zeros((9, 2), np.float32))

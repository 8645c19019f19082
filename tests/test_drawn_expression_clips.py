import cv2
import numpy as np
import pytest
from drawn_expression_clips import Movement, drawn_clip
from numpy.typing import NDArray

from model.face import FaceFinder

MOUTH_AND_BROWS = {"smile": (61, 291), "brow_lift": (105, 334)}


def upward(clip: list[NDArray[np.uint8]], frame: int, movement: Movement) -> float:
    """Return how far a place on the face went up since the first frame, pixels of the frame."""
    face = FaceFinder().find(clip[0])[0].landmarks
    grey = [cv2.cvtColor(clip[place], cv2.COLOR_RGB2GRAY) for place in (0, frame)]
    flow = cv2.calcOpticalFlowFarneback(grey[0], grey[1], None, 0.5, 3, 15, 3, 5, 1.1, 0)
    x, y = np.rint(face[list(MOUTH_AND_BROWS[movement])]).astype(int).T
    return -float(flow[y, x, 1].mean())


@pytest.mark.parametrize("movement", ["smile", "brow_lift"])
def test_drawn_expression_is_at_its_height_at_the_true_apex(movement: Movement) -> None:
    clip, truth = drawn_clip(movement=movement, peak_px=3.0, fps=50, eye_distance=45)
    assert (truth.onset, truth.apex, truth.offset) == (20, 28, 40)
    moved = [upward(clip, frame, movement) for frame in (10, 20, 24, 28, 34, 40, 50)]
    assert int(np.argmax(moved)) == 3
    assert moved[3] == pytest.approx(3.0 * 45 / 80.6, rel=0.35)
    assert max(map(abs, (moved[0], moved[1], moved[5], moved[6]))) < 0.1


def test_still_drawn_clip_says_that_it_holds_no_expression() -> None:
    clip, truth = drawn_clip(peak_px=0.0, noise=0.0, seconds=0.2)
    assert (truth.onset, truth.apex, truth.offset) == (None, None, None)
    assert not truth.intensity.any()
    assert all((frame == clip[0]).all() for frame in clip)


def test_detector_and_mesh_take_every_kind_of_drawn_frame_for_a_face() -> None:
    clip, _ = drawn_clip(fps=20, drift_px=8.0, blinks=(0.1, 0.8), noise=3.0)
    finder = FaceFinder()
    assert all(finder.find(frame) for frame in clip)


def test_blink_covers_the_eyes_and_leaves_the_mouth() -> None:
    clip, _ = drawn_clip(peak_px=0.0, noise=0.0, blinks=(0.1,), seconds=0.4)
    change = np.abs(clip[18].astype(int) - clip[0]).sum(axis=2)
    assert change[60:80, 80:160].max() > 100
    assert not change[100:].any()
    assert (clip[31] == clip[0]).all()

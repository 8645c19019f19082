import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from drawn_face import background, draw_face
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ShapeError
from model.face import FaceFinder, align, eye_centres, similarity_transform
from model.spec import Alignment

FINDER = FaceFinder()


def test_the_eyes_are_found_where_they_were_drawn() -> None:
    (face,) = FINDER.find(draw_face(centre=(300, 210), eye_distance=90), max_faces=3)
    expected = np.array([[255, 210], [345, 210]])
    np.testing.assert_allclose(eye_centres(face.landmarks), expected, atol=6)
    assert face.landmarks.shape == (468, 2)
    assert face.score > 0.9
    assert face.box.x < 255
    assert face.box.x + face.box.width > 345


def test_an_empty_scene_has_no_face() -> None:
    assert FINDER.find(background()) == []


@pytest.mark.parametrize("shape", [(9000, 32, 3), (32, 9000, 3)])
def test_a_long_narrow_frame_has_no_face(shape: tuple[int, ...]) -> None:
    assert FINDER.find(np.full(shape, 128, np.uint8)) == []


def test_faces_come_largest_first_and_no_more_than_asked() -> None:
    small = draw_face(centre=(160, 200), eye_distance=55)
    both = draw_face(small, centre=(450, 220), eye_distance=90)
    large_first = FINDER.find(both, max_faces=5)
    assert [round(face.box.x) > 320 for face in large_first] == [True, False]
    (largest,) = FINDER.find(both, max_faces=1)
    assert largest.box.x > 320


def test_a_turned_head_is_found_and_aligned_upright() -> None:
    (face,) = FINDER.find(draw_face(roll_degrees=25))
    transform = similarity_transform(face.landmarks, Alignment(), 224)
    placed = eye_centres(face.landmarks @ transform[:, :2].T + transform[:, 2])
    assert abs(placed[1, 1] - placed[0, 1]) < 4


@pytest.mark.parametrize("shape", [(480, 640), (480, 640, 4)])
def test_a_frame_that_is_not_rgb_is_a_shape_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        FINDER.find(np.zeros(shape, np.uint8))


def test_threads_sharing_a_finder_get_the_same_landmarks() -> None:
    frame = draw_face()
    alone = FINDER.find(frame)[0].landmarks
    found: list[np.ndarray] = []
    work = [
        threading.Thread(target=lambda: found.append(FINDER.find(frame)[0].landmarks))
        for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(found) == 4
    for landmarks in found:
        np.testing.assert_array_equal(landmarks, alone)


def mean_landmarks() -> np.ndarray:
    return FINDER.find(draw_face())[0].landmarks


@given(
    turn=st.floats(-0.5, 0.5),
    zoom=st.floats(0.5, 2),
    shift=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
)
def test_alignment_undoes_any_similarity(
    turn: float, zoom: float, shift: tuple[float, float]
) -> None:
    cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
    moved = LANDMARKS @ np.array([[cos, sin], [-sin, cos]]) + shift
    plain = similarity_transform(LANDMARKS, Alignment(), 224)
    other = similarity_transform(moved.astype(np.float32), Alignment(), 224)
    np.testing.assert_allclose(
        moved @ other[:, :2].T + other[:, 2], LANDMARKS @ plain[:, :2].T + plain[:, 2], atol=1e-2
    )


LANDMARKS = mean_landmarks()


def test_the_eyes_stand_where_the_alignment_says() -> None:
    alignment = Alignment(eye_y=0.4, eye_distance=0.3)
    transform = similarity_transform(LANDMARKS, alignment, 200)
    placed = eye_centres(LANDMARKS @ transform[:, :2].T + transform[:, 2])
    np.testing.assert_allclose(placed.mean(axis=0), [100, 80], atol=4)
    assert np.hypot(*(placed[1] - placed[0])) == pytest.approx(60, abs=4)


def test_landmarks_of_another_mesh_are_a_shape_error() -> None:
    with pytest.raises(ShapeError):
        similarity_transform(np.zeros((68, 2), np.float32), Alignment(), 224)


def test_align_by_a_whole_pixel_shift_copies_pixels() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    crop = align(frame, np.array([[1.0, 0, -20], [0, 1, -10]]), 32)
    np.testing.assert_array_equal(crop, frame[10:42, 20:52])


def test_a_strong_reduction_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = align(stripes, np.array([[0.1, 0, -0.45], [0, 0.1, -0.45]]), 40)
    np.testing.assert_allclose(crop.astype(int), 127.5, atol=2)


def test_outside_the_frame_the_border_repeats() -> None:
    frame = np.full((40, 40, 3), 90, np.uint8)
    aside = np.array([[1.0, 0, 20], [0, 1, 0]])
    assert (align(frame, aside, 40) == 90).all()


def test_threads_that_begin_together_read_their_networks_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenCV fills a table when it reads its first network: two at once failed, or never ended."""
    reading, most = 0, 0
    count = threading.Lock()
    read = cv2.dnn.readNetFromTFLite

    def watched(*arguments: object) -> object:
        nonlocal reading, most
        with count:
            reading += 1
            most = max(most, reading)
        try:
            time.sleep(0.05)  # so that an unguarded second one would begin meanwhile
            return read(*arguments)
        finally:
            with count:
                reading -= 1

    monkeypatch.setattr(cv2.dnn, "readNetFromTFLite", watched)
    finder, frame = FaceFinder(), np.zeros((64, 64, 3), np.uint8)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(finder.find, [frame] * 4))
    assert most == 1

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from drawn_face import draw_face
from drawn_head import write_head
from numpy.typing import NDArray

from model.errors import ShapeError
from model.face import FaceFinder
from training.action_units import PRIORS, TABLE, UNITS, draw_units, number_of
from training.face_mesh import MESH_OF_LM68, MIRROR, FaceAxes
from training.unit_moves import Blendshapes, table_moves


@pytest.fixture(scope="module")
def landmarks() -> NDArray[np.float32]:
    return FaceFinder().find(draw_face())[0].landmarks


def test_eye_centres_are_half_a_unit_from_the_origin(landmarks: NDArray[np.float32]) -> None:
    place = FaceAxes.of(landmarks).from_pixels(landmarks)
    np.testing.assert_allclose(place[[33, 133]].mean(axis=0), (-0.5, 0), atol=1e-6)
    np.testing.assert_allclose(place[[362, 263]].mean(axis=0), (0.5, 0), atol=1e-6)
    assert place[152, 1] < place[4, 1] < place[10, 1], "chin below nose below forehead"


def test_axes_turn_with_the_head() -> None:
    upright = np.zeros((468, 2))
    upright[[33, 133]], upright[[362, 263]] = (10, 50), (50, 50)
    lying = upright[:, ::-1] * (1, -1)  # a quarter turn to the left
    axes = FaceAxes.of(lying)
    np.testing.assert_allclose(axes.right, (0, -1), atol=1e-12)
    np.testing.assert_allclose(axes.up, (-1, 0), atol=1e-12)
    np.testing.assert_allclose(axes.from_pixels(lying), FaceAxes.of(upright).from_pixels(upright))


def test_axes_refuse_another_mesh() -> None:
    with pytest.raises(ShapeError, match=r"\(68, 2\)"):
        FaceAxes.of(np.zeros((68, 2)))


def test_left_smile_moves_the_left_mouth_corner_out_and_up_and_nothing_on_the_right(
    landmarks: NDArray[np.float32],
) -> None:
    moves = table_moves(landmarks)[UNITS.index("12L")]
    out, down = moves[291]
    assert out > 0
    assert down < 0
    on_the_right = FaceAxes.of(landmarks).from_pixels(landmarks)[:, 0] < -0.08
    assert on_the_right[61]
    assert not moves[on_the_right].any()


@pytest.mark.parametrize(
    ("unit", "landmark", "right", "up"),
    [
        ("1L", 336, 0, 1),  # inner brow up
        ("2L", 293, 0, 1),  # outer brow up
        ("4L", 336, -1, -1),  # brow down and together
        ("5L", 386, 0, 1),  # upper lid up
        ("6L", 347, 0, 1),  # cheek up
        ("7L", 374, 0, 1),  # lower lid up
        ("9L", 278, 0, 1),  # wing of the nose up
        ("10L", 269, 0, 1),  # upper lip up
        ("12R", 61, -1, 1),  # mouth corner out and up
        ("14L", 291, 1, 0),  # mouth corner out
        ("15R", 61, 0, -1),  # mouth corner down
        ("17", 200, 0, 1),  # chin up
        ("25", 17, 0, -1),  # lower lip down
        ("26", 152, 0, -1),  # jaw down
        ("43R", 159, 0, -1),  # upper lid down
    ],
)
def test_each_unit_moves_what_facs_says(
    landmarks: NDArray[np.float32], unit: str, landmark: int, right: int, up: int
) -> None:
    axes = FaceAxes.of(landmarks)
    move = table_moves(landmarks)[UNITS.index(unit), landmark] / axes.eye_distance
    for wanted, got in zip((right, up), (move @ axes.right, move @ axes.up), strict=True):
        assert wanted * got > 0.02 if wanted else abs(got) < 0.02


def test_lips_part_without_the_upper_lip(landmarks: NDArray[np.float32]) -> None:
    moves = table_moves(landmarks)[UNITS.index("25")]
    assert not moves[[0, 13, 82, 312]].any()


def test_left_units_mirror_right_units(landmarks: NDArray[np.float32]) -> None:
    centred = landmarks.astype(float) - landmarks[6]
    symmetric = centred.copy()
    for right, left in MIRROR.items():
        half = (centred[right] * (-1, 1) + centred[left]) / 2 if right != left else None
        symmetric[left] = half if half is not None else centred[left] * (0, 1)
        symmetric[right] = symmetric[left] * (-1, 1)
    moves = dict(zip(UNITS, table_moves(symmetric), strict=True))
    rights, lefts = list(MIRROR), list(MIRROR.values())
    for unit in (unit for unit in UNITS if unit.endswith("L")):
        mirrored = moves[unit[:-1] + "R"][rights] * (-1, 1)
        np.testing.assert_allclose(moves[unit][lefts], mirrored, atol=1e-9, err_msg=unit)


@pytest.mark.parametrize("label", sorted(PRIORS))
def test_a_class_draws_only_units_of_its_priors(label: str) -> None:
    allowed = {number for prior in PRIORS[label] for number in prior}
    rng = np.random.default_rng(0)
    for _ in range(300):
        units = draw_units(label, rng)
        assert units
        assert {number_of(unit) for unit in units} <= allowed
        assert set(units) <= set(UNITS)
        assert all(0 < weight <= 1 for weight in units.values())


def test_smiles_are_as_frequent_among_positives_as_measured() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_units("positive", rng) for _ in range(1000)]
    smiling = sum(any(number_of(unit) == 12 for unit in units) for units in drawn)
    # .88 and 1.0 of the two columns; drawing again when nothing was drawn lifts the first to .96
    assert 0.93 < smiling / 1000 < 0.99


def test_smiles_are_left_right_and_both() -> None:
    rng = np.random.default_rng(0)
    sides = Counter(
        "".join(sorted(unit[-1] for unit in draw_units("positive", rng) if unit.startswith("12")))
        for _ in range(400)
    )
    assert min(sides["L"], sides["R"], sides["LR"]) > 60


def test_a_unit_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="smile"):
        number_of("smile")


def test_blendshapes_follow_the_size_and_roll_of_the_face(tmp_path: Path) -> None:
    head = write_head(tmp_path / "head.npz")
    shapes = Blendshapes(tmp_path / "head.npz")
    # the face: 20 pixels a unit, y down, rolled by a quarter turn, moved to (100, 200)
    landmarks = np.zeros((468, 2))
    landmarks[list(MESH_OF_LM68)] = np.column_stack([20 * head[:, 1], 20 * head[:, 0]])
    landmarks += (100, 200)
    places, moves = shapes.moves(landmarks)
    expected = np.column_stack([20 * head[:, 1] + 100, 20 * head[:, 0] + 200])
    nearest = np.linalg.norm(places[:, None] - expected, axis=-1).min(axis=1)
    np.testing.assert_allclose(nearest, 0, atol=0.5)
    smile = moves[UNITS.index("12L")]
    np.testing.assert_allclose(smile, np.broadcast_to((20, 0), smile.shape), atol=1e-6)


def test_blendshapes_say_what_they_lack(tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz", neutral=np.zeros((1, 3)))
    with pytest.raises(ValueError, match="deltas, names, neutral_lm"):
        Blendshapes(tmp_path / "empty.npz")
    write_head(tmp_path / "sad.npz", without="mouthSmile_R")
    with pytest.raises(ValueError, match="mouthSmile_R"):
        Blendshapes(tmp_path / "sad.npz")


def test_every_unit_of_the_priors_has_a_place_in_the_table() -> None:
    drawn = {number for priors in PRIORS.values() for prior in priors for number in prior}
    assert drawn <= set(TABLE)

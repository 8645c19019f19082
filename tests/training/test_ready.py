from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_clips import write_flow_picture
from drawn_pairs import MOVES, TINY, draw
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.errors import BadFlow, ImageTooSmall, InputError, NotAnImage
from model.face import FaceFinder, align, similarity_transform
from model.flow import compute_flow, magnitude, remove_rigid_motion, to_grey
from model.pipeline import Preprocessor, network_inputs
from model.verdict import judge
from training.data.pairs import Pair
from training.data.ready import PICTURE_SPAN, ReadyPair, read_face, read_flow, ready_pair
from training.data.sources import read_ready

SIZE = 64
FACE = np.zeros((SIZE, SIZE, 3), np.uint8)
Field = NDArray[np.float32]


def bump(height: int, width: int, size: float = 1.0) -> Field:
    """Draw a movement up in a small part of a still face."""
    y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    near = np.exp(-((x - 0.3) ** 2 + (y - 0.6) ** 2) / 0.01)
    return np.stack([0.2 * near, -size * near]).astype(np.float32)


def from_npy(folder: Path, flow: NDArray[np.generic], size: int = SIZE) -> ReadyPair:
    np.save(folder / "flow.npy", flow)
    face = np.zeros((size, size, 3), np.uint8)
    return ready_pair(face, read_flow(folder / "flow.npy", size))


def from_picture(folder: Path, flow: Field) -> ReadyPair:
    return ready_pair(FACE, read_flow(write_flow_picture(folder / "flow.png", flow), SIZE))


def cosine(one: Field, other: Field) -> float:
    return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()))


def test_live_flow_stored_and_read_again_is_the_very_flow(tmp_path: Path) -> None:
    """At the spec's size nothing is resampled: both ways give one answer, bit for bit."""
    spec = TINY.spec()
    onset, apex = draw(1.0, {}), draw(1.0, MOVES["positive"])
    (face,) = FaceFinder().find(onset)
    transform = similarity_transform(face.landmarks, spec.alignment, SIZE)
    crops = [align(frame, transform, SIZE) for frame in (onset, apex)]
    total = compute_flow(to_grey(crops[0]), to_grey(crops[1]), spec.flow)
    cv2.imwrite(str(tmp_path / "face.png"), crops[0][..., ::-1])
    np.save(tmp_path / "flow.npy", total)
    row = Pair(dataset="d", subject="1", clip="c", label="x", image="face.png", flow="flow.npy")
    ready = read_ready(row, tmp_path, SIZE)
    (live,) = Preprocessor(spec).align_pair(onset, apex)
    np.testing.assert_array_equal(ready.onset, live.onset)
    residual, head = remove_rigid_motion(total)
    np.testing.assert_array_equal(ready.flow, residual)
    assert ready.motion.head_px == head.mean_px
    for one, other in zip(
        network_inputs(ready.onset, ready.flow, spec),
        network_inputs(live.onset, residual, spec),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    # Live, only the face's outline tells the head's motion: the same but for a little.
    assert cosine(ready.flow, live.flow) > 0.97
    assert ready.motion.p95_px == pytest.approx(live.motion.p95_px, rel=0.5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_a_shift_of_the_whole_picture_is_the_head_s(tmp_path: Path, dtype: str) -> None:
    flow = np.empty((2, 32, 128), dtype)
    flow[0], flow[1] = 3.0, -1.0
    ready = from_npy(tmp_path, flow)
    np.testing.assert_allclose(ready.flow, 0, atol=1e-5)
    # 3 px of 128 are 1.5 of 64; -1 px of 32 are -2 of 64.
    assert ready.motion.head_px == pytest.approx(np.hypot(1.5, -2.0), abs=1e-5)
    assert ready.motion.p95_px == pytest.approx(0, abs=1e-5)


def test_vectors_grow_with_the_grid(tmp_path: Path) -> None:
    """The field of a picture twice as large, in its own pixels, is the same field."""
    small = from_npy(tmp_path, bump(32, 32))
    large = from_npy(tmp_path, 2 * bump(64, 64))
    np.testing.assert_allclose(large.flow, small.flow, atol=0.05)
    assert small.flow[1].min() == pytest.approx(-2.0, abs=0.05)
    doubled = from_npy(tmp_path, bump(32, 32), 128)
    halved = doubled.flow.reshape(2, 64, 2, 64, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(halved, 2 * small.flow, atol=0.1)


def test_each_component_is_scaled_along_its_own_axis(tmp_path: Path) -> None:
    flow = np.zeros((2, 16, 32), np.float32)
    flow[:, 4:12, 8:16] = 1.0
    ready = from_npy(tmp_path, flow)
    u, v = (channel[24:40, 20:28].mean() for channel in ready.flow)
    still = ready.flow[:, :, -8:].mean(axis=(1, 2))
    assert (u - still[0], v - still[1]) == pytest.approx((2.0, 4.0), abs=0.25)


@given(
    shift=st.tuples(*[st.floats(-4, 4)] * 2),
    height=st.integers(8, 80),
    width=st.integers(8, 80),
    seed=st.integers(0, 99),
)
def test_a_shift_on_top_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    shift: tuple[float, float],
    height: int,
    width: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    flow = np.random.default_rng(seed).normal(0, 0.3, (2, height, width)).astype(np.float32)
    moved = flow + np.array(shift, np.float32)[:, None, None]
    np.testing.assert_allclose(from_npy(folder, moved).flow, from_npy(folder, flow).flow, atol=2e-3)


@pytest.mark.parametrize("side", [28, 64, 150])
def test_a_flow_picture_gives_back_where_and_whither_the_face_moved(
    tmp_path: Path, side: int
) -> None:
    offset = np.array([5.0, -2.0], np.float32)[:, None, None]  # lost in the picture
    ready = from_picture(tmp_path, bump(side, side) + offset)
    truth = bump(SIZE, SIZE)
    truth[0] *= 5  # so is the ratio of u to v
    assert cosine(ready.flow, truth) > 0.98
    assert np.abs(ready.flow).max() == pytest.approx(PICTURE_SPAN * SIZE, rel=0.1)
    assert magnitude(ready.flow)[:16].max() < 0.05 * PICTURE_SPAN * SIZE


def test_a_flow_picture_has_no_size_so_no_gate_takes_it_for_motionless(tmp_path: Path) -> None:
    motion = from_picture(tmp_path, bump(28, 28)).motion
    assert np.isnan([motion.mean_px, motion.p95_px, motion.head_px]).all()
    sure = np.array([0.9, 0.05, 0.05], np.float32)
    assert judge(TINY.spec(), sure, motion, None).reason is None


def test_a_flow_picture_of_one_colour_is_no_motion(tmp_path: Path) -> None:
    ready = from_picture(tmp_path, np.zeros((2, 28, 28), np.float32))
    np.testing.assert_allclose(ready.flow, 0, atol=1e-6)


def test_the_strain_channel_of_a_picture_is_not_read(tmp_path: Path) -> None:
    path = write_flow_picture(tmp_path / "flow.png", bump(28, 28))
    before = read_flow(path, SIZE).total
    picture = cv2.imread(str(path))
    picture[..., 0] = 255 - picture[..., 0]
    cv2.imwrite(str(path), picture)
    np.testing.assert_array_equal(read_flow(path, SIZE).total, before)


def test_a_grey_flow_picture_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "flow.png"), np.tile(np.arange(28, dtype=np.uint8), (28, 1)))
    with pytest.raises(BadFlow, match="grey"):
        read_flow(tmp_path / "flow.png", SIZE)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (64, 64), (300, 200), (40, 90)])
def test_a_face_of_any_size_fills_the_crop(tmp_path: Path, height: int, width: int) -> None:
    """Its quarters stay where they are."""
    face = np.zeros((height, width, 3), np.uint8)
    face[: height // 2, width // 2 :] = (200, 100, 50)
    cv2.imwrite(str(tmp_path / "face.png"), face[..., ::-1])
    crop = read_face(tmp_path / "face.png", SIZE)
    assert (crop.shape, crop.dtype) == ((SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(crop[10, 50], (200, 100, 50))
    np.testing.assert_array_equal(crop[[10, 50, 50], [10, 10, 50]], 0)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((28, 28, 2), np.float32), r"\(28, 28, 2\)"),
        (np.zeros((3, 28, 28), np.float32), r"\(3, 28, 28\)"),
        (np.zeros((28, 28), np.float32), r"\(28, 28\)"),
        (np.zeros((2, 28, 28), np.int16), "int16"),
        (np.zeros((2, 28, 28), np.complex64), "complex64"),
        (np.zeros((2, 4, 28), np.float32), "28x4 vectors"),
        (np.full((2, 28, 28), np.nan, np.float32), "not finite"),
        (np.full((2, 28, 28), -np.inf), "not finite"),
        (np.full((2, 28, 30), 31.0), "moves 31 px on a picture of 30x28"),
        (np.array([None] * 9), "not an .npy array"),
    ],
)
def test_a_bad_array_is_told(tmp_path: Path, array: NDArray[np.generic], told: str) -> None:
    np.save(tmp_path / "flow.npy", array)
    with pytest.raises(BadFlow, match=told):
        read_flow(tmp_path / "flow.npy", SIZE)


def test_an_array_of_absurd_size_is_refused_by_its_header(tmp_path: Path) -> None:
    """Sparse on disk: 80 GB are claimed, none is read."""
    with (tmp_path / "flow.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2, 100_000, 100_000)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * 2 * 100_000**2)
    with pytest.raises(BadFlow, match="100000x100000 vectors"):
        read_flow(tmp_path / "flow.npy", SIZE)


@given(cut=st.integers(0, 400), spoilt=st.integers(0, 127), value=st.integers(0, 255))
def test_whatever_bytes_an_npy_holds_the_fault_is_told(
    tmp_path_factory: pytest.TempPathFactory, cut: int, spoilt: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "spoilt.npy"
    np.save(path, bump(8, 8))
    data = bytearray(path.read_bytes())
    data[spoilt] = value
    path.write_bytes(data[: len(data) - cut])
    try:
        flow = read_flow(path, SIZE)
    except BadFlow:
        return
    assert cut == 0
    assert np.isfinite(flow.total).all()


@pytest.mark.parametrize(
    ("image", "flow", "fault", "told"),
    [
        ("gone.png", "flow.npy", FileNotFoundError, r"^gone\.png is missing"),
        ("face.png", "gone.npy", FileNotFoundError, r"^gone\.npy is missing"),
        ("face.png", "text.png", NotAnImage, r"^text\.png: "),
        ("text.png", "flow.npy", NotAnImage, r"^text\.png: "),
        ("tiny.png", "flow.npy", ImageTooSmall, r"^tiny\.png: "),
        ("face.png", "text.npy", BadFlow, r"^text\.npy: "),
        (".", "flow.npy", IsADirectoryError, r"^\. is a folder"),
    ],
)
def test_a_fault_names_the_file(
    tmp_path: Path, image: str, flow: str, fault: type[InputError | OSError], told: str
) -> None:
    cv2.imwrite(str(tmp_path / "face.png"), np.zeros((28, 28, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((7, 28, 3), np.uint8))
    np.save(tmp_path / "flow.npy", bump(28, 28))
    for name in ("text.png", "text.npy"):
        (tmp_path / name).write_text("no picture and no array")
    row = Pair(dataset="d", subject="1", clip="c", label="x", image=image, flow=flow)
    with pytest.raises(fault, match=told):
        read_ready(row, tmp_path, SIZE)

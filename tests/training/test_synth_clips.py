import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_face import draw_face
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from model.clip import open_clip
from model.face import FaceFinder
from training.cli import app
from training.config import load_config
from training.data.pairs import read_pairs
from training.displacement import unit_fields
from training.face_mesh import FaceAxes
from training.identities import FacePicture, find_faces
from training.nuisances import Light
from training.options import BUNDLED_CONFIG
from training.synth_clips_command import ClipSettings, make_clips, people_of
from training.synthetic_clips import (
    Blink,
    ClipPlan,
    Codec,
    Course,
    Wander,
    encode_clip,
    plan_clip,
    render_frames,
)
from training.warp import FACE_PIXELS, FacePatch, undo

SUBJECTS = [[0]]
SETTINGS = ClipSettings(seed=3, clips=4, rates=(10.0, 15.0), seconds=0.8)
HELD = (Wander(0.0, 1.0, 0.0),) * 6


@pytest.fixture(scope="module")
def patch() -> FacePatch:
    picture = draw_face()[:, 80:560]
    landmarks = FaceFinder().find(np.ascontiguousarray(picture))[0].landmarks.astype(float)
    fields = unit_fields(landmarks, picture.shape[:2])
    return FacePatch(np.ascontiguousarray(picture[..., ::-1]), landmarks, fields)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> list[FacePicture]:
    folder = tmp_path_factory.mktemp("faces")
    for name, tone in (("dark", 0.6), ("light", 1.0)):
        cv2.imwrite(str(folder / f"{name}.png"), draw_face(tone=tone)[..., ::-1])
    with ThreadPoolExecutor(1) as executor:
        return find_faces(folder, executor)[0]


@pytest.fixture(scope="module")
def whole(faces: list[FacePicture], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the command made, in a process of its own, as SETTINGS say."""
    out = tmp_path_factory.mktemp("whole") / "clips"
    options = ["--faces", str(faces[0].path.parent), "--out", str(out), "--seed", "3"]
    size = ["--clips", "4", "--fps", "10", "--fps", "15", "--seconds", "0.8", "--jobs", "1"]
    result = CliRunner().invoke(app, ["synth-clips", *options, *size])
    assert result.exit_code == 0, result.output
    return out


def make(
    faces: list[FacePicture],
    out: Path,
    settings: ClipSettings = SETTINGS,
    on_progress: Callable[[int], None] = lambda _: None,
) -> None:
    with ThreadPoolExecutor(1) as executor:
        make_clips(faces, out, settings, executor, on_progress)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def plans(count: int = 200, seconds: float = 1.5) -> list[ClipPlan]:
    return [plan_clip(7, index, SUBJECTS, (30.0, 200.0), seconds) for index in range(count)]


def quiet_plan(kind: str, **changes: Any) -> ClipPlan:  # noqa: ANN401 - any field
    """Return the first plan of a kind whose head, light and sensor are still."""
    plan = next(plan for plan in plans() if plan.kind == kind)
    camera = replace(plan.camera, read_noise=0.0, shot_noise=0.0, defocus=0.0, grey=False)
    still: dict[str, Any] = {
        "camera": camera,
        "head": HELD,
        "light": Light(gain=1.0, gamma=1.0, slope=(0.0, 0.0)),
        "blinks": (),
        "fps": 50.0,
        "seconds": 0.8,
    }
    return replace(plan, **{**still, **changes})


def levels(plan: ClipPlan, patch: FacePatch) -> list[NDArray[np.int16]]:
    return [frame.astype(np.int16) for frame in render_frames(plan, 7, patch)]


rising = st.lists(
    st.floats(0, 10, allow_nan=False), min_size=3, max_size=3, unique_by=lambda at: round(at, 3)
).map(sorted)


@given(rising, st.lists(st.floats(-1, 11), min_size=2, max_size=20))
def test_intensity_rises_to_the_apex_and_falls_to_the_offset(
    marks: list[float], times: list[float]
) -> None:
    course = Course(*marks)
    onset, apex, offset = marks
    assert course.intensity(apex) == pytest.approx(1.0)
    assert course.intensity(onset) == course.intensity(offset) == pytest.approx(0.0)
    ordered = sorted(times)
    values = [course.intensity(at) for at in ordered]
    assert all(0 <= value <= 1 for value in values)
    for (at, value), (then, following) in zip(
        zip(ordered, values, strict=True), list(zip(ordered, values, strict=True))[1:], strict=False
    ):
        if then <= apex:
            assert value <= following
        if at >= apex:
            assert value >= following


@given(st.floats(0, 5), st.floats(0.15, 0.3), st.floats(-1, 7))
def test_lids_are_down_within_a_blink_only(start: float, length: float, at: float) -> None:
    closed = Blink(start, length).closed(at)
    assert 0 <= closed <= 1
    if not start <= at <= start + length:
        assert closed == 0


@given(st.floats(0, 10), st.floats(0.5, 9), st.floats(0, 7), st.floats(0, 60))
def test_head_never_wanders_farther_than_it_may(
    size: float, period: float, phase: float, at: float
) -> None:
    assert abs(Wander(size, period, phase).at(at)) <= size


def test_plan_depends_on_seed_and_index_only() -> None:
    assert plan_clip(7, 5, SUBJECTS, (30.0,), 1.5) == plan_clip(7, 5, SUBJECTS, (30.0,), 1.5)
    assert plan_clip(7, 5, SUBJECTS, (30.0,), 1.5) != plan_clip(7, 6, SUBJECTS, (30.0,), 1.5)
    assert plan_clip(8, 5, SUBJECTS, (30.0,), 1.5) != plan_clip(7, 5, SUBJECTS, (30.0,), 1.5)


@pytest.mark.parametrize("seconds", [0.8, 1.5, 4.0])
def test_micro_expressions_are_short_and_whole_within_their_clip(seconds: float) -> None:
    micro = [plan for plan in plans(seconds=seconds) if plan.kind == "micro"]
    assert len(micro) > 80
    for plan in micro:
        assert plan.course is not None
        assert 0.08 <= plan.course.apex_s - plan.course.onset_s <= 0.25
        assert 0.2 <= plan.course.offset_s - plan.course.onset_s <= 0.5
        assert plan.truth is not None
        onset, apex, offset = plan.truth
        assert offset is not None
        assert 0 <= onset < apex < offset < plan.frames
        assert 0.3 <= plan.peak <= 3.0


def test_still_clips_have_no_expression_and_large_movements_no_short_one() -> None:
    drawn = plans()
    assert {plan.kind for plan in drawn} == {"micro", "still", "large"}
    for plan in drawn:
        if plan.kind == "still":
            assert (plan.units, plan.peak, plan.truth, plan.label) == ({}, 0.0, None, "none")
        if plan.kind == "large":
            assert plan.course is not None
            assert plan.peak >= 6.0
            assert plan.course.offset_s - plan.course.onset_s > 1.0


def test_large_movement_that_outlasts_its_clip_has_no_true_offset() -> None:
    plan = quiet_plan("large", seconds=1.0, course=Course(0.2, 0.7, 1.9))
    assert plan.truth == (10, 35, None)


def test_rendered_face_rests_but_for_its_expression(patch: FacePatch) -> None:
    plan = quiet_plan("micro", peak=3.0, course=Course(0.2, 0.4, 0.6))
    assert plan.truth == (10, 20, 30)
    frames = levels(plan, patch)
    change = [int(np.abs(frame - frames[0]).sum()) for frame in frames]
    assert change[:11] == [0] * 11
    assert change[30:] == [0] * 10
    assert int(np.argmax(change)) == 20
    assert np.abs(frames[20] - frames[0]).max() > 20


def test_apex_moves_the_skin_by_the_planned_pixels_of_an_aligned_face(patch: FacePatch) -> None:
    plan = quiet_plan("micro", peak=2.0, course=Course(0.2, 0.4, 0.6), units={"12L": 1, "12R": 1})
    frames = list(render_frames(plan, 7, patch))
    before, after = (cv2.cvtColor(frames[at], cv2.COLOR_BGR2GRAY) for at in (0, 20))
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = dis.calc(before, after, np.zeros((*before.shape, 2), np.float32))
    expected = 2.0 * plan.camera.eye_distance / FACE_PIXELS
    assert np.percentile(np.linalg.norm(flow, axis=2), 99.5) == pytest.approx(expected, rel=0.3)


def test_blink_moves_the_eyes_and_nothing_below_them(patch: FacePatch) -> None:
    plan = quiet_plan("still", blinks=(Blink(0.2, 0.2),))
    frames = levels(plan, patch)
    change = np.abs(frames[13] - frames[0]).max(axis=2)
    assert change.max() > 40
    assert not change[round(0.7 * len(change)) :].any()
    assert (frames[25] == frames[0]).all()


def test_large_movement_does_not_fold_the_face(patch: FacePatch) -> None:
    face_pixel = FaceAxes.of(patch.landmarks).eye_distance / FACE_PIXELS
    field = patch.fields.combine({"10L": 1.0, "7L": 1.0}, 12.0 * face_pixel)
    upright = np.eye(2, 3)
    assert smallest_area(undo(upright, field, 480)) < 0, "in one step it would"
    assert smallest_area(undo(upright, field, 480, steps=5)) > 0


def smallest_area(places: NDArray[np.float32]) -> float:
    """Return the smallest signed area that a pixel has in the picture: below 0 it is folded."""
    x_y, x_x = np.gradient(places[0])
    y_y, y_x = np.gradient(places[1])
    return float((x_x * y_y - x_y * y_x).min())


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
@pytest.mark.parametrize("grey", [False, True])
def test_encoded_clip_decodes_to_its_frames(patch: FacePatch, codec: Codec, *, grey: bool) -> None:
    plan = quiet_plan("micro", codec=codec, crf=18, fps=25.0)
    plan = replace(plan, camera=replace(plan.camera, grey=grey))
    frames = list(render_frames(plan, 7, patch))
    clip = open_clip(encode_clip(plan, iter(frames)))
    assert (clip.info.frames, clip.info.codec) == (20, codec)
    assert clip.info.fps == pytest.approx(25)
    for frame, decoded in zip(frames, clip.frames(), strict=True):
        difference = decoded.rgb()[..., ::-1].astype(int) - frame
        assert np.abs(difference).mean() < 4


def test_table_is_a_manifest_that_tells_the_truth_besides(whole: Path) -> None:
    pairs = read_pairs(whole / "clips.csv")
    assert len(pairs) == 4
    assert {pair.kind for pair in pairs} == {"video"}
    with (whole / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for pair, row in zip(pairs, rows, strict=True):
        info = open_clip((whole / pair.clip).read_bytes()).info
        assert info.frames == int(row["frames"])
        assert info.fps == pytest.approx(float(row["fps"]))
        assert bool(row["true_apex"]) == (row["kind"] != "still") == (row["label"] != "none")
    assert [row["fps"] for row in rows] == ["10", "15", "10", "15"]


def test_same_seed_makes_the_same_bytes_whatever_the_workers(
    faces: list[FacePicture], whole: Path, tmp_path: Path
) -> None:
    make(faces, tmp_path / "clips")
    assert contents(tmp_path / "clips") == contents(whole)


def test_interrupted_run_goes_on_to_the_same_folder(
    faces: list[FacePicture], whole: Path, tmp_path: Path
) -> None:
    heard = []

    def stop_after_the_first(done: int) -> None:
        heard.append(done)
        if sum(heard) > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(faces, tmp_path, on_progress=stop_after_the_first)
    assert not (tmp_path / "clips.csv").exists()
    make(faces, tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_folder_begun_otherwise_is_refused(faces: list[FacePicture], whole: Path) -> None:
    for change, named in (({"seed": 4}, "seed"), ({"rates": (25.0,)}, "rates")):
        with pytest.raises(ValueError, match=f"another {named}"):
            make(faces, whole, replace(SETTINGS, **change))
    with pytest.raises(ValueError, match="another faces"):
        make(faces[:1], whole)


def test_people_of_a_split_are_those_of_the_bundled_model_s_training(
    faces: list[FacePicture],
) -> None:
    many = [replace(faces[0], subject=f"p{number}") for number in range(200)]
    splits = {
        people: {one.subject for one in people_of(many, replace(SETTINGS, people=people))}
        for people in ("train", "val", "test")
    }
    assert sum(map(len, splits.values())) == 200
    assert set().union(*splits.values()) == {one.subject for one in many}
    assert len(people_of(many, SETTINGS)) == 200
    holdout = load_config(BUNDLED_CONFIG).holdout
    assert all(holdout.split_of(f"synthetic/{name}") == "test" for name in splits["test"])


def test_no_faces_make_no_clips(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no usable face"):
        make([], tmp_path)


@pytest.mark.parametrize(
    "fault",
    [
        {"seed": -1},
        {"clips": 0},
        {"dataset": "a/b"},
        {"rates": ()},
        {"rates": (30.0, 0.0)},
        {"rates": (float("nan"),)},
        {"rates": (5000.0,)},
        {"seconds": 0.1},
        {"seconds": 3600.0},
        {"seconds": float("nan")},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"seed|data set|frames a second|lasts"):
        ClipSettings(**{"seed": 1, "clips": 1, **fault})


def test_command_refuses_a_length_in_one_line(tmp_path: Path) -> None:
    options = ["--faces", str(tmp_path), "--out", str(tmp_path / "out"), "--seed", "5"]
    result = CliRunner().invoke(app, ["synth-clips", *options, "--seconds", "900"])
    assert result.exit_code == 1
    assert "900" in result.output
    assert "Traceback" not in result.output

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_clips import encode_clip
from drawn_expression_clips import drawn_clip
from drawn_face import background, draw_face
from serving import encode

import model
from model.clip import Clip, open_burst, open_clip
from model.clip_pipeline import AlignedClip, ClipOptions, align_clip
from model.errors import FrameOutOfRange
from model.pipeline import Preprocessor, network_inputs
from model.session import Session
from model.spec import ModelSpec, Provenance
from model.verdict import judge

SPEC = ModelSpec(
    name="tiny",
    version="1",
    classes=("negative", "positive", "surprise"),
    provenance=Provenance(data="none", licence="none", training_commit="none"),
)
PREPROCESSOR = Preprocessor(SPEC)
FOOTAGE = Path(__file__).parents[3] / "shared" / "clips" / "talking-640x360.mp4"
WEIGHTS = Path(model.__path__[0]) / "weights"


def clip_of(frames: Iterable[np.ndarray], fps: float) -> Clip:
    """As a telephone writes them, or, from 200 frames a second, a laboratory's camera."""
    if fps >= 200:
        return open_clip(
            encode_clip(list(frames), fps, "avi", "mjpeg", options={"qmin": "2", "qmax": "3"})
        )
    return open_clip(encode_clip(list(frames), fps, options={"crf": "18"}))


def aligned(frames: Iterable[np.ndarray], fps: float = 30, **options: int) -> AlignedClip:
    return align_clip(PREPROCESSOR, clip_of(frames, fps), ClipOptions(**options))


def two_people(count: int = 30) -> list[np.ndarray]:
    """The larger face keeps still, the smaller one smiles about frame 15."""
    large = draw_face(background(240, 480), centre=(130.0, 110.0), eye_distance=52.0)
    smiles = np.interp(np.arange(count), [9, 15, 21], [0, 3, 0])
    return [
        draw_face(large, centre=(350.0, 110.0), eye_distance=45.0, smile=float(smile))
        for smile in smiles
    ]


@pytest.mark.parametrize(("fps", "within"), [(30, 1), (100, 3), (200, 3)])
@pytest.mark.parametrize("movement", ["smile", "brow_lift"])
def test_an_expression_is_spotted_through_drift_a_blink_noise_and_compression(
    fps: int, within: int, movement: str
) -> None:
    frames, truth = drawn_clip(fps=fps, drift_px=6, blinks=(0.9,), movement=movement)
    (face,) = aligned(frames, fps).faces
    interval = face.candidates[0].interval
    assert interval.source == "spotted"
    assert abs(interval.apex - truth.apex) <= within
    assert abs(interval.onset_s - truth.onset / fps) < 0.07
    assert interval.offset_s is not None
    assert abs(interval.offset_s - truth.offset / fps) < 0.09
    assert face.candidates[0].pair.motion.p95_px > 0.3


def test_the_curve_peaks_at_the_apex_and_is_low_at_rest() -> None:
    frames, truth = drawn_clip(fps=30)
    (face,) = aligned(frames).faces
    curve = face.curve
    assert curve.frames.tolist() == list(range(len(frames)))
    assert abs(int(curve.motion_px.argmax()) - truth.apex) <= 1
    assert curve.motion_px.max() > curve.threshold_px > np.median(curve.motion_px)


def test_a_long_clip_has_its_expressions_as_ranked_candidates() -> None:
    first, _ = drawn_clip(fps=30, seconds=2.5, onset_s=1.0, apex_s=1.2, offset_s=1.4, peak_px=1.5)
    second, _ = drawn_clip(fps=30, seconds=2.5, onset_s=1.0, apex_s=1.2, offset_s=1.4, peak_px=3)
    (face,) = aligned(first + second).faces
    strong, weak = (candidate.interval for candidate in face.candidates)
    assert strong.apex_s == pytest.approx(3.7, abs=0.07)
    assert weak.apex_s == pytest.approx(1.2, abs=0.07)
    assert strong.strength_px > weak.strength_px


def test_at_most_as_many_candidates_are_answered_as_asked_for() -> None:
    once, _ = drawn_clip(fps=30, seconds=1.5, onset_s=0.5, apex_s=0.7, offset_s=0.9)
    (face,) = aligned(once * 3, candidates=2).faces
    assert len(face.candidates) == 2


def test_where_nothing_moves_the_middle_frame_is_the_documented_fallback() -> None:
    frames, _ = drawn_clip(fps=30, peak_px=0)
    (face,) = aligned(frames).faces
    (only,) = face.candidates
    assert only.interval.source == "middle_frame"
    assert (only.interval.onset, only.interval.apex) == (0, len(frames) // 2)
    assert only.interval.offset is None


@pytest.mark.parametrize("named", [{"onset_frame": 5}, {"apex_frame": 20}])
def test_a_frame_that_the_caller_names_is_kept(named: dict[str, int]) -> None:
    frames, _ = drawn_clip(fps=30)
    (face,) = aligned(frames, **named).faces
    (only,) = face.candidates
    assert only.interval.source == "given"
    assert named.get("onset_frame", only.interval.onset) == only.interval.onset
    assert named.get("apex_frame", only.interval.apex) == only.interval.apex
    assert only.interval.onset < only.interval.apex


def test_two_named_frames_are_answered_as_the_pair_that_they_are() -> None:
    frames, _ = drawn_clip(fps=30)
    clip = clip_of(frames, 30)
    (face,) = align_clip(PREPROCESSOR, clip, ClipOptions(onset_frame=3, apex_frame=17)).faces
    decoded = [frame.rgb() for frame in clip.frames()]
    (pair,) = PREPROCESSOR.align_pair(decoded[3], decoded[17])
    np.testing.assert_array_equal(face.candidates[0].pair.flow, pair.flow)
    np.testing.assert_array_equal(face.candidates[0].pair.onset, pair.onset)


@pytest.mark.parametrize(
    "named",
    [
        {"onset_frame": 36},
        {"apex_frame": -1},
        {"apex_frame": 0},
        {"onset_frame": 35},
        {"onset_frame": 9, "apex_frame": 9},
        {"onset_frame": 9, "apex_frame": 4},
    ],
)
def test_a_frame_that_cannot_be_meant_is_refused_before_a_frame_is_decoded(
    named: dict[str, int],
) -> None:
    frames, _ = drawn_clip(fps=30)
    clip = clip_of(frames, 30)
    clip.frames = pytest.fail  # type: ignore[method-assign] # the claim
    with pytest.raises(FrameOutOfRange):
        align_clip(PREPROCESSOR, clip, ClipOptions(**named))


def test_each_person_is_answered_by_an_id_of_the_answer_alone() -> None:
    larger, smaller = aligned(two_people(), faces=2).faces
    assert (larger.face_id, smaller.face_id) == (1, 2)
    assert larger.candidates[0].interval.source == "middle_frame"
    assert smaller.candidates[0].interval.source == "spotted"
    assert abs(smaller.candidates[0].interval.apex - 15) <= 1
    assert larger.candidates[0].pair.face.box.x < 200 < smaller.candidates[0].pair.face.box.x


def test_one_answer_for_two_people_says_that_there_are_more() -> None:
    found = aligned(two_people(12), faces=1)
    assert [face.face_id for face in found.faces] == [1]
    assert found.more_faces


def test_no_face_is_a_normal_answer() -> None:
    assert aligned([background(120, 160)] * 12).faces == ()


def test_a_face_in_half_of_the_frames_is_answered_where_it_is_seen() -> None:
    frames, _ = drawn_clip(fps=30, seconds=1.5, onset_s=0.5, apex_s=0.7, offset_s=0.9)
    empty = [background(*frames[0].shape[:2])] * 45
    for clip, start in ((empty + frames, 45), (frames + empty, 0)):
        (face,) = aligned(clip).faces
        assert 0.2 < face.seen < 0.8
        assert abs(face.candidates[0].interval.apex - (start + 21)) <= 1
        assert start <= face.candidates[0].interval.onset


def test_a_scene_cut_ends_a_person_and_no_interval_reaches_across_it() -> None:
    frames, _ = drawn_clip(fps=30, seconds=1.2)
    other = draw_face(background(180, 240)[:, ::-1] // 3, centre=(90.0, 80.0), eye_distance=50.0)
    found = aligned([*frames, *[other] * 36], faces=2)
    assert found.scene_cuts == (36,)
    assert {face.face_id for face in found.faces} == {1, 2}
    for face in found.faces:
        assert (face.face_id == 1) == (face.candidates[0].interval.onset < 36)
        for candidate in face.candidates:
            ends = candidate.interval.offset or candidate.interval.apex
            assert (candidate.interval.onset < 36) == (ends < 36)


def test_the_work_stops_where_the_check_raises() -> None:
    frames, _ = drawn_clip(fps=30)
    seen = 0

    def check() -> None:
        nonlocal seen
        seen += 1
        if seen == 7:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        align_clip(PREPROCESSOR, clip_of(frames, 30), check=check)
    assert seen == 7


def test_a_clip_that_ends_at_its_apex_is_answered_without_an_offset() -> None:
    frames, truth = drawn_clip(fps=100, seconds=0.5, onset_s=0.15, apex_s=0.4, offset_s=0.8)
    (face,) = aligned(frames, 100).faces
    interval = face.candidates[0].interval
    assert interval.source == "spotted"
    assert interval.offset is None
    assert abs(interval.apex - truth.apex) <= 8  # the top is flat


def placed(eye_distance: float, x: float, **face: float) -> np.ndarray:
    return draw_face(background(180, 320), centre=(x, 75.0), eye_distance=eye_distance, **face)


def test_the_largest_face_is_answered_though_a_smaller_one_was_there_first() -> None:
    small, both = placed(30, 60), draw_face(placed(30, 60), centre=(210.0, 75.0), eye_distance=52.0)
    (face,) = aligned([small] * 30 + [both] * 60).faces
    assert face.candidates[0].pair.face.box.x > 120


def test_a_face_that_one_keyframe_misses_is_taken_back_from_a_bystander() -> None:
    small, both = placed(30, 60), draw_face(placed(30, 60), centre=(210.0, 75.0), eye_distance=52.0)
    frames = [both] * 60
    frames[14:17] = [small] * 3
    (face,) = aligned(frames).faces
    assert face.face_id == 1
    assert face.candidates[0].pair.face.box.x > 120


def test_a_face_seen_in_a_single_frame_takes_no_answer_from_another() -> None:
    small, both = placed(30, 60), draw_face(placed(30, 60), centre=(210.0, 75.0), eye_distance=52.0)
    (face,) = aligned([small] * 29 + [both]).faces
    assert face.candidates[0].pair.face.box.x < 120


@pytest.mark.parametrize("named", [(0, 100), (20, 75), (29, 75)])
def test_named_frames_further_apart_than_a_stretch_are_answered(named: tuple[int, int]) -> None:
    frames = [placed(45, 160)] * 120
    (face,) = aligned(frames, onset_frame=named[0], apex_frame=named[1]).faces
    (only,) = face.candidates
    assert (only.interval.onset, only.interval.apex) == named
    assert only.interval.onset_s == pytest.approx(named[0] / 30, abs=0.001)
    assert only.interval.apex_s == pytest.approx(named[1] / 30, abs=0.001)


def test_whoever_is_seen_in_the_named_frames_is_answered() -> None:
    first = [placed(52, 90)] * 60
    second = [draw_face(background(180, 320)[:, ::-1] // 3, centre=(220, 75), eye_distance=45)] * 50
    (face,) = aligned(first + second, onset_frame=80, apex_frame=90).faces
    assert face.candidates[0].pair.face.box.x > 120


@pytest.mark.parametrize("fps", [0.3, 2, 5])
@pytest.mark.parametrize("named", [{"onset_frame": 0}, {"onset_frame": 2}, {}])
def test_a_slow_camera_is_answered_of_the_one_person_that_it_sees(
    fps: float, named: dict[str, int]
) -> None:
    burst = open_burst([encode(placed(45, 160, smile=n % 2)) for n in range(6)], fps)
    found = align_clip(PREPROCESSOR, burst, ClipOptions(**named))
    (face,) = found.faces
    assert face.face_id == 1
    assert not found.more_faces
    onset = face.candidates[0].interval.onset
    assert onset == named.get("onset_frame", onset)


def test_of_a_very_fast_camera_the_middle_frame_is_the_middle_one() -> None:
    burst = open_burst([encode(placed(45, 160))] * 20, 9_999.0)
    (face,) = align_clip(PREPROCESSOR, burst).faces
    assert face.candidates[0].interval.apex == 10


def test_frames_that_crowd_in_a_moment_are_not_all_measured() -> None:
    """Of all, pairs of moments are compared: thousands would take gigabytes."""
    frames = [placed(45, 160)] * 640
    times = [*np.arange(600) / 640, *np.arange(1, 41)]
    clip = open_clip(encode_clip(frames, 30, times=times))
    (face,) = align_clip(PREPROCESSOR, clip).faces
    assert np.diff(face.curve.times_s).min() > 0.013
    assert len(face.curve.frames) < 120


def test_a_hand_that_passes_before_the_face_does_not_hide_what_comes_after() -> None:
    frames, truth = drawn_clip(fps=60, seconds=2.0, onset_s=1.3, apex_s=1.5, offset_s=1.7)
    grain = np.random.default_rng(0).integers(60, 200, (110, 130, 3), dtype=np.uint8)
    hand = cv2.resize(grain[::4, ::4], (130, 110), interpolation=cv2.INTER_CUBIC)
    for number in range(36, 44):
        frames[number] = frames[number].copy()
        frames[number][60:170, 50 + 4 * (number - 36) : 180 + 4 * (number - 36)] = hand
    (face,) = aligned(frames, 60).faces
    interval = face.candidates[0].interval
    assert interval.source == "spotted"
    assert abs(interval.apex - truth.apex) <= 3


def test_a_scene_that_was_cut_away_from_comes_back_with_its_people() -> None:
    frames = [placed(60, 160)] * 70
    frames[30:40] = [np.full_like(frames[0], 12)] * 10
    found = aligned(frames)
    assert found.scene_cuts == (30, 40)
    (face,) = found.faces
    assert face.face_id == 1
    assert face.seen > 0.8


@pytest.mark.skipif(not FOOTAGE.exists(), reason="the real footage is not at hand")
def test_in_real_footage_a_face_is_followed_throughout_and_no_answer_stands() -> None:
    """Twenty seconds of a head that moves, a mouth that moves, and hands before both."""
    session = Session.open(WEIGHTS / "mfdan-synthetic.onnx")
    found = align_clip(Preprocessor(session.spec), open_clip(FOOTAGE.read_bytes()))
    (face,) = found.faces
    assert face.seen > 0.7  # where a hand is before it, it is not measured
    assert found.scene_cuts == ()
    for candidate in face.candidates:
        pair = candidate.pair
        image, flow = network_inputs(pair.onset, pair.flow, session.spec)
        (row,) = session.run(image[None], flow[None])
        assert judge(session.spec, row, pair.motion, pair.quality).abstained

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_clips import encode_clip, encode_pictures, grey_steps
from drawn_expression_clips import drawn_clip
from drawn_face import background, draw_face
from matplotlib.figure import Figure
from serving import Pictures
from tiny_model import tiny_spec
from typer.testing import CliRunner, Result

from model.pipeline import AlignedPair, Preprocessor
from model.spotting import Interval, MotionCurve
from model.verdict import Verdict
from service import predict_command
from service.cli import app
from service.plot import PlottedFace, crop_of, draw_answer, save_plot

SPEC = tiny_spec()


@pytest.fixture(autouse=True)
def _tiny_models(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(models_dir))
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def apex() -> np.ndarray:
    return draw_face(background(240, 320), centre=(160, 110), eye_distance=50, smile=3)


@pytest.fixture(scope="module")
def pair(apex: np.ndarray) -> AlignedPair:
    onset = draw_face(background(240, 320), centre=(160, 110), eye_distance=50)
    (pair,) = Preprocessor(SPEC).align_pair(onset, apex)
    return pair


def plotted(
    pair: AlignedPair, reasons: tuple[str, ...] = (), face_id: int = 1, **more: object
) -> PlottedFace:
    shares = {"negative": 0.1, "positive": 0.7, "surprise": 0.2}
    verdict = Verdict("positive", shares, reasons)
    return PlottedFace(face_id=face_id, pair=pair, apex=pair.onset, verdict=verdict, **more)


def interval(onset: int, offset: int | None = None) -> Interval:
    end = None if offset is None else offset / 10
    middle = onset + 2
    return Interval(onset, middle, offset, onset / 10, middle / 10, end, 1.0, "spotted")


def words(figure: Figure) -> str:
    """Return all text of a figure, drawn."""
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(lambda it: hasattr(it, "get_text")))


def test_the_picture_names_answer_frames_and_candidates(pair: AlignedPair) -> None:
    times = np.arange(60) / 10
    curve = MotionCurve(np.arange(60), times, np.exp(-((times - 1) ** 2)), 0.3)
    intervals = (interval(8, 14), interval(30, None))
    face = plotted(pair, curve=curve, intervals=intervals, warnings=("low_frame_rate",))
    told = words(draw_answer([face], scene_cuts_s=[2.5]))
    for part in ("positive, 70%", "onset 8", "apex 10", "offset 14", "threshold", "seconds"):
        assert part in told
    for part in ("onset, frame 8", "apex, frame 10", "70.0%", "fewer than 50 frames a second"):
        assert part in told
    assert "\n2\n" in told


def test_the_picture_says_in_words_why_an_answer_abstains(pair: AlignedPair) -> None:
    told = words(draw_answer([plotted(pair, ("no_movement", "low_confidence"))]))
    assert "abstains: nothing moved (likeliest: positive, 70%)" in told
    assert "also: no class is likely enough" in told


def test_each_of_several_faces_is_drawn_with_its_own_number(pair: AlignedPair) -> None:
    faces = [plotted(pair, face_id=2), plotted(pair, ("blurred",), face_id=1)]
    told = words(draw_answer(faces))
    assert "face 2: positive" in told
    assert "face 1: abstains: the face is blurred" in told


def test_a_curve_is_not_drawn_where_the_face_was_not_seen(pair: AlignedPair) -> None:
    frames = np.r_[0:20, 60:80]
    curve = MotionCurve(frames, frames / 10, np.ones(40), 0.3)
    figure = draw_answer([plotted(pair, curve=curve, intervals=(interval(1, 5),))])
    drawn = max((line.get_ydata() for axes in figure.findobj() if hasattr(axes, "lines")
                 for line in axes.lines), key=len)  # fmt: skip
    assert np.flatnonzero(np.isnan(drawn)).tolist() == [20]


def test_a_curve_of_one_moment_is_drawn(pair: AlignedPair) -> None:
    curve = MotionCurve(np.zeros(1, int), np.zeros(1), np.zeros(1), 0.3)
    assert "threshold" in words(draw_answer([plotted(pair, curve=curve)]))


def test_a_crop_of_the_onset_is_the_pairs_own(pair: AlignedPair, apex: np.ndarray) -> None:
    onset = draw_face(background(240, 320), centre=(160, 110), eye_distance=50)
    np.testing.assert_array_equal(crop_of(onset, pair, SPEC), pair.onset)
    assert (crop_of(apex, pair, SPEC) != pair.onset).any()


def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    pair: AlignedPair, tmp_path: Path
) -> None:
    out = tmp_path / "plot.png"
    save_plot(out, [plotted(pair)])
    first = out.read_bytes()
    broken = plotted(pair, intervals=(interval(1, 5),), curve="no curve")
    with pytest.raises(AttributeError):
        save_plot(out, [broken])
    assert out.read_bytes() == first
    assert list(tmp_path.iterdir()) == [out]


def predict(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def colours(path: Path) -> int:
    picture = cv2.imread(str(path))
    assert picture.shape[1] == 1320
    return len(np.unique(picture.reshape(-1, 3), axis=0))


def test_predict_plots_a_clip_and_tells_when_the_face_moved(tmp_path: Path) -> None:
    frames, truth = drawn_clip(fps=50, seconds=1.2)
    clip, out = tmp_path / "clip.mp4", tmp_path / "plot.png"
    clip.write_bytes(encode_clip(frames, 50))
    result = predict(clip, "--plot", out)
    assert result.exit_code == 0, result.output
    assert "mouth corner" in result.output
    assert abs(int(result.output.split("apex ")[1].split()[0]) - truth.apex) <= 3
    assert colours(out) > 2000  # a face is in it


def test_scene_cuts_are_drawn_at_their_own_time_also_where_no_face_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The face is gone after the first cut, and the camera slows down there."""
    frames, _truth = drawn_clip(fps=25, seconds=1.0)
    empty = background(*frames[0].shape[:2])
    scenes = [*frames, *[empty // 4] * 10, *[255 - empty // 4] * 10]
    times = [*np.arange(25) / 25, *(1 + np.arange(20) / 10)]
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_clip(scenes, 25, times=times))
    drawn: list[float] = []
    monkeypatch.setattr(predict_command, "save_plot", lambda _out, _faces, cuts: drawn.extend(cuts))
    assert predict(clip, "--plot", tmp_path / "plot.png").exit_code == 0
    assert drawn == pytest.approx([1.0, 2.0], abs=0.01)


def test_predict_takes_the_frames_that_it_is_told(tmp_path: Path) -> None:
    frames, _truth = drawn_clip(fps=25, seconds=1.2)
    (tmp_path / "clip.gif").write_bytes(encode_pictures(frames, 25, "gif"))
    told = ("--onset-frame", 2, "--apex-frame", 14)
    result = predict(tmp_path / "clip.gif", *told, "--plot", tmp_path / "plot.png")
    assert "frames 2 to" in result.output
    assert "apex 14" in result.output


def test_predict_names_the_moments_of_an_interval_that_the_clip_ends(tmp_path: Path) -> None:
    frames, _truth = drawn_clip(fps=25, seconds=1.2)
    (tmp_path / "clip.gif").write_bytes(encode_pictures(frames[:16], 25, "gif"))
    result = predict(tmp_path / "clip.gif", "--onset-frame", 2, "--apex-frame", 14)
    assert "frames 2 to the end, apex 14 (onset 0.08 s, apex 0.56 s)" in result.output


def test_predict_plots_a_pair(tmp_path: Path, pictures: Pictures) -> None:
    for name in ("onset", "smile"):
        (tmp_path / name).write_bytes(getattr(pictures, name))
    out = tmp_path / "plot.png"
    assert predict(tmp_path / "onset", tmp_path / "smile", "--plot", out).exit_code == 0
    assert colours(out) > 2000


def test_predict_plots_that_there_is_no_face(tmp_path: Path) -> None:
    (tmp_path / "clip.gif").write_bytes(encode_pictures(grey_steps(4), 25, "gif"))
    result = predict(tmp_path / "clip.gif", "--plot", tmp_path / "plot.png")
    assert "No face was found in the clip." in result.output
    assert colours(tmp_path / "plot.png") > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("clip", "--plot", "plot.jpg"), "plot.jpg must end in .png"),
        (("clip", "--plot", "no/x.png"), "mfdan: no/x.png: there is no folder no\n"),
        (("clip", "clip", "--apex-frame", 3), "go with a clip"),
        (("clip", "clip", "clip"), "give one clip, or an onset and an apex"),
    ],
)
def test_what_predict_cannot_begin_is_told(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    result = predict(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_clip_that_is_none_fails_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n/etc/passwd\n")
    result = predict(tmp_path / "list.m3u8")
    assert result.exit_code == 1
    assert result.stderr.startswith("mfdan: the bytes are not an MP4")
    assert result.stderr.count("\n") == 1


def test_a_plot_that_fails_costs_no_answer_and_names_the_path_asked_for(
    tmp_path: Path, pictures: Pictures
) -> None:
    (tmp_path / "onset").write_bytes(pictures.onset)
    out = tmp_path / f"{'x' * 246}.png"  # short enough, but not with a temporary file's name
    result = predict(tmp_path / "onset", tmp_path / "onset", "--plot", out)
    assert result.exit_code == 1
    assert "abstains: nothing moved" in result.stdout
    assert result.stderr == f"mfdan: {out}: File name too long\n"


def test_a_device_is_refused_in_one_line() -> None:
    result = predict("/dev/zero")
    assert result.exit_code == 1
    assert result.stderr == "mfdan: /dev/zero: Not a regular file\n"


def test_without_matplotlib_a_plot_says_what_to_install_before_the_work(tmp_path: Path) -> None:
    """In a process of its own, where the package cannot be imported."""
    (tmp_path / "clip.mp4").write_bytes(b"")
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from service.cli import app\n"
        f"app(['predict', {str(tmp_path / 'clip.mp4')!r}, '--plot', 'plot.png'])\n"
    )
    done = subprocess.run(  # noqa: S603 - this file's own code
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'mfdan[offline]'" in done.stderr

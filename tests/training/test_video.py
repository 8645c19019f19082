from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_clips import CODECS, encode_clip, encode_pictures, grey_steps, write_clip, write_sound
from drawn_expression_clips import drawn_clip
from tiny_model import tiny_spec

from model.clip import ClipLimits, open_clip
from model.clip_pipeline import ClipOptions, align_clip
from model.errors import BrokenClip, ClipTooLarge, NotAClip, TooFewFrames
from model.pipeline import Preprocessor
from model.spotting import DEFAULT_SPOTTING
from training.data.video import check_video, method_digest, read_video

PREPROCESSOR = Preprocessor(tiny_spec())


def test_the_frames_of_a_clip_are_those_that_the_service_answers_for(tmp_path: Path) -> None:
    frames, truth = drawn_clip(fps=60, seconds=1.2)
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_clip(frames, 60, options={"crf": "16"}))
    served = align_clip(PREPROCESSOR, open_clip(path.read_bytes())).faces[0].candidates[0]
    assert served.interval.source == "spotted"
    assert truth.apex is not None
    assert abs(served.interval.apex - truth.apex) <= 3
    trained = read_video(path, PREPROCESSOR)
    assert trained is not None
    np.testing.assert_array_equal(trained.onset, served.pair.onset)
    np.testing.assert_array_equal(trained.flow, served.pair.flow)


def test_where_nothing_is_spotted_the_middle_frame_stands_in(tmp_path: Path) -> None:
    frames, _ = drawn_clip(fps=30, seconds=0.5, peak_px=0)
    path = tmp_path / "still.webp"
    path.write_bytes(encode_pictures(frames, 30))
    made = read_video(path, PREPROCESSOR)
    assert made is not None
    (middle,) = PREPROCESSOR.align_pair(frames[0], frames[len(frames) // 2])
    np.testing.assert_array_equal(made.onset, middle.onset)
    np.testing.assert_array_equal(made.flow, middle.flow)


def test_a_clip_without_a_face_gives_nothing(tmp_path: Path) -> None:
    assert read_video(write_clip(tmp_path / "grey.mp4", grey_steps(6)), PREPROCESSOR) is None


def test_the_way_of_choosing_frames_has_a_name_that_changes_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = method_digest()
    assert method_digest() == before
    spotting = replace(DEFAULT_SPOTTING, floor_px=2 * DEFAULT_SPOTTING.floor_px)
    monkeypatch.setattr(
        "training.data.video._OPTIONS", ClipOptions(candidates=1, spotting=spotting)
    )
    other = method_digest()
    monkeypatch.setattr("training.data.video._METHOD", 0)
    assert len({before, other, method_digest()}) == 3


@pytest.mark.parametrize("container", CODECS)
def test_a_clip_is_checked_to_its_end(tmp_path: Path, container: str) -> None:
    path = write_clip(tmp_path / f"clip.{container}", grey_steps(6))
    check_video(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenClip):
        check_video(path)


def test_what_is_no_clip_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_bytes(b"a text, not a clip")
    with pytest.raises(NotAClip):
        read_video(tmp_path / "text.mp4", PREPROCESSOR)
    with pytest.raises(NotAClip, match="no video"):
        check_video(write_sound(tmp_path / "sound.mp4"))
    with pytest.raises(TooFewFrames, match="in the clip: 1"):
        check_video(write_clip(tmp_path / "one.mp4", grey_steps(1)))
    with pytest.raises(FileNotFoundError):
        check_video(tmp_path / "gone.mp4")


def test_a_file_beyond_the_limit_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "clip.mp4", grey_steps(6))
    monkeypatch.setattr("training.data.video._LIMITS", ClipLimits(max_bytes=100))
    with pytest.raises(ClipTooLarge, match="holds 101 bytes"):
        check_video(path)

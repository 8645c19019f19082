from pathlib import Path

import numpy as np
import pytest
from drawn_clips import CODECS, grey_steps, write_clip, write_sound

from model.errors import BrokenClip, ClipTooLarge, NotAClip, TooFewFrames
from training.data.video import ClipLimits, read_onset_and_apex


@pytest.mark.parametrize("container", CODECS)
@pytest.mark.parametrize(("count", "middle"), [(2, 1), (7, 3), (8, 4)])
def test_onset_is_the_first_frame_and_apex_the_middle_one(
    tmp_path: Path, container: str, count: int, middle: int
) -> None:
    path = write_clip(tmp_path / f"clip.{container}", grey_steps(count))
    onset, apex = read_onset_and_apex(path)
    assert onset.shape == apex.shape == (48, 64, 3)
    levels = [float(frame.mean()) for frame in (onset, apex)]
    tolerance = 8 if container != "gif" else 20  # its palette has eight greys
    assert levels == pytest.approx([8, 8 + 16 * middle], abs=tolerance - 0.5)


@pytest.mark.parametrize("container", CODECS)
@pytest.mark.parametrize("share", [0.97, 0.5, 0.05])
def test_a_clip_cut_short_is_told(tmp_path: Path, container: str, share: float) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
    frames = [np.roll(noise, number, axis=1) for number in range(12)]
    path = write_clip(tmp_path / f"clip.{container}", frames)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BrokenClip):
        read_onset_and_apex(path)


def test_a_clip_with_a_spoilt_frame_is_told(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
    path = write_clip(tmp_path / "clip.mp4", [np.roll(noise, n, axis=1) for n in range(12)])
    data = bytearray(path.read_bytes())
    data[-400:-300] = b"\xff" * 100
    path.write_bytes(data)
    with pytest.raises(BrokenClip):
        read_onset_and_apex(path)


def test_a_playlist_is_no_clip_and_what_it_names_is_not_opened(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", grey_steps(4))
    for name, text in (
        ("list.mp4", "#EXTM3U\n#EXTINF:10,\nclip.mp4\n#EXT-X-ENDLIST\n"),
        ("list.mkv", "ffconcat version 1.0\nfile clip.mp4\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(NotAClip):
            read_onset_and_apex(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"\0", b"a text, not a clip" * 9, b"\x89PNG\r\n\x1a\n" * 9])
def test_other_bytes_are_no_clip(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "clip.mp4").write_bytes(data)
    with pytest.raises(NotAClip):
        read_onset_and_apex(tmp_path / "clip.mp4")


def test_sound_alone_is_no_clip(tmp_path: Path) -> None:
    with pytest.raises(NotAClip, match="no video"):
        read_onset_and_apex(write_sound(tmp_path / "sound.mp4"))


def test_one_frame_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(TooFewFrames, match="in the clip: 1"):
        read_onset_and_apex(write_clip(tmp_path / "one.mp4", grey_steps(1)))


def test_no_frame_is_too_few(tmp_path: Path) -> None:
    """A GIF of its header and its trailer alone."""
    path = tmp_path / "none.gif"
    path.write_bytes(b"GIF89a\x40\0\x30\0\x80\0\0\0\0\0\xff\xff\xff;")
    with pytest.raises(TooFewFrames, match="in the clip: 0"):
        read_onset_and_apex(path)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (ClipLimits(max_pixels=48 * 64 - 1), "64x48 pixels"),
        (ClipLimits(max_frames=9), "frames"),
        (ClipLimits(max_seconds=0.3), "s are taken"),
    ],
)
def test_a_clip_beyond_a_limit_is_refused(
    tmp_path: Path, container: str, limits: ClipLimits, told: str
) -> None:
    """Matroska does not say how many frames it holds: they are counted up to the limit."""
    path = write_clip(tmp_path / f"clip.{container}", grey_steps(10))
    with pytest.raises(ClipTooLarge, match=told):
        read_onset_and_apex(path, limits)
    read_onset_and_apex(path, ClipLimits(max_pixels=48 * 64, max_frames=10, max_seconds=0.5))


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (-90, (0, -1))])
def test_a_clip_stands_as_its_rotation_says(
    tmp_path: Path, rotation: int, corner: tuple[int, int]
) -> None:
    """The light corner, top left as stored, goes down when turned counter-clockwise."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:16, :16] = 250
    path = write_clip(tmp_path / "clip.mp4", [frame] * 3, rotation=rotation)
    for shown in read_onset_and_apex(path):
        assert shown.shape == ((48, 64, 3) if rotation == 0 else (64, 48, 3))
        lightest = shown[corner[0] or 0, corner[1] or 0]
        assert lightest.min() > 200
        assert (shown > 128).mean() == pytest.approx(16 * 16 / (48 * 64), rel=0.1)

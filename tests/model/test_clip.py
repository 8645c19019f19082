"""What clips of every kind decode to: tests/model/test_clip_refused.py has those that do not."""

import gc
import io
from contextlib import closing

import av
import cv2
import numpy as np
import pytest
from drawn_clips import encode_clip, encode_pictures, grey_steps
from drawn_face import draw_face
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.clip import Clip, ClipLimits, open_burst, open_clip
from model.errors import BrokenImage, ClipTooLarge, FrameSizeMismatch

Image = NDArray[np.uint8]
KINDS = [
    *(("mp4", codec) for codec in ("h264", "hevc", "vp9", "av1", "mjpeg", "mpeg4")),
    *(("mov", codec) for codec in ("h264", "hevc", "mjpeg")),
    *(("mkv", codec) for codec in ("h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "ffv1")),
    *(("webm", codec) for codec in ("vp8", "vp9", "av1")),
    *(("avi", codec) for codec in ("h264", "mjpeg", "mpeg4", "rawvideo")),
    ("gif", "gif"),
]
ANY_SIZE = [("mkv", "ffv1"), ("mp4", "mjpeg"), ("webm", "vp8"), ("webm", "vp9"), ("gif", "gif")]
DEEP = [
    ("hevc", "yuv420p10le"),
    ("av1", "yuv420p10le"),
    ("ffv1", "yuv444p16le"),
    ("h264", "yuv422p10le"),
]


def levels(clip: Clip) -> list[float]:
    return [float(frame.rgb().mean()) for frame in clip.frames()]


def corner(size: tuple[int, int] = (64, 48)) -> Image:
    """A dark frame, its top left corner light."""
    frame = np.full((size[1], size[0], 3), 20, np.uint8)
    frame[:16, :16] = 240
    return frame


def jpeg(frame: Image) -> bytes:
    return cv2.imencode(".jpg", frame[..., ::-1])[1].tobytes()


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_every_container_and_codec_gives_its_frames_in_order(container: str, codec: str) -> None:
    clip = open_clip(encode_clip(grey_steps(12), 30, container, codec))
    tolerance = 4 if container != "gif" else 20  # its palette has eight greys
    assert levels(clip) == pytest.approx([8 + 16 * n for n in range(12)], abs=tolerance)
    info = clip.info
    assert (info.container, info.codec) == (container, codec)
    assert (info.width, info.height, info.frames) == (64, 48, 12)
    assert info.fps == pytest.approx(30, rel=0.01)
    assert info.duration_s == pytest.approx(0.4, abs=0.011)
    assert not info.variable_frame_rate


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_an_animated_picture_is_a_clip(kind: str) -> None:
    clip = open_clip(encode_pictures(grey_steps(6), fps=25, kind=kind))
    assert levels(clip) == pytest.approx([8 + 16 * n for n in range(6)], abs=1)
    assert (clip.info.container, clip.info.frames) == (kind, 6)
    assert clip.info.fps == pytest.approx(25)
    assert clip.info.duration_s == pytest.approx(0.24)


def test_a_burst_of_pictures_is_a_clip() -> None:
    clip = open_burst([jpeg(frame) for frame in grey_steps(5)], fps=200)
    assert levels(clip) == pytest.approx([8 + 16 * n for n in range(5)], abs=1)
    assert [frame.time_s for frame in clip.frames()] == pytest.approx([n / 200 for n in range(5)])
    assert (clip.info.width, clip.info.height, clip.info.frames) == (64, 48, 5)
    assert (clip.info.fps, clip.info.duration_s) == (200, 5 / 200)


def test_a_burst_of_two_sizes_names_the_frame() -> None:
    burst = [jpeg(frame) for frame in grey_steps(2)] + [jpeg(grey_steps(1, 64, 64)[0])]
    with pytest.raises(FrameSizeMismatch, match="frame 2 is 64x64"):
        list(open_burst(burst, 25).frames())


def test_a_broken_picture_of_a_burst_is_named() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
    burst = [jpeg(noise), jpeg(noise)[:-500]]
    with pytest.raises(BrokenImage, match="frame 1:"):
        list(open_burst(burst, 25).frames())


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_burst_needs_a_rate(fps: float) -> None:
    with pytest.raises(ValueError, match="fps"):
        open_burst([b"", b""], fps)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "h264"), ("mkv", "vp9"), ("mov", "hevc")])
def test_frames_come_at_their_own_times(container: str, codec: str) -> None:
    times = [0, 0.03, 0.07, 0.1, 0.25, 0.26, 0.3, 0.5]
    clip = open_clip(encode_clip(grey_steps(8), 30, container, codec, times=times))
    assert [frame.time_s for frame in clip.frames()] == pytest.approx(times, abs=0.001)
    assert clip.info.variable_frame_rate
    assert clip.info.fps == pytest.approx(7 / 0.5)


@settings(deadline=None, max_examples=25)
@given(
    steps=st.lists(st.integers(2, 300), min_size=1, max_size=8),
    container=st.sampled_from(["mp4", "mkv"]),
)
def test_times_are_true_whatever_they_are(steps: list[int], container: str) -> None:
    """Milliseconds, the coarsest clock of the two containers."""
    times = (np.cumsum([0, *steps]) / 1e3).tolist()
    frames = grey_steps(len(times))
    clip = open_clip(encode_clip(frames, 30, container, "mjpeg", times=times))
    assert [frame.time_s for frame in clip.frames()] == pytest.approx(times, abs=1e-6)
    assert clip.info.frames == len(times)
    assert clip.info.fps == pytest.approx(len(steps) / times[-1])


@pytest.mark.parametrize("fps", [23.976, 25, 29.97, 60, 100, 200])
@pytest.mark.parametrize("container", ["mp4", "mkv", "avi"])
def test_a_constant_rate_is_told_from_a_coarse_clock(container: str, fps: float) -> None:
    """Matroska counts milliseconds: 200 frames a second fit, 29.97 do not."""
    info = open_clip(encode_clip(grey_steps(15), fps, container, "mjpeg")).info
    assert not info.variable_frame_rate
    assert info.fps == pytest.approx(fps, rel=0.01)


def test_a_dropped_frame_makes_the_rate_vary() -> None:
    times = [n / 30 for n in range(15) if n != 7]
    assert open_clip(encode_clip(grey_steps(14), 30, times=times)).info.variable_frame_rate


def test_a_first_frame_later_than_zero_is_at_zero() -> None:
    clip = open_clip(encode_clip(grey_steps(3), 30, "mkv", times=[1.0, 1.1, 1.2]))
    assert [frame.time_s for frame in clip.frames()] == pytest.approx([0, 0.1, 0.2])
    assert clip.info.duration_s < 0.5


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        *((kind, "h264", {"bf": "3", "preset": "fast"}) for kind in ("mp4", "mkv", "avi")),
        ("mp4", "hevc", {"x265-params": "log-level=none:pools=none:bframes=3"}),
        ("avi", "mpeg4", {"bf": "2"}),
    ],
)
def test_frames_between_others_come_in_the_order_they_are_shown(
    container: str, codec: str, options: dict[str, str]
) -> None:
    """B frames: decoded after those that follow them. An AVI has no times to tell them by."""
    clip = open_clip(encode_clip(grey_steps(12), 30, container, codec, options=options))
    assert levels(clip) == pytest.approx([8 + 16 * n for n in range(12)], abs=6)
    times = [frame.time_s for frame in clip.frames()]
    assert times == pytest.approx([n / 30 for n in range(12)], abs=0.001)


def test_vp8_frames_that_are_never_shown_are_not_counted() -> None:
    """Encoders make some for others to refer to: a bit of their first byte says so."""
    data = encode_clip(grey_steps(8), 30, "webm", "vp8")
    with av.open(io.BytesIO(data)) as file:
        third = [bytes(packet) for packet in file.demux()][2]
    at = data.index(third)
    hidden = data[:at] + bytes([third[0] & ~0x10]) + data[at + 1 :]
    clip = open_clip(hidden)
    assert clip.info.frames == sum(1 for _ in clip.frames()) == 7


@pytest.mark.parametrize(
    ("rotation", "light"), [(0, (0, 0)), (90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))]
)
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_a_clip_stands_as_its_rotation_says(
    container: str, rotation: int, light: tuple[int, int]
) -> None:
    """The light corner, top left as stored, goes down when turned counter-clockwise."""
    clip = open_clip(encode_clip([corner()] * 3, 25, container, rotation=rotation))
    upright = (48, 64) if rotation % 180 == 0 else (64, 48)
    assert (clip.info.height, clip.info.width) == upright
    for frame in clip.frames():
        assert frame.rgb().shape == (*upright, 3)
        assert frame.grey().shape == upright
        assert frame.rgb()[light].min() > 200
        assert frame.grey()[light] > 180
        assert (frame.grey() > 128).mean() == pytest.approx(16 * 16 / (48 * 64), rel=0.1)


def test_a_mirrored_clip_is_shown_as_its_matrix_says() -> None:
    """Some front cameras store what they saw and let the player mirror it."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as muxer:
        stream = muxer.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.set_display_rotation(0, hflip=True)
        for _ in range(2):
            picture = av.VideoFrame.from_ndarray(corner(), "rgb24").reformat(format="yuvj420p")
            muxer.mux(stream.encode(picture))
        muxer.mux(stream.encode())
    shown = next(open_clip(file.getvalue()).frames()).rgb()
    assert shown[0, -1].min() > 200 > shown[0, 0].max()


@settings(deadline=None, max_examples=25)
@given(width=st.integers(32, 90), height=st.integers(32, 90), kind=st.sampled_from(ANY_SIZE))
def test_odd_sizes_keep_every_pixel(width: int, height: int, kind: tuple[str, str]) -> None:
    frame = corner((width, height))
    clip = open_clip(encode_clip([frame, frame[::-1]], 25, *kind))
    first, last = ([f.grey(), f.rgb().mean(axis=-1)] for f in clip.frames())
    for plane in (*first, *last):
        assert plane.shape == (height, width)
    assert first[0].flags.c_contiguous
    for plane, rows in ((first[0], slice(None, 12)), (last[1], slice(-12, None))):
        assert plane[rows, :12].min() > 180
        assert plane[rows, 20:].max() < 80


def test_grey_follows_the_luma_of_rgb() -> None:
    frame = draw_face(eye_distance=25, centre=(80, 55), scene=np.full((120, 160, 3), 90, np.uint8))
    shown = next(open_clip(encode_clip([frame] * 2, options={"crf": "12"})).frames())
    luma = cv2.cvtColor(shown.rgb(), cv2.COLOR_RGB2GRAY)
    expanded = (shown.grey().astype(float) - 16) * 255 / 219  # limited range
    assert np.abs(luma - expanded).mean() < 2
    assert np.abs(shown.rgb().astype(float) - frame).mean() < 6


@pytest.mark.parametrize(("codec", "pixels"), DEEP)
def test_deep_pixels_keep_their_upper_bits(codec: str, pixels: str) -> None:
    clip = open_clip(encode_clip(grey_steps(12), 30, "mkv", codec, pixels=pixels))
    assert levels(clip) == pytest.approx([8 + 16 * n for n in range(12)], abs=3)
    greys = [frame.grey() for frame in clip.frames()]
    assert all(grey.dtype == np.uint8 for grey in greys)
    assert np.diff([grey.mean() for grey in greys]).min() > 8


@pytest.mark.parametrize(("codec", "pixels"), [("ffv1", "bgr0"), ("ffv1", "gray"), ("gif", "pal8")])
def test_formats_without_luma_have_a_grey_that_rises_with_the_light(
    codec: str, pixels: str
) -> None:
    container = "gif" if codec == "gif" else "mkv"
    frames = [np.asarray(frame, np.uint8) for frame in grey_steps(12)[::3]]
    data = (
        encode_pictures(frames, kind="gif")
        if codec == "gif"
        else encode_clip(frames, 30, container, codec, pixels=pixels)
    )
    means = [float(frame.grey().mean()) for frame in open_clip(data).frames()]
    assert np.diff(means).min() > 30


@pytest.mark.parametrize("standard", ["bt709", "smpte170m"])
@pytest.mark.parametrize("limited", [True, False])
def test_colours_are_read_by_the_standard_that_the_clip_names(
    standard: str,
    limited: bool,  # noqa: FBT001 - pytest's parameter
) -> None:
    """A red of BT.709 read as BT.601 is off by 20 levels, a full range read as limited by 15."""
    colour = np.array([200, 40, 60], np.uint8)
    frame = np.broadcast_to(colour, (48, 64, 3)).copy()
    space = {"bt709": 1, "smpte170m": 5}[standard]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as muxer:
        params = f"colormatrix={standard}:fullrange={'off' if limited else 'on'}"
        stream = muxer.add_stream("libx264", rate=25, options={"crf": "8", "x264-params": params})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            picture = av.VideoFrame.from_ndarray(frame, "rgb24").reformat(
                format="yuv420p", dst_colorspace=space, dst_color_range=1 if limited else 2
            )
            muxer.mux(stream.encode(picture))
        muxer.mux(stream.encode())
    shown = next(open_clip(file.getvalue()).frames()).rgb()
    assert shown.reshape(-1, 3).mean(axis=0) == pytest.approx(colour, abs=4)


def test_sound_and_an_album_cover_are_passed_over() -> None:
    clip = open_clip(encode_clip(grey_steps(6), 30, "mp4", sound=True))
    assert levels(clip) == pytest.approx([8 + 16 * n for n in range(6)], abs=4)


def test_titles_in_no_known_alphabet_do_not_matter() -> None:
    data = encode_clip(grey_steps(4), 30, "mkv")
    mark = data.index(b"Lavf")  # the name of the writing library
    assert levels(open_clip(data[:mark] + b"\xff\xfe\xfd\xfc" + data[mark + 4 :]))


def test_each_pass_begins_at_the_first_frame() -> None:
    clip = open_clip(encode_clip(grey_steps(5)))
    with closing(clip.frames()) as frames:
        next(frames)
        second = next(frames)
    assert second.index == 1
    assert levels(clip) == levels(clip)
    assert [frame.index for frame in clip.frames()] == list(range(5))


def test_a_frame_can_be_kept_after_its_pass() -> None:
    clip = open_clip(encode_clip(grey_steps(5)))
    kept = list(clip.frames())
    assert [frame.rgb().mean() for frame in kept] == pytest.approx(levels(clip))


def decoders() -> list[av.VideoCodecContext]:
    gc.collect()
    # By type: isinstance would ask every object of every library for its class.
    contexts = [it for it in gc.get_objects() if issubclass(type(it), av.VideoCodecContext)]
    return [context for context in contexts if context.is_open and context.is_decoder]


def test_a_pass_holds_one_decoder_of_one_thread_and_closing_frees_it() -> None:
    """The service shares its cores out among requests."""
    others = len(decoders())
    clip = open_clip(encode_clip(grey_steps(12)))
    assert len(decoders()) == others
    with closing(clip.frames()) as frames:
        next(frames)
        assert len(decoders()) == others + 1
        assert {context.thread_count for context in decoders()} == {1}
    assert len(decoders()) == others


class Clock:
    """What `time.monotonic` tells: nothing goes on but what a test says."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowClock(Clock):
    """Three seconds go by whenever somebody looks."""

    def __call__(self) -> float:
        self.now += 3
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("model.frames.time.monotonic", clock)
    return clock


def test_the_callers_own_work_does_not_count_against_the_deadline(clock: Clock) -> None:
    for _ in open_clip(encode_clip(grey_steps(6)), ClipLimits(max_decode_seconds=1)).frames():
        clock.now += 100


@pytest.mark.parametrize("kind", ["video", "animation", "burst"])
def test_a_pass_that_takes_too_long_is_ended(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits, frames = ClipLimits(max_decode_seconds=5), grey_steps(6)
    clip = {
        "video": lambda: open_clip(encode_clip(frames), limits),
        "animation": lambda: open_clip(encode_pictures(frames), limits),
        "burst": lambda: open_burst([jpeg(frame) for frame in frames], 25, limits),
    }[kind]()
    monkeypatch.setattr("model.frames.time.monotonic", SlowClock())
    with pytest.raises(ClipTooLarge, match="more than 5 s to decode"):
        list(clip.frames())

"""Video file → frames, by FFmpeg; what a stranger's file can make it do is kept small.

FFmpeg is held to the container that the signature names, to a few decoders, and to the bytes that
were sent: it opens no file and no address. Packets are counted before one is decoded.
"""

import io
import struct
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any, NoReturn

import av
import numpy as np
from av.container import InputContainer
from av.stream import Discard, Disposition
from numpy.typing import NDArray

from model.container import check_structure, demuxer_of
from model.errors import BrokenClip, NotAClip
from model.frames import (
    Clip,
    ClipInfo,
    ClipLimits,
    Deadline,
    Frame,
    Plane,
    check_count,
    check_frames,
    check_seconds,
    check_size,
    check_work,
)

__all__ = ["open_video"]

_DECODERS = frozenset(
    {
        "h264",  # telephones, and most of the rest
        "hevc",  # newer telephones
        "vp8",  # browsers' recordings
        "vp9",
        "libdav1d",  # AV1
        "mjpeg",  # webcams and laboratory cameras
        "mpeg4",  # older cameras
        "gif",
        "ffv1",  # archives of laboratories, without loss
        "huffyuv",
        "ffvhuff",
        "rawvideo",
        "png",
    }
)
"""The only ones of FFmpeg's five hundred decoders that a stranger's packets reach: what cameras and
archives use, and what is fuzzed most."""
_PLANAR_LUMA = frozenset({"gray", "nv12", "nv21", "yuva420p"}) | {
    f"yuv{j}{sampling}p" for j in ("", "j") for sampling in (410, 411, 420, 422, 440, 444)
}
"""Pixel formats whose first plane is luma of eight bits."""
_PROBE_BYTES = 2**20
_MOST_STREAMS = 64
_MOST_COPIES = 2
"""Packets may hold this many times the bytes of the file. A byte serves one packet, except the few
that a container keeps once for all of them."""
_PADDING = 128 * 2**14
"""Pixels: codecs round both sides up, and cut off what is too much once it is decoded."""
_VP8_SHOWN = 0x10
_EVEN = 0.25
"""How far off an even beat, in mean intervals, a frame may come at a constant rate."""


@dataclass(frozen=True, slots=True)
class _Timing:
    """What the packets say, before a frame is decoded."""

    frames: int
    tick: Fraction
    """Seconds a unit of the stream's clock."""
    stamps: tuple[int, ...]
    """When the frames are shown, in ticks, in order; empty where the file does not say."""
    last_ticks: int
    """How long the last frame stands, 0 when the file does not say."""
    rate: Fraction
    """Frames a second, as the header has them; 0 when it does not say."""
    told_apart: bool
    """Whether it is known which stamp is which frame's, and not only their order."""

    def listed(self) -> tuple[float, ...] | None:
        """Return seconds from the first frame on for frames that bear no times of their own."""
        if self.stamps:
            known = tuple(float((at - self.stamps[0]) * self.tick) for at in self.stamps)
            return None if self.told_apart else known
        return tuple(float(index / self.rate) for index in range(self.frames))


def open_video(data: bytes, container: str, limits: ClipLimits) -> Clip:
    """Open a clip in one of FFmpeg's containers: mp4, mov, mkv, webm, avi or gif.

    Raises: NotAClip, BrokenClip, ClipTooLarge, TooFewFrames, ImageTooSmall.
    """
    check_structure(data, container)
    deadline = Deadline(limits)
    with _opened(data, container, limits, deadline) as (file, stream):
        size = stream.codec_context.width, stream.codec_context.height
        if any(size):  # of MPEG-4, FFmpeg takes only the codec's own word
            check_size(*size, limits)
        timing = _scan(file, stream, len(data), limits, deadline)
        check_count(timing.frames)
        info = _info(timing, size, container, stream.codec.canonical_name)
    check_seconds(info.duration_s, limits)
    check_work(info.frames, *size, limits)
    decode = partial(_frames, data, container, limits, timing.listed())
    with closing(Clip(info, decode).frames()) as frames:
        height, width = next(frames).grey().shape  # a decoded frame tells which way is up
    check_size(width, height, limits)  # and what the codec's own header says
    check_work(info.frames, width, height, limits)
    return Clip(replace(info, width=width, height=height), decode)


class _Reader(io.BytesIO):
    """A clip's bytes, given out up to a deadline: a file can make FFmpeg read on and on."""

    def __init__(self, data: bytes, deadline: Deadline) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        self._deadline.check()
        return super().read(size)


def _refuse(*_: Any) -> NoReturn:  # noqa: ANN401 - PyAV's callback: name, flags, options
    raise BrokenClip("the clip wants to open another file")


@contextmanager
def _opened(
    data: bytes, container: str, limits: ClipLimits, deadline: Deadline
) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    options = {
        "codec_whitelist": "none",  # or FFmpeg would decode frames to look at them
        "protocol_whitelist": "none",
        "max_streams": str(_MOST_STREAMS),
        "probesize": str(_PROBE_BYTES),
    }
    with (
        _faults_told(),
        av.open(
            _Reader(data, deadline),
            "r",
            format=demuxer_of(container),
            options=options,
            metadata_errors="ignore",  # titles are not read, and may hold any bytes
            io_open=_refuse,
        ) as file,
    ):
        stream = _video_stream(file)
        stream.codec_context.thread_count = 1  # the cores are shared out to requests
        stream.codec_context.options = {
            "err_detect": "explode",  # a frame patched up where data are missing is no frame
            "max_pixels": str(limits.max_pixels + _PADDING),
        }
        yield file, stream


@contextmanager
def _faults_told() -> Iterator[None]:
    try:
        yield
    except av.FFmpegError:
        raise BrokenClip("the clip is truncated or corrupt") from None


def _video_stream(file: InputContainer) -> av.VideoStream:
    """Choose the first stream of moving pictures, and let the others be skipped."""
    videos = [
        stream
        for stream in file.streams.video
        if not stream.disposition & Disposition.attached_pic  # an album's cover
    ]
    if not videos:
        raise NotAClip("the file holds no video")
    chosen = videos[0]
    if chosen.codec_context is None or chosen.codec.name not in _DECODERS:
        raise NotAClip("the video's codec is not one that mfdan reads")
    for stream in file.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    return chosen


def _scan(
    file: InputContainer,
    stream: av.VideoStream,
    size: int,
    limits: ClipLimits,
    deadline: Deadline,
) -> _Timing:
    """Walk over the packets without decoding them."""
    told_apart = file.format.name != "avi"  # it has an order, no times: FFmpeg makes them up
    stamps: list[int | None] = []
    packets, whole, last_ticks = 0, 0, 0
    for packet in file.demux(stream):
        deadline.check()
        if not packet.size:  # a frame that stands on, or the end
            continue
        packets, whole = packets + 1, whole + packet.size
        check_frames(packets, limits)
        if packet.is_corrupt or whole > _MOST_COPIES * size:
            raise BrokenClip("the clip is truncated or corrupt")
        if _is_shown(packet, stream):
            stamps.append(packet.pts if told_apart else packet.dts)
            last_ticks = packet.duration or 0
    if packets < len(stream.index_entries) and file.format.name.startswith("mov"):
        raise BrokenClip("the clip is cut short")
    known = sorted(stamp for stamp in stamps if stamp is not None)
    return _Timing(
        frames=len(stamps),
        tick=stream.time_base or Fraction(1),
        stamps=tuple(known) if len(set(known)) == len(stamps) else (),
        last_ticks=max(0, last_ticks),
        rate=stream.average_rate or Fraction(0),
        told_apart=told_apart,
    )


def _is_shown(packet: "av.Packet[av.VideoStream]", stream: av.VideoStream) -> bool:
    """Whether a packet is a frame to look at, not one that others only refer to."""
    if packet.is_discard:  # cut away by an edit
        return False
    return stream.codec.name != "vp8" or bool(memoryview(packet)[0] & _VP8_SHOWN)


def _info(timing: _Timing, size: tuple[int, int], container: str, codec: str) -> ClipInfo:
    if timing.stamps:
        span = (timing.stamps[-1] - timing.stamps[0]) * timing.tick  # exact
        beat = span / (timing.frames - 1)
        fps, uneven = float(1 / beat), _is_uneven(timing.stamps)
        duration = float(span + (timing.last_ticks * timing.tick or beat))
    elif timing.rate > 0:
        fps, uneven, duration = float(timing.rate), False, float(timing.frames / timing.rate)
    else:
        raise BrokenClip("the clip does not say when its frames are shown")
    return ClipInfo(
        width=size[0],
        height=size[1],
        frames=timing.frames,
        duration_s=duration,
        fps=fps,
        variable_frame_rate=uneven,
        container=container,
        codec=codec,
    )


def _is_uneven(stamps: tuple[int, ...]) -> bool:
    """Whether frames come further off an even beat than a clock's ticks and jitter explain."""
    even = np.linspace(stamps[0], stamps[-1], len(stamps))
    beat = even[1] - even[0]
    return bool(np.abs(np.array(stamps) - even).max() > max(1, _EVEN * beat))


def _frames(
    data: bytes, container: str, limits: ClipLimits, listed: tuple[float, ...] | None
) -> Generator[Frame]:
    """Decode a clip; `listed` are the times of frames that bear none of their own."""
    deadline = Deadline(limits)
    first: av.VideoFrame | None = None
    last = -1.0
    with _opened(data, container, limits, deadline) as (file, stream):
        for index, picture in enumerate(file.decode(stream)):
            deadline.check()
            if listed is not None and index == len(listed):
                raise BrokenClip("the clip shows more frames than it lists")
            if first is None:
                first, turn = picture, _turn(picture)
            _check_alike(picture, first)
            seconds = _seconds_since(first, picture) if listed is None else listed[index]
            if seconds <= last:
                raise BrokenClip("the clip's frames go back in time")
            last = seconds
            with deadline.paused():
                yield Frame(index, seconds, _Decoded(picture, turn))


def _check_alike(picture: av.VideoFrame, first: av.VideoFrame) -> None:
    if picture.is_corrupt:
        raise BrokenClip("the clip is truncated or corrupt")
    if (picture.width, picture.height) != (first.width, first.height):
        raise BrokenClip("the clip's frames change their size")


def _seconds_since(first: av.VideoFrame, picture: av.VideoFrame) -> float:
    if picture.pts is None or first.pts is None or picture.time_base is None:
        raise BrokenClip("the clip does not say when its frames are shown")
    return float((picture.pts - first.pts) * picture.time_base)


@dataclass(frozen=True, slots=True)
class _Turn:
    """How to stand a stored frame upright: transposed first, then flipped."""

    transposed: bool
    columns: bool
    rows: bool

    def __call__(self, pixels: NDArray[np.uint8]) -> Plane:
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        return np.array(pixels[:: -1 if self.rows else 1, :: -1 if self.columns else 1], order="C")


_MATRIX = struct.Struct("=9i")


def _turn(picture: av.VideoFrame) -> _Turn:
    """Read the display matrix, shown = (a x + c y, b x + d y), as quarter turn and mirror."""
    side: Any = picture.side_data.get("DISPLAYMATRIX")
    if side is None or side.buffer_size != _MATRIX.size:
        return _Turn(transposed=False, columns=False, rows=False)
    a, b, _, c, d, *_ = _MATRIX.unpack(side)
    if abs(c) > abs(a):
        return _Turn(transposed=True, columns=c < 0, rows=b < 0)
    return _Turn(transposed=False, columns=a < 0, rows=d < 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Decoded:
    """A frame as the decoder left it."""

    picture: av.VideoFrame
    turn: _Turn

    def grey(self) -> Plane:
        picture = self.picture
        luma = picture.planes[0]
        if picture.format.name not in _PLANAR_LUMA or luma.line_size < picture.width:
            with _faults_told():
                picture = picture.reformat(format="gray", threads=1)
            luma = picture.planes[0]
        lines = np.frombuffer(memoryview(luma), np.uint8).reshape(-1, luma.line_size)
        return self.turn(lines[: picture.height, : picture.width])

    def rgb(self) -> Plane:
        with _faults_told():
            pixels = self.picture.reformat(format="rgb24", threads=1).to_ndarray()
        return self.turn(np.asarray(pixels, np.uint8))

"""Video files and ready-made flow, written as other people's tools write them."""

import io
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

Image = NDArray[np.uint8]
os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder tells its life on every start
CODECS = {"mp4": "h264", "mov": "mjpeg", "mkv": "ffv1", "webm": "vp8", "avi": "mpeg4", "gif": "gif"}
"""By container: what `write_clip` puts into it."""
ENCODERS = {
    "h264": ("libx264", "yuv420p", {"preset": "ultrafast"}),
    "hevc": (
        "libx265",
        "yuv420p",
        {
            "preset": "ultrafast",
            "x265-params": "log-level=none:pools=none:frame-threads=1:bframes=0",
        },
    ),
    "vp8": ("libvpx", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
    "vp9": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", "yuv420p", {"preset": "11"}),
    "mjpeg": ("mjpeg", "yuvj420p", {}),
    "mpeg4": ("mpeg4", "yuv420p", {}),
    "ffv1": ("ffv1", "yuv420p", {}),
    "rawvideo": ("rawvideo", "yuv420p", {}),
    "gif": ("gif", "rgb8", {}),
}
"""By codec: the encoder, its usual pixel format, and what makes it quick and quiet.

x265 gives B frames of very short clips random times."""
MUXERS = {"mkv": "matroska"}
"""By extension, where FFmpeg calls the format otherwise."""
TICKS = 90_000
"""A second, in the clock of frames with times of their own."""


def encode_clip(  # noqa: PLR0913 - each argument is one thing a test varies
    frames: Iterable[Image],
    fps: float = 30,
    container: str = "mp4",
    codec: str = "h264",
    *,
    times: Sequence[float] | None = None,
    rotation: int = 0,
    pixels: str | None = None,
    options: dict[str, str] | None = None,
    sound: bool = False,
) -> bytes:
    """Encode (H, W, 3) RGB frames as a file of a container: mp4, mov, mkv, webm, avi or gif.

    times: seconds of each frame, from 0, where they do not come at one rate.
    rotation: how a player must turn the frames, degrees counter-clockwise.
    pixels: another pixel format than the codec's usual one, such as yuv420p10le.
    options: for the encoder, such as {"crf": "28"}. sound: whether silence goes along.
    """
    encoder, usual, quick = ENCODERS[codec]
    file = io.BytesIO()
    with av.open(file, "w", format=MUXERS.get(container, container)) as muxer:
        rate = Fraction(fps).limit_denominator(1001)
        video = muxer.add_stream(encoder, rate=rate, options=quick | (options or {}))
        voice = muxer.add_stream("aac", rate=44_100) if sound else None
        clock = 1 / rate if times is None else Fraction(1, TICKS)
        video.codec_context.time_base = clock
        for number, frame in enumerate(frames):
            if not number:
                video.height, video.width = frame.shape[:2]
                video.pix_fmt = pixels or usual
                if rotation:
                    video.set_display_rotation(rotation)
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format=video.pix_fmt
            )
            ticks = number if times is None else round(TICKS * times[number])
            picture.pts, picture.time_base = ticks, clock
            muxer.mux(video.encode(picture))
        muxer.mux(video.encode())
        if voice is not None:
            muxer.mux(voice.encode(_silence()))
            muxer.mux(voice.encode())
    return file.getvalue()


def encode_pictures(frames: Sequence[Image], fps: float = 25, kind: str = "webp") -> bytes:
    """Encode RGB frames as an animated picture by Pillow: webp (lossless) or gif.

    The frames' durations are whole milliseconds (WebP) or hundredths of a second (GIF), and no
    frame may equal the one before: Pillow would drop it.
    """
    pictures = [Pillow.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(
        file,
        kind,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
        **({"lossless": True} if kind == "webp" else {}),
    )
    return file.getvalue()


def encode_sound(container: str = "mp4") -> bytes:
    """Encode a file of a video's format that holds sound only."""
    file = io.BytesIO()
    with av.open(file, "w", format=MUXERS.get(container, container)) as muxer:
        stream = muxer.add_stream("libopus" if container == "webm" else "aac", rate=48_000)
        muxer.mux(stream.encode(_silence(48_000)))
        muxer.mux(stream.encode())
    return file.getvalue()


def repeat_last(data: bytes, count: int, fps: float = 30, container: str = "mp4") -> bytes:
    """Write a clip anew with its last frame's packet `count` times more: quickly very long."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(file, "w", format=MUXERS.get(container, container)) as muxer,
    ):
        packets = [packet for packet in source.demux(video=0) if packet.size]
        stream = muxer.add_stream_from_template(source.streams.video[0])
        clock = Fraction(1) / Fraction(fps).limit_denominator(1001)
        for number in range(len(packets) + count):
            shown = packets[min(number, len(packets) - 1)]
            packet = av.Packet(bytes(shown))
            packet.stream, packet.time_base = stream, clock
            packet.pts = packet.dts = number
            packet.is_keyframe = shown.is_keyframe
            muxer.mux(packet)
    return file.getvalue()


def _silence(rate: int = 44_100) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
    frame.sample_rate = rate
    return frame


def write_clip(path: Path, frames: Iterable[Image], *, rotation: int = 0) -> Path:
    """Write (H, W, 3) RGB frames; the name says which container. `rotation`: counter-clockwise."""
    container = path.suffix[1:]
    path.write_bytes(encode_clip(frames, 25, container, CODECS[container], rotation=rotation))
    return path


def write_sound(path: Path) -> Path:
    """Write a file of a video's format that holds sound only."""
    path.write_bytes(encode_sound(path.suffix[1:]))
    return path


def grey_steps(count: int, height: int = 48, width: int = 64) -> list[Image]:
    """Frame number n is of the grey level 8 + 16 n all over."""
    return [np.full((height, width, 3), 8 + 16 * number, np.uint8) for number in range(count)]


def write_flow_picture(path: Path, flow: NDArray[np.float32]) -> Path:
    """Write (2, H, W) as a picture: R, G and B are u, v and strain, each min-max scaled."""
    strain = np.hypot(*np.gradient(flow[0]))
    channels = []
    for channel in (*flow, strain):
        low, span = channel.min(), np.ptp(channel)
        scaled = 255 * (channel - low) / span if span else np.zeros_like(channel)
        channels.append(scaled.round().astype(np.uint8))
    cv2.imwrite(str(path), np.dstack(channels[::-1]))
    return path

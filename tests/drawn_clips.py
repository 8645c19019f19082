"""Video files and ready-made flow, written as other people's tools write them."""

from collections.abc import Iterable
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
CODECS = {
    "mp4": ("libx264", "yuv420p"),
    "mov": ("mjpeg", "yuvj420p"),
    "mkv": ("ffv1", "yuv420p"),
    "webm": ("libvpx", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "gif": ("gif", "rgb8"),
}


def write_clip(path: Path, frames: Iterable[Image], *, rotation: int = 0) -> Path:
    """Write (H, W, 3) RGB frames; the name says which container. `rotation`: counter-clockwise."""
    codec, pixels = CODECS[path.suffix[1:]]
    with av.open(path, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=25)
        for frame in frames:
            if not stream.width or not stream.codec_context.is_open:
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixels
                if rotation:
                    stream.set_display_rotation(rotation)
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """Write a file of a video's format that holds sound only."""
    silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
    silence.sample_rate = 44100
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=44100)
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
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

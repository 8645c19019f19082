"""What training does to a pair before the network sees it: pure functions of onset and flow.

Convention: onset is (H, W, 3) uint8 RGB; flow is (2, H, W) float32, channels (u, v) in pixels of
the crop, x right, y down, onset → apex, residual (the head's motion is taken out). Whatever moves
the picture moves the flow with it and turns its vectors, so that onset and flow still tell one
story. All of it is ours; the paper names random magnification only.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.magnify import carry, magnify
from training.config import RunConfig

__all__ = [
    "augment",
    "flow_noise",
    "image_noise",
    "mirror",
    "relight",
    "reverse_time",
    "similarity",
]

Image = NDArray[np.uint8]
Flow = NDArray[np.float32]

_NOISE_GRAIN_PX = 16
"""Distance of the nodes between which the flow's noise is interpolated: that of a brow or a mouth's
corner, as an error of the flow is (ours)."""


def mirror(onset: Image, flow: Flow) -> tuple[Image, Flow]:
    """Mirror a pair left to right: u changes its sign, v does not."""
    mirrored = flow[:, :, ::-1].copy()
    mirrored[0] *= -1
    return np.ascontiguousarray(onset[:, ::-1]), mirrored


def similarity(
    onset: Image, flow: Flow, *, degrees: float, zoom: float, shift: tuple[float, float]
) -> tuple[Image, Flow]:
    """Turn, zoom and shift a pair about its middle, in one resampling.

    A point p goes to c + A(p - c) + t, with c the middle, t the shift (x, y) in pixels and A the
    turn by `degrees` (x towards y: clockwise on the screen) times `zoom`; a vector of the flow
    becomes A times itself. What comes in from outside repeats the border.
    """
    height, width = onset.shape[:2]
    angle = math.radians(degrees)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.column_stack([linear, middle + shift - linear @ middle])

    def move(picture: NDArray[Any], interpolation: int) -> NDArray[Any]:
        moved = cv2.warpAffine(
            picture, matrix, (width, height), flags=interpolation, borderMode=cv2.BORDER_REPLICATE
        )
        return np.asarray(moved)

    vectors = np.ascontiguousarray(flow.transpose(1, 2, 0)) @ linear.T.astype(np.float32)
    moved_flow = move(vectors, cv2.INTER_LINEAR).transpose(2, 0, 1)
    return (
        np.asarray(move(onset, cv2.INTER_CUBIC), np.uint8),
        np.ascontiguousarray(moved_flow, np.float32),
    )


def reverse_time(onset: Image, flow: Flow) -> tuple[Image, Flow]:
    """Return the pair apex → onset: the apex as the flow explains it, and the way back from there.

    Every vector is carried to where it arrives, and turned round.
    """
    return magnify(onset, flow, 0.0), np.ascontiguousarray(-carry(flow))


def relight(onset: Image, contrast: float, brightness: float) -> Image:
    """Scale the levels about the middle grey by `contrast`, and that grey by `brightness`."""
    table = (np.arange(256) - 127.5) * contrast + 127.5 * brightness
    levels: Image = np.clip(table.round(), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(onset, levels), np.uint8)


def image_noise(onset: Image, deviation: float, random: np.random.Generator) -> Image:
    """Add independent normal noise of a standard deviation in 8-bit levels."""
    noise = random.standard_normal(onset.shape, np.float32) * np.float32(deviation)
    return np.clip(np.rint(onset + noise), 0, 255).astype(np.uint8)


def flow_noise(flow: Flow, deviation: float, random: np.random.Generator) -> Flow:
    """Add smooth noise whose root mean square, over the crop, is `deviation` pixels in u and in v.

    Smooth, as errors of a flow are: white noise would be all strain.
    """
    _, height, width = flow.shape
    nodes = (height // _NOISE_GRAIN_PX + 2, width // _NOISE_GRAIN_PX + 2)
    noise = np.empty_like(flow)
    for channel in range(2):
        drawn = random.standard_normal(nodes, np.float32)
        cv2.resize(drawn, (width, height), noise[channel], interpolation=cv2.INTER_CUBIC)
        noise[channel] *= deviation / np.sqrt(np.mean(noise[channel] ** 2))
    return flow + noise


@dataclass(frozen=True, slots=True)
class _Draws:
    """What is random about one sample."""

    flip: bool
    contrast: float
    brightness: float
    alpha: float
    reverse: bool
    degrees: float
    zoom: float
    shift: tuple[float, float]
    """Of the crop's side."""
    image_noise: float
    flow_noise: float


def augment(
    onset: Image, flow: Flow, config: RunConfig, random: np.random.Generator
) -> tuple[Image, Flow, float]:
    """Change a pair at random, as far as the config goes; return it and its magnification α."""
    draws = _draw(config, random)
    if draws.flip:
        onset, flow = mirror(onset, flow)
    if draws.reverse:
        onset, flow = reverse_time(onset, flow)
    onset = relight(onset, draws.contrast, draws.brightness)
    if config.rotation_degrees or config.zoom or config.shift:
        x, y = draws.shift
        onset, flow = similarity(
            onset,
            flow,
            degrees=draws.degrees,
            zoom=draws.zoom,
            shift=(x * onset.shape[1], y * onset.shape[0]),
        )
    if config.image_noise:
        onset = image_noise(onset, draws.image_noise, random)
    if config.flow_noise_px:
        flow = flow_noise(flow, draws.flow_noise, random)
    return onset, flow, draws.alpha


def _draw(config: RunConfig, random: np.random.Generator) -> _Draws:
    flip = random.random() < config.flip_probability
    light = 1 - config.brightness, 1 + config.brightness
    contrast, brightness = random.uniform(*light, size=2).tolist()
    alpha = random.uniform(config.alpha_min, config.alpha_max)
    # What came later is drawn later: a config without it gives the samples that it always gave.
    return _Draws(
        flip=flip,
        contrast=contrast,
        brightness=brightness,
        alpha=alpha,
        reverse=random.random() < config.time_reversal_probability,
        degrees=random.uniform(-config.rotation_degrees, config.rotation_degrees),
        zoom=random.uniform(1 - config.zoom, 1 + config.zoom),
        shift=(
            random.uniform(-config.shift, config.shift),
            random.uniform(-config.shift, config.shift),
        ),
        image_noise=random.uniform(0, config.image_noise),
        flow_noise=random.uniform(0, config.flow_noise_px),
    )

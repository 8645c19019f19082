"""What besides an expression differs between two frames, and between two cameras.

Every number is drawn beforehand into a frozen dataclass, so that a pair can be described
without being rendered. All ranges are ours. Lengths are in pixels of the 224-pixel aligned
face ("face pixels"), where the eyes are 80.6 pixels apart, unless said otherwise.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Camera",
    "Head",
    "Light",
    "Shot",
    "draw_camera",
    "draw_head",
    "draw_light",
    "draw_shot",
    "encode",
    "expose",
    "happens",
]

Picture = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera's look, the same for both frames."""

    eye_distance: float
    """Pixels of the frame."""
    side: float
    """Of the square frame, in eye distances."""
    angle: float
    """Roll of the head in the frame, radians."""
    shift: tuple[float, float]
    """Of the face from the middle of the frame, in eye distances."""
    grey: bool
    gain: float
    gamma: float
    cast: tuple[float, float, float]
    """Gain per channel."""
    defocus: float
    """Standard deviation, pixels of the frame."""
    read_noise: float
    """Standard deviation, grey levels."""
    shot_noise: float
    """Variance per grey level."""
    quality: int
    """Of the JPEG files."""


@dataclass(frozen=True, slots=True)
class Head:
    """Motion of the head from onset to apex."""

    shift: tuple[float, float]
    angle: float
    """Radians."""
    scale: float
    turn: tuple[float, float]
    """Yaw and pitch: how far the nose moves beyond the rim of the face, (x, y)."""


@dataclass(frozen=True, slots=True)
class Light:
    """Light of the apex relative to the onset."""

    gain: float
    gamma: float
    slope: tuple[float, float]
    """Relative change from one side of the frame to the other, (x, y)."""


@dataclass(frozen=True, slots=True)
class Shot:
    """What a single exposure suffers."""

    blur_length: float
    """Motion blur, pixels of the frame."""
    blur_angle: float


def happens(rng: np.random.Generator, share: float) -> bool:
    """Draw whether something happens that does so in a share of cases."""
    return bool(rng.random() < share)


def draw_camera(rng: np.random.Generator) -> Camera:
    """Draw a camera: crop, resolution, colour, contrast, noise, compression."""
    cast = rng.uniform(0.92, 1.08, 3) if happens(rng, 0.5) else np.ones(3)
    return Camera(
        eye_distance=float(rng.uniform(80, 115)),
        side=float(rng.uniform(2.8, 3.4)),
        angle=float(rng.normal(0, 0.05)),
        shift=(float(rng.uniform(-0.15, 0.15)), float(rng.uniform(-0.15, 0.15))),
        grey=happens(rng, 0.3),
        gain=float(rng.uniform(0.7, 1.15)),
        gamma=float(np.exp(rng.uniform(-0.25, 0.25))),
        cast=(float(cast[0]), float(cast[1]), float(cast[2])),
        defocus=float(rng.uniform(0.4, 1.4)) if happens(rng, 0.5) else 0.0,
        read_noise=float(rng.uniform(0.3, 2.5)),
        shot_noise=float(rng.uniform(0.0, 0.04)),
        quality=int(rng.integers(70, 98)),
    )


def draw_head(rng: np.random.Generator) -> Head:
    """Draw a head motion: mostly small, up to 1.5 face pixels, with a slight turn."""
    length, angle = 1.5 * rng.beta(1.0, 2.0), rng.uniform(0, 2 * np.pi)
    turn_length, turn_angle = 0.6 * rng.beta(1.0, 3.0), rng.uniform(0, 2 * np.pi)
    return Head(
        shift=(float(length * np.cos(angle)), float(length * np.sin(angle))),
        angle=float(np.clip(rng.normal(0, 0.003), -0.01, 0.01)),
        scale=float(1 + np.clip(rng.normal(0, 0.002), -0.006, 0.006)),
        turn=(float(turn_length * np.cos(turn_angle)), float(turn_length * np.sin(turn_angle))),
    )


def draw_light(rng: np.random.Generator) -> Light:
    """Draw a drift of the light: often next to none, up to a few per cent."""
    strength = rng.beta(1.0, 2.0)
    gain, gamma, across, down = strength * rng.uniform(-1, 1, 4)
    return Light(
        gain=float(1 + 0.05 * gain),
        gamma=float(1 + 0.04 * gamma),
        slope=(float(0.05 * across), float(0.05 * down)),
    )


def draw_shot(rng: np.random.Generator) -> Shot:
    """Draw a frame's own motion blur: none for most."""
    length = rng.uniform(1.0, 2.5) if happens(rng, 0.2) else 0.0
    return Shot(blur_length=float(length), blur_angle=float(rng.uniform(0, np.pi)))


def expose(
    scene: Picture, camera: Camera, light: Light, shot: Shot, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Turn a rendered scene into what the camera records.

    Convention: scene (H, W, 3), BGR, 0 to 255, not clipped. Returns uint8 of the same
    shape, or (H, W) from a grey camera. Noise is drawn from `rng`.
    """
    seen: Picture = scene
    if camera.grey:
        seen = np.asarray(cv2.cvtColor(scene, cv2.COLOR_BGR2GRAY), np.float32)
    if camera.defocus:
        seen = np.asarray(cv2.GaussianBlur(seen, (0, 0), camera.defocus), np.float32)
    if shot.blur_length:
        seen = np.asarray(cv2.filter2D(seen, -1, _line(shot)), np.float32)
    clipped = np.clip(seen, 0, 255) / np.float32(255)
    levels = np.asarray(cv2.pow(clipped, camera.gamma * light.gamma), np.float32)
    shading = camera.gain * light.gain * _slope(scene.shape[:2], light.slope)
    if camera.grey:
        levels = levels * shading
    else:
        levels = levels * shading[..., None] * np.array(camera.cast, np.float32)
    grey_levels = 255 * levels
    spread = np.sqrt(camera.read_noise**2 + camera.shot_noise * np.maximum(grey_levels, 0))
    noise = rng.standard_normal(grey_levels.shape, dtype=np.float32)
    recorded = np.clip(np.rint(grey_levels + spread.astype(np.float32) * noise), 0, 255)
    return np.asarray(recorded, np.uint8)


def _line(shot: Shot) -> Picture:
    """Return a normalised 5 x 5 kernel of a blurred line."""
    offsets = np.linspace(-0.5, 0.5, 9) * shot.blur_length
    x, y = 2 + offsets * np.cos(shot.blur_angle), 2 + offsets * np.sin(shot.blur_angle)
    grid_y, grid_x = np.mgrid[:5, :5]
    near_x = np.maximum(1 - np.abs(grid_x[..., None] - x), 0)
    near_y = np.maximum(1 - np.abs(grid_y[..., None] - y), 0)
    kernel = (near_x * near_y).sum(axis=-1)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _slope(shape: tuple[int, ...], slope: tuple[float, float]) -> Picture:
    across = np.linspace(-0.5, 0.5, shape[1], dtype=np.float32) * np.float32(slope[0])
    down = np.linspace(-0.5, 0.5, shape[0], dtype=np.float32) * np.float32(slope[1])
    return np.asarray(1 + across[None, :] + down[:, None], np.float32)


def encode(frame: NDArray[np.uint8], quality: int) -> bytes:
    """Return a frame as a JPEG file."""
    good, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not good:
        raise ValueError(f"cannot encode a frame of shape {frame.shape}")
    return bytes(data.tobytes())

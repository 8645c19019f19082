"""Clips of a drawn face whose onset, apex and offset are known, small enough to make in a test.

The face is drawn once at twice the clip's resolution; every frame is that picture seen through
one smooth displacement, about 2 ms a frame. Lengths named `px` are pixels of the 224-pixel aligned
face, where the eyes are 80.6 pixels apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from drawn_face import Image, background, draw_face

Movement = Literal["smile", "brow_lift"]
Field = npt.NDArray[np.float32]

ALIGNED_EYE_DISTANCE = 80.6
_SCALE = 2
"""Resolution of the drawn picture over the clip's: sampling it is then next to exact."""
_LID_STEPS = 8
_BLINK_S = 0.2
_WANDER_S = 3.0
"""The head's slow motion comes back after this time."""
_BUMPS = {"brow_lift": (0.5, -0.33, 0.3), "smile": (0.4, 1.08, 0.25)}
"""Where draw_face moves the skin, both sides: x, y, spread, in eye distances."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a drawn clip shows; frames count from 0. All None in a clip without an expression."""

    onset: int | None
    apex: int | None
    offset: int | None
    intensity: npt.NDArray[np.float64]
    """(N,) of every frame, 0 rest to 1 apex."""


def drawn_clip(  # noqa: PLR0913 - each argument is one thing a test varies
    *,
    fps: float = 100.0,
    seconds: float = 1.2,
    onset_s: float = 0.4,
    apex_s: float = 0.55,
    offset_s: float = 0.8,
    peak_px: float = 2.0,
    movement: Movement = "smile",
    drift_px: float = 0.0,
    blinks: Sequence[float] = (),
    noise: float = 1.0,
    size: tuple[int, int] = (180, 240),
    eye_distance: float = 45.0,
    seed: int = 0,
) -> tuple[list[Image], Truth]:
    """Draw a face that leaves its rest at `onset_s` and is back at `offset_s`.

    Returns RGB frames (H, W, 3) of `size` (H, W), and the truth.
    peak_px: of both mouth corners or both brows; 0 draws a still clip.
    drift_px: how far the head wanders; it rolls, comes nearer and turns along with it.
    blinks: seconds at which a blink of 0.2 s begins.
    noise: of the sensor, standard deviation in grey levels, drawn from `seed`.
    """
    times = np.arange(round(seconds * fps)) / fps
    intensity = _there_and_back(times, onset_s, apex_s, offset_s) if peak_px else 0 * times
    closed = np.sum(
        [0 * times]
        + [_there_and_back(times, at, at + 0.4 * _BLINK_S, at + _BLINK_S) for at in blinks],
        axis=0,
    )
    wander = drift_px / ALIGNED_EYE_DISTANCE * np.sin(2 * np.pi * times / _WANDER_S)
    rng = np.random.default_rng(seed)
    frames = [
        _recorded(_face(size, eye_distance, lids), places, noise, rng)
        for lids, places in zip(
            np.clip(closed, 0, 1),
            _places(size, eye_distance, wander, movement, intensity * peak_px),
            strict=True,
        )
    ]
    if not peak_px:
        return frames, Truth(None, None, None, intensity)
    onset, apex, offset = (round(at * fps) for at in (onset_s, apex_s, offset_s))
    return frames, Truth(onset, apex, offset, intensity)


def _there_and_back(
    times: npt.NDArray[np.float64], onset: float, apex: float, offset: float
) -> npt.NDArray[np.float64]:
    """Rise from 0 at the onset to 1 at the apex, fall to 0 at the offset, smoothly."""
    way = np.interp(times, (onset, apex, offset), (0.0, 1.0, 0.0))
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * way))


def _centre(size: tuple[int, int], eye_distance: float) -> tuple[float, float]:
    return size[1] / 2, size[0] / 2 - 0.42 * eye_distance  # the head's middle in the frame's


@cache
def _drawn(size: tuple[int, int], eye_distance: float, lid_step: int) -> Image:
    x, y = _centre(size, eye_distance)
    return draw_face(
        background(_SCALE * size[0], _SCALE * size[1]),
        centre=(_SCALE * x, _SCALE * y),
        eye_distance=_SCALE * eye_distance,
        lids=lid_step / _LID_STEPS,
    )


def _face(size: tuple[int, int], eye_distance: float, lids: float) -> Image:
    """Return the drawn picture with its lids that far down, between the two nearest steps."""
    step, part = divmod(lids * _LID_STEPS, 1)
    lower = _drawn(size, eye_distance, int(step))
    if part == 0:
        return lower
    upper = _drawn(size, eye_distance, int(step) + 1)
    return np.asarray(cv2.addWeighted(lower, 1 - part, upper, part, 0), np.uint8)


def _places(
    size: tuple[int, int],
    eye_distance: float,
    wander: npt.NDArray[np.float64],
    movement: Movement,
    lifts: npt.NDArray[np.float64],
) -> Iterator[tuple[Field, Field]]:
    """Yield, frame by frame, the place in the drawn picture that each pixel shows."""
    middle = _centre(size, eye_distance)
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    x = (columns - np.float32(middle[0])) / np.float32(eye_distance)
    y = (rows - np.float32(middle[1])) / np.float32(eye_distance)
    bump_x, bump_y, spread = _BUMPS[movement]
    bumps = [np.exp(-((x - s * bump_x) ** 2 + (y - bump_y) ** 2) / spread**2) for s in (-1, 1)]
    bump = np.sum(bumps, axis=0, dtype=np.float32)
    depth = np.clip(1 - (x**2 + (y - 0.42) ** 2) / 1.5**2, 0, 1) ** 2  # the nose stands out
    for away, lift in zip(wander.astype(np.float32), lifts.astype(np.float32), strict=True):
        # right and down; 1 px of way goes with 0.1 degrees of roll, 0.1 % of zoom, 0.2 px of turn
        roll, zoom = away * np.float32(0.14), 1 + away * np.float32(0.08)
        face_x = (x - away + roll * y) / zoom - away * np.float32(0.2) * depth
        face_y = (y - away / 2 - roll * x) / zoom + lift / np.float32(ALIGNED_EYE_DISTANCE) * bump
        yield (
            _drawn_places(face_x, middle[0], eye_distance),
            _drawn_places(face_y, middle[1], eye_distance),
        )


def _drawn_places(face: Field, middle: float, eye_distance: float) -> Field:
    return np.asarray((face * eye_distance + middle + 0.5) * _SCALE - 0.5, np.float32)


def _recorded(
    picture: Image, places: tuple[Field, Field], noise: float, rng: np.random.Generator
) -> Image:
    seen = cv2.remap(picture, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    grain = noise * rng.standard_normal(seen.shape[:2], dtype=np.float32)[..., None]
    return np.asarray(np.clip(np.rint(seen + grain), 0, 255), np.uint8)

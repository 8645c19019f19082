"""What a pair of frames allows to say of a face: sharpness, light, pose, covers, agreement.

Every measure is taken from the aligned crops that the flow is computed on, so "pixels of the
crop" mean the same for all cameras. All are ours; `benchmarks/quality.py` shows what each limit
stops. They see what a picture shows: a hand of the skin's colour, a beard, or a mask with a mouth
printed on it pass for a face now and then.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError
from model.spec import Limit, QualityLimits

__all__ = [
    "ClipWarning",
    "MeasuredMotion",
    "Quality",
    "QualityReason",
    "blur_px",
    "clip_warnings",
    "exposure",
    "faults",
    "head_pose",
    "hidden_parts",
    "measure",
    "mismatch",
    "part_features",
    "part_patches",
    "smoothed",
    "warnings",
]

FloatArray = NDArray[np.float32]
Grey = NDArray[np.uint8]
Mask = NDArray[np.bool_]

QualityReason = Literal[
    "occluded",
    "misaligned",
    "blurred",
    "badly_exposed",
    "turned_away",
    "face_too_small",
    "face_at_border",
    "head_motion",
    "too_large_motion",
]
ClipWarning = Literal["low_frame_rate"]


class MeasuredMotion(Protocol):
    """What the limits read of a face's motion; `model.movement.Motion` has it."""

    @property
    def p95_px(self) -> float:
        """95th percentile of the motion left inside the face, pixels of the crop."""

    @property
    def head_px(self) -> float:
        """Mean motion of the head, pixels of the crop."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What a caller should know of the pictures before believing the answer.

    Of what differs between onset and apex, the worse of both frames; only eyes and mouth are taken
    from the frame that shows them better: lids blink, lips press, and a cover in one frame alone is
    a mismatch or too large a motion.
    """

    eye_distance_px: float
    """Between the eye centres in the frame as sent; the crop is scaled to one fixed value."""
    outside: float
    """Share of the aligned crop that lies outside the frame, 0 to 1."""
    more_faces: bool
    """Whether the onset shows more faces than were asked for."""
    blur_px: float
    """Width of the face's sharpest edges: standard deviation, pixels of the crop."""
    dark: float
    """Share of the face that is as good as black, 0 to 1."""
    bright: float
    """Share of the face that is as good as white, 0 to 1."""
    contrast: float
    """Grey levels between the 5th and the 95th percentile of the face, 0 to 255."""
    yaw_deg: float
    """How far the head is turned at the onset; positive is towards the picture's right."""
    pitch_deg: float
    """How far it is tilted at the onset; positive is down."""
    eyes_hidden: float
    """How little either eye looks like one, 0 to 1: of the eye that looks more like one."""
    mouth_hidden: float
    """How little the mouth looks like one, 0 to 1."""
    mismatch: float
    """Share of the face's contrast that the apex does not show even where the flow says, 0 to 1."""


def measure(  # noqa: PLR0913 - what there is to know of one aligned pair
    onset: Grey,
    apex: Grey,
    flow: FloatArray,
    landmarks: FloatArray,
    outline: Mask,
    *,
    eye_distance_px: float,
    outside: float,
    more_faces: bool,
) -> Quality:
    """Measure one aligned pair.

    Convention: onset and apex are aligned (S, S) grey crops; flow is (2, S, S) from onset to apex,
    the head's motion included; landmarks are the onset's, (468, 2), pixels of the crop; outline
    is the (S, S) mask of the face. The rest goes into the result as it is.
    Raises: ShapeError.
    """
    greys = (onset, apex)
    smooth = (smoothed(onset), smoothed(apex))
    dark, bright, contrast = zip(*(exposure(grey, outline) for grey in greys), strict=True)
    eyes, mouth = zip(*(hidden_parts(frame, landmarks) for frame in smooth), strict=True)
    yaw, pitch = head_pose(landmarks)
    return Quality(
        eye_distance_px=eye_distance_px,
        outside=outside,
        more_faces=more_faces,
        blur_px=max(map(blur_px, greys, smooth, (outline, outline))),
        dark=max(dark),
        bright=max(bright),
        contrast=min(contrast),
        yaw_deg=yaw,
        pitch_deg=pitch,
        eyes_hidden=min(eyes),
        mouth_hidden=min(mouth),
        mismatch=mismatch(*smooth, flow, outline),
    )


def faults(
    quality: Quality, motion: MeasuredMotion, limits: QualityLimits
) -> tuple[QualityReason, ...]:
    """Return why no answer should be believed, what matters most first."""
    measured = _measured(quality, motion, limits)
    return _in_order({reason for reason, limit, value in measured if limit.stops(value)})


def warnings(
    quality: Quality, motion: MeasuredMotion, limits: QualityLimits
) -> tuple[QualityReason, ...]:
    """Return what lessens an answer without forbidding it; no name is in `faults` as well."""
    measured = _measured(quality, motion, limits)
    stopping = {reason for reason, limit, value in measured if limit.stops(value)}
    doubtful = {reason for reason, limit, value in measured if limit.warns(value)}
    return _in_order(doubtful - stopping)


def clip_warnings(fps: float, limits: QualityLimits) -> tuple[ClipWarning, ...]:
    """Return what a clip's frame rate lessens.

    Below 50 frames a second a micro-expression of a fifth of a second has fewer than ten frames:
    its apex falls between two of them, so it looks weaker, and the shortest are missed.
    """
    return ("low_frame_rate",) if fps < limits.low_frame_rate else ()


_ORDER: tuple[QualityReason, ...] = get_args(QualityReason)


def _in_order(reasons: set[QualityReason]) -> tuple[QualityReason, ...]:
    return tuple(reason for reason in _ORDER if reason in reasons)


def _measured(
    quality: Quality, motion: MeasuredMotion, limits: QualityLimits
) -> tuple[tuple[QualityReason, Limit, float], ...]:
    """Return what every limit is held against; a reason may have several."""
    turned = math.hypot(quality.yaw_deg, quality.pitch_deg)
    return (
        ("occluded", limits.eyes_hidden, quality.eyes_hidden),
        ("occluded", limits.mouth_hidden, quality.mouth_hidden),
        ("misaligned", limits.mismatch, quality.mismatch),
        ("blurred", limits.blur_px, quality.blur_px),
        ("badly_exposed", limits.clipped, quality.dark),
        ("badly_exposed", limits.clipped, quality.bright),
        ("badly_exposed", limits.contrast, quality.contrast),
        ("turned_away", limits.turned_deg, turned),
        ("face_too_small", limits.eye_distance_px, quality.eye_distance_px),
        ("face_at_border", limits.outside, quality.outside),
        ("head_motion", limits.head_px, motion.head_px),
        ("too_large_motion", limits.p95_px, motion.p95_px),
    )


_FINE, _COARSE = 1.0, 2.0
"""Standard deviations of two smoothings, pixels."""


def smoothed(grey: Grey) -> FloatArray:
    """Return an (S, S) grey crop as float32, smoothed by two pixels: its noise hardly counts."""
    return np.asarray(cv2.GaussianBlur(grey.astype(np.float32), (0, 0), _COARSE), np.float32)


_EDGES = 0.03
"""Share of the face's pixels that count as its sharpest edges."""
_STRIDE = 3
"""Every third of them is looked at: an edge is longer than that."""
_WIDEST = 10.0
"""Pixels; wider edges are not told apart."""


def blur_px(grey: Grey, smooth: FloatArray, outline: Mask) -> float:
    """Return the width of a face's sharpest edges: standard deviation, pixels, 0 to 10.

    A step of width s, smoothed by a, has the gradient 1 / sqrt(s² + a²): two smoothings give s
    (after Zhuo and Sim 2011). Only the strongest edges count, lids and nostrils and lips: so skin
    may be smooth, and noise hardly matters.

    Convention: grey is (S, S), smooth what `smoothed` makes of it, outline the (S, S) mask of the
    face, everything when empty. Raises: ShapeError.
    """
    _check(grey, outline)
    crisp = np.asarray(cv2.GaussianBlur(grey.astype(np.float32), (0, 0), _FINE), np.float32)
    face = _face(outline)[::_STRIDE]
    fine, coarse = (_steepness(picture).ravel()[face] for picture in (crisp, smooth))
    count = max(1, round(_EDGES * fine.size))
    strongest = np.argpartition(fine, -count)[-count:]
    steep, flat = float(fine[strongest].mean()), float(coarse[strongest].mean())
    squared = (steep / max(flat, 1e-6)) ** 2
    if squared <= 1 or steep < 1e-3:  # noqa: PLR2004 - nothing is to be seen
        return _WIDEST
    width = (_COARSE**2 - squared * _FINE**2) / (squared - 1)
    return float(np.sqrt(np.clip(width, 0, _WIDEST**2)))


def _steepness(picture: FloatArray) -> FloatArray:
    along = [cv2.Sobel(picture, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (0, 1)]
    return np.asarray(cv2.magnitude(*along), np.float32)


_BLACK, _WHITE = 10, 250
"""Grey levels at which a camera has nothing left to tell."""


def exposure(grey: Grey, outline: Mask) -> tuple[float, float, float]:
    """Return the shares of black and white pixels of a face, 0 to 1, and its contrast.

    Contrast is the distance from the 5th to the 95th percentile, in grey levels, 0 to 255: dark
    skin in good light has it, an underexposed face has not.
    Convention: grey is (S, S), outline as in `blur_px`. Raises: ShapeError.
    """
    _check(grey, outline)
    face = grey.ravel()[_face(outline)]
    # 256 counts tell as much as the pixels, and cost less than a sort of them.
    shares = np.cumsum(np.bincount(face, minlength=256)) / face.size
    low, high = np.searchsorted(shares, (0.05, 0.95))
    return float(shares[_BLACK]), float(1 - shares[_WHITE - 1]), float(high - low)


_RIGID = (33, 133, 362, 263, 168, 6, 197, 195, 4, 10, 234, 454, 127, 356, 93, 323)
"""Mesh indices that no expression moves far: eye corners, down the nose, forehead, the rim."""
_HEAD = np.array(
    [
        (-0.721, -0.015, -0.042),
        (-0.279, 0.015, 0.042),
        (0.279, 0.015, 0.042),
        (0.721, -0.015, -0.042),
        (0.0, -0.072, 0.309),
        (0.0, 0.052, 0.371),
        (0.0, 0.165, 0.445),
        (0.0, 0.269, 0.525),
        (0.0, 0.514, 0.641),
        (0.0, -0.841, 0.282),
        (-1.064, 0.246, -0.917),
        (1.064, 0.246, -0.917),
        (-1.081, 0.029, -0.83),
        (1.081, 0.029, -0.83),
        (-1.044, 0.466, -0.938),
        (1.044, 0.466, -0.938),
    ]
)
"""Their mean places (x right, y down, z towards the camera), in eye distances from the middle of
the eyes: the mesh's own three coordinates over 178 generated frontal faces (SFHQ, MIT), made
symmetric."""
_CENTRED = _HEAD - _HEAD.mean(axis=0)
_TO_AXES = np.linalg.pinv(_CENTRED)


def head_pose(landmarks: FloatArray) -> tuple[float, float]:
    """Return yaw and pitch of a head, degrees; right and down of the picture are positive.

    Least squares of a mean head under scaled orthography (POS, DeMenthon and Davis 1995). Pitch
    is relative to the mean of the faces it was made from, and shares in the face's own build.

    Convention: landmarks are (468, 2), pixels of the aligned crop. Raises: ShapeError.
    """
    if landmarks.shape != (468, 2):
        raise ShapeError(f"landmarks are (468, 2), got {landmarks.shape}")
    points = landmarks[list(_RIGID)].astype(np.float64)
    axes = np.einsum("dn,nk->dk", _TO_AXES, points - points.mean(axis=0))
    yaw = np.degrees(np.arctan2(axes[2, 0], axes[0, 0]))
    pitch = np.degrees(np.arctan2(axes[2, 1], axes[1, 1]))
    return float(yaw), float(pitch)


_ROWS, _COLUMNS = 7, 12
_FAINTEST = 4
"""Of a patch's 84 pixels, so many are below its 5th percentile."""
_SPAN = 1.5
"""Width of a part's patch, in distances between the corners of eye or mouth."""
_CORNERS = {"right_eye": (33, 133), "left_eye": (263, 362), "mouth": (61, 291)}
"""From the face's rim inwards: the left eye's patch is mirrored, and one eye is all eyes."""
_SKIN = (117, 346, 50, 280, 151, 9)
"""Mesh indices of both cheeks and the forehead, whose brightness is the measure."""


def hidden_parts(smooth: FloatArray, landmarks: FloatArray) -> tuple[float, float]:
    """Return how little the eyes and the mouth look like eyes and a mouth, 0 to 1 each.

    Each part's small patch is compared with the mean of generated faces: likeness, depth of the
    pattern, spread, and brightness against the skin, weighed by a logistic model
    (`benchmarks/covers.py` fits it to faces with lenses, masks and hands drawn on). Of two
    eyes the more visible one counts: hair falls over one, and a turned head hides one.

    Convention: smooth is (S, S), made by `smoothed`; landmarks are (468, 2), pixels of it.
    Raises: ShapeError.
    """
    if landmarks.shape != (468, 2):
        raise ShapeError(f"landmarks are (468, 2), got {landmarks.shape}")
    features = part_features(smooth, landmarks)
    right, left, mouth = (
        _share_hidden(features[part], _WEIGHTS[part.rpartition("_")[2]]) for part in _CORNERS
    )
    return min(right, left), mouth


def part_features(smooth: FloatArray, landmarks: FloatArray) -> dict[str, NDArray[np.float64]]:
    """Return what `hidden_parts` weighs: the six numbers of each eye and of the mouth.

    Likeness to the mean patch (correlation, -1 to 1); depth of the mean patch's pattern; logarithm
    of the spread; mean; 5th and 95th percentile, the last five relative to the skin.
    """
    found = {}
    patches, skin = part_patches(smooth, landmarks)
    for part, patch in patches.items():
        pattern = _PATTERNS[part.rpartition("_")[2]]
        rest = patch - patch.mean()
        spread = float(patch.std())
        depth = float((rest * pattern).mean())
        low, high = np.sort(patch, axis=None)[[_FAINTEST, -_FAINTEST - 1]]
        relative = np.array([depth, 0.0, float(patch.mean()), float(low), float(high)]) / skin
        relative[1] = np.log(spread / skin + 0.02)
        found[part] = np.array([depth / max(spread, 4.0), *relative])
    return found


def part_patches(smooth: FloatArray, landmarks: FloatArray) -> tuple[dict[str, FloatArray], float]:
    """Return the (7, 12) patches of both eyes and the mouth, and the skin's grey level."""
    patches = {
        part: _patch(smooth, landmarks[outer], landmarks[inner])
        for part, (outer, inner) in _CORNERS.items()
    }
    x, y = landmarks[list(_SKIN)].round().astype(int).T
    places = np.clip(y, 0, smooth.shape[0] - 1), np.clip(x, 0, smooth.shape[1] - 1)
    return patches, max(float(np.median(smooth[places])), 10.0)


def _patch(picture: FloatArray, outer: FloatArray, inner: FloatArray) -> FloatArray:
    """Read the patch whose x axis runs from one corner towards the other; y is down."""
    along = inner - outer
    across = np.array([-along[1], along[0]], np.float32) * np.sign(along[0] or 1)
    y, x = np.mgrid[:_ROWS, :_COLUMNS].astype(np.float32)
    x, y = ((x - (_COLUMNS - 1) / 2), (y - (_ROWS - 1) / 2))
    step = np.float32(_SPAN / _COLUMNS)
    places = (outer + inner) / 2 + step * (x[..., None] * along + y[..., None] * across)
    maps = np.ascontiguousarray(places[..., 0]), np.ascontiguousarray(places[..., 1])
    read = cv2.remap(picture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(read, np.float32)


def _share_hidden(features: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    score = float((features * weights[1:]).sum() + weights[0])
    return float(1 / (1 + np.exp(-np.clip(score, -40, 40))))


# fmt: off
_PATTERNS: dict[str, NDArray[np.float64]] = {
    "eye": np.array(
        (
            (9, 16, 11, -4, -18, -36, -58, -74, -73, -58, -36, 3),
            (-2, -25, -59, -86, -111, -128, -137, -130, -106, -76, -49, -10),
            (-40, -105, -148, -141, -175, -192, -176, -125, -92, -83, -29, 10),
            (-63, -140, -136, -52, -96, -165, -139, -28, 6, -31, 33, 73),
            (11, -27, -25, 18, 17, -19, -2, 44, 58, 71, 105, 119),
            (109, 87, 63, 59, 62, 62, 67, 75, 93, 126, 150, 155),
            (165, 159, 138, 120, 111, 112, 121, 137, 164, 188, 189, 185),
        )
    ) / 100,
    "mouth": np.array(
        (
            (176, 188, 174, 80, 19, 22, 22, 19, 80, 174, 188, 176),
            (105, 112, 131, 117, 81, 58, 58, 81, 117, 131, 112, 105),
            (28, 11, 20, -7, -50, -39, -39, -50, -7, 20, 11, 28),
            (6, -125, -291, -238, -167, -138, -138, -167, -238, -291, -125, 6),
            (-22, 9, 8, -25, 32, 69, 69, 32, -25, 8, 9, -22),
            (-64, -4, 11, -40, -78, -92, -92, -78, -40, 11, -4, -64),
            (-111, -36, 26, 31, 16, -2, -2, 16, 31, 26, -36, -111),
        )
    ) / 100,
}
# fmt: on
"""Mean (7, 12) patches of a visible eye and mouth, of mean 0 and deviation 1: over some hundred
generated faces (SFHQ, openpeople: MIT)."""
_WEIGHTS: dict[str, NDArray[np.float64]] = {
    "eye": np.array((5.482, -11.591, 12.661, -2.965, -20.319, 12.068, 0.462)),
    "mouth": np.array((-7.393, -6.754, -33.416, -4.299, -5.442, 6.586, 3.473)),
}
"""Intercept, then one weight for each of `part_features`."""

_LEAST_VARIANCE = 9.0
"""Squared grey levels: less contrast than this shows no face to compare."""


def mismatch(onset: FloatArray, apex: FloatArray, flow: FloatArray, outline: Mask) -> float:
    """Return the share of a face's contrast that the apex does not show where the flow says.

    One minus the correlation of the onset with the apex taken back along the flow: 0 for the same
    face, whatever it did and however the light's strength changed; towards 1 for another person,
    another scene, or something that came between.

    Convention: onset and apex are (S, S), made by `smoothed`; flow is (2, S, S) pixels from onset
    to apex with the head's motion; outline as in `blur_px`. Raises: ShapeError.
    """
    _check(onset, outline)
    if apex.shape != onset.shape or flow.shape != (2, *onset.shape):
        raise ShapeError(f"apex {apex.shape} and flow {flow.shape} do not fit {onset.shape}")
    y, x = np.mgrid[: onset.shape[0], : onset.shape[1]].astype(np.float32)
    returned = cv2.remap(
        apex, x + flow[0], y + flow[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    face = _face(outline)
    before, after = onset.ravel()[face], np.asarray(returned).ravel()[face]
    before, after = before - before.mean(), after - after.mean()
    variance = float((before**2).mean()) * float((after**2).mean())
    shared = float((before * after).mean()) / max(float(np.sqrt(variance)), _LEAST_VARIANCE)
    return float(np.clip(1 - shared, 0, 1))


def _face(outline: Mask) -> NDArray[np.int_]:
    """Return the flat places of a face's pixels, of all where the mesh left the crop."""
    places = np.flatnonzero(outline)
    return places if places.size else np.arange(outline.size)


def _check(grey: Grey | FloatArray, outline: Mask) -> None:
    if grey.ndim != 2 or outline.shape != grey.shape:  # noqa: PLR2004 - a grey picture
        raise ShapeError(f"grey and outline are (S, S), got {grey.shape} and {outline.shape}")

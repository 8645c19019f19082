"""Faces in a frame, and the one similarity transform that aligns them.

Detector and dense mesh are MediaPipe's short-range BlazeFace and 468-point face mesh
(Apache-2.0, `weights/face/NOTICE`), run by OpenCV's DNN module.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError
from model.spec import Alignment

__all__ = [
    "STABLE_LANDMARKS",
    "Box",
    "Face",
    "FaceFinder",
    "align",
    "eye_centres",
    "similarity_transform",
]

_Net = Any  # OpenCV ships no type for its networks
_WEIGHTS = Path(__file__).parent / "weights" / "face"
_DETECTOR_SIDE = 128
_MESH_SIDE = 192
_MIN_SCORE = 0.5
_MAX_OVERLAP = 0.3
_MESH_MARGIN = 1.5
"""The mesh was trained on squares 1.5 times as wide as the face's box."""

STABLE_LANDMARKS = (33, 133, 362, 263, 168, 6, 197, 195)
"""Mesh indices that expressions hardly move: eye corners, then down the bridge of the nose."""

_MEAN_FACE = np.array(
    [
        (-0.721, -0.017),
        (-0.279, 0.017),
        (0.279, 0.017),
        (0.721, -0.017),
        (0.0, -0.068),
        (0.0, 0.059),
        (0.0, 0.174),
        (0.0, 0.279),
    ]
)
"""Mean place of the stable landmarks, in eye distances from the middle of the eyes: over 165
generated faces (SFHQ, MIT), made symmetric."""


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned rectangle in pixels of the frame; x right, y down."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face of a frame."""

    box: Box
    score: float
    """Of the mesh's face-presence output, 0 to 1."""
    landmarks: NDArray[np.float32]
    """(468, 2), pixels of the frame, (x, y), in MediaPipe's mesh order."""


class FaceFinder:
    """Finds faces and their landmarks. Safe to share among threads.

    OpenCV's networks hold the state of one run, so every thread gets its own pair.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def find(self, frame: NDArray[np.uint8], max_faces: int = 1) -> list[Face]:
        """Find faces, the largest first.

        Convention: frame is (H, W, 3), RGB. Returns at most `max_faces` faces; none is a
        normal answer. Raises: ShapeError.
        """
        if frame.ndim != 3 or frame.shape[2] != 3:  # noqa: PLR2004 - three colours
            raise ShapeError(f"a frame is (H, W, 3), got {frame.shape}")
        detector, mesh = self._nets()
        faces: list[Face] = []
        for square in _detect(detector, frame):
            face = _fit_mesh(mesh, frame, square)
            if face is not None:
                faces.append(face)
            if len(faces) == max_faces:
                break
        return faces

    def _nets(self) -> tuple[_Net, _Net]:
        if not hasattr(self._local, "nets"):
            self._local.nets = (
                _load("face_detection_short_range.tflite"),
                _load("face_landmark.tflite"),
            )
        nets: tuple[_Net, _Net] = self._local.nets
        return nets


_LOADING = threading.Lock()
"""OpenCV fills its table of layers when the first network is read, and does not guard it: two
threads that begin together fail, or never end."""


def _load(name: str) -> _Net:
    with _LOADING:
        # OpenCV 5's default engine shows only one of the two outputs; the classic one shows both.
        return cv2.dnn.readNetFromTFLite(str(_WEIGHTS / name), cv2.dnn.ENGINE_CLASSIC)


@dataclass(frozen=True, slots=True)
class _Square:
    """A rotated square of the frame that holds one face."""

    x: float
    y: float
    side: float
    angle: float
    """Radians from the image's x axis to the line from the right eye to the left eye."""

    def to_crop(self, side: int) -> NDArray[np.float64]:
        """Return the (2, 3) similarity from frame pixels to an upright crop of that side."""
        scale = side / self.side
        cos, sin = scale * np.cos(self.angle), scale * np.sin(self.angle)
        linear = np.array([[cos, sin], [-sin, cos]])
        shift = np.full(2, (side - 1) / 2) - linear @ np.array([self.x, self.y])
        return np.column_stack([linear, shift])


def _anchors() -> NDArray[np.float32]:
    """Return the detector's (896, 2) anchor centres, (x, y) as fractions of its input."""
    rows = []
    for cells, per_cell in ((16, 2), (8, 6)):
        y, x = np.mgrid[:cells, :cells]
        centres = (np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) / cells
        rows.append(np.repeat(centres, per_cell, axis=0))
    return np.concatenate(rows).astype(np.float32)


_ANCHORS = _anchors()


def _detect(detector: _Net, frame: NDArray[np.uint8]) -> list[_Square]:
    """Return the squares to look for a mesh in, the largest face first."""
    height, width = frame.shape[:2]
    side = max(height, width)
    # A long, narrow frame would shrink to no width at all.
    rows, columns = (max(1, round(length * _DETECTOR_SIDE / side)) for length in (height, width))
    canvas = np.zeros((_DETECTOR_SIDE, _DETECTOR_SIDE, 3), np.uint8)
    canvas[:rows, :columns] = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA)
    detector.setInput(cv2.dnn.blobFromImage(canvas, 1 / 127.5, mean=(127.5, 127.5, 127.5)))
    logits, regressors = detector.forward(("classificators", "regressors"))
    scores = 1 / (1 + np.exp(-np.clip(logits.reshape(-1), -80, 80)))
    kept = np.flatnonzero(scores > _MIN_SCORE)
    values = regressors.reshape(-1, 16)[kept] / _DETECTOR_SIDE
    centres = (values[:, :2] + _ANCHORS[kept]) * side
    sizes = values[:, 2:4] * side
    boxes = np.hstack([centres - sizes / 2, sizes])
    best = cv2.dnn.NMSBoxes(boxes.tolist(), scores[kept].tolist(), _MIN_SCORE, _MAX_OVERLAP)
    squares = []
    for i in np.asarray(best, dtype=int).reshape(-1):
        right_eye, left_eye = (values[i, 4:8].reshape(2, 2) + _ANCHORS[kept[i]]) * side
        along = left_eye - right_eye
        squares.append(
            _Square(
                x=float(centres[i, 0]),
                y=float(centres[i, 1]),
                side=_MESH_MARGIN * float(sizes[i].max()),
                angle=float(np.arctan2(along[1], along[0])),
            )
        )
    return sorted(squares, key=lambda square: -square.side)


def _fit_mesh(mesh: _Net, frame: NDArray[np.uint8], square: _Square) -> Face | None:
    """Run the mesh twice: the second time on the square that the first run's points span."""
    score = 0.0
    landmarks = np.zeros((468, 2), np.float32)
    for _ in range(2):
        to_crop = square.to_crop(_MESH_SIDE)
        crop = align(frame, to_crop, _MESH_SIDE)
        mesh.setInput(cv2.dnn.blobFromImage(crop, 1 / 255))
        presence, points = mesh.forward(("conv2d_31", "conv2d_21"))
        score = float(1 / (1 + np.exp(-float(presence.reshape(-1)[0]))))
        if score < _MIN_SCORE:
            return None
        in_crop = points.reshape(-1, 3)[:, :2]
        back = cv2.invertAffineTransform(to_crop)
        landmarks = (in_crop @ back[:, :2].T + back[:, 2]).astype(np.float32)
        square = _square_around(landmarks)
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    box = Box(float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
    return Face(box=box, score=score, landmarks=landmarks)


def _square_around(landmarks: NDArray[np.float32]) -> _Square:
    """Return the upright square around a mesh, with the mesh's margin."""
    right_eye, left_eye = eye_centres(landmarks)
    along = left_eye - right_eye
    angle = float(np.arctan2(along[1], along[0]))
    cos, sin = np.cos(angle), np.sin(angle)
    upright = landmarks @ np.array([[cos, -sin], [sin, cos]])
    low, high = upright.min(axis=0), upright.max(axis=0)
    x, y = np.array([[cos, -sin], [sin, cos]]) @ ((low + high) / 2)
    return _Square(float(x), float(y), _MESH_MARGIN * float((high - low).max()), angle)


def eye_centres(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (2, 2): the centre of the person's right eye, then of the left, each (x, y).

    Midway between the corners, because lids move. Convention: landmarks are (468, 2).
    """
    return np.asarray(landmarks[[[33, 133], [362, 263]]].mean(axis=1), np.float32)


def similarity_transform(
    landmarks: NDArray[np.float32], alignment: Alignment, size: int
) -> NDArray[np.float64]:
    """Fit the similarity that carries a face to its place in the aligned crop.

    Convention: landmarks are (468, 2), (x, y) in pixels of the frame. Returns (2, 3) that
    maps frame pixels to pixels of a `size` x `size` crop (forward, as `align` takes it).
    Least squares over STABLE_LANDMARKS (Umeyama 1991, eq. 40–42). Raises: ShapeError.
    """
    if landmarks.shape != (468, 2):
        raise ShapeError(f"landmarks are (468, 2), got {landmarks.shape}")
    place = np.array([0.5, alignment.eye_y]) + _MEAN_FACE * alignment.eye_distance
    target = place * size - 0.5  # pixel centres lie at whole numbers
    source = landmarks[list(STABLE_LANDMARKS)].astype(np.float64)
    return _umeyama(source, target)


def _umeyama(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (2, 3) similarity that maps (N, 2) source points nearest to the target's."""
    # In the plane a similarity is multiplication by one complex number and a shift.
    a = (source - source.mean(axis=0)) @ np.array([1, 1j])
    b = (target - target.mean(axis=0)) @ np.array([1, 1j])
    turn = np.vdot(a, b) / np.vdot(a, a)
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([linear, target.mean(axis=0) - linear @ source.mean(axis=0)])


def align(frame: NDArray[np.uint8], transform: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Resample a frame into a square crop.

    Convention: frame is (H, W, 3) or (H, W); transform is (2, 3), frame → crop, (x, y).
    Returns (size, size[, 3]); what lies outside the frame repeats its border. A frame much
    larger than the crop is shrunk first, so that no pixel is skipped.
    """
    scale = float(np.hypot(transform[0, 0], transform[1, 0]))
    matrix = transform.copy()
    if scale < 0.5:  # noqa: PLR2004 - cubic sampling reaches two pixels, so half is safe
        height, width = frame.shape[:2]
        shrunk = (max(1, round(width * scale)), max(1, round(height * scale)))
        frame = np.asarray(cv2.resize(frame, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
        fx, fy = shrunk[0] / width, shrunk[1] / height
        # A shrunk pixel x covers frame pixels (x + ½) / fx - ½.
        to_frame = np.array([[1 / fx, 0, 0.5 / fx - 0.5], [0, 1 / fy, 0.5 / fy - 0.5], [0, 0, 1]])
        matrix = transform @ to_frame
    crop = cv2.warpAffine(
        frame,
        matrix,
        (size, size),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(crop, np.uint8)

"""The way of one pair, for one ModelSpec: frames → aligned pair → network inputs.

Training and serving both walk it through these functions.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import FrameSizeMismatch
from model.face import Face, FaceFinder, align, eye_centres, similarity_transform
from model.flow import RigidMotion, remove_rigid_motion, to_grey
from model.lids import LID_SHARE, lid_rise
from model.magnify import magnify
from model.movement import motion_of, region_movement
from model.pair import AlignedPair, Crops
from model.quality import Quality, measure
from model.solver import Solver, open_solver
from model.spec import FlowBackend, ModelSpec
from model.tensors import flow_tensor, image_tensor

__all__ = [
    "MEASURES_VERSION",
    "AlignedPair",
    "Crops",
    "Preprocessor",
    "Quality",
    "network_inputs",
]

MEASURES_VERSION = 3
"""Raised whenever `Motion` or `Quality` of the same pair change: caches of them are then stale."""

FloatArray = NDArray[np.float32]


class Preprocessor:
    """Turns two frames into aligned pairs as one ModelSpec asks. Safe to share among threads."""

    def __init__(
        self, spec: ModelSpec, finder: FaceFinder | None = None, solver: Solver | None = None
    ) -> None:
        """Take who computes the flow; None is whoever made the data that the weights learned from.

        Raises: ModelError, SpecInvalid, where None and the machine does not have that backend.
        """
        self.spec = spec
        self.finder = finder or FaceFinder()
        self.solver = solver or open_solver(spec, spec.flow_backends[0])

    def align_pair(
        self, onset: NDArray[np.uint8], apex: NDArray[np.uint8], max_faces: int = 1
    ) -> list[AlignedPair]:
        """Find the faces of the onset, align both frames to each, and compute its flow.

        Convention and faults: as `crop_pair`; raises FlowFailed, too.
        """
        return [self.solved(crops) for crops in self.crop_pair(onset, apex, max_faces)]

    def align_face(
        self, onset: NDArray[np.uint8], apex: NDArray[np.uint8], face: Face
    ) -> AlignedPair:
        """Align both frames to one face of the onset, and compute its flow.

        Convention: as `crop_pair`, which checks the sizes. Raises: FlowFailed.
        """
        return self.solved(self.crop_face(onset, apex, face))

    def crop_pair(
        self, onset: NDArray[np.uint8], apex: NDArray[np.uint8], max_faces: int = 1
    ) -> list[Crops]:
        """Find the faces of the onset, and align both frames to each.

        Convention: onset and apex are (H, W, 3) uint8 RGB of one size. Returns one entry for
        each face, the largest first, none when there is none.
        Raises: FrameSizeMismatch.
        """
        if onset.shape != apex.shape:
            (h0, w0), (h1, w1) = onset.shape[:2], apex.shape[:2]
            raise FrameSizeMismatch(f"the onset is {w0}x{h0} pixels, the apex {w1}x{h1}")
        timings: dict[str, float] = {}
        with _timed(timings, "detect"):
            # One more than asked for: a caller should know that somebody was left out.
            faces = self.finder.find(onset, max_faces + 1)
        more = len(faces) > max_faces
        crops = [self.crop_face(onset, apex, face, more_faces=more) for face in faces[:max_faces]]
        for first in crops[:1]:
            first.timings_ms.update(timings)
        return crops

    def crop_face(
        self,
        onset: NDArray[np.uint8],
        apex: NDArray[np.uint8],
        face: Face,
        *,
        more_faces: bool = False,
    ) -> Crops:
        """Align both frames to one face of the onset.

        Convention: as `crop_pair`, which checks the sizes; `more_faces` is noted in the quality.
        """
        size = self.spec.input_size
        timings: dict[str, float] = {}
        with _timed(timings, "align"):
            transform = similarity_transform(face.landmarks, self.spec.alignment, size)
            onset_crop = align(onset, transform, size)
            apex_crop = align(apex, transform, size)
            landmarks = _carry(face.landmarks, transform)
            return Crops(
                face=face,
                onset=onset_crop,
                onset_grey=to_grey(onset_crop),
                apex_grey=to_grey(apex_crop),
                landmarks=landmarks,
                outline=_face_outline(landmarks, size),
                eye_distance_px=_eye_distance(face),
                outside=_share_outside(transform, onset.shape[:2], size),
                more_faces=more_faces,
                timings_ms=timings,
            )

    def solved(self, crops: Crops) -> AlignedPair:
        """Compute the flow of aligned crops, and measure it. Raises: FlowFailed."""
        timings: dict[str, float] = {}
        with _timed(timings, "flow"):
            found = self.solver.compute(crops.onset_grey, crops.apex_grey)
            flow, head = remove_rigid_motion(found.flow, crops.outline)
        pair = self.measured(crops, found.flow, flow, head, found.backend)
        pair.timings_ms["flow"] += timings["flow"]
        return pair

    @staticmethod
    def measured(
        crops: Crops, total: FloatArray, flow: FloatArray, head: RigidMotion, backend: FlowBackend
    ) -> AlignedPair:
        """Measure motion and quality of aligned crops whose flow is known.

        Convention: total is (2, S, S) in pixels of the crop, as a backend gives it; flow is what
        `remove_rigid_motion` leaves of it inside `crops.outline`, head what it takes away.
        """
        timings = dict(crops.timings_ms)
        with _timed(timings, "flow"):
            motion = motion_of(flow, head, crops.outline)
            moved = region_movement(
                crops.onset_grey, crops.apex_grey, total - flow, crops.landmarks, crops.outline
            )
        with _timed(timings, "quality"):
            quality = measure(
                crops.onset_grey,
                crops.apex_grey,
                total,
                crops.landmarks,
                crops.outline,
                eye_distance_px=crops.eye_distance_px,
                outside=crops.outside,
                more_faces=crops.more_faces,
            )
        lids = LID_SHARE * lid_rise(flow, crops.landmarks)
        return AlignedPair(
            face=crops.face,
            onset=crops.onset,
            flow=flow,
            flow_backend=backend,
            landmarks=crops.landmarks,
            motion=replace(motion, moved_px=max(moved, lids)),
            quality=quality,
            timings_ms=timings,
        )


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = (time.perf_counter() - start) * 1e3


def _carry(points: FloatArray, transform: NDArray[np.float64]) -> FloatArray:
    """Map (N, 2) points by a (2, 3) transform."""
    return np.asarray(points @ transform[:, :2].T + transform[:, 2], np.float32)


def _face_outline(landmarks: FloatArray, size: int) -> NDArray[np.bool_]:
    """Return the (S, S) mask of the convex hull of the landmarks of a crop."""
    hull = cv2.convexHull(landmarks.round().astype(np.int32))
    mask = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(mask, hull, 1)
    return mask.astype(bool)


def _eye_distance(face: Face) -> float:
    right, left = eye_centres(face.landmarks)
    return float(np.hypot(*(left - right)))


def _share_outside(
    transform: NDArray[np.float64], frame_shape: tuple[int, ...], size: int
) -> float:
    """Return the share of the crop's pixels whose place lies outside the (H, W) frame."""
    back = cv2.invertAffineTransform(transform)
    y, x = np.mgrid[:size:4, :size:4]  # every fourth pixel tells a share well enough
    at = np.stack([x, y], axis=-1) @ back[:, :2].T + back[:, 2]
    inside = (at > -1) & (at < np.array(frame_shape[::-1]))
    return float(1 - inside.all(axis=-1).mean())


def network_inputs(
    onset: NDArray[np.uint8], flow: FloatArray, spec: ModelSpec, alpha: float | None = None
) -> tuple[FloatArray, FloatArray]:
    """Make the network's two inputs of one aligned pair.

    Convention: onset is (S, S, 3) uint8, flow (2, S, S) in pixels, both of any one size;
    alpha is the magnification factor, the spec's when None (training draws it at random).
    Returns image and flow, each (3, S, S) float32. Raises: ShapeError.
    """
    factor = spec.magnification if alpha is None else alpha
    return image_tensor(magnify(onset, flow, factor)), flow_tensor(flow, spec.normalisation)

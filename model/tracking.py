"""The people of a clip, followed through its frames, and how the regions of each face moved.

Frames are taken one by one and none is kept. Detector and mesh look at a keyframe every half
second; in between, each face is measured in overlapping stretches of two seconds, each with one
similarity transform from the mesh at its first frame (docs/decisions.md, "One transform").
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from model.clip import ClipInfo, Frame
from model.face import Box, Face, FaceFinder, align, similarity_transform
from model.flow import fit_rigid_motion, point_flow
from model.movement import FOLLOWED_LANDMARKS, FOLLOWED_SIDE, FaceRegions
from model.spec import ModelSpec
from model.spotting import Trajectory

__all__ = ["DEFAULT_TRACKING", "Track", "Tracker", "TrackingOptions", "overlap"]

Grey = NDArray[np.uint8]

_HEAD_LANDMARKS = (*FOLLOWED_LANDMARKS, 168, 6, 197, 195, 5, 4, 48, 278)
"""Points that tell how the head moved: the nose's as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingOptions:
    """How closely people are followed (ours; `benchmarks/spotting.py` measures what it costs)."""

    keyframe_s: float = 0.5
    """Between two looks for faces; a quarter of it while nobody is followed."""
    stretch_s: float = 2.0
    """Length of a stretch; the next begins at its middle."""
    window_px: int = 15
    """Side of the square that a point of the head is recognised by, pixels of the crop."""
    rate_hz: float = 70.0
    """At most so many frames are measured in a second: of a faster camera every n-th."""
    same_face: float = 0.3
    """Overlap (intersection over union) of the boxes of one person in two keyframes."""
    away_s: float = 2.0
    """How long a face may be away (a hand before it) and still be the same person's."""
    wander: float = 0.5
    """Eye distances that a face may move before its stretch ends and another begins."""
    cut_correlation: float = 0.6
    """Below this correlation of two neighbouring frames, shrunk to thumbnails, the scene is cut."""


DEFAULT_TRACKING = TrackingOptions()
_THUMBNAIL = (32, 24)
_CUT_LEVELS = 12.0
"""Grey levels that a thumbnail changes by, on average, at a cut: still scenes have none."""


@dataclass(slots=True, eq=False)
class Track:
    """One person from the first keyframe that shows the face to the last."""

    face_id: int
    """1, 2, … as they appear, the largest first. It identifies nobody."""
    sightings: list[tuple[int, Face]]
    """Keyframes that show the face, and where."""
    last_seen_s: float
    trajectories: list[Trajectory] = field(default_factory=list)

    @property
    def area(self) -> float:
        """Mean area of the face's box, pixels of the frame, times the keyframes that show it."""
        boxes = [face.box for _, face in self.sightings]
        return sum(box.width * box.height for box in boxes)

    def nearest(self, frame: int) -> Face:
        """Return the face of the keyframe nearest to a frame."""
        return min(self.sightings, key=lambda sighting: abs(sighting[0] - frame))[1]


@dataclass(slots=True, eq=False)
class _Stretch:
    """A stretch of one track that is being measured."""

    track: Track
    start_s: float
    transform: NDArray[np.float64]
    reference: Grey
    points: NDArray[np.float32]
    """(P, 2) of the head, pixels of the crop."""
    regions: FaceRegions
    expected: NDArray[np.float32]
    """(P, 2): what the head did up to the last frame; the next one is looked for there."""
    starts_scene: bool
    frames: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    places: list[NDArray[np.float64]] = field(default_factory=list)
    confirmed: int = 0
    """Measured frames up to the last keyframe that still showed the face."""


class Tracker:
    """Follows up to `max_faces` people. Feed it every frame in order, then `finish`."""

    def __init__(
        self,
        spec: ModelSpec,
        finder: FaceFinder,
        *,
        max_faces: int,
        info: ClipInfo,
        options: TrackingOptions = DEFAULT_TRACKING,
    ) -> None:
        self._spec, self._finder, self._options = spec, finder, options
        self._max_faces = max_faces
        self._every = max(1, math.ceil(info.fps / options.rate_hz))
        self._seconds = info.duration_s
        self._scene: list[Track] = []
        self._followed: list[Track] = []
        self._stretches: list[_Stretch] = []
        self._thumbnail: NDArray[np.float32] | None = None
        self._next_key_s = 0.0
        self._scene_starts = True
        self.tracks: list[Track] = []
        """Everybody who was followed, in order of appearance."""
        self.measured = 0
        """Frames looked at for motion: all but those that `rate_hz` leaves out."""
        self.cuts: list[int] = []
        """First frame of each new scene."""
        self.more_faces = False
        """Whether a keyframe showed more faces than are followed."""
        self.timings_ms = {"detect": 0.0, "align": 0.0, "flow": 0.0}

    def feed(self, frame: Frame, *, last: bool = False) -> None:
        """Take the next frame; `last` tells that the clip ends with it."""
        grey = frame.grey()
        if self._is_cut(grey):
            self._end_scene()
            self.cuts.append(frame.index)
        if last or frame.time_s >= self._next_key_s:
            self._look(frame, grey)
        if frame.index % self._every == 0 or last:
            self.measured += 1
            for stretch in self._stretches:
                self._measure(stretch, frame, grey)
        self._close(s for s in self._stretches if self._is_over(s, frame.time_s))

    def finish(self) -> list[Track]:
        """Return everybody who was followed, the largest and longest seen first."""
        self._end_scene()
        return sorted(self.tracks, key=lambda track: -track.area)

    def _is_cut(self, grey: Grey) -> bool:
        small = cv2.resize(grey, _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self._thumbnail = self._thumbnail, small
        if before is None or float(np.abs(small - before).mean()) < _CUT_LEVELS:
            return False
        return _correlation(before, small) < self._options.cut_correlation

    def _look(self, frame: Frame, grey: Grey) -> None:
        """Find the faces of a keyframe, tell who is who, and begin and end stretches."""
        start = time.perf_counter()
        # One more than is followed: a caller should know that somebody was left out.
        faces = self._finder.find(frame.rgb(), self._max_faces + 1)
        self.timings_ms["detect"] += (time.perf_counter() - start) * 1e3
        self.more_faces |= len(faces) > self._max_faces
        seen = self._recognise(faces, frame)
        self._followed = seen
        self._close(s for s in self._stretches if s.track not in seen)
        for stretch in self._stretches:
            stretch.confirmed = len(stretch.frames)
        self._close(s for s in self._stretches if self._has_wandered(s))
        for track in seen:
            if self._wants_a_stretch(track, frame.time_s):
                self._stretches.append(self._begin(track, frame, grey))
        self._scene_starts = False
        pause = self._options.keyframe_s / (1 if seen else 4)
        self._next_key_s = frame.time_s + pause

    def _recognise(self, faces: list[Face], frame: Frame) -> list[Track]:
        """Return the tracks of these faces; somebody new is followed while there is room."""
        unknown = list(faces)
        seen: list[Track] = []
        for track in sorted(self._scene, key=lambda track: -track.last_seen_s):
            if frame.time_s - track.last_seen_s > self._options.away_s + self._options.keyframe_s:
                continue
            box = track.sightings[-1][1].box
            match = max(unknown, key=lambda face: overlap(face.box, box), default=None)
            if match is None or overlap(match.box, box) < self._options.same_face:
                continue
            unknown.remove(match)
            if len(seen) < self._max_faces:
                track.sightings.append((frame.index, match))
                track.last_seen_s = frame.time_s
                seen.append(track)
        for face in unknown[: self._max_faces - len(seen)]:
            track = Track(len(self.tracks) + 1, [(frame.index, face)], frame.time_s)
            self.tracks.append(track)
            self._scene.append(track)
            seen.append(track)
        return seen

    def _wants_a_stretch(self, track: Track, now: float) -> bool:
        begun = [stretch.start_s for stretch in self._stretches if stretch.track is track]
        if not begun:
            return True
        length = self._options.stretch_s
        # One that lasts to the end needs no other beside it.
        return max(begun) + length < self._seconds and now >= max(begun) + length / 2

    def _begin(self, track: Track, frame: Frame, grey: Grey) -> _Stretch:
        face = track.sightings[-1][1]
        transform = similarity_transform(face.landmarks, self._spec.alignment, FOLLOWED_SIDE)
        landmarks = np.asarray(face.landmarks @ transform[:, :2].T + transform[:, 2], np.float32)
        reference = align(grey, transform, FOLLOWED_SIDE)
        points = landmarks[list(_HEAD_LANDMARKS)]
        return _Stretch(
            track=track,
            start_s=frame.time_s,
            transform=transform,
            reference=reference,
            points=points,
            regions=FaceRegions(reference, landmarks),
            expected=np.zeros_like(points),
            starts_scene=self._scene_starts,
        )

    def _measure(self, stretch: _Stretch, frame: Frame, grey: Grey) -> None:
        side = FOLLOWED_SIDE
        start = time.perf_counter()
        crop = align(grey, stretch.transform, side)
        aligned = time.perf_counter()
        points = stretch.points
        moves = point_flow(
            stretch.reference, crop, points, stretch.expected, self._options.window_px
        )
        head = fit_rigid_motion(points, moves, side)
        stretch.expected = head.at(*(points - (side - 1) / 2).T).T
        own = stretch.regions.moved(crop, head) * (self._spec.input_size / side)
        stretch.frames.append(frame.index)
        stretch.times_s.append(frame.time_s)
        stretch.places.append(own.astype(np.float64))
        self.timings_ms["align"] += (aligned - start) * 1e3
        self.timings_ms["flow"] += (time.perf_counter() - aligned) * 1e3

    def _has_wandered(self, stretch: _Stretch) -> bool:
        """Whether the face now stands elsewhere than in the stretch's crop."""
        size = FOLLOWED_SIDE
        face = stretch.track.sightings[-1][1]
        now = similarity_transform(face.landmarks, self._spec.alignment, size)
        middle = np.array([size / 2, self._spec.alignment.eye_y * size])
        in_frame = cv2.invertAffineTransform(now) @ [*middle, 1.0]
        shift = stretch.transform @ [*in_frame, 1.0] - middle
        eyes = self._spec.alignment.eye_distance * size
        return float(np.hypot(*shift)) > self._options.wander * eyes

    def _is_over(self, stretch: _Stretch, now: float) -> bool:
        return now >= stretch.start_s + self._options.stretch_s

    def _end_scene(self) -> None:
        self._close(list(self._stretches), ends_scene=True)
        self._followed, self._scene = [], []
        self._next_key_s = 0.0
        self._scene_starts = True

    def _close(self, stretches: Iterable[_Stretch], *, ends_scene: bool = False) -> None:
        for stretch in list(stretches):
            self._stretches.remove(stretch)
            lost = stretch.track not in self._followed
            count = stretch.confirmed if lost else len(stretch.frames)
            if count:
                stretch.track.trajectories.append(
                    Trajectory(
                        frames=np.array(stretch.frames[:count]),
                        times_s=np.array(stretch.times_s[:count]),
                        places=np.array(stretch.places[:count]),
                        starts_scene=stretch.starts_scene,
                        ends_scene=ends_scene,
                    )
                )


def overlap(a: Box, b: Box) -> float:
    """Return intersection over union of two boxes."""
    width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    shared = max(0.0, width) * max(0.0, height)
    union = a.width * a.height + b.width * b.height - shared
    return shared / union if union > 0 else 0.0


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / length if length else 0.0

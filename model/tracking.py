"""The people of a clip, followed through its frames, and how the regions of each face moved.

Frames are taken one by one and none is kept. Detector and mesh look at a keyframe every half
second; in between, each face is measured in overlapping stretches of two seconds, each with one
similarity transform from the mesh at its first frame (docs/decisions.md, "One transform").
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from model.clip import ClipInfo, Frame
from model.face import Box, Face, align, similarity_transform
from model.flow import RigidMotion, fit_rigid_motion, point_flow
from model.movement import FOLLOWED_LANDMARKS, FOLLOWED_SIDE, FaceRegions
from model.pipeline import Preprocessor
from model.spotting import Searched, Trajectory

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
    """At most so many frames are measured in a second, whatever the camera's rate."""
    stray_px: float = 1.5
    """Pixels of the crop: where half of the head's points move otherwise than the head, something
    else is seen (a hand), and the frame is not measured."""
    same_face: float = 0.3
    """Overlap (intersection over union) of the boxes of one person in two keyframes."""
    away_s: float = 2.0
    """How long a face may be away (a hand before it) and still be the same person's."""
    stay: float = 1.5
    """How many times larger (by area) a face must be to take the place of one that is followed."""
    wander: float = 0.5
    """Eye distances that a face may move before its stretch ends and another begins."""
    cut_correlation: float = 0.6
    """Below this correlation of two neighbouring frames, shrunk to thumbnails, the scene is cut."""


DEFAULT_TRACKING = TrackingOptions()
_THUMBNAIL = (32, 24)
_CUT_LEVELS = 12.0
"""Grey levels that a thumbnail changes by, on average, at a cut: still scenes have none."""
_SAME_SCENE = 0.9
"""Above this correlation of thumbnails a scene that was left is back."""
_SLACK_S = 1e-6
_MARGIN = 16
"""Pixels of the frame around a crop: what shrinking and cubic sampling look at beyond it."""


@dataclass(slots=True, eq=False)
class Track:
    """One person from the first keyframe that shows the face to the last."""

    face_id: int
    """1, 2, … as they appear, the largest first. It identifies nobody."""
    sightings: list[tuple[int, Face]]
    """Keyframes that show the face, and where."""
    last_seen_s: float
    stretches: list[Searched] = field(default_factory=list)

    @property
    def area(self) -> float:
        """Mean area of the face's box, pixels of the frame, times the keyframes that show it."""
        return sum(_area(face) for _, face in self.sightings)

    @property
    def last_frame(self) -> int:
        """The last frame in which the face is known to be seen."""
        measured = [int(stretch.frames[-1]) for stretch in self.stretches]
        return max([self.sightings[-1][0], *measured])

    @property
    def box(self) -> Box:
        """Where the face was seen last."""
        return self.sightings[-1][1].box

    def nearest(self, frame: int) -> Face:
        """Return the face of the keyframe nearest to a frame."""
        return min(self.sightings, key=lambda sighting: abs(sighting[0] - frame))[1]


@dataclass(slots=True, eq=False)
class _Stretch:
    """A stretch of one track that is being measured."""

    track: Track
    start_s: float
    part: tuple[slice, slice]
    """Rows and columns of the frame that the crop is taken from: a frame much larger than the
    face is not shrunk as a whole."""
    transform: NDArray[np.float64]
    """(2, 3), from that part to the crop."""
    reference: Grey
    points: NDArray[np.float32]
    """(P, 2) of the head, pixels of the crop."""
    regions: FaceRegions
    expected: NDArray[np.float32]
    """(P, 2): what the head did up to the last frame; the next one is looked for there."""
    starts_clip: bool
    frames: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    places: list[NDArray[np.float64]] = field(default_factory=list)
    confirmed: int = 0
    """Measured frames up to the last keyframe that still showed the face."""


@dataclass(frozen=True, slots=True, eq=False)
class _Left:
    """A scene that was cut away from."""

    tracks: list[Track]
    thumbnail: NDArray[np.float32]
    at_s: float


class Tracker:
    """Follows up to `max_faces` people. Feed it every frame in order, then `finish`."""

    def __init__(
        self,
        preprocessor: Preprocessor,
        info: ClipInfo,
        search: Callable[[Trajectory], Searched],
        *,
        max_faces: int,
        options: TrackingOptions = DEFAULT_TRACKING,
    ) -> None:
        """`search` is called once for each stretch, of which nothing else is kept."""
        self._spec, self._finder = preprocessor.spec, preprocessor.finder
        self._search, self._options = search, options
        self._max_faces = max_faces
        self._seconds = info.duration_s
        self._scene: list[Track] = []
        self._left: _Left | None = None
        self._followed: list[Track] = []
        self._stretches: list[_Stretch] = []
        self._thumbnail: NDArray[np.float32] | None = None
        self._looked_s = self._next_key_s = self._next_measure_s = 0.0
        self.tracks: list[Track] = []
        """Everybody who was followed, in order of appearance."""
        self.measured = 0
        """Frames looked at for motion: all but those that `rate_hz` leaves out."""
        self.cuts: list[int] = []
        """First frame of each new scene."""
        self.more_faces = False
        """Whether a keyframe showed more faces than are followed."""
        self.timings_ms = {"detect": 0.0, "spot": 0.0}

    def feed(self, frame: Frame, *, last: bool = False) -> None:
        """Take the next frame; `last` tells that the clip ends with it."""
        grey = frame.grey()
        self._watch_for_cut(frame, grey)
        if last or frame.time_s >= self._next_key_s:
            self._look(frame, grey)
        if last or frame.time_s >= self._next_measure_s - _SLACK_S:
            self.measured += 1
            self._next_measure_s = frame.time_s + 1 / self._options.rate_hz
            with _timed(self.timings_ms, "spot"):
                for stretch in self._stretches:
                    self._measure(stretch, frame, grey)
        self._close(s for s in self._stretches if self._is_over(s, frame.time_s))

    def finish(self) -> list[Track]:
        """Return everybody who was followed, the largest and longest seen first."""
        self._end_scene(ends_clip=True)
        return sorted(self.tracks, key=lambda track: -track.area)

    def _watch_for_cut(self, frame: Frame, grey: Grey) -> None:
        small = cv2.resize(grey, _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self._thumbnail = self._thumbnail, small
        if before is None or float(np.abs(small - before).mean()) < _CUT_LEVELS:
            return
        if _correlation(before, small) >= self._options.cut_correlation:
            return
        self.cuts.append(frame.index)
        left, here = self._left, _Left(self._scene, before, frame.time_s)
        self._end_scene()
        # A hand before a face that fills the frame looks like a cut away from it, and back.
        if left is not None and frame.time_s - left.at_s <= self._options.away_s:
            back = _correlation(left.thumbnail, small) > _SAME_SCENE
            self._scene = left.tracks if back else []
        self._left = here

    def _look(self, frame: Frame, grey: Grey) -> None:
        """Find the faces of a keyframe, tell who is who, and begin and end stretches."""
        with _timed(self.timings_ms, "detect"):
            # One more than is followed: a caller should know that somebody was left out.
            faces = self._finder.find(frame.rgb(), self._max_faces + 1)
        self.more_faces |= len(faces) > self._max_faces
        seen = self._recognise(faces, frame)
        self._looked_s = frame.time_s
        self._followed = seen
        self._close(s for s in self._stretches if s.track not in seen)
        for stretch in self._stretches:
            stretch.confirmed = len(stretch.frames)
        self._close(s for s in self._stretches if self._has_wandered(s))
        for track in seen:
            if self._wants_a_stretch(track, frame.time_s):
                self._stretches.append(self._begin(track, frame, grey))
        pause = self._options.keyframe_s / (1 if seen else 4)
        self._next_key_s = frame.time_s + pause

    def _recognise(self, faces: list[Face], frame: Frame) -> list[Track]:
        """Return the tracks of the largest faces; who is followed already stays more easily."""
        known = [
            track
            for track in self._scene
            # Seen from the last keyframe: a slow camera's are further apart than that.
            if self._looked_s - track.last_seen_s <= self._options.away_s
        ]
        found: list[tuple[Face, Track | None]] = []
        for face in faces:
            track = max(known, key=lambda one: overlap(one.box, face.box), default=None)
            if track is not None and overlap(track.box, face.box) >= self._options.same_face:
                known.remove(track)
                found.append((face, track))
            else:
                found.append((face, None))
        found.sort(
            key=lambda one: -_area(one[0]) * (self._options.stay if one[1] in self._followed else 1)
        )
        return [self._sighted(face, track, frame) for face, track in found[: self._max_faces]]

    def _sighted(self, face: Face, track: Track | None, frame: Frame) -> Track:
        if track is None:
            track = Track(len(self.tracks) + 1, [], frame.time_s)
            self.tracks.append(track)
            self._scene.append(track)
        track.sightings.append((frame.index, face))
        track.last_seen_s = frame.time_s
        return track

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
        part = _part_of(grey, transform)
        corner = np.array([part[1].start, part[0].start])
        transform[:, 2] += transform[:, :2] @ corner
        reference = align(grey[part], transform, FOLLOWED_SIDE)
        points = landmarks[list(_HEAD_LANDMARKS)]
        return _Stretch(
            track=track,
            start_s=frame.time_s,
            part=part,
            transform=transform,
            reference=reference,
            points=points,
            regions=FaceRegions(reference, landmarks),
            expected=np.zeros_like(points),
            starts_clip=frame.index == 0,
        )

    def _measure(self, stretch: _Stretch, frame: Frame, grey: Grey) -> None:
        crop = align(grey[stretch.part], stretch.transform, FOLLOWED_SIDE)
        head = self._head_motion(stretch, crop)
        if head is None:
            return
        stretch.expected = _moves_of(head, stretch.points)
        own = stretch.regions.moved(crop, head) * (self._spec.input_size / FOLLOWED_SIDE)
        stretch.frames.append(frame.index)
        stretch.times_s.append(frame.time_s)
        stretch.places.append(own.astype(np.float64))

    def _head_motion(self, stretch: _Stretch, crop: Grey) -> RigidMotion | None:
        """Return the head's motion since the stretch began; None where the head is not seen.

        Looked for where the head was last, and else where it began: a fit to something that
        passed before the face must not lead the next one astray.
        """
        points, options = stretch.points, self._options
        for expected in (stretch.expected, np.zeros_like(points)):
            moves = point_flow(stretch.reference, crop, points, expected, options.window_px)
            head = fit_rigid_motion(points, moves, FOLLOWED_SIDE)
            stray = np.linalg.norm(moves - _moves_of(head, points), axis=1)
            if float(np.median(np.nan_to_num(stray, nan=np.inf))) <= options.stray_px:
                return head
        return None

    def _has_wandered(self, stretch: _Stretch) -> bool:
        """Whether the face now stands elsewhere than in the stretch's crop."""
        size = FOLLOWED_SIDE
        face = stretch.track.sightings[-1][1]
        now = similarity_transform(face.landmarks, self._spec.alignment, size)
        middle = np.array([size / 2, self._spec.alignment.eye_y * size])
        in_frame = cv2.invertAffineTransform(now) @ [*middle, 1.0]
        in_part = in_frame - [stretch.part[1].start, stretch.part[0].start]
        shift = stretch.transform @ [*in_part, 1.0] - middle
        eyes = self._spec.alignment.eye_distance * size
        return float(np.hypot(*shift)) > self._options.wander * eyes

    def _is_over(self, stretch: _Stretch, now: float) -> bool:
        return now >= stretch.start_s + self._options.stretch_s

    def _end_scene(self, *, ends_clip: bool = False) -> None:
        self._close(list(self._stretches), ends_clip=ends_clip)
        self._followed, self._scene = [], []
        self._next_key_s = 0.0

    def _close(self, stretches: Iterable[_Stretch], *, ends_clip: bool = False) -> None:
        for stretch in list(stretches):
            self._stretches.remove(stretch)
            lost = stretch.track not in self._followed
            count = stretch.confirmed if lost else len(stretch.frames)
            if count:
                trajectory = Trajectory(
                    frames=np.array(stretch.frames[:count]),
                    times_s=np.array(stretch.times_s[:count]),
                    places=np.array(stretch.places[:count]),
                    starts_clip=stretch.starts_clip,
                    ends_clip=ends_clip,
                )
                with _timed(self.timings_ms, "spot"):
                    stretch.track.stretches.append(self._search(trajectory))


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] += (time.perf_counter() - start) * 1e3


def _part_of(grey: Grey, transform: NDArray[np.float64]) -> tuple[slice, slice]:
    """Return the rows and columns of a frame that a crop of `FOLLOWED_SIDE` needs."""
    side = float(FOLLOWED_SIDE)
    corners = np.array([(0, 0, 1), (side, 0, 1), (0, side, 1), (side, side, 1)], float)
    at = corners @ cv2.invertAffineTransform(transform).T
    low, high = np.floor(at.min(axis=0)) - _MARGIN, np.ceil(at.max(axis=0)) + _MARGIN
    # Of a face at the frame's border, what is inside; at least a pixel, which then repeats.
    last = np.array(grey.shape[::-1]) - 1
    (left, top), (right, bottom) = np.clip(low, 0, last), np.clip(high, 0, last)
    return slice(int(top), int(bottom) + 1), slice(int(left), int(right) + 1)


def _moves_of(head: RigidMotion, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (P, 2): how far the head's motion carries points of the crop."""
    return head.at(*(points - (FOLLOWED_SIDE - 1) / 2).T).T


def _area(face: Face) -> float:
    return face.box.width * face.box.height


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

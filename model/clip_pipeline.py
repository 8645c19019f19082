"""The way of one clip: frames → people → intervals → aligned pairs, ready for the network.

The clip is decoded twice: once to follow the faces and spot what they do, once to fetch the
chosen onset and apex frames in colour. Training and serving share it.

Memory hardly grows with the clip. At any time there are: the bytes as sent; the decoder's frames
(its reference frames and threads, up to 16 + 1 pictures of 1.5 bytes a pixel, twice that with ten
bits); one frame as grey and one as RGB (4 bytes a pixel, twice where it had to be turned); for each
person two stretches of at most 140 moments, with 20 MB while one of them is searched; in the second
pass the onset frames of the intervals under way, at most two for each person, and one apex (3 bytes
a pixel each), with the model's crops of every candidate (about 1 MB each at 224 pixels); and some
30 MB of workspace. What stays of a person is the curve and the keyframes: half a megabyte for each
minute.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.clip import Clip, ClipInfo, Frame
from model.errors import FrameOutOfRange
from model.face import Face
from model.pipeline import AlignedPair, Preprocessor
from model.spotting import (
    DEFAULT_SPOTTING,
    Interval,
    MotionCurve,
    Searched,
    Sketch,
    SpotOptions,
    Trajectory,
    around,
    look_through,
    threshold,
)
from model.tracking import DEFAULT_TRACKING, Track, Tracker, TrackingOptions, overlap

__all__ = ["AlignedClip", "ClipCandidate", "ClipFace", "ClipOptions", "align_clip"]

Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipOptions:
    """What a caller may choose."""

    faces: int = 1
    """People to answer for, the largest first."""
    onset_frame: int | None = None
    """Counted from 0; None leaves it to the spotter."""
    apex_frame: int | None = None
    """Likewise."""
    candidates: int = 5
    """Intervals to answer for, of each person, the strongest first."""
    spotting: SpotOptions = DEFAULT_SPOTTING
    tracking: TrackingOptions = DEFAULT_TRACKING


@dataclass(frozen=True, slots=True, eq=False)
class ClipCandidate:
    """One interval of one person, and its aligned onset and apex frame."""

    interval: Interval
    pair: AlignedPair


@dataclass(frozen=True, slots=True, eq=False)
class ClipFace:
    """One person of a clip."""

    face_id: int
    """A number within this clip; it identifies nobody."""
    candidates: tuple[ClipCandidate, ...]
    """The strongest first, never empty; one only where the caller named a frame or nothing was
    spotted."""
    curve: MotionCurve
    seen: float
    """Share of the clip through which the face was followed, 0 to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class AlignedClip:
    """What was found in a clip."""

    info: ClipInfo
    faces: tuple[ClipFace, ...]
    """The largest and longest seen first; none is a normal answer."""
    more_faces: bool
    """Whether the clip shows more people than were asked for."""
    scene_cuts: tuple[int, ...]
    """First frame of each scene but the first."""
    timings_ms: dict[str, float]
    """decode, detect, spot (its flow included), align, flow: wall time of this clip's work."""


@dataclass(frozen=True, slots=True, eq=False)
class _Spotted:
    """One person and the intervals to be fetched."""

    track: Track
    intervals: list[Interval]
    curve: MotionCurve


def _never() -> None:
    """Let the work go on."""


_DEFAULTS = ClipOptions()


def align_clip(
    preprocessor: Preprocessor,
    clip: Clip,
    options: ClipOptions = _DEFAULTS,
    check: Callable[[], None] = _never,
) -> AlignedClip:
    """Follow the faces of a clip, spot their expressions, and align the frames of each.

    `check` is called with every frame of both passes; what it raises ends the work.
    Raises: FrameOutOfRange; whatever decoding raises (`model.clip`).
    """
    _check_frames(options, clip.info.frames)
    timings = dict.fromkeys(("decode", "detect", "spot", "align", "flow"), 0.0)
    tracker = _follow(preprocessor, clip, options, check, timings)
    tracks = tracker.finish()
    for stage, spent in tracker.timings_ms.items():
        timings[stage] += spent
    start = time.perf_counter()
    answerable = [one for one in (_spot(track, options) for track in tracks) if one.intervals]
    spotted = answerable[: options.faces]
    timings["spot"] += (time.perf_counter() - start) * 1e3
    pairs = _fetch(preprocessor, clip, spotted, check, timings)
    return AlignedClip(
        info=clip.info,
        faces=tuple(
            _face(one, pairs, tracker) for one in spotted if (one.track.face_id, 0) in pairs
        ),
        more_faces=tracker.more_faces or len(answerable) > options.faces,
        scene_cuts=tuple(tracker.cuts),
        timings_ms=timings,
    )


def _check_frames(options: ClipOptions, count: int) -> None:
    for name, frame in (("onset", options.onset_frame), ("apex", options.apex_frame)):
        if frame is not None and not 0 <= frame < count:
            raise FrameOutOfRange(f"the {name} frame {frame} is not one of 0 to {count - 1}")
    onset, apex = options.onset_frame, options.apex_frame
    if onset is not None and apex is not None and onset >= apex:
        raise FrameOutOfRange(f"the apex frame {apex} is not after the onset frame {onset}")
    if onset == count - 1:
        raise FrameOutOfRange(f"no apex can follow the onset frame {onset}, the last")
    if apex == 0:
        raise FrameOutOfRange("no onset can precede the apex frame 0")


def _follow(
    preprocessor: Preprocessor,
    clip: Clip,
    options: ClipOptions,
    check: Callable[[], None],
    timings: dict[str, float],
) -> Tracker:
    named = _named(options)

    def search(trajectory: Trajectory) -> Searched:
        check()
        first, last = trajectory.frames[0], trajectory.frames[-1]
        keep = any(first <= frame <= last for frame in named)
        return look_through(trajectory, options.spotting, keep=keep)

    tracker = Tracker(
        preprocessor,
        clip.info,
        search,
        max_faces=options.faces,
        options=options.tracking,
    )
    for frame in _frames(clip, check, timings):
        tracker.feed(frame, last=frame.index == clip.info.frames - 1)
    return tracker


def _named(options: ClipOptions) -> list[int]:
    """Return the frames that the caller named, the onset first."""
    return [frame for frame in (options.onset_frame, options.apex_frame) if frame is not None]


def _frames(clip: Clip, check: Callable[[], None], timings: dict[str, float]) -> Generator[Frame]:
    with closing(clip.frames()) as frames:
        while True:
            check()
            start = time.perf_counter()
            frame = next(frames, None)
            timings["decode"] += (time.perf_counter() - start) * 1e3
            if frame is None:
                return
            yield frame


_NEEDED = 2
"""Frames of an onset and an apex: somebody seen in one alone cannot be answered for."""


def _spot(track: Track, options: ClipOptions) -> _Spotted:
    curve = _curve(track, options.spotting)
    if len(curve.frames) < _NEEDED:
        return _Spotted(track, [], curve)
    if _named(options):
        intervals = _given(track, curve, options)
    else:
        intervals = _strongest(track, curve, options) or [_middle(curve)]
    return _Spotted(track, intervals, curve)


def _curve(track: Track, options: SpotOptions) -> MotionCurve:
    """Join the heights of a track's stretches; where two overlap, the greater counts."""
    highest: dict[int, tuple[float, float]] = {}
    for stretch in track.stretches:
        rows = zip(stretch.frames, stretch.times_s, stretch.heights, strict=True)
        for frame, at, height in rows:
            before = highest.get(int(frame), (0.0, 0.0))[1]
            highest[int(frame)] = float(at), max(float(height), before)
    frames = sorted(highest)
    times = np.array([highest[frame][0] for frame in frames])
    motion = np.array([highest[frame][1] for frame in frames])
    seconds = float(times[-1] - times[0]) if frames else 0.0
    return MotionCurve(np.array(frames, int), times, motion, threshold(motion, seconds, options))


def _strongest(track: Track, curve: MotionCurve, options: ClipOptions) -> list[Interval]:
    found = [
        (sketch, stretch)
        for stretch in track.stretches
        for sketch in stretch.sketches
        if sketch.height >= curve.threshold_px
    ]
    ceiling = options.spotting.ceiling_px
    kept: list[Interval] = []
    for sketch, stretch in sorted(
        found, key=lambda item: (item[0].height > ceiling, -item[0].height)
    ):
        interval = _interval(sketch, stretch)
        if len(kept) < options.candidates and not any(_share(interval, other) for other in kept):
            kept.append(interval)
    return kept


def _interval(sketch: Sketch, stretch: Trajectory | Searched) -> Interval:
    frames, times = stretch.frames, stretch.times_s
    return Interval(
        onset=int(frames[sketch.onset]),
        apex=int(frames[sketch.apex]),
        offset=int(frames[sketch.offset]) if sketch.returned else None,
        onset_s=float(times[sketch.onset]),
        apex_s=float(times[sketch.apex]),
        offset_s=float(times[sketch.offset]) if sketch.returned else None,
        strength_px=sketch.height,
        source="spotted",
    )


def _share(a: Interval, b: Interval) -> bool:
    """Whether two intervals have a frame in common."""
    ends = [one.apex if one.offset is None else one.offset for one in (a, b)]
    return a.onset <= ends[1] and b.onset <= ends[0]


def _given(track: Track, curve: MotionCurve, options: ClipOptions) -> list[Interval]:
    """Complete what the caller named; nothing for somebody who is not seen there."""
    named = _named(options)
    if not all(track.sightings[0][0] <= frame <= track.last_frame for frame in named):
        return []
    onset, apex = options.onset_frame, options.apex_frame
    around_them = _measured_around(track, options)
    if around_them is None:  # too far apart to have been measured together
        first, last = int(curve.frames[0]), track.last_frame
        onset = first if onset is None else onset
        apex = (onset + last + 1) // 2 if apex is None else apex
        around_them = Interval(onset, apex, None, 0.0, 0.0, None, None, "given")
    onset = around_them.onset if onset is None else onset
    apex = around_them.apex if apex is None else apex
    # A frame between two measured ones is kept as it was named.
    onset_s, apex_s = np.interp((onset, apex), curve.frames, curve.times_s)
    found = replace(
        around_them, onset=onset, apex=apex, onset_s=float(onset_s), apex_s=float(apex_s)
    )
    return [found] if onset < apex else []


def _measured_around(track: Track, options: ClipOptions) -> Interval | None:
    """Return the interval of the named frames in the stretch whose middle is nearest to them."""
    named = _named(options)
    holding = [
        stretch.trajectory
        for stretch in track.stretches
        if stretch.trajectory is not None
        and stretch.frames[0] <= named[0]
        and named[-1] <= stretch.frames[-1]
    ]
    if not holding:
        return None
    best = min(holding, key=lambda one: abs(float(one.frames.mean()) - named[0]))
    onset, apex = (
        None if frame is None else int(np.abs(best.frames - frame).argmin())
        for frame in (options.onset_frame, options.apex_frame)
    )
    if onset == len(best.frames) - 1 or apex in {0, onset}:
        return None
    return replace(_interval(around(best, onset, apex, options.spotting), best), source="given")


def _middle(curve: MotionCurve) -> Interval:
    """Return the documented fallback: the first frame that shows the face, and the middle one."""
    first, last = int(curve.frames[0]), int(curve.frames[-1])
    middle = (first + last + 1) // 2
    return Interval(
        onset=first,
        apex=middle,
        offset=None,
        onset_s=float(curve.times_s[0]),
        apex_s=float(np.interp(middle, curve.frames, curve.times_s)),
        offset_s=None,
        strength_px=float(curve.motion_px.max()),
        source="middle_frame",
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One interval to be fetched."""

    track: Track
    rank: int
    interval: Interval

    @property
    def key(self) -> tuple[int, int]:
        return self.track.face_id, self.rank


def _fetch(
    preprocessor: Preprocessor,
    clip: Clip,
    spotted: list[_Spotted],
    check: Callable[[], None],
    timings: dict[str, float],
) -> dict[tuple[int, int], AlignedPair]:
    """Decode again, and align the frames of every interval; keyed by face id and rank."""
    waiting = [
        _Job(one.track, rank, interval)
        for one in spotted
        for rank, interval in enumerate(one.intervals)
    ]
    held: dict[tuple[int, int], tuple[Image, Face]] = {}
    pairs: dict[tuple[int, int], AlignedPair] = {}
    frames = _frames(clip, check, timings)
    while waiting and (frame := next(frames, None)) is not None:
        ending = [job for job in waiting if job.interval.apex == frame.index]
        beginning = [job for job in waiting if job.interval.onset == frame.index]
        if not ending and not beginning:
            continue
        rgb = frame.rgb()
        for job in ending:
            onset, face = held.pop(job.key)
            pairs[job.key] = preprocessor.align_face(onset, rgb, face)
        if beginning:
            start = time.perf_counter()
            faces = preprocessor.finder.find(rgb, _MOST_FACES)
            timings["detect"] += (time.perf_counter() - start) * 1e3
            held |= {job.key: (rgb, _face_of(job, faces)) for job in beginning}
        waiting = [job for job in waiting if job not in ending]
    frames.close()
    for pair in pairs.values():
        for stage, spent in pair.timings_ms.items():
            timings[stage] = timings.get(stage, 0.0) + spent
    return pairs


_MOST_FACES = 16
"""Looked at in an onset frame, to find the followed ones among them."""


def _face_of(job: _Job, faces: list[Face]) -> Face:
    """Return the followed face in its onset frame, or as it was in the nearest keyframe."""
    known = job.track.nearest(job.interval.onset)
    best = max(faces, key=lambda face: overlap(face.box, known.box), default=known)
    return best if overlap(best.box, known.box) >= DEFAULT_TRACKING.same_face else known


def _face(one: _Spotted, pairs: dict[tuple[int, int], AlignedPair], tracker: Tracker) -> ClipFace:
    candidates = tuple(
        ClipCandidate(interval, pairs[one.track.face_id, rank])
        for rank, interval in enumerate(one.intervals)
    )
    return ClipFace(
        face_id=one.track.face_id,
        candidates=candidates,
        curve=one.curve,
        seen=len(one.curve.frames) / tracker.measured,
    )

"""Where in a clip an expression rises and falls: trajectory of a face → intervals and a curve.

A micro-expression leaves a state of the face and comes back to it within half a second. So the
spotter looks for three moments, onset, apex and offset, of which the middle one is far from both
others while those two are near each other. Nothing of it depends on which frame the motion was
measured against, on slow drift, or on the direction of time. Ours; the usual curve of motion
against the first frame (Li et al. 2018 and others) knows neither of the last two.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DEFAULT_SPOTTING",
    "Interval",
    "MotionCurve",
    "Searched",
    "Sketch",
    "SpotOptions",
    "Trajectory",
    "around",
    "look_through",
    "search",
    "threshold",
    "unfinished",
]

FloatArray = NDArray[np.float64]

Source = Literal["spotted", "given", "middle_frame"]


@dataclass(frozen=True, slots=True)
class Interval:
    """One expression in time. Frames are counted from 0, seconds from the clip's first frame."""

    onset: int
    apex: int
    offset: int | None
    """None where the clip ends before the face has come back, or nobody looked for it."""
    onset_s: float
    apex_s: float
    offset_s: float | None
    strength_px: float | None
    """How far the face left its rest, pixels of the model's aligned crop; None for given frames
    that were not measured together."""
    source: Source
    """Whether the spotter found it, the caller gave it, or nothing was found: then it is the
    clip's first frame and its middle one."""


@dataclass(frozen=True, slots=True, eq=False)
class MotionCurve:
    """How far the face at each frame stands from what it was before and what it is after."""

    frames: NDArray[np.int_]
    times_s: FloatArray
    motion_px: FloatArray
    """Pixels of the model's aligned crop."""
    threshold_px: float
    """An interval's apex lies above it."""


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """How the regions of one face moved through one stretch of a clip."""

    frames: NDArray[np.int_]
    """(N,) rising frame numbers, not always every one."""
    times_s: FloatArray
    """(N,) rising."""
    places: FloatArray
    """(N, R, 2): displacement of each region against one frame of the stretch, (x, y), pixels of
    the model's crop, the head's motion removed.."""
    starts_clip: bool = False
    """Whether the clip begins with it."""
    ends_clip: bool = False
    """Likewise ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotOptions:
    """What the spotter takes for a micro-expression; all ours but the durations."""

    longest_phase_s: float = 0.4
    """From onset to apex, and from apex to offset. Half a second is the usual bound of the whole
    (Yan et al. 2013); annotated ones reach somewhat beyond."""
    shortest_phase_s: float = 0.03
    smoothing_s: float = 0.015
    """Standard deviation of the Gaussian that smooths each region's trajectory."""
    floor_px: float = 0.38
    """No threshold is lower: what noise and the flow's own error reach."""
    ceiling_px: float = 6.0
    """A stronger interval is no micro-expression (.3–3 px of a crop of 224) or a face that was
    lost; it comes after all others."""
    deviations: float = 2.5
    """Robust standard deviations of the curve, above its median, that a threshold lies."""
    edge: float = 0.25
    """Share of the height at which the curve is seen to rise and to have come back; onset and
    offset are where half a cosine through apex and edge has its rest."""
    return_cost: float = 0.4
    """What a pixel between onset and offset takes off the height."""
    restless: float = 0.6
    """An interval before or after which the face moves by more than this share of its height is a
    piece of something longer: speech, a large expression."""
    around_s: float = 0.2
    """How long before and after an interval the face is looked at for that."""
    shortest_with_rest_s: float = 1.2
    """A shorter clip may hold nothing but its expression, so there is no rest to learn from."""


DEFAULT_SPOTTING = SpotOptions()
_FLAT = 0.98
"""Above this share of its maximum a curve counts as its top."""
_TRIED = 12
"""Onsets and offsets tried for each apex."""
_STRONGEST = 3
"""Regions that are averaged: an expression moves one or two muscles."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """An interval within one trajectory, by its places there."""

    onset: int
    apex: int
    offset: int
    returned: bool
    """Whether the face has come back at the offset."""
    height: float
    """Pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """What is kept of a trajectory, once it has been searched: a clip has many."""

    frames: NDArray[np.int_]
    times_s: FloatArray
    heights: FloatArray
    """(N,) pixels, as `search` returns them."""
    sketches: list[Sketch]
    """Intervals, by places in `frames`."""
    trajectory: Trajectory | None
    """Itself, where somebody named a frame of it."""


def distances(places: FloatArray, others: FloatArray) -> FloatArray:
    """Return how far apart two states of a face are.

    Convention: both are (..., R, 2) pixels. Root mean square over the three regions that moved
    most.
    """
    squared = ((places - others) ** 2).sum(axis=-1)
    strongest = np.sort(squared, axis=-1)[..., -_STRONGEST:]
    return np.asarray(np.sqrt(strongest.mean(axis=-1)))


def smooth(values: FloatArray, times: FloatArray, deviation_s: float) -> FloatArray:
    """Smooth (N, ...) values in time by a Gaussian; true times, so frames may be unevenly far."""
    weights = np.exp(-0.5 * ((times[:, None] - times[None]) / deviation_s) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray(np.tensordot(weights, values, axes=1))


def search(
    trajectory: Trajectory, options: SpotOptions = DEFAULT_SPOTTING
) -> tuple[FloatArray, list[Sketch]]:
    """Return the height of every moment, (N,) pixels, and the intervals, the highest first.

    The height of moment a is the largest min(d(o, a), d(a, f), d(a, r)) - `return_cost` d(o, f)
    over moments o before and f after it, within `longest_phase_s`; d is `distances` of the
    smoothed places, r the state that a face drifting evenly from o to f has at a. So neither
    drift nor a step has height. 0 at the ends, where one side is not known.

    Intervals do not overlap. Every local maximum of the heights is one; whether it is high enough
    is for the caller, who knows the whole clip (`threshold`).
    """
    times = trajectory.times_s
    places = smooth(trajectory.places, times, options.smoothing_s)
    best = _best(places, times, options)
    found: list[Sketch] = []
    for rough in sorted(best, key=lambda sketch: -sketch.height):
        if rough.height <= 0:
            break
        if any(rough.onset < other.offset and other.onset < rough.offset for other in found):
            continue
        fine = _refined(rough, places, times, options)
        if not _restless(fine, places, times, options):
            found.append(fine)
    return np.array([sketch.height for sketch in best]), found


def look_through(
    trajectory: Trajectory, options: SpotOptions = DEFAULT_SPOTTING, *, keep: bool = False
) -> Searched:
    """Search a trajectory, and forget where its regions were unless it is to be kept.

    A clip as short as one expression, in which nothing returns to its rest, may end before its
    expression does (`unfinished`).
    """
    heights, found = search(trajectory, options)
    seconds = float(trajectory.times_s[-1] - trajectory.times_s[0])
    whole = trajectory.starts_clip and trajectory.ends_clip
    if not found and whole and seconds <= 2 * options.longest_phase_s:
        alone = unfinished(trajectory, options)
        if alone is not None:
            found = [alone]
            heights[alone.apex] = alone.height
    kept = trajectory if keep else None
    return Searched(trajectory.frames, trajectory.times_s, heights, found, kept)


def threshold(curve: FloatArray, seconds: float, options: SpotOptions = DEFAULT_SPOTTING) -> float:
    """Return the height, pixels, that an interval needs in a clip whose heights are `curve`.

    Median plus `deviations` robust standard deviations (1.4826 MAD), at least `floor_px`; the
    floor alone in a clip of less than `shortest_with_rest_s`.
    """
    if not curve.size or seconds < options.shortest_with_rest_s:
        return options.floor_px
    middle = float(np.median(curve))
    spread = 1.4826 * float(np.median(np.abs(curve - middle)))
    return max(options.floor_px, middle + options.deviations * spread)


def unfinished(trajectory: Trajectory, options: SpotOptions = DEFAULT_SPOTTING) -> Sketch | None:
    """Return the expression of a short clip that ends before the face has come back.

    None where the face is nearer to its first state than to its farthest at the end, or took
    longer than `longest_phase_s`. The offset is then the last moment, and `returned` is false.
    """
    places = smooth(trajectory.places, trajectory.times_s, options.smoothing_s)
    curve = distances(places, places[0])
    apex = _top(curve)
    top = float(curve[apex])
    low = np.flatnonzero(curve[:apex] <= options.edge * top)
    if not low.size or curve[-1] < top / 2:
        return None
    rise = trajectory.times_s[apex] - trajectory.times_s[low[-1]]
    if not options.shortest_phase_s <= rise <= options.longest_phase_s:
        return None
    return Sketch(int(low[-1]), apex, len(curve) - 1, returned=False, height=top)


def around(
    trajectory: Trajectory,
    onset: int | None,
    apex: int | None,
    options: SpotOptions = DEFAULT_SPOTTING,
) -> Sketch:
    """Complete an interval of which a caller has named the onset, the apex, or both.

    Places in the trajectory. An onset that is not given is where the best interval of that apex
    has it; an apex, the moment farthest from the onset within `longest_phase_s`.
    """
    times = trajectory.times_s
    places = smooth(trajectory.places, times, options.smoothing_s)
    if apex is None:
        assert onset is not None  # noqa: S101 - the caller names one
        last = int(np.searchsorted(times, times[onset] + options.longest_phase_s, "right"))
        last = max(last, min(onset + 2, len(times)))  # a slow camera has one frame in that time
        apex = onset + _top(distances(places[onset:last], places[onset]))
    if onset is None:
        rough = _best(places, times, options, [apex])[0]
        onset = _refined(rough, places, times, options, apex).onset if rough.height else 0
    curve = distances(places, places[onset])
    last = int(np.searchsorted(times, times[apex] + options.longest_phase_s, "right"))
    back = np.flatnonzero(curve[apex:last] <= options.edge * curve[apex])
    returned = bool(back.size) and curve[apex] > 0
    offset = apex + int(back[0]) if returned else len(times) - 1
    return Sketch(onset, apex, offset, returned=returned, height=float(curve[apex]))


def _best(
    places: FloatArray,
    times: FloatArray,
    options: SpotOptions,
    apexes: Iterable[int] | None = None,
) -> list[Sketch]:
    """Return, for every moment as apex, the onset and offset that give it the greatest height."""
    moments = _Moments(places, times, distances(places[:, None], places[None]))
    found = []
    for apex in range(len(times)) if apexes is None else apexes:
        since, until = times[apex] - times[:apex], times[apex + 1 :] - times[apex]
        onsets = _thinned(np.flatnonzero(_within(since, options)))
        offsets = _thinned(apex + 1 + np.flatnonzero(_within(until, options)))
        if onsets.size and offsets.size:
            found.append(_highest(moments, onsets, apex, offsets, options))
        else:
            found.append(Sketch(apex, apex, apex, returned=False, height=0.0))
    return found


def _within(phase: FloatArray, options: SpotOptions) -> NDArray[np.bool_]:
    slack = 1e-6
    return (phase > options.shortest_phase_s - slack) & (phase < options.longest_phase_s + slack)


def _thinned(places: NDArray[np.int_]) -> NDArray[np.int_]:
    """Return at most `_TRIED` of the places, evenly spread: a rest is longer than their gaps."""
    if len(places) <= _TRIED:
        return places
    tried = np.linspace(0, len(places) - 1, _TRIED).round().astype(int)
    return np.asarray(places[tried], int)


@dataclass(frozen=True, slots=True, eq=False)
class _Moments:
    places: FloatArray
    times: FloatArray
    apart: FloatArray
    """(N, N): distances between all of them."""


def _highest(
    moments: _Moments,
    onsets: NDArray[np.int_],
    apex: int,
    offsets: NDArray[np.int_],
    options: SpotOptions,
) -> Sketch:
    places, times, apart = moments.places, moments.times, moments.apart
    start, end = times[onsets][:, None], times[offsets][None]
    share = ((times[apex] - start) / (end - start))[..., None, None]
    rest = places[onsets][:, None] * (1 - share) + places[offsets][None] * share
    height = np.minimum(apart[onsets, apex][:, None], apart[apex, offsets][None])
    height = np.minimum(height, distances(places[apex], rest))
    height = height - options.return_cost * apart[np.ix_(onsets, offsets)]
    i, j = np.unravel_index(int(height.argmax()), height.shape)
    top = max(0.0, float(height[i, j]))
    return Sketch(int(onsets[i]), apex, int(offsets[j]), returned=True, height=top)


def _refined(
    rough: Sketch,
    places: FloatArray,
    times: FloatArray,
    options: SpotOptions,
    apex: int | None = None,
) -> Sketch:
    """Move onset, offset and an apex not given to where the curve against the rest has them."""
    curve = _from_rest(rough, places, times)[rough.onset : rough.offset + 1]
    top = _top(curve) if apex is None else apex - rough.onset
    low = curve <= options.edge * curve[top]
    before = int(np.flatnonzero(low[:top])[-1])
    after = top + int(np.flatnonzero(low[top:])[0])
    # The rest of the way to and from the rest is shorter than noise lets it be seen.
    moments = times[rough.onset : rough.offset + 1]
    phase = 1 - np.arccos(1 - 2 * options.edge) / np.pi
    reach = moments[top] + (moments[[before, after]] - moments[top]) / phase
    onset, offset = (int(np.abs(moments - at).argmin()) for at in reach)
    return Sketch(
        onset=rough.onset + min(onset, before),
        apex=rough.onset + top,
        offset=rough.onset + max(offset, after),
        returned=True,
        height=rough.height,
    )


def _top(curve: FloatArray) -> int:
    """Return the middle of the curve's top, where it is flat or noisy; its maximum, else."""
    top = int(curve.argmax())
    below = np.flatnonzero(curve < _FLAT * curve[top])
    start = below[below < top].max(initial=-1) + 1
    end = below[below > top].min(initial=len(curve)) - 1
    return int(start + end) // 2


def _from_rest(sketch: Sketch, places: FloatArray, times: FloatArray) -> FloatArray:
    """Return (N,): the distance from a rest that drifts evenly through onset and offset."""
    return distances(*_face_and_rest(sketch, places, times))


def _face_and_rest(
    sketch: Sketch, places: FloatArray, times: FloatArray
) -> tuple[FloatArray, FloatArray]:
    start, end = times[sketch.onset], times[sketch.offset]
    share = ((times - start) / (end - start))[:, None, None]
    return places, places[sketch.onset] * (1 - share) + places[sketch.offset] * share


def _restless(sketch: Sketch, places: FloatArray, times: FloatArray, options: SpotOptions) -> bool:
    """Whether the regions that the expression moved also move shortly before or after it."""
    start, end = times[sketch.onset], times[sketch.offset]
    near = (times > start - options.around_s) & (times < end + options.around_s)
    outside = near & ((times < start) | (times > end))
    if not outside.any():
        return False
    face, rest = _face_and_rest(sketch, places, times)
    moved = np.linalg.norm(face - rest, axis=-1)
    regions = np.argsort(moved[sketch.apex])[-_STRONGEST:]
    elsewhere = np.sqrt((moved[np.ix_(outside, regions)] ** 2).mean(axis=-1))
    return bool(elsewhere.max() > options.restless * sketch.height)

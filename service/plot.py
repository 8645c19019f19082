"""One answer as a picture: when the face moved, what it looked like then, and what that means.

The picture shows the face, so it is drawn only where a caller names a file for it.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.face import align, similarity_transform
from model.flow import magnitude, to_grey
from model.pipeline import AlignedPair
from model.spec import ModelSpec
from model.spotting import Interval, MotionCurve
from model.verdict import Verdict
from service.files import replacing
from service.tables import MissingExtra
from service.wording import in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PlottedFace", "check_plot", "crop_of", "draw_answer", "save_plot"]

_BLUE, _ORANGE, _GREY = "#2a6fc9", "#d1571f", "#7a7f87"
_WIDTH_IN = 12.0
_CURVE_IN, _CROPS_IN = 2.3, 3.3
_DPI = 110
_ARROW_STEP = 12
"""Pixels of the crop from one arrow to the next."""
_ARROW_PX = 14.0
"""How long the arrow of a strong movement is drawn."""
_STRONG_PERCENTILE = 99
_FAINT_PX = 0.25
"""A flow that is nowhere longer is noise, and is not drawn as if it were a movement."""
_GAP = 4.0
"""Times the usual step between two moments of a curve: longer, and the face was not seen."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlottedFace:
    """What is drawn of one face."""

    face_id: int
    """Its number within the answer, as tables and JSON have it."""
    pair: AlignedPair
    apex: NDArray[np.uint8]
    """(S, S, 3) RGB: the apex aligned as the pair's onset is."""
    verdict: Verdict
    warnings: tuple[str, ...] = ()
    intervals: tuple[Interval, ...] = ()
    """Of a clip: the one that is answered for, then the other candidates."""
    curve: MotionCurve | None = None
    """Of a clip."""


def check_plot(out: Path) -> None:
    """Refuse a picture that could not be written. Raises: ValueError, OSError, MissingExtra."""
    if out.suffix != ".png":
        raise ValueError(f"{out.name} must end in .png")
    if not out.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {out.parent}", str(out))
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(out))
    _matplotlib()


def crop_of(frame: NDArray[np.uint8], pair: AlignedPair, spec: ModelSpec) -> NDArray[np.uint8]:
    """Cut the crop of a pair's face out of another frame of the same recording.

    Convention: frame is (H, W, 3) uint8 RGB; returns (S, S, 3).
    """
    transform = similarity_transform(pair.face.landmarks, spec.alignment, spec.input_size)
    return align(frame, transform, spec.input_size)


def save_plot(out: Path, faces: Sequence[PlottedFace], scene_cuts_s: Sequence[float] = ()) -> None:
    """Write the picture of an answer as PNG. Raises: as `check_plot`."""
    check_plot(out)
    mpl, agg = _matplotlib()
    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user's must not change the picture
        canvas = agg.FigureCanvasAgg(draw_answer(faces, scene_cuts_s))
        with replacing(out) as temporary, temporary.open("wb") as file:
            canvas.print_png(file, metadata={"Software": None})


def draw_answer(faces: Sequence[PlottedFace], scene_cuts_s: Sequence[float] = ()) -> "Figure":
    """Draw each face below the one before: its curve, if it is of a clip, and four panels."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - for those only who ask for a plot

    heights = [_CROPS_IN + (_CURVE_IN if face.curve else 0) for face in faces] or [_CURVE_IN]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights)), dpi=_DPI, layout="constrained")
    if not faces:
        figure.text(0.5, 0.5, "No face was found.", ha="center", va="center", fontsize=14)
        return figure
    parts = figure.subfigures(len(faces), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, face in zip(parts, faces, strict=True):
        name = f"face {face.face_id}: " if len(faces) > 1 else ""
        _draw_face(part, face, name, scene_cuts_s)
    return figure


def _draw_face(part: Any, face: PlottedFace, name: str, cuts_s: Sequence[float]) -> None:  # noqa: ANN401 - a sub-figure
    part.suptitle(name + _headline(face), fontsize=12, fontweight="bold")
    below = part
    if face.curve is not None:
        above, below = part.subfigures(2, 1, height_ratios=[_CURVE_IN, _CROPS_IN])
        _draw_curve(above.subplots(), face.curve, face.intervals, cuts_s)
    panels = below.subplots(1, 4, width_ratios=[1, 1, 1.18, 1.1])
    shown = face.intervals[0] if face.intervals else None
    _draw_crop(panels[0], face.pair.onset, f"onset, frame {shown.onset}" if shown else "onset")
    _draw_crop(panels[1], face.apex, f"apex, frame {shown.apex}" if shown else "apex")
    _draw_flow(panels[2], face.pair)
    _draw_probabilities(panels[3], face.verdict)
    notes = [in_words(reason) for reason in face.verdict.reasons[1:]]
    notes += [in_words(warning) for warning in face.warnings]
    if notes:
        below.supxlabel("also: " + "; ".join(notes), fontsize=9, color=_GREY)


def _headline(face: PlottedFace) -> str:
    verdict = face.verdict
    likeliest = f"{verdict.label}, {verdict.probabilities[verdict.label]:.0%}"
    if verdict.reason is None:
        return likeliest
    return f"abstains: {in_words(verdict.reason)} (likeliest: {likeliest})"


def _draw_curve(
    axes: "Axes", curve: MotionCurve, intervals: Sequence[Interval], cuts_s: Sequence[float]
) -> None:
    times, motion = _broken(curve)
    axes.plot(times, motion, color=_BLUE, linewidth=1.4)
    axes.axhline(curve.threshold_px, color=_GREY, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        "threshold",
        (1, curve.threshold_px),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=_GREY,
    )
    for cut in cuts_s:
        axes.axvline(cut, color=_GREY, linewidth=0.8, linestyle=":")
    for rank, interval in enumerate(intervals, start=1):
        _draw_interval(axes, interval, rank, end=float(curve.times_s[-1]))
    axes.set_xlabel("seconds", fontsize=9)
    axes.set_ylabel("motion, px", fontsize=9)
    highest = float(np.nanmax(motion, initial=curve.threshold_px))
    axes.set_ylim(0, 1.3 * highest + 0.05)
    axes.margins(x=0.01)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _broken(curve: MotionCurve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a curve with a hole wherever the face was not seen."""
    times, motion = np.asarray(curve.times_s, float), np.asarray(curve.motion_px, float)
    steps = np.diff(times)
    if not steps.size:
        return times, motion
    holes = np.flatnonzero(steps > _GAP * np.median(steps)) + 1
    return np.insert(times, holes, times[holes]), np.insert(motion, holes, np.nan)


def _draw_interval(axes: "Axes", interval: Interval, rank: int, end: float) -> None:
    """Shade an interval; of the one that is answered for, name its moments."""
    colour = _ORANGE if rank == 1 else _GREY
    if interval.source != "middle_frame":  # which is no expression that lasts
        offset_s = end if interval.offset_s is None else interval.offset_s
        axes.axvspan(interval.onset_s, offset_s, color=colour, alpha=0.14, linewidth=0)
    top = axes.get_xaxis_transform()
    if rank > 1:
        axes.text(interval.apex_s, 0.98, str(rank), transform=top, ha="center", va="top",
                  fontsize=9, color=colour)  # fmt: skip
        axes.axvline(interval.apex_s, color=colour, linewidth=0.8)
        return
    moments = [("onset", interval.onset, interval.onset_s, "right" if interval.onset else "left")]
    moments.append(("apex", interval.apex, interval.apex_s, "center"))
    if interval.offset is not None and interval.offset_s is not None:
        moments.append(("offset", interval.offset, interval.offset_s, "left"))
    for row, (name, frame, seconds, side) in enumerate(moments):
        axes.axvline(seconds, color=colour, linewidth=1.2 if name == "apex" else 0.8)
        axes.text(seconds, 1.02 + 0.09 * (row == 1), f" {name} {frame} ", transform=top, ha=side,
                  va="bottom", fontsize=8, color=colour)  # fmt: skip


def _draw_crop(axes: "Axes", crop: NDArray[np.uint8], title: str) -> None:
    axes.imshow(crop)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def _draw_flow(axes: "Axes", pair: AlignedPair) -> None:
    """Draw the pair's flow over its onset: colour is length, arrows say where to."""
    face = _outline(pair)
    length = np.where(face, magnitude(pair.flow), 0)  # what is behind the face is no expression
    strong = max(float(np.percentile(length[face], _STRONG_PERCENTILE)), _FAINT_PX)
    times = max(1.0, round(_ARROW_PX / strong))
    axes.imshow(to_grey(pair.onset), cmap="gray", alpha=0.75)
    shades = axes.imshow(
        length, cmap="inferno", vmin=0, vmax=strong, alpha=np.clip(length / strong, 0, 0.65)
    )
    half = _ARROW_STEP // 2
    y, x = np.mgrid[half : length.shape[0] : _ARROW_STEP, half : length.shape[1] : _ARROW_STEP]
    x, y = x[face[y, x]], y[face[y, x]]
    u, v = times * pair.flow[:, y, x]
    axes.quiver(x, y, u, v, color="#35c3f0", angles="xy", scale_units="xy", scale=1, width=0.006)
    axes.set_title(f"flow, arrows {times:.0f} times" if times > 1 else "flow", fontsize=9)
    axes.set_axis_off()
    bar = axes.figure.colorbar(shades, ax=axes, shrink=0.8, pad=0.02)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("px", fontsize=8)


def _outline(pair: AlignedPair) -> NDArray[np.bool_]:
    """Return the (S, S) mask of the face; all of the crop where the face is not in it."""
    mask = np.zeros(pair.onset.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(pair.landmarks.round().astype(np.int32)), 1)
    return mask.astype(bool) if mask.any() else np.ones_like(mask, bool)


def _draw_probabilities(axes: "Axes", verdict: Verdict) -> None:
    names, shares = list(verdict.probabilities), list(verdict.probabilities.values())
    chosen = _GREY if verdict.abstained else _BLUE
    colours = [chosen if name == verdict.label else "#c9ced6" for name in names]
    axes.barh(range(len(names)), shares, color=colours, height=0.6)
    for row, share in enumerate(shares):
        axes.text(share + 0.02, row, f"{share:.1%}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25)
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"], fontsize=8)
    axes.set_title("probability, given an expression", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - for those only who ask for a plot
        from matplotlib.backends import backend_agg  # noqa: PLC0415 - likewise
    except ImportError:
        raise MissingExtra(
            "a plot needs a package that is not installed: pip install 'mfdan[offline]'"
        ) from None
    return mpl, backend_agg

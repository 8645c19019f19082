"""The page's charts, each drawn twice: in ink for a light page and for a dark one.

Only Matplotlib's objects are used, never pyplot: nothing of a chart outlives its function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

__all__ = [
    "DARK",
    "LIGHT",
    "SERIES",
    "Estimate",
    "Ink",
    "Picture",
    "confusion_chart",
    "forest_chart",
    "loss_chart",
    "people_chart",
    "plain",
    "save_chart",
]

_DPI = 170
_WIDTH = 4.7
"""Inches: narrow enough to be read on a telephone, where a wide chart would shrink."""
_LONGEST_NAME = 28
SERIES = 6
"""Lines of one chart that can be told apart."""


@dataclass(frozen=True, slots=True)
class Ink:
    """Colours of one scheme."""

    text: str
    faint: str
    paper: str
    """What an empty cell of a matrix fades to."""
    full: str
    """What a full one is."""
    series: tuple[str, ...]


LIGHT = Ink(
    "#1f2328",
    "#d5d9de",
    "#f3f5f7",
    "#1c5cab",
    ("#2a6fc9", "#d1571f", "#178a5f", "#9a6b00", "#a8418a", "#5b5f66"),
)
DARK = Ink(
    "#e6e8eb",
    "#3b4048",
    "#22262c",
    "#7db4f5",
    ("#6aa9f4", "#f08a52", "#4cc598", "#e0b23c", "#e28bc7", "#a4a9b1"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture of the page."""

    file: str
    alt: str
    width: int
    height: int
    """Pixels."""
    dark: str = ""
    """The same for a dark page; "" where one serves both."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval, and what it is of."""

    name: str
    value: float
    low: float
    high: float


def save_chart(folder: Path, stem: str, alt: str, draw: Callable[[Ink], Figure]) -> Picture:
    """Write a chart as `STEM.png` and `STEM-dark.png`."""
    width = height = 0
    for name, ink in ((f"{stem}.png", LIGHT), (f"{stem}-dark.png", DARK)):
        with mpl.rc_context():
            mpl.rcdefaults()  # a matplotlibrc of the user's must not change the page
            figure = draw(ink)
            canvas = FigureCanvasAgg(figure)
            # No name of the software: the same run gives the same bytes for longer. By the canvas:
            # the figure's own function would draw everything twice.
            canvas.print_png(folder / name, metadata={"Software": None})  # type: ignore[no-untyped-call] # ships none
        width, height = canvas.get_width_height()
    return Picture(file=f"{stem}.png", dark=f"{stem}-dark.png", alt=alt, width=width, height=height)


def forest_chart(estimates: Sequence[Estimate], label: str, zero: float | None, ink: Ink) -> Figure:
    """Draw intervals below one another, the first on top; `zero` is where no difference lies."""
    figure, axes = _axes(ink, 0.75 + 0.3 * len(estimates))
    rows = np.arange(len(estimates))
    if zero is not None:
        axes.axvline(zero, color=ink.text, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.hlines(
        rows, [e.low for e in estimates], [e.high for e in estimates], ink.series[0], linewidth=2.2
    )
    axes.plot([e.value for e in estimates], rows, "o", color=ink.series[0], markersize=6)
    axes.set_yticks(rows, [plain(e.name) for e in estimates])
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=ink.faint, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
    return figure


def confusion_chart(counts: NDArray[np.float64], classes: Sequence[str], ink: Ink) -> Figure:
    """Draw (K, K) counts, true class by answered class; a cell's shade is its share of the row."""
    rows = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, rows, out=np.zeros_like(counts), where=rows > 0)
    figure, axes = _axes(ink, 1.1 + 0.62 * len(classes))
    colours = LinearSegmentedColormap.from_list("counts", [ink.paper, ink.full])
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto")
    form = "{:.0f}" if np.array_equal(counts, counts.round()) else "{:.1f}"
    for (true, said), share in np.ndenumerate(shares):
        text = f"{form.format(counts[true, said])}\n{share:.0%}"
        ink_of_cell = _readable_on(colours(float(share))[:3])
        axes.text(said, true, text, color=ink_of_cell, ha="center", va="center", linespacing=1.35)
    ticks, names = range(len(classes)), [plain(name) for name in classes]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("answered class")
    axes.set_ylabel("true class")
    return figure


def _readable_on(colour: Sequence[float]) -> str:
    """Return black or white, whichever stands out more from an sRGB colour, by WCAG's contrast."""
    luminance = float(np.power(colour, 2.2) @ (0.2126, 0.7152, 0.0722))
    return "#101214" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


def loss_chart(losses: NDArray[np.float64], ink: Ink) -> Figure:
    """Draw the median and the 10-90 % band of (runs, points) losses, spread over the training."""
    figure, axes = _axes(ink, 2.6)
    percent = np.linspace(0, 100, losses.shape[1])
    low, middle, high = np.quantile(losses, [0.1, 0.5, 0.9], axis=0)
    colour = ink.series[0]
    axes.fill_between(percent, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(percent, middle, color=colour, linewidth=1.6)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=min(0.0, float(low.min())))
    axes.grid(axis="y", color=ink.faint, linewidth=0.6)
    axes.set_xlabel("share of the training, %")
    axes.set_ylabel("training loss")
    return figure


def people_chart(lines: Sequence[tuple[str, NDArray[np.float64]]], ink: Ink) -> Figure:
    """Draw each line's accuracies, one value for each person, from the lowest to the highest."""
    figure, axes = _axes(ink, 2.6 + 0.18 * len(lines))
    for (name, values), colour in zip(lines, ink.series, strict=False):
        rank = np.arange(1, len(values) + 1)
        axes.plot(
            rank,
            100 * np.sort(values),
            color=colour,
            linewidth=1.6,
            marker="o",
            markersize=2.5,
            label=plain(name),
        )
    axes.set_ylim(-3, 103)
    axes.grid(axis="y", color=ink.faint, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("people, each line from its lowest to its highest")
    axes.set_ylabel("clips answered rightly, %")
    if len(lines) > 1:
        figure.legend(
            loc="outside upper left", frameon=False, labelcolor=ink.text, fontsize=9, ncols=2
        )
    return figure


def _axes(ink: Ink, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=ink.text, labelsize=9)
    axes.xaxis.label.set(color=ink.text, fontsize=9)
    axes.yaxis.label.set(color=ink.text, fontsize=9)
    for side, spine in axes.spines.items():
        spine.set_color(ink.faint)
        spine.set_visible(side in {"left", "bottom"})
    return figure, axes


def plain(text: str) -> str:
    """Return a name that a chart can show: one short line, no formula, `?` for unknown letters."""
    line = "".join(letter if _drawable(letter) else "?" for letter in " ".join(text.split()))
    short = line if len(line) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 1]}…"
    return short.replace("$", r"\$")


@cache
def _drawable(letter: str) -> bool:
    return _font().get_char_index(ord(letter)) > 0


@cache
def _font() -> FT2Font:
    return FT2Font(findfont("DejaVu Sans"))

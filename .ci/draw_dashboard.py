"""A dashboard as a picture, of what its queries returned: for the docs, without Grafana."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

COLUMNS = 24
COLUMN_IN, ROW_IN = 0.58, 0.3
"""Inches of the picture for one step of Grafana's grid."""
MARGINS_IN = {
    "row": (0.1, 0.1, 0.1, 0.1),
    "stat": (0.1, 0.1, 0.1, 0.1),
    "heatmap": (0.72, 0.35, 0.15, 0.3),
    "state-timeline": (1.5, 0.55, 0.2, 0.3),
}
"""Left, bottom, right and top of a panel, by its kind, where not USUAL_MARGINS_IN."""
USUAL_MARGINS_IN = (0.72, 0.72, 0.15, 0.3)
DPI = 105
MOST_IN_LEGEND = 6
LETTERS_IN_COLUMN = 10
"""Letters of a legend that fit into one column of the grid."""
BUCKET_LABELS = 5
Recorded = Mapping[str, Any]
STATES = {"no": "#d9d9d9", "yes": "#3274d9"}
"""Colours of 0 and 1."""


class Span(NamedTuple):
    """The time that a picture shows, in seconds since 1970."""

    first: float
    last: float
    step: float
    """Between two moments at which was asked."""


STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.fontsize": 7.5,
    "legend.frameon": False,
}


def draw(recorded: Sequence[Recorded], path: Path, dashboard: str = "mfdan: service") -> None:
    """Draw the panels of one dashboard where Grafana would have them. Raises: OSError."""
    panels = [panel for panel in recorded if panel["dashboard"] == dashboard]
    width = COLUMNS * COLUMN_IN
    height = max(panel["place"][1] + panel["place"][3] for panel in panels) * ROW_IN
    times = {at for panel in panels for one in _series(panel) for at, _value in one["values"]}
    span = Span(min(times), max(times), float(np.diff(sorted(times)).min()))
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        for panel in panels:
            _draw_panel(figure, panel, span)
        figure.savefig(path, dpi=DPI)
        plt.close(figure)


def _series(panel: Recorded) -> list[dict[str, Any]]:
    return [one for answer in panel["answers"] for one in answer["series"]]


def _draw_panel(figure: Figure, panel: Recorded, span: Span) -> None:
    left, top, width, height = panel["place"]
    full_width, full_height = figure.get_size_inches()
    margin = MARGINS_IN.get(panel["kind"], USUAL_MARGINS_IN)
    box = (
        (left * COLUMN_IN + margin[0]) / full_width,
        1 - ((top + height) * ROW_IN - margin[1]) / full_height,
        (width * COLUMN_IN - margin[0] - margin[2]) / full_width,
        (height * ROW_IN - margin[1] - margin[3]) / full_height,
    )
    axes = figure.add_axes(box)
    _KINDS.get(panel["kind"], _draw_lines)(axes, panel, span)


def _draw_heading(axes: Axes, panel: Recorded, _span: Span) -> None:
    axes.set_axis_off()
    axes.text(0, 0.5, panel["title"], fontsize=13, fontweight="bold", va="center")


def _draw_stat(axes: Axes, panel: Recorded, span: Span) -> None:
    """Write what is so at the end, and not what was before."""
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.text(0.03, 0.93, panel["title"], fontweight="bold", fontsize=9, va="top")
    told = []
    for answer in panel["answers"]:
        for one in answer["series"]:
            named = "{{" in answer["legend"]
            at, value = one["values"][-1]
            if at < span.last:
                continue
            told.append(_legend(answer, one) if named else _in_unit(panel["unit"])(value, None))
    size = 22 if len("".join(told)) < 12 else 9  # noqa: PLR2004 - what fits
    axes.text(0.5, 0.38, "\n".join(told) or "–", fontsize=size, ha="center", va="center", wrap=True)


def _draw_lines(axes: Axes, panel: Recorded, span: Span) -> None:
    """Draw lines, the largest first in the legend: what stands out is to be named there."""
    pairs = [(answer, one) for answer in panel["answers"] for one in answer["series"]]
    pairs.sort(key=lambda pair: -_peak(pair[1]))
    for place, (answer, one) in enumerate(pairs):
        at, values = with_gaps(one["values"], span.step)
        label = _legend(answer, one) if place < MOST_IN_LEGEND else None
        dashes = "--" if answer["legend"].startswith("reference") else "-"
        # The dots show what stands alone between two gaps.
        axes.plot(at - span.first, values, dashes, label=label, lw=1.4, marker=".", ms=2)
    _finish(axes, panel, span)
    if len(pairs) > MOST_IN_LEGEND:
        axes.plot([], [], " ", label=f"and {len(pairs) - MOST_IN_LEGEND} smaller")
    if pairs:
        axes.set_ylim(0, None if _peak(pairs[0][1]) > 0 else 1)
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.1),
            ncols=_legend_columns(axes, panel),
            handlelength=1,
            columnspacing=1,
        )
    axes.yaxis.set_major_formatter(FuncFormatter(_in_unit(panel["unit"])))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _legend_columns(axes: Axes, panel: Recorded) -> int:
    """Return 3, or 2 where three of the longest would reach into the next panel."""
    longest = max(map(len, axes.get_legend_handles_labels()[1]))
    return 3 if 3 * longest < LETTERS_IN_COLUMN * panel["place"][2] else 2


def _peak(one: Recorded) -> float:
    return max(value for _at, value in one["values"])


def with_gaps(
    values: Sequence[tuple[float, float]], step: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return moments and values with a NaN wherever more than one step has no value."""
    at, found = np.array(values, dtype=float).T
    gaps = np.flatnonzero(np.diff(at) > 1.5 * step) + 1
    return np.insert(at, gaps, at[gaps - 1] + step), np.insert(found, gaps, np.nan)


def _draw_heatmap(axes: Axes, panel: Recorded, span: Span) -> None:
    """Cumulative buckets, as Prometheus has them, become what fell into each."""
    by_edge = {float(one["labels"]["le"]): dict(one["values"]) for one in _series(panel)}
    edges = sorted(by_edge)
    times = sorted({at for values in by_edge.values() for at in values})
    below = np.array([[by_edge[edge].get(at, np.nan) for at in times] for edge in edges])
    inside = fallen_into(below)
    shown = axes.pcolormesh(
        [at - span.first for at in times],
        range(len(edges)),
        inside,
        vmin=0,
        cmap="YlOrRd",
        shading="nearest",
    )
    _finish(axes, panel, span)
    axes.grid(visible=False)
    places = range(0, len(edges), max(1, len(edges) // BUCKET_LABELS))
    unit = _in_unit(panel["unit"] or _guessed_unit(panel))
    axes.set_yticks([*places], [f"≤ {unit(edges[place], None)}" for place in places])
    axes.figure.colorbar(shown, ax=axes, pad=0.02, aspect=30).ax.tick_params(labelsize=7)


def fallen_into(below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what fell into each bucket, of (edges, times) counts below its edge; NaN for none."""
    inside = np.diff(below, axis=0, prepend=0)
    inside[~(inside > 0)] = np.nan
    return inside


def _guessed_unit(panel: Recorded) -> str:
    return "short" if "faces share" in panel["title"] else "s"


def _draw_states(axes: Axes, panel: Recorded, span: Span) -> None:
    pairs = [(answer, one) for answer in panel["answers"] for one in answer["series"]]
    for row, (_answer, one) in enumerate(pairs):
        at, values = with_gaps(one["values"], span.step)
        axes.pcolormesh(
            [*(at - span.first), at[-1] - span.first + span.step],
            [row - 0.35, row + 0.35],
            [values],
            cmap=ListedColormap([*STATES.values()]),
            vmin=0,
            vmax=1,
        )
    _finish(axes, panel, span)
    axes.grid(visible=False)
    axes.set_yticks(range(len(pairs)), [_legend(*pair) for pair in pairs], fontsize=7)
    key = [Patch(color=colour, label=said) for said, colour in STATES.items()]
    axes.legend(handles=key, loc="upper left", bbox_to_anchor=(-0.02, -0.1), ncols=2)


def _finish(axes: Axes, panel: Recorded, span: Span) -> None:
    axes.set_title(panel["title"])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _place: f"{seconds:.0f} s"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlim(0, span.last - span.first)
    axes.tick_params(length=2)


def _legend(answer: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    labels: dict[str, str] = one["labels"]
    words = re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), answer["legend"])
    return words.strip() or ", ".join(f"{k} {v}" for k, v in labels.items() if k[0] != "_")


def _in_unit(unit: str) -> Callable[[float, int | None], str]:
    """Return what writes a value as Grafana would."""

    def write(value: float, _place: int | None) -> str:
        if value == np.inf:
            return "∞"
        if unit == "percentunit":
            return f"{value * 100:.3g}%"
        if unit == "s":
            return f"{value * 1e3:.3g} ms" if 0 < value < 1 else f"{value:.3g} s"
        if unit == "bytes":
            return f"{value / 2**20:.0f} MiB"
        rate = {"reqps": " req/s", "ops": " /s"}.get(unit, "")
        return f"{value:.3g}{rate}"

    return write


_KINDS = {
    "row": _draw_heading,
    "stat": _draw_stat,
    "heatmap": _draw_heatmap,
    "state-timeline": _draw_states,
}

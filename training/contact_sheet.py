"""Sheets of pairs to look at: synthetic ones as they were made, any as they were prepared."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from model.flow import magnitude
from model.magnify import magnify
from model.spec import ModelSpec, Normalisation
from training.data.pairs import NOTHING, PAIRS_FILE
from training.data.prepare import Prepared, PreparedRow
from training.files import write_atomically
from training.synthetic import CLASSES

__all__ = ["contact_sheet", "flow_colours", "prepared_sheet"]

_TILE = 160
_CAPTION = 34
_LABELS = (*CLASSES, NOTHING)
_ROWS, _COLUMNS = 8, 3
_FULL_PX = 2.0
"""Expression flow of so many pixels is drawn in full colour."""

_CLIPS_PER_LABEL, _MOST_LABELS = 3, 12

Image = NDArray[np.uint8]


def contact_sheet(pairs_folder: Path, out: Path) -> None:
    """Draw the first pairs of each label of a pairs folder into one PNG.

    A tile shows onset, apex, true expression flow (hue: direction, strength: size) and the
    apex's difference from the onset, four times enlarged about grey.
    """
    with (pairs_folder / PAIRS_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    picked: list[Mapping[str, str]] = []
    for label in _LABELS:
        wanted = _ROWS * _COLUMNS // len(_LABELS)
        picked += [row for row in rows if row["label"] == label][:wanted]
    tiles = [_tile(pairs_folder, row) for row in picked]
    _write_sheet([tiles[i : i + _COLUMNS] for i in range(0, len(tiles), _COLUMNS)], out)


def prepared_sheet(prepared: Prepared, spec: ModelSpec, out: Path) -> None:
    """Draw a few prepared clips of each label into one PNG, a line for each label.

    A tile shows the aligned onset, its flow (hue: direction as in `flow_colours`, full strength:
    what the network sees as 1) and the picture magnified as the network sees it. Every eye pair
    stands in the same place where alignment went well, and the flow is bright where the label's
    muscles are. Raises: ValueError if nothing was prepared.
    """
    counts = Counter(row.pair.label for row in prepared.rows)
    if not counts:
        raise ValueError("no clip was prepared, so there is none to look at")
    lines = []
    for label, count in counts.most_common(_MOST_LABELS):
        rows = [row for row in prepared.rows if row.pair.label == label]
        # Evenly spread, because neighbours in a manifest are of one person.
        places = np.linspace(0, count - 1, min(count, _CLIPS_PER_LABEL)).round().astype(int)
        lines.append([_prepared_tile(prepared, rows[place], spec) for place in places])
    _write_sheet(lines, out)


def _prepared_tile(prepared: Prepared, row: PreparedRow, spec: ModelSpec) -> Image:
    onset, flow = prepared.arrays(row)
    larger = magnify(onset, flow, spec.magnification)
    colours = flow_colours(flow, _full(flow, spec.normalisation))
    moved = row.motion.p95_px
    size = "size of the motion unknown" if np.isnan(moved) else f"p95 {moved:.2f} px"
    return _captioned(
        (onset[..., ::-1], colours, larger[..., ::-1]), (row.pair.key, f"{row.pair.label}  {size}")
    )


def _full(flow: NDArray[np.float32], normalisation: Normalisation) -> float:
    """Return the length that `flow_tensor` scales to 1."""
    length = float(np.percentile(magnitude(flow), normalisation.percentile))
    return max(length, normalisation.flow_floor)


def _captioned(images: Sequence[Image], texts: Sequence[str]) -> Image:
    caption = np.zeros((_CAPTION, len(images) * _TILE, 3), np.uint8)
    for line, text in enumerate(texts):
        place = (4, 13 + 15 * line)
        cv2.putText(caption, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255))
    return np.vstack([np.hstack([_fit(image) for image in images]), caption])


def _write_sheet(lines: Sequence[Sequence[Image]], out: Path) -> None:
    blank = np.zeros_like(lines[0][0])
    columns = max(map(len, lines))
    full = [np.hstack([*line, *[blank] * (columns - len(line))]) for line in lines]
    good, data = cv2.imencode(".png", np.vstack(full))
    if not good:
        raise ValueError("cannot encode the contact sheet")
    write_atomically(out, lambda temporary: temporary.write_bytes(data.tobytes()))


def _tile(folder: Path, row: Mapping[str, str]) -> Image:
    onset, apex = (_read(folder / row[key]) for key in ("onset", "apex"))
    with np.load(folder / row["true_flow"]) as data:
        colours = flow_colours(data["expression"].astype(np.float32), _FULL_PX)
    change = np.clip(128 + 4 * (apex.astype(np.float32) - onset), 0, 255).astype(np.uint8)
    texts = (f"{row['subject']}  {row['label']}  {row['peak_px']} px", row["action_units"])
    return _captioned((onset, apex, colours, change), texts)


def _read(path: Path) -> Image:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(f"cannot read {path}")
    return np.asarray(image, np.uint8)


def _fit(image: Image) -> Image:
    shrunk = cv2.resize(image, (_TILE, _TILE), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, np.uint8)


def flow_colours(flow: NDArray[np.float32], full: float) -> Image:
    """Return a flow field as BGR colours: hue is direction, brightness size up to `full`.

    Convention: flow is (2, H, W), pixels, x right, y down; right is red, down is
    yellow-green, left is cyan, up is violet. Returns (H, W, 3).
    """
    angle = np.degrees(np.arctan2(flow[1], flow[0])) % 360
    size = np.clip(np.hypot(flow[0], flow[1]) / full, 0, 1)
    hsv = np.dstack([angle / 2, np.full_like(angle, 255), 255 * size]).astype(np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)

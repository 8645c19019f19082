"""A sheet of pairs to look at: onset, apex, true flow, difference."""

import csv
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.pairs import NOTHING, PAIRS_FILE
from training.files import write_atomically
from training.synthetic import CLASSES

__all__ = ["contact_sheet", "flow_colours"]

_TILE = 160
_CAPTION = 34
_LABELS = (*CLASSES, NOTHING)
_ROWS, _COLUMNS = 8, 3
_FULL_PX = 2.0
"""Expression flow of so many pixels is drawn in full colour."""

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
    blank = np.zeros((_TILE + _CAPTION, 4 * _TILE, 3), np.uint8)
    tiles += [blank] * (-len(tiles) % _COLUMNS)
    lines = [np.hstack(tiles[i : i + _COLUMNS]) for i in range(0, len(tiles), _COLUMNS)]
    good, data = cv2.imencode(".png", np.vstack(lines))
    if not good:
        raise ValueError("cannot encode the contact sheet")
    write_atomically(out, lambda temporary: temporary.write_bytes(data.tobytes()))


def _tile(folder: Path, row: Mapping[str, str]) -> Image:
    onset, apex = (_read(folder / row[key]) for key in ("onset", "apex"))
    with np.load(folder / row["true_flow"]) as data:
        colours = flow_colours(data["expression"].astype(np.float32), _FULL_PX)
    change = np.clip(128 + 4 * (apex.astype(np.float32) - onset), 0, 255).astype(np.uint8)
    shown = [_fit(image) for image in (onset, apex, colours, change)]
    caption = np.zeros((_CAPTION, 4 * _TILE, 3), np.uint8)
    for line, text in enumerate(
        (f"{row['subject']}  {row['label']}  {row['peak_px']} px", row["action_units"])
    ):
        place = (4, 13 + 15 * line)
        cv2.putText(caption, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255))
    return np.vstack([np.hstack(shown), caption])


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

"""A face drawn from some forty soft ellipses: the detector and the mesh both take it for one.

Tests need faces, and no photograph of a person belongs into the repository. Everything is
evaluated per pixel in face coordinates (unit: the distance between the eye centres, origin
midway between them, x right, y down), so a face can be moved by fractions of a pixel and an
expression is a smooth displacement of skin and features together.
"""

import sys
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

Image = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float64]
Colour = tuple[float, float, float]

SKIN: Colour = (224, 178, 150)
LIPS: Colour = (170, 80, 80)
HAIR: Colour = (60, 42, 32)
WHITE: Colour = (238, 236, 232)
BLACK: Colour = (12, 10, 10)


def background(height: int = 480, width: int = 640) -> Image:
    """Return an empty scene (height, width, 3): a grey wall, darker towards the floor."""
    shade = np.linspace(1.1, 0.8, height)[:, None, None]
    wall = np.broadcast_to(np.array((120.0, 128.0, 140.0)), (height, width, 3))
    return np.asarray(wall * shade, np.uint8)


def draw_face(  # noqa: PLR0913 - each argument is one thing a test varies
    scene: Image | None = None,
    *,
    centre: tuple[float, float] = (320.0, 220.0),
    eye_distance: float = 80.0,
    tone: float = 1.0,
    roll_degrees: float = 0.0,
    brow_lift: float = 0.0,
    smile: float = 0.0,
    lids: float = 0.0,
) -> Image:
    """Draw one frontal face over a copy of the scene; return it, RGB (H, W, 3).

    centre: where the point between the eyes stands, (x, y) in pixels.
    eye_distance: between the eye centres, pixels; the whole head is about 3.3 of them high.
    tone: brightness of the skin, 0.3 dark to 1.1 light.
    roll_degrees: rotation in the picture, positive is clockwise.
    brow_lift, smile: how far both brows, both mouth corners go up at their peak, pixels;
    the skin around them moves along.
    lids: how far both upper lids are down, 0 open to 1 closed.
    """
    whole = (background() if scene is None else scene).copy()
    x, y = _face_coordinates(whole.shape, centre, eye_distance, roll_degrees)
    edge = 1.5 / eye_distance
    around = _around_head(x, y, edge)
    if not whole[around].size:
        return whole
    canvas, x, y = whole[around].astype(np.float64), x[around], y[around]
    for cx, cy, spread, lift in ((0.5, -0.33, 0.3, brow_lift), (0.4, 1.08, 0.25, smile)):
        bumps = sum(np.exp(-((x - s * cx) ** 2 + (y - cy) ** 2) / spread**2) for s in (-1, 1))
        y = y + lift / eye_distance * bumps  # what is seen here stood further down
    skin = tuple(min(255.0, channel * tone) for channel in SKIN)
    layers = _layers(x, y, edge, (skin[0], skin[1], skin[2]))
    if lids:
        layers = chain(layers, _lowered_lids(x, y, edge, (skin[0], skin[1], skin[2]), lids))
    for mask, colour in layers:
        alpha = mask[..., None]
        canvas = canvas * (1 - alpha) + np.array(colour) * alpha
    head = _ellipse(x, y, 0, 0.42, 1.08, 1.48, 0.1)[..., None]
    canvas *= 1 + head * 0.035 * _grain(x, y)[..., None]
    whole[around] = np.clip(np.rint(canvas), 0, 255)
    return whole


def _around_head(x: Plane, y: Plane, edge: float) -> tuple[slice, slice]:
    """Return rows and columns of head, hair and neck with their soft edges, and hardly more."""
    near = 0.3 + 15 * edge
    inside = (np.abs(x) < 1.22 + near) & (y > -1.5 - near) & (y < 2.85 + near)
    spans = []
    for axis in (1, 0):
        (hit,) = np.nonzero(inside.any(axis=axis))
        spans.append(slice(hit[0], hit[-1] + 1) if hit.size else slice(0))
    return spans[0], spans[1]


def _face_coordinates(
    shape: tuple[int, ...], centre: tuple[float, float], eye_distance: float, roll_degrees: float
) -> tuple[Plane, Plane]:
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    dx, dy = (columns - centre[0]) / eye_distance, (rows - centre[1]) / eye_distance
    turn = np.deg2rad(roll_degrees)
    return np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx


def _layers(x: Plane, y: Plane, edge: float, skin: Colour) -> Iterator[tuple[Plane, Colour]]:
    """Yield (coverage, colour), back to front."""
    dark: Colour = (skin[0] * 0.55, skin[1] * 0.55, skin[2] * 0.55)
    light: Colour = (skin[0] * 1.14, skin[1] * 1.14, skin[2] * 1.14)
    yield _ellipse(x, y, 0, 0.22, 1.22, 1.72, edge), HAIR
    yield _ellipse(x, y, 0, 1.95, 0.55, 0.9, edge), dark  # neck
    head = _ellipse(x, y, 0, 0.42, 1.08, 1.48, edge)
    yield head, skin
    # light from the front: the sides of the head turn away from it
    yield 0.55 * head * np.clip((x / 1.08) ** 2 + ((y - 0.42) / 1.48) ** 2, 0, 1) ** 2, dark
    for s in (-1, 1):
        yield 0.4 * _ellipse(x, y, 0.55 * s, 0.55, 0.3, 0.26, 0.12), light  # cheek
        yield 0.5 * _ellipse(x, y, 0.5 * s, 0.0, 0.36, 0.26, 0.1), dark  # socket
        yield _ellipse(x, y, 0.5 * s, -0.01, 0.24, 0.13, edge), HAIR  # lashes
        opening = _ellipse(x, y, 0.5 * s, 0.01, 0.21, 0.1, edge)
        yield opening, WHITE
        yield opening * _ellipse(x, y, 0.5 * s, 0, 0.11, 0.11, edge), (86, 60, 40)
        yield opening * _ellipse(x, y, 0.5 * s, 0, 0.05, 0.05, edge), BLACK
        yield _ellipse(x, y, 0.5 * s - 0.03, -0.03, 0.02, 0.02, edge), WHITE  # glint
        arch = (np.abs(x) - 0.5) ** 2
        yield 0.9 * _ellipse(x, y - arch, 0.5 * s, -0.36, 0.34, 0.06, 0.04), HAIR  # brow
    yield 0.6 * _ellipse(x, y, 0, 0.3, 0.07, 0.4, 0.05), light  # bridge of the nose
    for s in (-1, 1):
        yield 0.3 * _ellipse(x, y, 0.15 * s, 0.35, 0.05, 0.4, 0.06), dark
        yield 0.5 * _ellipse(x, y, 0.22 * s, 0.62, 0.08, 0.1, 0.05), dark  # wing
        yield 0.9 * _ellipse(x, y, 0.11 * s, 0.71, 0.06, 0.035, 0.02), HAIR  # nostril
    yield 0.6 * _ellipse(x, y, 0, 0.58, 0.12, 0.11, 0.06), light  # tip
    lips = _ellipse(x, y, 0, 1.08, 0.4, 0.12, edge)
    yield lips, LIPS
    yield lips * _ellipse(x, y, 0, 1.07, 0.38, 0.014, edge), (70, 25, 30)  # where they meet
    yield 0.6 * _ellipse(x, y, 0, 1.3, 0.25, 0.04, 0.06), dark  # below the lip


def _lowered_lids(
    x: Plane, y: Plane, edge: float, skin: Colour, closed: float
) -> Iterator[tuple[Plane, Colour]]:
    """Yield what covers the eyes of `_layers` when the upper lids are down: skin, then lashes."""
    shaded: Colour = (skin[0] * 0.8, skin[1] * 0.8, skin[2] * 0.8)
    for s in (-1, 1):
        eye = _ellipse(x, y, 0.5 * s, -0.01, 0.25, 0.14, edge)
        arch = np.sqrt(np.clip(1 - ((x - 0.5 * s) / 0.25) ** 2, 0, 1))
        below = y - (0.01 + (2 * closed - 1) * 0.11 * arch)  # from the lid's rim
        yield eye / (1 + np.exp(np.clip(4 * below / edge, -40, 40))), shaded
        yield 0.9 * eye * np.exp(-((below / 0.025) ** 2)), HAIR


def _ellipse(  # noqa: PLR0913, PLR0917 - an ellipse has this many numbers
    x: Plane, y: Plane, cx: float, cy: float, rx: float, ry: float, softness: float
) -> Plane:
    """Return how much of each pixel an ellipse covers, 0..1; its edge is `softness` wide."""
    inside = (1 - np.hypot((x - cx) / rx, (y - cy) / ry)) * min(rx, ry)
    return np.asarray(1 / (1 + np.exp(-np.clip(4 * inside / softness, -40, 40))))


def _grain(x: Plane, y: Plane) -> Plane:
    """Return skin texture, about -1..1, fixed to the face: flow needs something to follow."""
    waves = [
        np.sin(fx * x + fy * y + fx * fy)
        for fx, fy in product((11.0, 19.0, 29.0), (-23.0, -13.0, 9.0, 17.0))
    ]
    return np.asarray(np.sum(waves, axis=0) / np.sqrt(len(waves)))


def write_example(folder: Path) -> None:
    """Write `onset.png` and `apex.png`: a drawn face that raises its brows by 1.5 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, brow_lift in (("onset", 0.0), ("apex", 1.5)):
        Pillow.fromarray(draw_face(brow_lift=brow_lift)).save(folder / f"{name}.png")


if __name__ == "__main__":
    write_example(Path(sys.argv[1]))

"""Which patterns and weights tell a visible eye or mouth from a covered one?

    python benchmarks/covers.py PAIRS [--frames 600]

PAIRS is a folder that `mfdan-train synth` wrote: frames of many cameras, some with half-closed
lids. Every frame is taken as it is and with lenses, a mask and a hand drawn on, found and aligned
anew, as a real one would be. Fitted to every second person, scored on the others; prints the
constants of `model/quality.py`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from report import heading
from sklearn.linear_model import LogisticRegression

from model import quality
from model.decode import decode_image
from model.face import FaceFinder, align, eye_centres, similarity_transform
from model.flow import to_grey
from model.spec import Alignment

Image = NDArray[np.uint8]
COVERS = ("lenses", "mask", "hand over the mouth", "hand over an eye")
HIDES = {"none": "", "lenses": "eye", "mask": "mouth", "hand over the mouth": "mouth"}
PARTS = {"eye": ("right_eye", "left_eye"), "mouth": ("mouth",)}
_MASK = (234, 93, 58, 172, 136, 149, 152, 378, 365, 397, 288, 323, 454, 195)
_CLOTH = ((150, 190, 215), (30, 30, 35), (235, 235, 235))
_WORN = 0.5
_CHEEKS = (50, 280, 205, 425)


def cover(
    picture: Image, landmarks: NDArray[np.float32], name: str, rng: np.random.Generator
) -> Image:
    """Draw one of COVERS over a face, with soft edges, a faint texture and noise."""
    eyes = eye_centres(landmarks)
    distance = float(np.hypot(*(eyes[1] - eyes[0])))
    angle = float(np.degrees(np.arctan2(*(eyes[1] - eyes[0])[::-1])))
    mask = np.zeros(picture.shape[:2], np.float32)
    colour = _skin(picture, landmarks) * rng.uniform(0.8, 1.05)
    if name == "lenses":
        for eye in eyes:
            _ellipse(
                mask, eye + np.array([0, 0.05 * distance]), (0.36 * distance, 0.3 * distance), angle
            )
        width = max(1, round(0.05 * distance))
        cv2.line(mask, *(tuple(map(int, eye)) for eye in eyes), 1, width)
        colour = rng.uniform(5, 50, 3)
    elif name == "mask":
        cv2.fillConvexPoly(mask, cv2.convexHull(landmarks[list(_MASK)]).astype(np.int32), 1)
        colour = np.array(_CLOTH[rng.integers(len(_CLOTH))], float)
    elif name == "hand over the mouth":
        axes = (rng.uniform(0.45, 0.7) * distance, rng.uniform(0.3, 0.45) * distance)
        _ellipse(mask, landmarks[[13, 14]].mean(axis=0), axes, angle + rng.uniform(-30, 30))
    else:
        axes = (rng.uniform(0.35, 0.5) * distance, rng.uniform(0.3, 0.45) * distance)
        _ellipse(mask, eyes[rng.integers(2)], axes, angle + rng.uniform(-60, 60))
    alpha = cv2.GaussianBlur(mask, (0, 0), max(0.6, 0.012 * distance))[..., None]
    texture = cv2.GaussianBlur(rng.normal(size=mask.shape), (0, 0), 0.06 * distance)
    texture *= 6 / texture.std()
    painted = colour + texture[..., None] + rng.normal(0, 3, picture.shape)
    return np.clip(picture * (1 - alpha) + painted * alpha, 0, 255).astype(np.uint8)


def _ellipse(
    mask: NDArray[np.float32], centre: NDArray[np.float32], axes: tuple[float, float], angle: float
) -> None:
    whole = tuple(round(float(axis)) for axis in axes)
    cv2.ellipse(mask, tuple(round(float(c)) for c in centre), whole, angle, 0, 360, 1, -1)


def _skin(picture: Image, landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    x, y = landmarks[list(_CHEEKS)].round().astype(int).T
    height, width = picture.shape[:2]
    return np.median(picture[y.clip(0, height - 1), x.clip(0, width - 1)], axis=0)


Aligned = tuple[str, NDArray[np.float32], NDArray[np.float32]]


def aligned_faces(
    paths: list[Path], finder: FaceFinder, rng: np.random.Generator
) -> Iterator[Aligned]:
    """Yield (cover, smoothed crop, its landmarks) of each picture and of its covered copies."""
    for path in paths:
        picture = decode_image(path.read_bytes())
        faces = finder.find(picture)
        if not faces:
            continue
        for name in HIDES:
            shown = picture
            if name != "none":
                shown = cover(picture, faces[0].landmarks, name, rng)
            for face in finder.find(shown):
                transform = similarity_transform(face.landmarks, Alignment(), 224)
                landmarks = face.landmarks @ transform[:, :2].T + transform[:, 2]
                smooth = quality.smoothed(to_grey(align(shown, transform, 224)))
                yield name, smooth, landmarks.astype(np.float32)


def mean_pattern(faces: list[Aligned], part: str) -> NDArray[np.float64]:
    """Average the visible part's patches, each of mean 0 and deviation 1, in hundredths."""
    patches = []
    for name, smooth, landmarks in faces:
        if name == "none":
            found, _ = quality.part_patches(smooth, landmarks)
            patches += [found[side] for side in PARTS[part]]
    rows = [(patch - patch.mean()) / max(float(patch.std()), 4.0) for patch in patches]
    pattern = np.mean(rows, axis=0)
    if part == "mouth":
        pattern = (pattern + pattern[:, ::-1]) / 2
    pattern -= pattern.mean()
    return np.round(100 * pattern / pattern.std())


def rows_of(faces: list[Aligned], part: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return (N, sides, 6) features and (N,) whether the part is covered."""
    rows, hidden = [], []
    for name, smooth, landmarks in faces:
        features = quality.part_features(smooth, landmarks)
        rows.append([features[side] for side in PARTS[part]])
        hidden.append(HIDES[name] == part)
    return np.array(rows), np.array(hidden)


def fit(rows: NDArray[np.float64], hidden: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (7,) intercept and weights of a logistic model of (N, sides, 6) features."""
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(rows.reshape(-1, 6), np.repeat(hidden, rows.shape[1]))
    return np.array([model.intercept_[0], *model.coef_[0]])


def share_hidden(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N,) how hidden the more visible side is, 0 to 1."""
    return 1 / (1 + np.exp(-(rows @ weights[1:] + weights[0]).min(axis=1)))


def main() -> None:
    """Fit, print the constants, and what they stop on the other half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=600)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    found = sorted(arguments.folder.glob("pairs/*/*.jpg"))
    paths = found[:: max(1, len(found) // arguments.frames)]
    people = {person: i for i, person in enumerate(sorted({path.parent for path in paths}))}
    halves = [[path for path in paths if people[path.parent] % 2 == half] for half in (0, 1)]
    finder, rng = FaceFinder(), np.random.default_rng(0)
    fitted, scored = (list(aligned_faces(half, finder, rng)) for half in halves)
    print(heading(f"Covers on {len(paths)} frames: fitted to half the people, scored on the rest"))
    for part in PARTS:
        pattern = mean_pattern(fitted, part)
        quality._PATTERNS[part] = pattern / 100  # noqa: SLF001 - this command makes them
        print(part, "pattern:", pattern.astype(int).tolist())
        rows, hidden = rows_of(fitted, part)
        spread = rows.reshape(-1, 6).std(axis=0)
        weights = fit(rows / spread, hidden)
        if part == "eye":
            # Some of the faces as they are wear sunglasses, and must not teach that eyes look so.
            worn = ~hidden & (share_hidden(rows / spread, weights) > _WORN)
            weights = fit((rows / spread)[~worn], hidden[~worn])
            print(f"{worn.sum()} of {len(rows)} rows left out: sunglasses")
        weights = np.round([weights[0], *(weights[1:] / spread)], 3)
        print(part, "weights:", weights.tolist())
        rows, hidden = rows_of(scored, part)
        share = share_hidden(rows, weights)
        print(
            part,
            "visible, 50/95/99/99.7 %:",
            np.percentile(share[~hidden], (50, 95, 99, 99.7)).round(3),
        )
        for limit in (0.5, 0.65, 0.9, 0.97, 0.99, 0.998):
            stopped = (share[hidden] > limit).mean(), (share[~hidden] > limit).mean()
            print(f"{part} above {limit}: {stopped[0]:.1%} of covered, {stopped[1]:.2%} of visible")


if __name__ == "__main__":
    main()

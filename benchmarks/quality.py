"""What does each quality limit stop: genuine pairs, and pairs damaged on purpose?

    python benchmarks/quality.py PAIRS [--pairs 400] [--damaged 80] [--pictures DIR] [--people DIR]

PAIRS is a folder that `mfdan-train synth` wrote. Damage is done to the frames as sent, before a
face is found. --pictures holds photographs, each sent as both frames: what a limit stops there is
named file by file. --people is laid out as `benchmarks/expressions.py` says: neutral to a full
expression is no micro-expression. Some of the synthetic faces wear sunglasses; what
stops them among the genuine pairs does so rightly. Limits are the defaults of
`model.spec.QualityLimits`.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from time import thread_time

import cv2
import numpy as np
from covers import COVERS, cover
from numpy.typing import NDArray
from report import heading

from model import quality
from model.decode import decode_image
from model.face import FaceFinder, eye_centres
from model.pipeline import AlignedPair, Preprocessor
from model.spec import ModelSpec, Provenance, QualityLimits

Image = NDArray[np.uint8]
Frames = tuple[Image, Image]
LIMITS = QualityLimits()
SPEC = ModelSpec(
    name="limits",
    version="1",
    classes=("any", "other"),
    provenance=Provenance(data="none", licence="MIT", training_commit=""),
)
FACE_PIXELS = SPEC.input_size * SPEC.alignment.eye_distance
FULL = ("happy", "surprised", "shocked", "angry", "disgusted", "sad")


class Damage:
    """Ways to spoil a pair; lengths are in pixels of the aligned crop."""

    def __init__(self, finder: FaceFinder) -> None:
        self._finder = finder
        self._before: Image | None = None

    def ways(self) -> dict[str, Callable[[Frames], Frames]]:
        """Return every way by its name."""
        both: dict[str, Callable[[Image], Image]] = {
            **{f"blurred by {s} px": lambda f, s=s: self._blur(f, s) for s in (1, 2, 3, 5)},
            **{f"light x {g}": lambda f, g=g: _light(f, g) for g in (0.05, 0.1, 0.2, 2, 3)},
        }
        whole: dict[str, Callable[[Frames], Frames]] = {
            **{f"eyes {d} px apart": lambda p, d=d: self._resized(p, d) for d in (200, 40, 25, 18)},
            **{f"cut at {s} of the face": lambda p, s=s: self._cut(p, s) for s in (0.2, 0.4, 0.6)},
        }
        apex: dict[str, Callable[[Image], Image]] = {
            **{f"head moved by {d} px": lambda f, d=d: self._move(f, d) for d in (2, 5, 10, 20)},
            **{f"zoomed by {z}": lambda f, z=z: _zoom(f, z) for z in (1.02, 1.1, 1.3)},
            "another person": self._other,
        }
        ways = {
            name: lambda pair, act=act: (act(pair[0]), act(pair[1])) for name, act in both.items()
        }
        ways |= whole
        ways |= {name: lambda pair, act=act: (pair[0], act(pair[1])) for name, act in apex.items()}
        for name in COVERS:
            ways[name] = lambda pair, name=name: tuple(self._cover(frame, name) for frame in pair)
            ways[f"{name}, apex only"] = lambda pair, name=name: (
                pair[0],
                self._cover(pair[1], name),
            )
        return ways

    def _distance(self, frame: Image) -> float:
        found = self._finder.find(frame)
        eyes = eye_centres(found[0].landmarks) if found else np.array([[0, 0], [FACE_PIXELS, 0]])
        return float(np.hypot(*(eyes[1] - eyes[0])))

    def _crop_pixel(self, frame: Image) -> float:
        """Return the length of one pixel of the crop, in pixels of the frame."""
        return self._distance(frame) / FACE_PIXELS

    def _blur(self, frame: Image, pixels: float) -> Image:
        return cv2.GaussianBlur(frame, (0, 0), pixels * self._crop_pixel(frame))

    def _resized(self, pair: Frames, distance: float) -> Frames:
        scale = distance / self._distance(pair[0])
        resized = (cv2.resize(f, None, fx=scale, fy=scale, interpolation=3) for f in pair)
        return next(resized), next(resized)

    def _move(self, frame: Image, pixels: float) -> Image:
        step = pixels * self._crop_pixel(frame) / np.sqrt(2)
        return _warp(frame, np.array([[1, 0, step], [0, 1, step]]))

    def _cut(self, frame: Image, share: float) -> Image:
        found = self._finder.find(frame)
        if not found:
            return frame
        box = found[0].box
        return np.ascontiguousarray(frame[:, max(0, round(box.x + share * box.width)) :])

    def _cut(self, pair: Frames, share: float) -> Frames:
        found = self._finder.find(pair[0])
        left = max(0, round(found[0].box.x + share * found[0].box.width)) if found else 0
        onset, apex = (np.ascontiguousarray(frame[:, left:]) for frame in pair)
        return onset, apex

    def _other(self, frame: Image) -> Image:
        other, self._before = self._before, frame
        found = [self._finder.find(one) for one in (frame, other) if one is not None]
        if other is None or not all(found):
            return np.ascontiguousarray(frame[:, ::-1])  # the first has nobody before it
        here, there = (eye_centres(faces[0].landmarks) @ np.array([1, 1j]) for faces in found)
        turn = (here[1] - here[0]) / (there[1] - there[0])
        shift = here[0] - turn * there[0]
        matrix = [[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]
        height, width = frame.shape[:2]
        return cv2.warpAffine(other, np.array(matrix), (width, height), borderMode=1)

    def _cover(self, frame: Image, name: str) -> Image:
        found = self._finder.find(frame)
        return cover(frame, found[0].landmarks, name, np.random.default_rng(1)) if found else frame


def _light(frame: Image, gain: float) -> Image:
    noise = np.random.default_rng(0).normal(0, 1.5, frame.shape)
    return np.clip(frame * gain + noise, 0, 255).astype(np.uint8)


def _zoom(frame: Image, factor: float) -> Image:
    middle = np.array(frame.shape[1::-1]) / 2
    return _warp(frame, np.column_stack([factor * np.eye(2), middle * (1 - factor)]))


def _warp(frame: Image, matrix: NDArray[np.float64]) -> Image:
    size = (frame.shape[1], frame.shape[0])
    return cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_CUBIC, borderMode=1)


def read_pairs(folder: Path, wanted: int, *, still: bool) -> Iterator[Frames]:
    """Yield the first pairs of a folder that show an expression, or that show none."""
    with (folder / "pairs.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["label"] == "none") == still]
    for row in rows[:wanted]:
        onset, apex = (decode_image((folder / row[key]).read_bytes()) for key in ("onset", "apex"))
        yield onset, apex


def read_full_expressions(folder: Path) -> Iterator[Frames]:
    """Yield neutral and each full expression of every person."""
    for neutral in sorted(folder.glob("*/neutral.jpg")):
        for name in FULL:
            if (picture := neutral.with_name(f"{name}.jpg")).is_file():
                yield decode_image(neutral.read_bytes()), decode_image(picture.read_bytes())


def align_all(preprocessor: Preprocessor, pairs: Iterable[Frames]) -> list[AlignedPair | None]:
    """Align the largest face of every pair, None where none is found."""
    found = (preprocessor.align_pair(*pair) for pair in pairs)
    return [faces[0] if faces else None for faces in found]


def reasons(pair: AlignedPair) -> tuple[str, ...]:
    """Return what stops a pair."""
    return quality.faults(pair.quality, pair.motion, LIMITS)


def print_line(name: str, pairs: list[AlignedPair | None]) -> None:
    """Print the shares without a face, stopped, and warned of, and the reasons."""
    seen = [pair for pair in pairs if pair is not None]
    stopped = [reasons(pair) for pair in seen]
    warned = [quality.warnings(pair.quality, pair.motion, LIMITS) for pair in seen]
    only = sum(bool(w) and not s for s, w in zip(stopped, warned, strict=True))
    count = max(1, len(pairs))
    counted = Counter(reason for found in stopped for reason in found)
    told = ", ".join(f"{reason} {n / count:.1%}" for reason, n in counted.most_common(4))
    print(
        f"{name:32} {len(pairs):4} {(len(pairs) - len(seen)) / count:7.1%} "
        f"{sum(map(bool, stopped)) / count:8.1%} {only / count:7.1%}  {told}"
    )


def print_measures(pairs: list[AlignedPair | None]) -> None:
    """Print percentiles of every measure."""
    rows = [
        {**asdict(pair.quality), "p95_px": pair.motion.p95_px, "head_px": pair.motion.head_px}
        for pair in pairs
        if pair is not None
    ]
    shares = (0, 0.3, 1, 50, 99, 99.7, 100)
    print(f"{'measure':18}" + "".join(f"{share:>9} %" for share in shares))
    for name in rows[0]:
        if name != "more_faces":
            values = np.percentile([row[name] for row in rows], shares)
            print(f"{name:18}" + "".join(f"{value:11.3f}" for value in values))
    print()


def print_pictures(preprocessor: Preprocessor, folder: Path) -> None:
    """Name each photograph that a limit stops, and why."""
    paths = sorted(folder.glob("*.jpg"))
    frames = [decode_image(path.read_bytes()) for path in paths]
    pairs = align_all(preprocessor, ((frame, frame) for frame in frames))
    print_line("photographs", pairs)
    for path, pair in zip(paths, pairs, strict=True):
        if pair is None:
            print(f"    {path.name}: no face")
        elif reasons(pair):
            print(f"    {path.name}: {', '.join(reasons(pair))}")


def cost_ms(preprocessor: Preprocessor, frames: Frames) -> float:
    """Return the processor time of one face's measures, the median of 50."""
    (pair,) = preprocessor.align_pair(*frames)
    grey = cv2.cvtColor(pair.onset, cv2.COLOR_RGB2GRAY)
    outline = np.ones(grey.shape, bool)
    took = []
    for _ in range(50):
        start = thread_time()
        quality.measure(
            grey,
            grey,
            pair.flow,
            pair.landmarks,
            outline,
            eye_distance_px=80.0,
            outside=0.0,
            more_faces=False,
        )
        took.append(thread_time() - start)
    return 1e3 * float(np.median(took))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--damaged", type=int, default=80)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--people", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    finder = FaceFinder()
    preprocessor = Preprocessor(SPEC, finder)
    print(heading("Quality limits on genuine and on damaged pairs"))
    genuine = align_all(preprocessor, read_pairs(arguments.folder, arguments.pairs, still=False))
    print_measures(genuine)
    print(f"{'pairs':32} {'n':>4} {'no face':>7} {'stopped':>8} {'warned':>7}  reasons")
    print_line("genuine", genuine)
    still = read_pairs(arguments.folder, arguments.pairs // 4, still=True)
    print_line("still", align_all(preprocessor, still))
    frames = list(read_pairs(arguments.folder, arguments.damaged, still=False))
    for name, act in Damage(finder).ways().items():
        print_line(name, align_all(preprocessor, map(act, frames)))
    if arguments.people:
        print_line(
            "full expressions", align_all(preprocessor, read_full_expressions(arguments.people))
        )
    if arguments.pictures:
        print_pictures(preprocessor, arguments.pictures)
    print(f"\nprocessor time of the measures: {cost_ms(preprocessor, frames[0]):.1f} ms a face")


if __name__ == "__main__":
    main()

"""`mfdan-train synth`: makes a folder of synthetic pairs, in parallel, resumable."""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.decode import decode_image
from training.contact_sheet import contact_sheet
from training.data.pairs import PAIRS_FILE, SYNTH_NOTE
from training.displacement import unit_fields
from training.face_mesh import FaceAxes
from training.files import write_atomically
from training.identities import FacePicture, Skipped, find_faces
from training.synthetic import FacePatch, Pair, PairPlan, plan_pair, render_pair
from training.unit_moves import Blendshapes

__all__ = [
    "Settings",
    "by_picture",
    "check_claim",
    "finish",
    "hash_faces",
    "make_pairs",
    "open_patch",
    "open_shapes",
    "pictures_of_subjects",
    "prepare_worker",
    "progress_bar",
    "report_faces",
    "synth",
    "write_below",
    "write_table",
]

VERSION = 1
"""Raised whenever the same seed and faces give other pairs."""

_WORKING_EYE_DISTANCE = 130.0
_PATCH_SIDE = 4.4
"""Of the square cut around a face, in eye distances."""
_PAIRS_PER_TASK = 24
_HEADER = (
    *("dataset", "subject", "clip", "label", "onset", "apex", "true_flow"),
    *("action_units", "peak_px", "picture"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What fixes a folder of pairs, beside its faces."""

    seed: int
    pairs: int
    none_fraction: float = 0.15
    blendshapes: Path | None = None
    dataset: str = "synthetic"
    """Name of the data set: a person is known by it and the subject's name."""

    def __post_init__(self) -> None:
        if self.seed < 0 or self.pairs < 1:
            raise ValueError("the seed must not be negative and there must be pairs to make")
        if not self.dataset or "/" in self.dataset:
            raise ValueError(f"a data set's name is a word without a slash, got {self.dataset!r}")
        if not 0 <= self.none_fraction <= 1:
            raise ValueError(f"none_fraction is a share, got {self.none_fraction}")


def make_pairs(
    pictures: Sequence[FacePicture],
    out: Path,
    settings: Settings,
    executor: Executor,
    on_progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Make what is missing of a pairs folder, then write its `pairs.csv`.

    `pictures` are sorted by name. `on_progress` hears how many pairs each step finished.
    Raises: ValueError if the folder was begun with other faces or settings.
    """
    if not pictures:
        raise ValueError("there is no usable face to make pairs from")
    _claim(out, pictures, settings)
    plans = _plans(pictures, settings)
    missing = [plan for plan in plans if not _finished(out, pictures[plan.picture], plan)]
    on_progress(len(plans) - len(missing))
    tasks = [
        executor.submit(_make_some, pictures[chunk[0].picture], chunk, out, settings)
        for chunk in by_picture(missing, _PAIRS_PER_TASK)
    ]
    finish(tasks, on_progress)
    rows = [_row(pictures[plan.picture], plan, settings.dataset) for plan in plans]
    write_table(out / PAIRS_FILE, [_HEADER, *rows])


def finish(tasks: Sequence[Future[int]], on_progress: Callable[[int], None]) -> None:
    """Wait for all tasks, tell what each finished, and begin no other once one has failed."""
    try:
        for task in as_completed(tasks):
            on_progress(task.result())
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


def write_table(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write rows, the header first, as a CSV file, whole or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_below(path, text.getvalue().encode())


def pictures_of_subjects(pictures: Sequence[FacePicture]) -> list[list[int]]:
    """Return the places of each subject's pictures, subjects as they come."""
    subjects: dict[str, list[int]] = {}
    for place, picture in enumerate(pictures):
        subjects.setdefault(picture.subject, []).append(place)
    return list(subjects.values())


def _plans(pictures: Sequence[FacePicture], settings: Settings) -> list[PairPlan]:
    members = pictures_of_subjects(pictures)
    return [
        plan_pair(settings.seed, index, members, settings.none_fraction)
        for index in range(settings.pairs)
    ]


class _Planned(Protocol):
    @property
    def picture(self) -> int: ...


_Plan = TypeVar("_Plan", bound=_Planned)


def by_picture(plans: Sequence[_Plan], most: int) -> Iterator[list[_Plan]]:
    """Group plans by picture, at most so many together, for its fields serve all that show it."""
    groups: dict[int, list[_Plan]] = {}
    for plan in plans:
        groups.setdefault(plan.picture, []).append(plan)
    for _, group in sorted(groups.items()):
        for start in range(0, len(group), most):
            yield group[start : start + most]


def _claim(out: Path, pictures: Sequence[FacePicture], settings: Settings) -> None:
    """Note in `synth.json` what the folder is made from, or check that it is the same."""
    shapes = settings.blendshapes.read_bytes() if settings.blendshapes else b""
    check_claim(
        out / SYNTH_NOTE,
        {
            "version": VERSION,
            "seed": settings.seed,
            "none_fraction": settings.none_fraction,
            "dataset": settings.dataset,
            "blendshapes_sha256": hashlib.sha256(shapes).hexdigest() if shapes else None,
            "faces": len(pictures),
            "faces_sha256": hash_faces(pictures),
        },
    )


def hash_faces(pictures: Sequence[FacePicture]) -> str:
    """Return a SHA-256 of the pictures, their names and their subjects. Raises: OSError."""
    faces = hashlib.sha256()
    for picture in pictures:
        faces.update(f"{picture.name}\0{picture.subject}\0".encode())
        faces.update(picture.path.read_bytes())
    return faces.hexdigest()


def check_claim(note: Path, ours: Mapping[str, object]) -> None:
    """Write what a folder is made from, or check that it was begun alike.

    Raises: ValueError naming what differs.
    """
    if note.is_file():
        theirs = json.loads(note.read_text())
        differing = sorted(key for key in ours if theirs.get(key) != ours[key])
        if differing:
            raise ValueError(f"{note.parent} was begun with another {', '.join(differing)}")
    else:
        write_below(note, (json.dumps(ours, indent=2) + "\n").encode())


def _stem(picture: FacePicture, plan: PairPlan) -> str:
    return f"pairs/{picture.subject}/{plan.index:06d}"


def _files(picture: FacePicture, plan: PairPlan) -> tuple[str, str, str]:
    stem = _stem(picture, plan)
    return f"{stem}_onset.jpg", f"{stem}_apex.jpg", f"{stem}_flow.npz"


def _finished(out: Path, picture: FacePicture, plan: PairPlan) -> bool:
    return all((out / name).is_file() for name in _files(picture, plan))


def _row(picture: FacePicture, plan: PairPlan, dataset: str) -> tuple[str, ...]:
    units = "+".join(f"{unit}:{weight:.2f}" for unit, weight in plan.units.items())
    return (
        *(dataset, picture.subject, f"{plan.index:06d}", plan.label),
        *_files(picture, plan),
        *(units, f"{plan.peak:.3f}", picture.name),
    )


_shapes: dict[Path, Blendshapes] = {}


def open_shapes(path: Path | None) -> Blendshapes | None:
    """Read blendshapes once in a process. Raises: OSError, ValueError."""
    if path is None:
        return None
    if path not in _shapes:
        _shapes[path] = Blendshapes(path)
    return _shapes[path]


def _make_some(
    picture: FacePicture, plans: Sequence[PairPlan], out: Path, settings: Settings
) -> int:
    """Make the pairs of one picture; runs in a worker. Returns how many."""
    patch = open_patch(picture, open_shapes(settings.blendshapes))
    for plan in plans:
        pair = render_pair(plan, settings.seed, patch)
        for name, data in zip(_files(picture, plan), _contents(pair), strict=True):
            write_below(out / name, data)
    return len(plans)


def open_patch(picture: FacePicture, shapes: Blendshapes | None) -> FacePatch:
    """Cut a face out of its picture, shrunk to working resolution, with its unit fields.

    Raises: OSError, InputError.
    """
    # The decoder that the landmarks were found with: another might turn or round otherwise.
    image = cv2.cvtColor(decode_image(picture.path.read_bytes()), cv2.COLOR_RGB2BGR)
    axes = FaceAxes.of(picture.landmarks)
    scale = min(1.0, _WORKING_EYE_DISTANCE / axes.eye_distance)
    height, width = image.shape[:2]
    if scale < 1:
        size = (round(width * scale), round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    ratio = np.array([image.shape[1] / width, image.shape[0] / height])
    landmarks = (picture.landmarks + 0.5) * ratio - 0.5
    reach = _PATCH_SIDE / 2 * axes.eye_distance * scale
    middle = landmarks[[10, 152, 234, 454]].mean(axis=0)
    left, top = np.maximum(np.floor(middle - reach), 0).astype(int)
    right, bottom = np.ceil(middle + reach).astype(int)
    cut = np.ascontiguousarray(image[top:bottom, left:right], np.uint8)
    landmarks = landmarks - (left, top)
    height, width = cut.shape[:2]
    return FacePatch(cut, landmarks, unit_fields(landmarks, (height, width), shapes))


def _contents(pair: Pair) -> tuple[bytes, bytes, bytes]:
    file = io.BytesIO()
    np.savez_compressed(
        file,
        flow=pair.flow.astype(np.float16),
        expression=pair.expression.astype(np.float16),
    )
    return pair.onset, pair.apex, file.getvalue()


def write_below(path: Path, data: bytes) -> None:
    """Write a file at once, and the folders above it that are missing. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def prepare_worker() -> None:
    """Fit a worker process to its share of the machine."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and says when to stop
    cv2.setNumThreads(1)


def synth(  # noqa: PLR0913 - every option of a command is an argument
    *,
    faces: Annotated[Path, typer.Option(help="Folder of face pictures, searched below too.")],
    out: Annotated[Path, typer.Option(help="Folder of pairs to make, or to go on with.")],
    seed: Annotated[int, typer.Option(help="Fixes every pair, with the faces.")],
    pairs: Annotated[int, typer.Option(help="How many pairs the folder shall hold.")] = 6000,
    blendshapes: Annotated[
        Path | None, typer.Option(help="Measured displacements (npz) in place of the table.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes; 0 takes every core.")] = 0,
    none_fraction: Annotated[
        float, typer.Option(help="Share of pairs in which nothing happens.")
    ] = 0.15,
    dataset: Annotated[
        str,
        typer.Option(
            help="Name of the data set; another than the bundled model's for other faces than its."
        ),
    ] = "synthetic",
) -> None:
    """Make synthetic onset-apex pairs, with their true flow, from a folder of faces."""
    console = Console(stderr=True)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the worker processes share the cores
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(jobs or os.cpu_count(), context, prepare_worker)
    try:
        settings = Settings(
            seed=seed,
            pairs=pairs,
            none_fraction=none_fraction,
            blendshapes=blendshapes,
            dataset=dataset,
        )
        with console.status("Looking for faces"):
            pictures, skipped = find_faces(faces, executor)
        report_faces(console, pictures, skipped)
        with progress_bar(console) as progress:
            bar = progress.add_task("Making pairs", total=settings.pairs)
            make_pairs(pictures, out, settings, executor, lambda n: progress.advance(bar, n))
        contact_sheet(out, out / "contact_sheet.png")
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    console.print(f"{settings.pairs} pairs in {out}; look at {out / 'contact_sheet.png'}")


def report_faces(
    console: Console, pictures: Sequence[FacePicture], skipped: Sequence[Skipped]
) -> None:
    """Say which faces will be used, and which not."""
    subjects = {picture.subject for picture in pictures}
    console.print(f"{len(pictures)} faces of {len(subjects)} subjects, {len(skipped)} skipped")
    for item in skipped:
        console.print(f"  skipped {item.name}: {item.reason}", style="dim")


def progress_bar(console: Console) -> Progress:
    """Return a bar that counts what is made."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )

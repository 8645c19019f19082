"""`mfdan-train synth-clips`: makes a folder of synthetic clips, in parallel, resumable."""

import hashlib
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from training.config import load_config
from training.identities import FacePicture, find_faces
from training.options import BUNDLED_CONFIG
from training.synthesis import (
    by_picture,
    check_claim,
    finish,
    hash_faces,
    open_patch,
    open_shapes,
    pictures_of_subjects,
    prepare_worker,
    progress_bar,
    report_faces,
    write_below,
    write_table,
)
from training.synthetic_clips import ClipPlan, encode_clip, plan_clip, render_frames

__all__ = ["CLIPS_FILE", "ClipSettings", "People", "make_clips", "people_of", "synth_clips"]

VERSION = 1
"""Raised whenever the same seed and faces give other clips."""
CLIPS_FILE = "clips.csv"
"""Name of the manifest in a folder that `synth-clips` made."""
DEFAULT_RATES = (30.0, 200.0)
"""Frames a second: an ordinary camera, and those of the data sets."""
People = Literal["all", "train", "val", "test"]

_NOTE = "synth-clips.json"
_MAX_RATE, _MAX_SECONDS, _MIN_SECONDS = 1000.0, 60.0, 0.8
_CLIPS_PER_TASK = 4
_HEADER = (
    *("dataset", "subject", "clip", "label"),
    *("kind", "fps", "frames", "true_onset", "true_apex", "true_offset"),
    *("action_units", "peak_px", "blinks_s", "drift_px", "turn_px", "noise", "codec", "crf"),
    "picture",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings:
    """What fixes a folder of clips, beside its faces."""

    seed: int
    clips: int
    rates: tuple[float, ...] = DEFAULT_RATES
    """Frames a second, taken in turn."""
    seconds: float = 1.5
    blendshapes: Path | None = None
    dataset: str = "synthetic"
    """Name of the data set: a person is known by it and the subject's name."""
    people: People = "all"
    """Whose faces: of everybody, or of one split of the bundled model's training."""

    def __post_init__(self) -> None:
        if self.seed < 0 or self.clips < 1:
            raise ValueError("the seed must not be negative and there must be clips to make")
        if not self.dataset or "/" in self.dataset:
            raise ValueError(f"a data set's name is a word without a slash, got {self.dataset!r}")
        if not self.rates or not all(1 <= rate <= _MAX_RATE for rate in self.rates):
            raise ValueError(f"frames a second are 1 to {_MAX_RATE:g}, got {self.rates}")
        if not _MIN_SECONDS <= self.seconds <= _MAX_SECONDS or math.isnan(self.seconds):
            raise ValueError(
                f"a clip lasts {_MIN_SECONDS:g} to {_MAX_SECONDS:g} seconds, got {self.seconds:g}"
            )


def people_of(pictures: Sequence[FacePicture], settings: ClipSettings) -> list[FacePicture]:
    """Return the pictures of those whom the settings ask for.

    Who is whose is what `mfdan-train fit` with the bundled model's config would say of a data
    set of this name.
    """
    if settings.people == "all":
        return list(pictures)
    holdout = load_config(BUNDLED_CONFIG).holdout
    return [
        picture
        for picture in pictures
        if holdout.split_of(f"{settings.dataset}/{picture.subject}") == settings.people
    ]


def make_clips(
    pictures: Sequence[FacePicture],
    out: Path,
    settings: ClipSettings,
    executor: Executor,
    on_progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Make what is missing of a clips folder, then write its `clips.csv`.

    `pictures` are sorted by name. `on_progress` hears how many clips each step finished.
    Raises: ValueError if the folder was begun with other faces or settings.
    """
    pictures = people_of(pictures, settings)
    if not pictures:
        raise ValueError("there is no usable face to make clips from")
    _claim(out, pictures, settings)
    plans = _plans(pictures, settings)
    missing = [plan for plan in plans if not (out / _file(pictures[plan.picture], plan)).is_file()]
    on_progress(len(plans) - len(missing))
    tasks = [
        executor.submit(_make_some, pictures[chunk[0].picture], chunk, out, settings)
        for chunk in by_picture(missing, _CLIPS_PER_TASK)
    ]
    finish(tasks, on_progress)
    rows = [_row(pictures[plan.picture], plan, settings.dataset) for plan in plans]
    write_table(out / CLIPS_FILE, [_HEADER, *rows])


def _claim(out: Path, pictures: Sequence[FacePicture], settings: ClipSettings) -> None:
    shapes = settings.blendshapes.read_bytes() if settings.blendshapes else b""
    check_claim(
        out / _NOTE,
        {
            "version": VERSION,
            "seed": settings.seed,
            "rates": list(settings.rates),
            "seconds": settings.seconds,
            "dataset": settings.dataset,
            "people": settings.people,
            "blendshapes_sha256": hashlib.sha256(shapes).hexdigest() if shapes else None,
            "faces": len(pictures),
            "faces_sha256": hash_faces(pictures),
        },
    )


def _plans(pictures: Sequence[FacePicture], settings: ClipSettings) -> list[ClipPlan]:
    members = pictures_of_subjects(pictures)
    return [
        plan_clip(settings.seed, index, members, settings.rates, settings.seconds)
        for index in range(settings.clips)
    ]


def _file(picture: FacePicture, plan: ClipPlan) -> str:
    return f"clips/{picture.subject}/{plan.index:06d}.mp4"


def _row(picture: FacePicture, plan: ClipPlan, dataset: str) -> tuple[str, ...]:
    units = "+".join(f"{unit}:{weight:.2f}" for unit, weight in plan.units.items())
    blinks = "+".join(
        f"{blink.start_s:.3f}-{blink.start_s + blink.length_s:.3f}" for blink in plan.blinks
    )
    truth = plan.truth or (None, None, None)
    right, down, _, _, yaw, pitch = plan.head
    return (
        *(dataset, picture.subject, _file(picture, plan), plan.label),
        *(plan.kind, f"{plan.fps:g}", f"{plan.frames}"),
        *("" if frame is None else f"{frame}" for frame in truth),
        *(units, f"{plan.peak:.3f}", blinks),
        f"{math.hypot(right.size, down.size):.3f}",
        f"{math.hypot(yaw.size, pitch.size):.3f}",
        *(f"{plan.camera.read_noise:.3f}", plan.codec, f"{plan.crf}"),
        picture.name,
    )


def _make_some(
    picture: FacePicture, plans: Sequence[ClipPlan], out: Path, settings: ClipSettings
) -> int:
    """Make the clips of one picture; runs in a worker. Returns how many."""
    patch = open_patch(picture, open_shapes(settings.blendshapes))
    for plan in plans:
        data = encode_clip(plan, render_frames(plan, settings.seed, patch))
        write_below(out / _file(picture, plan), data)
    return len(plans)


def synth_clips(  # noqa: PLR0913 - every option of a command is an argument
    *,
    faces: Annotated[Path, typer.Option(help="Folder of face pictures, searched below too.")],
    out: Annotated[Path, typer.Option(help="Folder of clips to make, or to go on with.")],
    seed: Annotated[int, typer.Option(help="Fixes every clip, with the faces.")],
    clips: Annotated[int, typer.Option(help="How many clips the folder shall hold.")] = 300,
    fps: Annotated[
        list[float] | None,
        typer.Option(help="Frames a second; given again, taken in turn.  [default: 30, 200]"),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of a clip.")] = 1.5,
    blendshapes: Annotated[
        Path | None, typer.Option(help="Measured displacements (npz) in place of the table.")
    ] = None,
    people: Annotated[
        People, typer.Option(help="Faces of one split of the bundled model's training, or of all.")
    ] = "all",
    jobs: Annotated[int, typer.Option(help="Processes; 0 takes every core.")] = 0,
    dataset: Annotated[
        str,
        typer.Option(
            help="Name of the data set; another than the bundled model's for other faces than its."
        ),
    ] = "synthetic",
) -> None:
    """Make synthetic clips whose onset, apex and offset are known, from a folder of faces."""
    console = Console(stderr=True)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the worker processes share the cores
    context = multiprocessing.get_context("spawn")
    settings = ClipSettings(
        seed=seed,
        clips=clips,
        rates=tuple(fps) if fps else DEFAULT_RATES,
        seconds=seconds,
        blendshapes=blendshapes,
        dataset=dataset,
        people=people,
    )
    executor = ProcessPoolExecutor(jobs or os.cpu_count(), context, prepare_worker)
    try:
        with console.status("Looking for faces"):
            pictures, skipped = find_faces(faces, executor)
        report_faces(console, pictures, skipped)
        with progress_bar(console) as progress:
            bar = progress.add_task("Making clips", total=settings.clips)
            make_clips(pictures, out, settings, executor, lambda n: progress.advance(bar, n))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    console.print(f"{settings.clips} clips in {out}; {out / CLIPS_FILE} tells what they show")

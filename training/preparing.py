"""Preparation of a manifest with its progress shown."""

import time
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from model.spec import ModelSpec
from training.data.prepare import Prepared, prepare

__all__ = ["ClipProgress", "prepare_pairs_folder"]

_LINE_EVERY_S = 15.0
"""Where there is no terminal to draw a bar on."""


class ClipProgress:
    """A bar of clips done, with clips a second; as a function it takes (done, total).

    What was done before the first report is no speed. Use it as a context.
    """

    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._first: int | None = None
        self._done = 0
        self._start = self._told = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:.1f} clips/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=None, speed=0.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.stop()
        if self._done:
            seconds = time.perf_counter() - self._start
            self._console.print(
                f"{self._name}: {self._done} clips in {seconds:.1f} s, {self._speed:.1f} clips/s"
            )

    def __call__(self, done: int, total: int) -> None:
        """Show that so many clips are done, of so many."""
        if self._first is None:
            self._first, self._start = done, time.perf_counter()
        self._done = done - self._first
        self._bar.update(self._task, completed=done, total=total, speed=self._speed)
        if self._bar.disable and time.perf_counter() - self._told > _LINE_EVERY_S:
            self._told = time.perf_counter()
            self._console.print(f"{self._name}: {done}/{total} clips, {self._speed:.1f} clips/s")

    @property
    def _speed(self) -> float:
        return self._done / max(time.perf_counter() - self._start, 1e-9)


def prepare_pairs_folder(
    spec: ModelSpec, manifest: Path, workers: int, console: Console
) -> Prepared:
    """Prepare a manifest, or the one in a folder; print which pairs were left out, and why.

    Raises: as `prepare`.
    """
    with ClipProgress("prepare", console) as progress:
        prepared = prepare(manifest, spec, workers=workers, report=progress)
    if prepared.dropped:
        console.print(f"{len(prepared.dropped)} pairs are left out:")
        for clip, reason in sorted(prepared.dropped.items()):
            console.print(f"  {clip}: {reason}", highlight=False, markup=False, soft_wrap=True)
    return prepared

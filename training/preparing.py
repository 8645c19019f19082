"""Preparation of a manifest or a data set, with its progress shown."""

import csv
import io
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from model.spec import ModelSpec
from training.data.datasets import Loaded
from training.data.pairs import PAIRS_FILE, Pair, write_pairs
from training.data.prepare import Prepared, prepare
from training.files import write_atomically

__all__ = [
    "DROPPED_FILE",
    "ClipProgress",
    "load_into",
    "prepare_pairs_folder",
    "summary_table",
    "write_dropped",
]

DROPPED_FILE = "dropped.csv"
"""Beside the `pairs.csv` that `prepare --dataset` writes: what is not in it."""

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
        console.print(f"left out: {len(prepared.dropped)}")
        for clip, reason in sorted(prepared.dropped.items()):
            console.print(f"  {clip}: {reason}", highlight=False, markup=False, soft_wrap=True)
    return prepared


def load_into(out: Path, loaded: Loaded) -> Path:
    """Write what was loaded of a data set into a folder; return the manifest.

    Beside `pairs.csv` stands `dropped.csv`, so that a set can be checked against its paper.
    Raises: OSError; ValueError if nothing was loaded, or if the folder holds somebody's own
    manifest.
    """
    out.mkdir(parents=True, exist_ok=True)
    if (out / PAIRS_FILE).exists() and not (out / DROPPED_FILE).exists():
        raise ValueError(f"{out / PAIRS_FILE} is not from a data set's loader: give another --out")
    write_dropped(out, loaded, {})
    if not loaded.pairs:
        raise ValueError(
            f"none of {len(loaded.dropped)} clips can be used; {out / DROPPED_FILE} says why"
        )
    write_pairs(out / PAIRS_FILE, loaded.pairs)
    return out / PAIRS_FILE


def write_dropped(out: Path, loaded: Loaded, unprepared: Mapping[str, str]) -> None:
    """Write the clips that loading and preparation left out, and why."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("by", "where", "why"))
    writer.writerows(("loading", row.where, row.why) for row in loaded.dropped)
    writer.writerows(("preparation", clip, why) for clip, why in unprepared.items())
    data = text.getvalue().encode()
    write_atomically(out / DROPPED_FILE, lambda temporary: temporary.write_bytes(data))


def summary_table(
    pairs: Sequence[Pair], left_out: Mapping[str, Mapping[str, int]] | None = None
) -> Table:
    """Count clips by data set and label, and people; `left_out` is column → data set → clips."""
    left_out = left_out or {}
    table = Table("data set", "people", "clips", "labels", *left_out)
    names = {pair.dataset for pair in pairs}.union(*left_out.values())
    for name in sorted(names):
        own = [pair for pair in pairs if pair.dataset == name]
        missing = (str(counts.get(name, 0)) for counts in left_out.values())
        table.add_row(escape(name), *_counts(own), *missing)
    if len(names) > 1:
        table.add_section()
        totals = (str(sum(counts.values())) for counts in left_out.values())
        table.add_row("all", *_counts(pairs), *totals)
    return table


def _counts(pairs: Sequence[Pair]) -> tuple[str, str, str]:
    labels = Counter(pair.label for pair in pairs).most_common()
    listed = ", ".join(f"{label} {count}" for label, count in labels)
    return str(len({pair.person for pair in pairs})), str(len(pairs)), escape(listed)

"""`mfdan-train fit`: the work behind it, with its progress shown."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from training.config import RunConfig
from training.data.dataset import rows_of
from training.data.pairs import Pair, Split, read_pairs
from training.folds import check_people
from training.initial import initial_notes, read_initial
from training.loop import Event, FitData, fit, stop_on_signals, time_step
from training.networks import DeviceName, device_of
from training.preparing import prepare_pairs_folder
from training.scored_people import check_shares

__all__ = ["fit_pairs_folder", "prepare_pairs_folder"]

_EVALUATION_SHARE = 0.05
"""Of a time budget that scoring and checkpoints take beside the steps."""


def fit_pairs_folder(  # noqa: PLR0913 - one parameter for each option of the command
    config: RunConfig,
    pairs: Path,
    out: Path,
    *,
    minutes: float | None,
    workers: int,
    console: Console,
    device: DeviceName = "cpu",
) -> bool:
    """Prepare, then train until done or stopped; return whether it is done.

    Who is kept from training, the config's shares of the people say; those of `val` are watched.
    """
    where = device_of(device)
    _check_people(config, read_pairs(pairs), console)
    prepared = prepare_pairs_folder(config.spec(), pairs, workers, console)
    train, watch = (rows_of(prepared, config.holdout, split) for split in _TRAIN_WATCH)
    data = FitData(prepared, train, watch)
    if minutes is not None:
        config = _within(minutes, config, data, out, device=where, console=console)
    with stop_on_signals() as should_stop, _Bar(data.basis(config).steps, console) as bar:
        run = fit(config, data, out, device=where, report=bar.report, should_stop=should_stop)
    if run.step < run.steps:
        console.print(f"stopped after step {run.step}; the same command goes on from there")
        return False
    console.print(f"trained {run.step} steps: {out}")
    return True


def _check_people(config: RunConfig, pairs: Sequence[Pair], console: Console) -> None:
    """Raise ValueError if somebody would be trained on and held out."""
    check_people(pairs)
    initial = read_initial(config)
    if initial:
        check_shares(initial.spec, config.holdout)
    kept = [pair for pair in pairs if config.holdout.split_of(pair.person) != "train"]
    for note in initial_notes(config, kept):
        console.print(note, highlight=False, markup=False)


_TRAIN_WATCH: tuple[Split, Split] = ("train", "val")


def _within(  # noqa: PLR0913 - what is timed, where, and who is told
    minutes: float,
    config: RunConfig,
    data: FitData,
    out: Path,
    *,
    device: torch.device,
    console: Console,
) -> RunConfig:
    """Fix the number of steps that a time budget allows; a run that has begun keeps its own."""
    begun = out / "config.json"
    if begun.is_file():
        of_before = RunConfig.from_json(begun.read_text())
        return replace(config, steps=of_before.steps, epochs=of_before.epochs)
    seconds = time_step(config, data, device=device)
    steps = int(minutes * 60 * (1 - _EVALUATION_SHARE) / seconds)
    if steps < 1:
        raise ValueError(f"{minutes:g} minutes are too few: a step takes {seconds:.2f} s")
    console.print(f"{seconds:.2f} s a step: {steps} steps in {minutes:g} minutes")
    return replace(config, steps=steps, epochs=None)


def _columns() -> tuple[BarColumn | TextColumn | MofNCompleteColumn, ...]:
    return (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())


class _Bar:
    """Progress of a run; plain lines where there is no terminal."""

    _LINE_EVERY = 50

    def __init__(self, steps: int, console: Console) -> None:
        self._steps = steps
        self._console = console
        self._progress = Progress(
            *_columns(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[seconds]:.2f} s/step"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("fit", total=steps, loss=0.0, seconds=0.0)
        self._loss = self._seconds = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._progress.stop()

    def report(self, event: Event) -> None:
        """Show one step."""
        first = not self._seconds
        self._loss += (event.loss - self._loss) * (1.0 if first else 0.05)
        self._seconds += (event.seconds - self._seconds) * (1.0 if first else 0.05)
        self._progress.update(
            self._task, completed=event.step, loss=self._loss, seconds=self._seconds
        )
        scores = event.scores
        if scores:
            self._console.print(
                f"step {event.step}: held-out loss {scores.loss:.4f}, UF1 {scores.uf1:.3f}, "
                f"UAR {scores.uar:.3f}"
            )
        elif not self._console.is_terminal and event.step % self._LINE_EVERY == 0:
            self._console.print(
                f"step {event.step}/{self._steps}: loss {self._loss:.4f}, "
                f"{self._seconds:.2f} s/step"
            )

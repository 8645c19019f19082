"""What a run writes down for people, step by step: two CSV files, and TensorBoard's events."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from training.files import write_text_atomically

__all__ = ["Event", "RunLog", "Scores"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Of the averaged weights on watched pairs."""

    loss: float
    uf1: float
    uar: float


@dataclass(frozen=True, slots=True)
class Event:
    """What the loop reports after each step."""

    step: int
    """Steps done."""
    loss: float
    learning_rate: float
    seconds: float
    """Wall time of the step, waiting for its samples included."""
    scores: Scores | None
    """On the watched pairs, after every `evaluate_every` steps and after the last."""


class RunLog:
    """Appends to `steps.csv` and `scores.csv` of a run's folder, and to TensorBoard's events."""

    def __init__(self, out: Path, step: int, events: Path) -> None:
        """Drop what was written of steps after `step`: they will be taken again."""
        self._steps = out / "steps.csv"
        self._scores = out / "scores.csv"
        for path in (self._steps, self._scores):
            _cut(path, step)
        # Events cannot be cut; their reader forgets those from the step that is named here.
        self._events = SummaryWriter(events, purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._events.close()

    def write(self, event: Event) -> None:
        """Write one step down."""
        _append(
            self._steps,
            {
                "step": event.step,
                "loss": f"{event.loss:.6f}",
                "learning_rate": f"{event.learning_rate:.3e}",
                "seconds": f"{event.seconds:.3f}",
            },
        )
        self._show(event.step, loss=event.loss, learning_rate=event.learning_rate)
        self._show(event.step, seconds=event.seconds)
        if event.scores:
            scores = event.scores
            _append(
                self._scores,
                {
                    "step": event.step,
                    "val_loss": f"{scores.loss:.6f}",
                    "val_uf1": f"{scores.uf1:.4f}",
                    "val_uar": f"{scores.uar:.4f}",
                },
            )
            self._show(event.step, val_loss=scores.loss, val_uf1=scores.uf1, val_uar=scores.uar)

    def _show(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)


def _append(path: Path, row: Mapping[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def _cut(path: Path, step: int) -> None:
    if path.exists():
        header, *rows = path.read_text().splitlines(keepends=True) or [""]
        # A full disk may have left half a row.
        whole = [row for row in rows if row.endswith("\n") and row.count(",") == header.count(",")]
        kept = [row for row in whole if int(row.split(",")[0]) <= step]
        write_text_atomically(path, "".join([header, *kept]))

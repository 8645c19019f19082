"""Manifest → every row of it that cannot be trained on, and why."""

import functools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.errors import InputError
from training.data.labels import Labels
from training.data.pairs import Line, Pair, manifest_path, read_lines
from training.data.processes import in_processes
from training.data.sources import check_row
from training.folds import spelling

__all__ = ["BadRow", "Checked", "validate"]

_ROWS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    line: int
    """In the manifest, counted from 1; 0 where the manifest as a whole is meant."""
    clip: str
    """`dataset/subject/clip`, as far as the row says so."""
    reason: str
    """All of its faults that were found."""

    def __str__(self) -> str:
        where = f"line {self.line}, {self.clip}" if self.line else "the manifest"
        return f"{where}: {self.reason.removeprefix(f'{self.clip}: ')}"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a manifest holds."""

    good: list[Pair]
    bad: list[BadRow]
    """In the manifest's order."""


def validate(
    manifest: Path,
    labels: Labels | None = None,
    *,
    workers: int = 0,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Checked:
    """Read every row of a manifest and decode its files; `labels` are those of a config.

    Faces are not looked for, which is the long part: `prepare` names clips without one. `workers`
    processes share the work, one for each core when 0; `report` hears how many rows are done, of
    how many. Raises: FileNotFoundError for the manifest itself.
    """
    path = manifest_path(manifest)
    lines, fault = _lines(path)
    faults = {line.number: _row_faults(line, labels) for line in lines}
    written = _spellings(lines)
    for line in lines:
        if line.pair and len(names := written[spelling(line.pair.person)]) > 1:
            faults[line.number].append(f"one person is written in two ways: {', '.join(names)}")
    chunks = [lines[at : at + _ROWS_AT_ONCE] for at in range(0, len(lines), _ROWS_AT_ONCE)]
    done = 0
    report(done, len(lines))
    check = functools.partial(_file_faults, root=path.parent)
    for chunk, found in in_processes(check, chunks, workers):
        for number, reason in found:
            faults[number].append(reason)
        done += len(chunk)
        report(done, len(lines))
    bad = [
        BadRow(line.number, line.clip, "; ".join(faults[line.number]))
        for line in lines
        if faults[line.number]
    ]
    if fault:
        bad.append(BadRow(0, "", fault))
    return Checked([line.pair for line in lines if line.pair and not faults[line.number]], bad)


def _lines(path: Path) -> tuple[list[Line], str]:
    """Return the rows that can be told apart, and why there are none or no more."""
    lines: list[Line] = []
    try:
        for line in read_lines(path):
            lines.append(line)  # noqa: PERF402 - those before the fault are kept
    except ValueError as fault:
        return lines, str(fault)
    return lines, "" if lines else f"{path.name} holds no row"


def _spellings(lines: list[Line]) -> dict[str, list[str]]:
    """Return how each person is written, who would else be in both halves of a fold."""
    names: defaultdict[str, set[str]] = defaultdict(set)
    for line in lines:
        if line.pair:
            names[spelling(line.pair.person)].add(line.pair.person)
    return {person: sorted(written) for person, written in names.items()}


def _row_faults(line: Line, labels: Labels | None) -> list[str]:
    if line.pair is None:
        return [line.fault]
    if labels is not None and not labels.knows(line.pair.label):
        return [f"label {line.pair.label!r} is neither a class nor in label_map"]
    return []


def _file_faults(lines: list[Line], root: Path) -> list[tuple[int, str]]:
    found = []
    for line in lines:
        try:
            if line.pair is not None:
                check_row(line.pair, root)
        except (InputError, OSError) as fault:
            found.append((line.number, str(fault)))
    return found

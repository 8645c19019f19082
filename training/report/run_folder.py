"""What `mfdan-train loso` left in a run's folder, read and checked."""

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from training.config import RunConfig
from training.loso_folder import RUN_NOTE, MethodFolder, file_name, methods_in
from training.predictions import Prediction, read_predictions
from training.scoring import ScoreTable

__all__ = ["FoldNote", "MethodRun", "RunNote", "read_runs"]

_OPEN = ConfigDict(extra="ignore")
_Note = TypeVar("_Note")


@checked(frozen=True, kw_only=True, slots=True, config=_OPEN)
class RunNote:
    """What was run: `run.json`."""

    config: dict[str, Any]
    protocol: str
    """`loso` or `lodo`."""
    method: str
    seeds: tuple[int, ...] = Field(min_length=1)
    classes: tuple[str, ...] = Field(min_length=2)
    folds: tuple[str, ...]
    """Names of all folds, done or not."""
    clips: int
    people: int
    manifest: str
    rows_sha256: str
    commit: str
    versions: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    """Clip → why it was left out."""


@checked(frozen=True, kw_only=True, slots=True, config=_OPEN)
class FoldNote:
    """One finished fold: `folds/seed-S/NAME.json`."""

    seconds: float
    losses: tuple[tuple[float, float], ...] = ()
    """Step and loss."""
    tuned: dict[str, Any] | None = None
    """Field of the config → the value that the inner search chose."""


_RUN_NOTE, _FOLD_NOTE = TypeAdapter(RunNote), TypeAdapter(FoldNote)


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodRun:
    """One method of one run."""

    name: str
    """Unlike that of any other on the page."""
    folder: Path
    note: RunNote
    config: RunConfig
    folds: Mapping[tuple[int, str], FoldNote]
    """Seed and name → fold, of those that are finished."""
    scores: ScoreTable | None
    """None as long as folds are missing; `predictions` is empty then."""
    predictions: Sequence[Prediction]
    oracle: Sequence[Prediction]
    """Of each fold's best epoch on the very person it is scored on; empty where not asked for."""

    @property
    def missing(self) -> list[str]:
        """Name the folds that are not there."""
        return [
            f"{name}, seed {seed}"
            for seed in self.note.seeds
            for name in self.note.folds
            if (seed, name) not in self.folds
        ]

    @property
    def wanted(self) -> int:
        """How many folds there are, over all seeds."""
        return len(self.note.seeds) * len(self.note.folds)

    @property
    def hours(self) -> float:
        """Time of all folds, one after another."""
        return sum(fold.seconds for fold in self.folds.values()) / 3600

    def attention(self, key: str) -> NDArray[np.float32] | None:
        """Return a clip's attention maps, averaged over the seeds, or None without any.

        Convention: (1 or 2, g, g); the first of the image's own scores, the second of the flow's;
        1 is even attention. Raises: ValueError naming a broken file.
        """
        folds = sorted({(each.seed, each.fold) for each in self.predictions if each.key == key})
        paths = [
            MethodFolder(self.folder).fold(seed, name).with_name(f"{file_name(name)}.attention.npz")
            for seed, name in folds
        ]
        maps = [found for path in paths if (found := _read_map(path, key)) is not None]
        return np.mean(maps, axis=0, dtype=np.float32) if maps else None


def _read_map(path: Path, key: str) -> NDArray[np.float32] | None:
    if not path.is_file():
        return None
    try:
        # Opened here: NumPy leaves a file that is no archive open.
        with path.open("rb") as file, np.load(file) as maps:
            return np.asarray(maps[key], np.float32) if key in maps else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as fault:
        raise ValueError(f"{path} holds no attention maps: {fault}") from None


def read_runs(folders: Sequence[Path]) -> list[MethodRun]:
    """Read every method of every run, runs in the order given, the network before baselines.

    Raises: FileNotFoundError, ValueError naming the file that is broken, a folder that is no run
    or is given twice, or two runs whose classes differ.
    """
    resolved = [folder.resolve() for folder in folders]
    twice = {
        str(folder)
        for folder, full in zip(folders, resolved, strict=True)
        if resolved.count(full) > 1
    }
    if twice:
        raise ValueError(f"{', '.join(sorted(twice))} is given twice")
    runs = [
        _read_method(folder / method, _name(label, method))
        for folder, label in zip(folders, _labels(resolved), strict=True)
        for method in _methods(folder)
    ]
    _check_classes(runs)
    return runs


def _methods(folder: Path) -> list[str]:
    found = methods_in(folder)
    if not found:
        raise FileNotFoundError(
            f"{folder} is no run of `mfdan-train loso`: no method in it has a {RUN_NOTE}"
        )
    return found


def _labels(folders: Sequence[Path]) -> list[str]:
    """Name each run by the end of its path, as long as it takes to tell them apart; one: ""."""
    if len(folders) == 1:
        return [""]
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise ValueError("two runs have one path")


def _name(label: str, method: str) -> str:
    return f"{label}: {method}" if label else method


def _read_method(folder: Path, name: str) -> MethodRun:
    note = _read_note(folder / RUN_NOTE, _RUN_NOTE)
    try:
        config = RunConfig.from_json(json.dumps(note.config))
    except ValueError as fault:
        raise ValueError(f"{folder / RUN_NOTE}: {fault}") from None
    files = MethodFolder(folder)
    scores, predictions = _read_results(files, note)
    return MethodRun(
        name=name,
        folder=folder,
        note=note,
        config=config,
        folds={
            (seed, fold): _read_note(files.fold(seed, fold), _FOLD_NOTE)
            for seed in note.seeds
            for fold in note.folds
            if files.finished(seed, fold)
        },
        scores=scores,
        predictions=predictions,
        oracle=_read_table(files.oracle, note) if files.oracle.is_file() else (),
    )


def _read_results(
    files: MethodFolder, note: RunNote
) -> tuple[ScoreTable | None, Sequence[Prediction]]:
    """Read scores and predictions; `loso` writes them when the last fold is done."""
    path = files.scores
    if not path.is_file():
        return None, ()
    try:
        scores = ScoreTable.from_json(path.read_text())
    except ValueError as fault:
        raise ValueError(f"{path}: {fault}") from None
    _check_same_classes(path, scores.classes, note)
    return scores, _read_table(files.predictions, note)


def _read_table(path: Path, note: RunNote) -> list[Prediction]:
    classes, predictions = read_predictions(path)
    _check_same_classes(path, classes, note)
    return predictions


def _check_same_classes(path: Path, classes: tuple[str, ...], note: RunNote) -> None:
    if classes != note.classes:
        raise ValueError(
            f"{path} is of the classes {', '.join(classes)}; {RUN_NOTE} beside it names "
            f"{', '.join(note.classes)}"
        )


def _read_note(path: Path, adapter: TypeAdapter[_Note]) -> _Note:
    try:
        return adapter.validate_json(path.read_bytes())
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'document'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ValueError(f"{path}: {faults}") from None


def _check_classes(runs: Sequence[MethodRun]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.note.classes != first.note.classes:
            raise ValueError(
                f"runs of different classes cannot be compared: {first.folder} has "
                f"{', '.join(first.note.classes)}; {run.folder} has {', '.join(run.note.classes)}"
            )

"""`loso --tune`: hyperparameters chosen inside each fold, on its training half alone."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.config import EITHER, RunConfig
from training.data.dataset import class_indices
from training.divergence import Diverged
from training.files import write_text_atomically
from training.folds import Fold, inner_folds
from training.metrics import uf1

__all__ = ["Choice", "Train", "candidates", "check_grid", "tune"]

Train = Callable[[RunConfig, Fold, Path], NDArray[np.float32]]
"""Trains a config on a fold in a working folder; returns the probabilities (N, K) of its test."""
_FIXED = frozenset(
    {
        *("name", "version", "data", "licence", "classes", "label_map", "pairs", "init"),
        *("seed", "seeds", "method", "split_seed", "val_fraction", "test_fraction", "tune"),
        *("alignment", "flow", "normalisation", "network.classes", "network.image_size"),
        *("evaluate_every", "evaluate_pairs", "checkpoint_every", "loader_workers", "threads"),
    }
)
"""What a search must not vary: the data, what is compared, or what does not change the outcome."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What the inner search of one fold chose."""

    config: RunConfig
    values: dict[str, Any]
    """Field → value, as in the grid."""
    scores: list[float]
    """Pooled UF1 over the inner folds, of each candidate in the grid's order; -inf where one of its
    trainings failed."""


def candidates(config: RunConfig) -> list[tuple[dict[str, Any], RunConfig]]:
    """Return every combination of the grid with its config; the last field varies fastest.

    Raises: ValueError naming a field that is unknown or must not be searched, or a refused value.
    """
    grid = config.tune.grid
    if not grid or not all(grid.values()):
        raise ValueError("--tune needs [tune.grid] in the config: fields, and values for each")
    for field in grid:
        if field in _FIXED or field.split(".")[0] in _FIXED:
            raise ValueError(f"tune.grid: {field} must not be searched")
    combinations = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    return [(values, _with_values(config, values)) for values in combinations]


def check_grid(config: RunConfig) -> None:
    """Raise ValueError if the grid cannot be searched."""
    candidates(config)


def _with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    document: dict[str, Any] = json.loads(config.to_json())
    for field, value in values.items():
        *tables, name = field.split(".")
        place = document
        for table in tables:
            place = place.get(table, {})
        if not isinstance(place, dict) or name not in place:
            raise ValueError(f"tune.grid: there is no field {field}")
        place[name] = value
        if field in EITHER:
            document[EITHER[field]] = None
    try:
        return RunConfig.from_json(json.dumps(document))
    except ValueError as fault:
        raise ValueError(f"tune.grid: {_told(values)}: {fault}") from None


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} = {json.dumps(value)}" for field, value in values.items())


def tune(config: RunConfig, fold: Fold, work: Path, train: Train) -> Choice:
    """Choose among the candidates by inner folds of a fold's training half.

    Its test half is not looked at. The candidate with the largest pooled UF1 wins, of equal ones
    the first. One that diverges, or answers with no number, is out of the search. Answers of
    finished inner folds wait in `work`, so an interrupted search goes on.
    Raises: ValueError, naming the candidates if all of them failed.
    """
    inner = inner_folds(fold.train, config.tune.folds, config.seed)
    truth = np.concatenate([class_indices(each.test, config) for each in inner])
    tried = candidates(config)
    scores = []
    for number, (_values, candidate) in enumerate(tried):
        answers = _all_answers(candidate, inner, work / f"candidate-{number}", train)
        score = uf1(truth, answers, len(config.classes)) if answers is not None else -math.inf
        scores.append(score)
    if max(scores) == -math.inf:
        failed = "; ".join(_told(values) for values, _candidate in tried)
        raise ValueError(
            f"every candidate of tune.grid diverged, or answered with no number: {failed}"
        )
    values, chosen = tried[scores.index(max(scores))]
    return Choice(config=chosen, values=values, scores=scores)


def _all_answers(
    config: RunConfig, inner: Sequence[Fold], work: Path, train: Train
) -> NDArray[np.int64] | None:
    """Return the answers of all inner folds, in their order; None from the first that failed."""
    answers = []
    for place, fold in enumerate(inner):
        found = _answers(config, fold, work / f"inner-{place}", train)
        if found is None:
            return None
        answers.append(found)
    return np.concatenate(answers)


def _answers(config: RunConfig, fold: Fold, work: Path, train: Train) -> NDArray[np.int64] | None:
    """Return the class predicted for each clip of an inner test half, trained once only.

    None, which is kept as well, if it diverged or answers with no number.
    """
    finished = work.with_suffix(".json")
    if not finished.is_file():
        work.mkdir(parents=True, exist_ok=True)
        write_text_atomically(finished, json.dumps(_trained(config, fold, work, train)))
        shutil.rmtree(work)
    answers = json.loads(finished.read_text())
    return None if answers is None else np.array(answers, np.int64)


def _trained(config: RunConfig, fold: Fold, work: Path, train: Train) -> list[int] | None:
    try:
        probabilities = train(config, fold, work)
    except Diverged:
        return None
    answers: list[int] = probabilities.argmax(axis=1).tolist()
    return answers if np.isfinite(probabilities).all() else None

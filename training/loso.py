"""Leave-one-subject-out, or one data set: folds × seeds, each a job that leaves one file.

A fold is a function of config, clips, fold and seed alone, so it does not matter where, when and
beside what it runs. What is scored is the last step of a training fixed beforehand; predictions
are joined by the clip's key.
"""

import functools
import hashlib
import importlib.metadata
import json
import platform
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # ships no types

from model.spec import ModelSpec, file_sha256
from training.config import RunConfig, Tuning
from training.data.dataset import labelled
from training.data.prepare import Prepared, PreparedRow, open_prepared
from training.divergence import Diverged
from training.files import write_text_atomically
from training.folds import Fold, lodo_folds, loso_folds
from training.loso_folder import MethodFolder
from training.methods import NETWORKS, Outcome, train_and_predict
from training.provenance import current_commit
from training.scoring import Prediction, score, write_predictions
from training.tuning import Choice, tune

__all__ = ["FoldJob", "MethodPlan", "Options", "Protocol", "folds_of", "run_fold"]

Protocol = Literal["loso", "lodo"]
_RARER_ON_CUDA = 10
"""Checkpoints: at the paper's size one is half a gigabyte, and a GPU's fold a minute."""

_NO_SPLIT: Mapping[str, Any] = {"split_seed": 1, "val_fraction": 0.1, "test_fraction": 0.1}
"""Here the folds say who is held out: whatever the config says of it, a checkpoint is the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a run's folds are made and where they are trained."""

    protocol: Protocol = "loso"
    tune: bool = False
    """Search `config.tune.grid` inside each fold."""
    oracle: bool = False
    """Also score the held-out people after each epoch."""
    device: str = "cpu"
    """"cpu" or "cuda"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldJob:
    """One fold with one seed: all that a worker on any machine needs to know."""

    config: RunConfig
    """Of the method; `pairs` and `init` are absolute paths."""
    options: Options
    fold: str
    seed: int
    out: Path
    """Folder of the method, absolute."""
    rows_sha256: str

    def __str__(self) -> str:
        return f"{self.config.method}, seed {self.seed}, fold {self.fold}"


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodPlan:
    """One method of a run: its folder and its jobs, by seed, then fold."""

    config: RunConfig
    folder: MethodFolder
    note: Mapping[str, Any]
    """Content of `run.json`."""
    rows: Sequence[PreparedRow]
    """That take part, in the manifest's order."""
    jobs: Sequence[FoldJob]

    @classmethod
    def of(cls, config: RunConfig, prepared: Prepared, out: Path, options: Options) -> "MethodPlan":
        """Plan a method, whose `pairs` and `init` are absolute paths; nothing is written.

        Raises: ValueError for people in both halves, a label outside the map; FileNotFoundError
        for an `init` that is not there.
        """
        if config.method not in NETWORKS:  # which alone have epochs, and use a card
            options = replace(options, oracle=False, device="cpu")
        rows = labelled(prepared.rows, config)
        folds = folds_of(rows, options.protocol)
        folder = MethodFolder(out.resolve() / config.method)
        note = _note(config, prepared, rows, folds, options)
        jobs = [
            FoldJob(
                config=config,
                options=options,
                fold=fold.name,
                seed=seed,
                out=folder.root,
                rows_sha256=note["rows_sha256"],
            )
            for seed in config.seeds
            for fold in folds
        ]
        return cls(config=config, folder=folder, note=note, rows=rows, jobs=jobs)

    @property
    def missing(self) -> list[FoldJob]:
        """The jobs that are not done."""
        return [job for job in self.jobs if not self.folder.finished(job.seed, job.fold)]

    def write_results(self) -> None:
        """Merge the folds into `predictions.csv` and `scores.json`, and `oracle.csv` if asked for.

        Clips stand in the manifest's order under each seed. Raises: FileNotFoundError,
        ValueError naming a fold's file that is damaged.
        """
        folder, classes = self.folder, self.config.classes
        predictions = list(self._predictions("predictions"))
        write_predictions(folder.predictions, predictions, classes)
        if self.note["oracle_epoch"]:
            write_predictions(folder.oracle, self._predictions("oracle"), classes)
        write_text_atomically(folder.scores, score(predictions, classes).to_json())
        folder.drop_work()

    def tuned(self) -> list[dict[str, Any]]:
        """Return what the inner search chose in each finished fold."""
        folds = [self.folder.read_fold(job.seed, job.fold) for job in self.jobs]
        return [fold["tuned"] for fold in folds if fold["tuned"]]

    def _predictions(self, kind: str) -> Iterator[Prediction]:
        labels = self.config.labels
        for seed in self.config.seeds:
            answers = {
                answer["key"]: (job.fold, answer["probabilities"])
                for job in self.jobs
                if job.seed == seed
                for answer in self._answers(job, kind)
            }
            for row in self.rows:
                fold, probabilities = answers[row.pair.key]
                yield Prediction(
                    dataset=row.pair.dataset,
                    subject=row.pair.subject,
                    clip=row.pair.clip,
                    label=labels.class_of(row.pair.label) or "",
                    seed=seed,
                    fold=fold,
                    probabilities=tuple(probabilities),
                )

    def _answers(self, job: FoldJob, kind: str) -> list[dict[str, Any]]:
        fold = self.folder.read_fold(job.seed, job.fold)
        answers: list[dict[str, Any]] = (fold["oracle"] if kind == "oracle" else fold)[
            "predictions"
        ]
        return answers


def folds_of(rows: Sequence[PreparedRow], protocol: Protocol) -> list[Fold]:
    """Return the folds of a protocol. Raises: ValueError."""
    return loso_folds(rows) if protocol == "loso" else lodo_folds(rows)


def _digest(rows: Sequence[PreparedRow], prepared: Prepared, config: RunConfig) -> str:
    """Return a hash of the clips in order, each one's label, class, motion and prepared arrays."""
    labels, contents = config.labels, _contents(prepared)
    lines = [
        [
            *(row.pair.key, row.pair.label, labels.class_of(row.pair.label)),
            *(repr(asdict(row.motion)), contents[row.pair.key]),
        ]
        for row in rows
    ]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _contents(prepared: Prepared) -> dict[str, str]:
    """Return a hash of each clip's arrays, by its key: every method of a run needs the same."""
    contents = {}
    for row in prepared.rows:
        content = hashlib.sha256()
        for array in prepared.arrays(row):
            content.update(array.tobytes())
        contents[row.pair.key] = content.hexdigest()
    return contents


def _note(
    config: RunConfig,
    prepared: Prepared,
    rows: Sequence[PreparedRow],
    folds: Sequence[Fold],
    options: Options,
) -> dict[str, Any]:
    return {
        "config": json.loads(config.to_json()),
        "protocol": options.protocol,
        "method": config.method,
        "seeds": list(config.seeds),
        "classes": list(config.classes),
        "folds": [fold.name for fold in folds],
        "clips": len(rows),
        "people": len({row.pair.person for row in rows}),
        "manifest": Path(config.pairs).name,
        "rows_sha256": _digest(rows, prepared, config),
        "preprocessing_key": config.spec().preprocessing_key(),
        "init_sha256": file_sha256(Path(config.init)) if config.init else "",
        "tune": options.tune,
        "oracle_epoch": options.oracle,
        "device": options.device,
        "commit": current_commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "numpy")},
        },
        "dropped": prepared.dropped,
    }


def run_fold(job: FoldJob) -> None:
    """Train and test one fold in this process; its file is there once this returns.

    Begun before, it goes on from its checkpoint; finished before, it is done again. Raises:
    ValueError (Diverged, other clips here than where the run was planned, a card too small),
    OSError.
    """
    started = time.perf_counter()
    threads = job.config.threads or 1
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    prepared, folds = _clips(job.config.to_json(), job.options.protocol, job.rows_sha256)
    folder = MethodFolder(job.out)
    work = folder.work(job.seed, job.fold)
    work.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(threads, user_api="blas"):
        try:
            choice, outcome = _train(job, prepared, folds[job.fold], work)
        except torch.OutOfMemoryError:
            raise ValueError("the card has too little memory for this; give fewer --jobs") from None
    fold = folds[job.fold]
    seconds = time.perf_counter() - started
    folder.write_fold(_fold_note(job, fold, choice, outcome, seconds), outcome.attention)


@functools.lru_cache(maxsize=2)
def _clips(
    config_json: str, protocol: Protocol, rows_sha256: str
) -> tuple[Prepared, dict[str, Fold]]:
    """Open the prepared clips once in a worker, and check that they are those of the run."""
    config = RunConfig.from_json(config_json)
    prepared = _opened(config.pairs, config.spec().to_json(), rows_sha256)
    rows = labelled(prepared.rows, config)
    if _digest(rows, prepared, config) != rows_sha256:
        raise ValueError(f"{config.pairs} on {socket.gethostname()} is not what the run began with")
    return prepared, {fold.name: fold for fold in folds_of(rows, protocol)}


@functools.lru_cache(maxsize=1)
def _opened(pairs: str, spec_json: str, _rows_sha256: str) -> Prepared:
    """Open the prepared clips once for all methods of a run, anew for other clips."""
    return open_prepared(Path(pairs), ModelSpec.from_json(spec_json))


def _train(
    job: FoldJob, prepared: Prepared, fold: Fold, work: Path
) -> tuple[Choice | None, Outcome]:
    device = job.options.device
    config = _config_of_fold(job.config, job.seed, device)
    choice = None
    if job.options.tune:

        def train_inner(config: RunConfig, inner: Fold, place: Path) -> NDArray[np.float32]:
            with _freed_of_bad_checkpoint(place):
                outcome = train_and_predict(config, prepared, inner, place, device=device)
            return outcome.probabilities

        choice = tune(replace(config, tune=job.config.tune), fold, work / "tuning", train_inner)
        config = replace(choice.config, tune=Tuning())
    with _freed_of_bad_checkpoint(work / "fit"):
        outcome = train_and_predict(
            config,
            prepared,
            fold,
            work / "fit",
            device=device,
            oracle=job.options.oracle,
            events=MethodFolder(job.out).events(job.seed, job.fold),
        )
    if not np.isfinite(outcome.probabilities).all():
        raise ValueError("the training ended in weights that answer with no number")
    return choice, outcome


@contextmanager
def _freed_of_bad_checkpoint(place: Path) -> Iterator[None]:
    """Remove a training's folder when it is refused: it would be refused at each further try."""
    try:
        yield
    except Diverged:
        raise
    except ValueError:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _config_of_fold(config: RunConfig, seed: int, device: str) -> RunConfig:
    """Leave only what decides the fold, so that its checkpoint asks for nothing else."""
    return replace(
        config,
        seed=seed,
        seeds=(seed,),
        pairs="",
        tune=Tuning(),
        **_NO_SPLIT,
        threads=config.threads or 1,
        loader_workers=0,  # the folds share the cores
        checkpoint_every=config.checkpoint_every * (_RARER_ON_CUDA if device == "cuda" else 1),
    )


def _fold_note(
    job: FoldJob, fold: Fold, choice: Choice | None, outcome: Outcome, seconds: float
) -> dict[str, Any]:
    best = outcome.best_epoch
    return {
        "fold": job.fold,
        "seed": job.seed,
        "train_clips": len(fold.train),
        "test_clips": len(fold.test),
        "seconds": round(seconds, 3),
        "device": job.options.device,
        "losses": outcome.losses,
        "tuned": choice and choice.values,
        "tuning_scores": choice
        and [score if np.isfinite(score) else None for score in choice.scores],
        "predictions": _answers(fold, outcome.probabilities),
        "oracle": best
        and {
            "epoch": best.epoch,
            "right": best.right,
            "predictions": _answers(fold, best.probabilities),
        },
    }


def _answers(fold: Fold, probabilities: NDArray[np.float32]) -> list[dict[str, Any]]:
    return [
        {"key": row.pair.key, "probabilities": [float(value) for value in values]}
        for row, values in zip(fold.test, probabilities, strict=True)
    ]

"""The training loop: a plain one, that goes on after any interruption as if there had been none."""

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training.config import RunConfig
from training.data.dataset import (
    EvaluationPairs,
    TrainingPairs,
    inputs_of,
    labelled,
    training_loader,
)
from training.data.prepare import Prepared, PreparedRow
from training.divergence import Diverged, DivergenceWatch
from training.files import write_text_atomically
from training.initial import read_initial
from training.losses import loss_of
from training.metrics import uar, uf1
from training.networks import make_deterministic
from training.run import CHECKPOINT, Basis, Run, autocast, learning_rate
from training.run_log import Event, RunLog, Scores

__all__ = [
    "CHECKPOINT",
    "Basis",
    "Diverged",
    "Event",
    "FitData",
    "Run",
    "Scores",
    "fit",
    "learning_rate",
    "predict",
    "score_network",
    "stop_on_signals",
    "time_step",
]


@dataclass(frozen=True, slots=True)
class FitData:
    """What a run trains on. Rows of labels that the config leaves out are passed over."""

    prepared: Prepared
    train: Sequence[PreparedRow]
    watch: Sequence[PreparedRow] = ()
    """Scored now and then for people to look at; nothing is chosen by it."""

    def basis(self, config: RunConfig) -> Basis:
        """Return the steps, data sets and digest of what is trained on. Raises: ValueError."""
        rows = labelled(self.train, config)
        lines = [f"{row.pair.key}\t{config.labels.class_of(row.pair.label)}\n" for row in rows]
        return Basis(
            steps=config.steps_for(len(rows)),
            datasets=tuple(sorted({row.pair.dataset for row in rows})),
            rows_sha256=hashlib.sha256("".join(lines).encode()).hexdigest(),
        )


def fit(  # noqa: PLR0913 - what, on what, where to, and who is told
    config: RunConfig,
    data: FitData,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    report: Callable[[Event], None] = lambda _event: None,
    should_stop: Callable[[], bool] = lambda: False,
    each_epoch: Callable[[int, Run], None] = lambda _epoch, _run: None,
    events: Path | None = None,
    keep_last: bool = True,
) -> Run:
    """Train to the last step, from the checkpoint in `out` where there is one.

    Writes the checkpoint, `config.json`, `steps.csv` and `scores.csv` there. Stops early, with a
    checkpoint, once `should_stop` says so. `each_epoch` hears the number of each epoch that ends
    (from 1; the last may be a part of one) and may do with the run's weights what it likes but
    change them: the random numbers that it draws are not the run's. TensorBoard's events go to
    `events`, `tensorboard` in `out` when None. Without `keep_last` no checkpoint of the last step
    is written, for a caller who keeps only what the run answers.

    Raises: ValueError naming a row whose label the config does not know, or in what the checkpoint
    differs; Diverged; OSError. A checkpoint that is there survives all of them.
    """
    config.labels.check(row.pair for row in (*data.train, *data.watch))
    train = TrainingPairs(data.prepared, data.train, config)
    watch = _spread(
        EvaluationPairs(data.prepared, data.watch, config),
        config.evaluate_pairs,
    )
    _set_up(config)
    out.mkdir(parents=True, exist_ok=True)
    run = _begin(config, data.basis(config), out / CHECKPOINT, torch.device(device))
    write_text_atomically(out / "config.json", config.to_json())
    epoch_steps = math.ceil(len(train) / config.batch_size)
    astray = DivergenceWatch(config)
    pin = run.device.type == "cuda"
    with RunLog(out, run.step, events or out / "tensorboard") as log:
        started = time.perf_counter()
        for batch in training_loader(train, config, run.step, run.steps, pin=pin):
            rate = learning_rate(config, run.step, run.steps)
            loss = run.train_step(*batch)
            seconds = time.perf_counter() - started
            last = run.step == run.steps
            stop = should_stop()
            scores = None
            if len(watch) and (last or run.step % config.evaluate_every == 0):
                scores = score_network(run.averaged_network(), watch, config, run.device)
            event = Event(run.step, loss, rate, seconds, scores)
            log.write(event)
            astray.see(run.step, loss, rate)
            if last or run.step % epoch_steps == 0:
                with run.numbers_kept():
                    each_epoch(math.ceil(run.step / epoch_steps), run)
            due = run.step % config.checkpoint_every == 0 and astray.calm
            if keep_last if last else stop or due:
                run.save(out / CHECKPOINT)
            report(event)
            if stop:
                break
            started = time.perf_counter()
    return run


def _set_up(config: RunConfig) -> None:
    """Fix what the whole process computes with."""
    if config.threads:
        torch.set_num_threads(config.threads)
    cv2.setNumThreads(1)  # torch has the cores
    make_deterministic()


def _begin(config: RunConfig, basis: Basis, checkpoint: Path, device: torch.device) -> Run:
    initial = read_initial(config)
    if initial is not None:
        seen = {*basis.datasets, *initial.spec.provenance.datasets}
        basis = replace(
            basis,
            datasets=tuple(sorted(seen)),
            init=initial.description,
            init_sha256=initial.sha256,
        )
    if checkpoint.is_file():
        return Run.load(checkpoint, config, basis, device)
    return Run(config, basis, device, initial)


def _spread(pairs: EvaluationPairs, most: int) -> EvaluationPairs:
    """Keep at most `most` pairs, evenly spread over the rows."""
    if len(pairs) > most:
        pairs.keep(np.linspace(0, len(pairs) - 1, most).round().astype(int).tolist())
    return pairs


@torch.no_grad()
def score_network(
    network: nn.Module, pairs: EvaluationPairs, config: RunConfig, device: torch.device
) -> Scores | None:
    """Score a network on pairs as serving sees them; None where there are none."""
    if not len(pairs):
        return None
    batches = DataLoader(pairs, config.batch_size, generator=torch.Generator())
    logits, labels = [], []
    for image, flow, label in batches:
        with autocast(config, device):
            logits.append(network(image.to(device), flow.to(device)).float().cpu())
        labels.append(label)
    all_logits, truth = torch.cat(logits), torch.cat(labels)
    predictions = all_logits.argmax(dim=1).numpy()
    classes = len(config.classes)
    return Scores(
        loss_of(config)(all_logits, truth).item(),
        uf1(truth.numpy(), predictions, classes),
        uar(truth.numpy(), predictions, classes),
    )


@torch.no_grad()
def predict(
    network: nn.Module,
    prepared: Prepared,
    rows: Sequence[PreparedRow],
    config: RunConfig,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """Return the probabilities (N, K) that a network gives to rows of any label, in their order.

    As serving computes them: the spec's magnification, single precision, nothing random. The
    network is in evaluation mode on `device`.
    """
    answers = np.empty((len(rows), len(config.classes)), np.float32)
    for start in range(0, len(rows), config.batch_size):
        part = slice(start, start + config.batch_size)
        image, flow = _inputs(prepared, rows[part], config)
        logits = network(image.to(device), flow.to(device))
        answers[part] = logits.softmax(dim=1).cpu().numpy()
    return answers


def _inputs(
    prepared: Prepared, rows: Sequence[PreparedRow], config: RunConfig
) -> tuple[Tensor, Tensor]:
    pairs = [inputs_of(*prepared.arrays(row), config, None) for row in rows]
    images, flows = (np.stack(parts) for parts in zip(*pairs, strict=True))
    return torch.from_numpy(images), torch.from_numpy(flows)


def time_step(
    config: RunConfig, data: FitData, *, device: torch.device | str = "cpu", steps: int = 8
) -> float:
    """Return the median seconds of a training step here and now, on a throw-away run."""
    _set_up(config)
    basis = replace(data.basis(config), steps=steps)
    run = Run(config, basis, torch.device(device))
    pairs = TrainingPairs(data.prepared, data.train, config)
    pin = run.device.type == "cuda"
    durations = []
    started = time.perf_counter()
    for batch in training_loader(pairs, config, 0, steps, pin=pin):
        run.train_step(*batch)
        durations.append(time.perf_counter() - started)
        started = time.perf_counter()
    return float(np.median(durations[2:]))


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into an answer: the function says whether one has come."""
    came: list[int] = []
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {
        number: signal.signal(number, lambda which, _frame: came.append(which))
        for number in watched
    }
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The training loop: a plain one, that goes on after any interruption as if there had been none."""

import csv
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pytorch_optimizer import Adan
from torch import Tensor
from torch.utils.data import DataLoader

from model.network import Mfdan
from training.config import RunConfig
from training.data.dataset import EvaluationPairs, TrainingPairs, rows_of, training_loader
from training.data.prepare import Prepared
from training.files import write_atomically, write_text_atomically
from training.losses import focal_loss
from training.metrics import uar, uf1
from training.provenance import current_commit

__all__ = [
    "CHECKPOINT",
    "Event",
    "Run",
    "Scores",
    "fit",
    "learning_rate",
    "score_network",
    "stop_on_signals",
    "time_step",
]

CHECKPOINT = "checkpoint.pt"
_STEPS_LOG = "steps.csv"
_SCORES_LOG = "scores.csv"
_FREE_TO_CHANGE = frozenset(
    (
        "checkpoint_every",
        "evaluate_every",
        "evaluate_pairs",
        "loader_workers",
        "steps",
        "threads",
    )
)
"""Fields that a resumed run may change; only `steps` changes the course of training (and
`threads` the rounding of sums)."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Of the averaged weights on held-out pairs."""

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
    """On the calibration subjects, after every `evaluate_every` steps and after the last."""


def learning_rate(config: RunConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to `final_rate` (ours); steps count from 0."""
    warmup = round(config.warmup_fraction * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    fall = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (config.steps - warmup)))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * fall)


class Run:
    """The state of a run: network, averaged weights, optimiser, step and random numbers."""

    def __init__(self, config: RunConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.step = 0
        self.commit = current_commit()
        self.network = Mfdan(config.network).train()
        self.average = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self.optimiser = Adan(
            self.network.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_gradient_norm,
        )

    def train_step(self, image: Tensor, flow: Tensor, labels: Tensor) -> float:
        """Take one step on a batch; return its loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
            logits = self.network(image, flow)
        loss = focal_loss(logits.float(), labels, self.config.focal_gamma)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's own
        self.optimiser.step()
        self.step += 1
        self._update_average()
        return loss.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the average follows closely, lest it remember the random start.
        decay = min(self.config.average_decay, self.step / (self.step + 9))
        for name, parameter in self.network.named_parameters():
            self.average[name].lerp_(parameter, 1 - decay)

    def averaged_network(self) -> Mfdan:
        """Return the network that is scored and exported, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):  # its random start must not cost the run numbers
            network = Mfdan(self.config.network)
        network.load_state_dict(self.average)
        return network.eval()

    def save(self, path: Path) -> None:
        """Write a checkpoint that `load` continues from, bit for bit."""
        state = {
            "config": self.config.to_json(),
            "step": self.step,
            "commit": self.commit,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
        }
        write_atomically(path, lambda temporary: torch.save(state, temporary))

    @classmethod
    def load(cls, path: Path, config: RunConfig | None = None) -> "Run":
        """Read a checkpoint, to go on under `config` (its own when None).

        Raises: FileNotFoundError; ValueError if the file is no checkpoint, or if `config` differs
        where it must not.
        """
        state = _read(path)
        try:
            saved = RunConfig.from_json(state["config"])
            if config is not None:
                _check_same(saved, config)
            run = cls(config or saved)
            run.step, run.commit = state["step"], state["commit"]
            run.network.load_state_dict(state["network"])
            run.average = state["average"]
            run.optimiser.load_state_dict(state["optimiser"])
            torch.set_rng_state(state["random"])
        except (KeyError, RuntimeError, TypeError) as fault:
            raise ValueError(f"{path} is not a checkpoint that `fit` wrote") from fault
        return run


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except OSError:
        raise
    except Exception as fault:  # torch's reader raises whatever the bytes lead it to
        raise ValueError(f"{path} is damaged, or no checkpoint") from fault
    return state


def _check_same(saved: RunConfig, config: RunConfig) -> None:
    changed = [
        name
        for name in RunConfig.__dataclass_fields__
        if name not in _FREE_TO_CHANGE and getattr(saved, name) != getattr(config, name)
    ]
    if changed:
        raise ValueError(
            f"the checkpoint was made with another {', '.join(changed)}; choose another folder"
        )


@torch.no_grad()
def score_network(network: Mfdan, pairs: EvaluationPairs, config: RunConfig) -> Scores | None:
    """Score a network on pairs as serving sees them; None where there are none."""
    if not len(pairs):
        return None
    batches = DataLoader(pairs, config.batch_size, generator=torch.Generator())
    logits, labels = [], []
    for image, flow, label in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            logits.append(network(image, flow).float())
        labels.append(label)
    all_logits, truth = torch.cat(logits), torch.cat(labels)
    predictions = all_logits.argmax(dim=1).numpy()
    classes = len(config.classes)
    return Scores(
        focal_loss(all_logits, truth, config.focal_gamma).item(),
        uf1(truth.numpy(), predictions, classes),
        uar(truth.numpy(), predictions, classes),
    )


def fit(
    config: RunConfig,
    prepared: Prepared,
    out: Path,
    *,
    report: Callable[[Event], None] = lambda _event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Train to `config.steps`, from the checkpoint in `out` where there is one.

    Writes the checkpoint, `config.json`, `steps.csv` and `scores.csv` there. Stops early, with a
    checkpoint, once `should_stop` says so. Raises: ValueError.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    run = Run.load(checkpoint, config) if checkpoint.is_file() else Run(config)
    write_text_atomically(out / "config.json", config.to_json())
    _cut_logs(out, run.step)
    if config.threads:
        torch.set_num_threads(config.threads)
    cv2.setNumThreads(1)  # torch has the cores
    torch.use_deterministic_algorithms(mode=True)
    train = TrainingPairs(prepared, rows_of(prepared, config.holdout, "train"), config)
    held_out = _spread(
        EvaluationPairs(prepared, rows_of(prepared, config.holdout, "val"), config),
        config.evaluate_pairs,
    )
    started = time.perf_counter()
    for image, flow, labels in training_loader(train, config, run.step, config.steps):
        rate = learning_rate(config, run.step)
        loss = run.train_step(image, flow, labels)
        seconds = time.perf_counter() - started
        last = run.step == config.steps
        stop = should_stop()
        scores = None
        if last or run.step % config.evaluate_every == 0:
            scores = score_network(run.averaged_network(), held_out, config)
        _log(out, Event(run.step, loss, rate, seconds, scores))
        if last or stop or run.step % config.checkpoint_every == 0:
            run.save(checkpoint)
        report(Event(run.step, loss, rate, seconds, scores))
        if stop:
            break
        started = time.perf_counter()
    return run


def _spread(pairs: EvaluationPairs, most: int) -> EvaluationPairs:
    """Keep at most `most` pairs, evenly spread over the rows."""
    if len(pairs) > most:
        kept = np.linspace(0, len(pairs) - 1, most).round().astype(int)
        pairs.rows = [pairs.rows[index] for index in kept]
    return pairs


def time_step(config: RunConfig, prepared: Prepared, steps: int = 8) -> float:
    """Return the median seconds of a training step here and now, on a throw-away run."""
    run = Run(replace(config, steps=max(steps, config.steps)))
    pairs = TrainingPairs(prepared, rows_of(prepared, config.holdout, "train"), config)
    durations = []
    started = time.perf_counter()
    for batch in training_loader(pairs, config, 0, steps):
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


def _log(out: Path, event: Event) -> None:
    _append(
        out / _STEPS_LOG,
        {
            "step": event.step,
            "loss": f"{event.loss:.6f}",
            "learning_rate": f"{event.learning_rate:.3e}",
            "seconds": f"{event.seconds:.3f}",
        },
    )
    if event.scores:
        scores = event.scores
        _append(
            out / _SCORES_LOG,
            {
                "step": event.step,
                "val_loss": f"{scores.loss:.6f}",
                "val_uf1": f"{scores.uf1:.4f}",
                "val_uar": f"{scores.uar:.4f}",
            },
        )


def _append(path: Path, row: Mapping[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def _cut_logs(out: Path, step: int) -> None:
    """Drop log rows of steps after the checkpoint: they will be taken again."""
    for path in (out / _STEPS_LOG, out / _SCORES_LOG):
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [row for row in lines[1:] if int(row.split(",")[0]) <= step]
            write_text_atomically(path, "".join(lines[:1] + kept))

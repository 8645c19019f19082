"""Prepared pairs → samples of the network, in an order that is a function of the step alone."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from model.pipeline import network_inputs
from model.tensors import flow_tensor
from training.augment import augment
from training.config import RunConfig
from training.data.pairs import Holdout, Split
from training.data.prepare import Prepared, PreparedRow

__all__ = [
    "EvaluationPairs",
    "StepSampler",
    "TrainingPairs",
    "class_indices",
    "inputs_of",
    "labelled",
    "rows_of",
    "training_loader",
]

Sample = tuple[Tensor, Tensor, int]
"""image (3, S, S), flow (3, S, S), class index; batched by the loader."""


def labelled(rows: Iterable[PreparedRow], config: RunConfig) -> list[PreparedRow]:
    """Return the rows whose label is one of the network's classes.

    Raises: ValueError naming the rows whose label the config does not know.
    """
    rows = list(rows)
    labels = config.labels
    labels.check(row.pair for row in rows)
    return [row for row in rows if labels.index_of(row.pair.label) is not None]


def class_indices(rows: Iterable[PreparedRow], config: RunConfig) -> list[int]:
    """Return the class of each row, as the place of its logit; all of them have one."""
    labels = config.labels
    return [labels.classes.index(labels.class_of(row.pair.label) or "") for row in rows]


def rows_of(prepared: Prepared, holdout: Holdout, split: Split) -> list[PreparedRow]:
    """Return the rows of a split, whatever their label."""
    return [row for row in prepared.rows if holdout.split_of(row.pair.person) == split]


def inputs_of(
    onset: NDArray[np.uint8], flow: NDArray[np.float32], config: RunConfig, alpha: float | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make the inputs of the config's network from an aligned pair: image and flow, (3, S, S).

    `alpha` is the magnification, the spec's when None. STSTNet passes the image over, and making
    one is most of the work, so its image is blank.
    """
    if config.method == "ststnet":
        motion = flow_tensor(flow, config.normalisation)
        return np.zeros_like(motion), motion
    return network_inputs(onset, flow, config.spec(), alpha)


class EvaluationPairs(Dataset[Sample]):
    """Labelled pairs as serving sees them: the spec's magnification, nothing random."""

    def __init__(self, prepared: Prepared, rows: Sequence[PreparedRow], config: RunConfig) -> None:
        self._prepared = prepared
        self._config = config
        self.rows = labelled(rows, config)
        self.targets = class_indices(self.rows, config)

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep these pairs only, in this order."""
        self.rows = [self.rows[index] for index in indices]
        self.targets = [self.targets[index] for index in indices]

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        onset, flow = self._prepared.arrays(row)
        image, motion = inputs_of(onset, flow, self._config, None)
        return torch.from_numpy(image), torch.from_numpy(motion), self.targets[index]


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample of a run: which row, and a number that no other sample of the run has."""

    row: int
    number: int


class TrainingPairs(Dataset[Sample]):
    """Labelled pairs, each changed at random as the config says.

    What is drawn for a sample depends on the run's seed and the sample's number alone, never on
    the process that prepares it or on what was drawn before.
    """

    def __init__(self, prepared: Prepared, rows: Sequence[PreparedRow], config: RunConfig) -> None:
        self._prepared = prepared
        self._config = config
        self.rows = labelled(rows, config)
        self.targets = class_indices(self.rows, config)
        if not self.rows:
            raise ValueError("no labelled pair is left to train on")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> Sample:
        config = self._config
        row = self.rows[draw.row]
        random = np.random.default_rng((config.seed, draw.number))
        onset, flow, alpha = augment(*self._prepared.arrays(row), config, random)
        image, motion = inputs_of(onset, flow, config, alpha)
        return torch.from_numpy(image), torch.from_numpy(motion), self.targets[draw.row]


class StepSampler(Sampler[list[Draw]]):
    """The batches of steps `first` … `last - 1`; each epoch has its own order.

    An epoch shows every row once or, balanced, every class equally often: as many samples as
    there are rows, and a class's rows take turns.
    """

    def __init__(self, targets: Sequence[int], config: RunConfig, first: int, last: int) -> None:
        self._targets = np.asarray(targets)
        self._config = config
        self._first = first
        self._last = last

    def __len__(self) -> int:
        return self._last - self._first

    def __iter__(self) -> Iterator[list[Draw]]:
        size, rows = self._config.batch_size, len(self._targets)
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self._first, self._last):
            batch = []
            for number in range(step * size, (step + 1) * size):
                if number // rows != epoch:
                    epoch = number // rows
                    order = self._order(epoch)
                batch.append(Draw(int(order[number % rows]), number))
            yield batch

    def _order(self, epoch: int) -> NDArray[np.int64]:
        random = np.random.default_rng((self._config.seed, epoch, 1))
        if self._config.balanced:
            return random.permutation(_balanced(self._targets, random))
        return random.permutation(len(self._targets))


def _balanced(targets: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Draw as many rows as there are, of every class equally many (give or take one)."""
    present = random.permutation(np.unique(targets))  # the first few get the odd samples
    counts = np.full(len(present), len(targets) // len(present))
    counts[: len(targets) % len(present)] += 1
    drawn = []
    for target, count in zip(present, counts, strict=True):
        members = np.flatnonzero(targets == target)
        rounds = [random.permutation(members) for _ in range(-(-count // len(members)))]
        drawn.append(np.concatenate(rounds)[:count])
    return np.concatenate(drawn)


def training_loader(
    pairs: TrainingPairs, config: RunConfig, first: int, last: int, *, pin: bool = False
) -> DataLoader[Sample]:
    """Load the batches of steps `first` … `last - 1`, into pinned memory for a GPU."""
    return DataLoader(
        pairs,
        batch_sampler=StepSampler(pairs.targets, config, first, last),
        num_workers=config.loader_workers,
        pin_memory=pin,
        # Its own generator: the loader would draw from torch's global one, and a resumed run
        # would then see other dropout than an uninterrupted one.
        generator=torch.Generator(),
        worker_init_fn=_start_worker,
    )


def _start_worker(_number: int) -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training loop decides when to stop

"""One fold of one method: trained on the training half, asked about the test half."""

import csv
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.network import Mfdan
from model.spec import ModelSpec
from training.config import RunConfig
from training.data.dataset import EvaluationPairs, class_indices
from training.data.prepare import Prepared, PreparedRow
from training.files import write_text_atomically
from training.folds import Fold
from training.loop import FitData, fit, predict
from training.run import Run

__all__ = ["CURVE_POINTS", "NETWORKS", "BestEpoch", "Outcome", "train_and_predict"]

NETWORKS = frozenset(("mfdan", "ststnet"))
"""Methods that are trained step by step."""
CURVE_POINTS = 200
"""Of a loss curve, at most."""
Probabilities = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class BestEpoch:
    """The epoch that the held-out people's own labels favour: a number that leaks them."""

    epoch: int
    """Counted from 1; of equally good ones the first."""
    right: int
    """Test clips that were answered right after it."""
    probabilities: Probabilities
    """(N, K)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one fold gave."""

    probabilities: Probabilities
    """(N, K), in the order of the fold's test half."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """Step and loss, evenly spread over the training; empty where nothing is trained by steps."""
    attention: dict[str, NDArray[np.float16]] = field(default_factory=dict)
    """Key of a test clip → `Mfdan.attention_maps` of it, (1 or 2, g, g)."""
    best_epoch: BestEpoch | None = None


def train_and_predict(  # noqa: PLR0913 - what, on what, where, how
    config: RunConfig,
    prepared: Prepared,
    fold: Fold,
    work: Path,
    *,
    device: str = "cpu",
    oracle: bool = False,
    events: Path | None = None,
) -> Outcome:
    """Train `config.method` on a fold's training half and predict its test half.

    A network is scored after its last step with its averaged weights; it goes on from the
    checkpoint in `work` where there is one. With `oracle` the test half is also scored after each
    epoch, which changes nothing of the training. TensorBoard's events go to `events`, into `work`
    when None. Raises: ValueError (Diverged, a checkpoint of
    another run), OSError.
    """
    if config.method in NETWORKS:
        return _network(config, prepared, fold, work, device=device, oracle=oracle, events=events)
    return Outcome(probabilities=np.asarray(_baseline(config, prepared, fold), np.float32))


def _baseline(config: RunConfig, prepared: Prepared, fold: Fold) -> NDArray[np.floating]:
    from training.baselines import FlowSvm, majority  # noqa: PLC0415 - loads scikit-learn

    truth = np.array(class_indices(fold.train, config))
    if config.method == "majority":
        return majority(truth, len(fold.test), len(config.classes))
    features = _features(prepared, config.spec().to_json())
    svm = FlowSvm(len(config.classes)).fit(_stack(features, fold.train), truth)
    return svm.predict(_stack(features, fold.test))


@functools.lru_cache(maxsize=1)
def _features(prepared: Prepared, spec_json: str) -> dict[str, NDArray[np.float32]]:
    """Return each clip's features: every fold of a worker needs those of all clips."""
    from training.baselines import flow_features  # noqa: PLC0415 - likewise

    rows = prepared.rows
    features = flow_features(prepared, rows, ModelSpec.from_json(spec_json))
    return {row.pair.key: each for row, each in zip(rows, features, strict=True)}


def _stack(
    features: dict[str, NDArray[np.float32]], rows: tuple[PreparedRow, ...]
) -> NDArray[np.float32]:
    return np.stack([features[row.pair.key] for row in rows])


def _network(  # noqa: PLR0913 - as its caller
    config: RunConfig,
    prepared: Prepared,
    fold: Fold,
    work: Path,
    *,
    device: str,
    oracle: bool,
    events: Path | None,
) -> Outcome:
    best = _BestSoFar(work / "best_epoch.json", config, prepared, fold, device)
    hear: dict[str, Any] = {"each_epoch": best.hear} if oracle else {}
    data = FitData(prepared, fold.train)
    # The answers are kept; of a paper-sized network a last checkpoint is half a gigabyte.
    run = fit(config, data, work, device=device, events=events, keep_last=False, **hear)
    network = run.averaged_network()
    return Outcome(
        probabilities=predict(network, prepared, fold.test, config, device),
        losses=_curve(work / "steps.csv"),
        attention=_attention(network, prepared, fold.test, config, device),
        best_epoch=best.read() if oracle else None,
    )


def _curve(path: Path) -> list[tuple[int, float]]:
    """Read a run's losses from its log, which an interruption does not lose, and thin them."""
    with path.open(newline="") as file:
        points = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    if len(points) <= CURVE_POINTS:
        return points
    kept = np.linspace(0, len(points) - 1, CURVE_POINTS).round().astype(int)
    return [points[index] for index in kept]


@torch.no_grad()
def _attention(
    network: nn.Module,
    prepared: Prepared,
    rows: tuple[PreparedRow, ...],
    config: RunConfig,
    device: str,
) -> dict[str, NDArray[np.float16]]:
    if not isinstance(network, Mfdan):
        return {}
    pairs = EvaluationPairs(prepared, rows, config)
    maps: dict[str, NDArray[np.float16]] = {}
    for index, row in enumerate(pairs.rows):
        image, flow, _label = pairs[index]
        (of_clip,) = network.attention_maps(image[None].to(device), flow[None].to(device))
        maps[row.pair.key] = of_clip.float().cpu().numpy().astype(np.float16)
    return maps


class _BestSoFar:
    """Keeps the best epoch in a file of the fold's work, so that an interruption does not lose it.

    An epoch that is trained again after an interruption gives the same answers again.
    """

    def __init__(
        self, path: Path, config: RunConfig, prepared: Prepared, fold: Fold, device: str
    ) -> None:
        self._path = path
        self._asked = (prepared, fold.test, config, device)
        self._truth = class_indices(fold.test, config)

    def hear(self, epoch: int, run: Run) -> None:
        """Score the test half after an epoch."""
        probabilities = predict(run.averaged_network(), *self._asked)
        right = int(np.sum(probabilities.argmax(axis=1) == self._truth))
        before = self.read() if self._path.is_file() else None
        if before is None or right > before.right:
            text = {"epoch": epoch, "right": right, "probabilities": probabilities.tolist()}
            write_text_atomically(self._path, json.dumps(text))

    def read(self) -> BestEpoch:
        """Return the best epoch so far."""
        stored = json.loads(self._path.read_text())
        return BestEpoch(
            epoch=stored["epoch"],
            right=stored["right"],
            probabilities=np.array(stored["probabilities"], np.float32),
        )

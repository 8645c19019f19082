"""The state of a run: what a checkpoint holds, and one step of it."""

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_optimizer import Adan
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.config import RunConfig
from training.divergence import Diverged
from training.files import write_atomically
from training.initial import Initial, start_from
from training.losses import loss_of
from training.networks import CPU, build_network
from training.provenance import current_commit

__all__ = ["CHECKPOINT", "Basis", "Run", "autocast", "learning_rate"]

CHECKPOINT = "checkpoint.pt"
_FREE_TO_CHANGE = frozenset(
    (
        "checkpoint_every",
        "epochs",
        "evaluate_every",
        "evaluate_pairs",
        "init",
        "loader_workers",
        "steps",
        "threads",
    )
)
"""Fields that a resumed run may change; only `steps` and `epochs` change the course of training
(and `threads` the rounding of sums). `init` may lie elsewhere: the basis holds its SHA-256."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Basis:
    """What a run stands on beside its config."""

    steps: int
    """In all: the schedule of the learning rate ends there."""
    datasets: tuple[str, ...] = ()
    """Names of the data sets that the weights have seen, those of `init` among them, sorted."""
    rows_sha256: str = ""
    """Of the keys and classes of the rows that are trained on, in their order."""
    init: str = ""
    """What the weights of `config.init` were made from; "" where they are drawn."""
    init_sha256: str = ""
    """Of that file."""


def learning_rate(config: RunConfig, step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to `final_rate` (ours); steps count from 0."""
    warmup = round(config.warmup_fraction * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    fall = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * fall)


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """Return the context in which a network runs: bfloat16 products where the config says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16)


class Run:
    """Network, averaged weights, optimiser, step and random numbers."""

    def __init__(
        self,
        config: RunConfig,
        basis: Basis,
        device: torch.device = CPU,
        initial: Initial | None = None,
    ) -> None:
        torch.manual_seed(config.seed)  # of the GPU's numbers too
        self.config = config
        self.basis = basis
        self.device = device
        self.step = 0
        self.commit = current_commit()
        # Drawn on the CPU: the start is the same on every device.
        network = build_network(config)
        if initial is not None:
            start_from(initial, network, config)
        self.network = network.to(device).train()
        self.average = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self.optimiser = _optimiser(config, self.network)

    @property
    def steps(self) -> int:
        """How many steps the whole run takes."""
        return self.basis.steps

    def train_step(self, image: Tensor, flow: Tensor, labels: Tensor) -> float:
        """Take one step on a batch; return its loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.steps)
        image, flow, labels = (
            part.to(self.device, non_blocking=True) for part in (image, flow, labels)
        )
        with autocast(self.config, self.device):
            logits = self.network(image, flow)
        loss = loss_of(self.config)(logits.float(), labels)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's own
        if self.config.optimiser == "adamw" and self.config.max_gradient_norm:  # Adan does it
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_gradient_norm)
        self.optimiser.step()
        self.step += 1
        self._update_average()
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}")
        return value

    def _diverged(self, what: str) -> Diverged:
        rate = learning_rate(self.config, self.step - 1, self.steps)
        return Diverged(self.config, self.step, what, rate)

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the average follows closely, lest it remember the random start.
        decay = min(self.config.average_decay, self.step / (self.step + 9))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call] # torch's own
        average(list(self.average.values()), list(self.network.parameters()), None)

    def averaged_network(self) -> nn.Module:
        """Return the network that is scored and exported, in evaluation mode on the run's device.

        Buffers (a batch norm's statistics) are those of the last step.
        """
        with self.numbers_kept():
            network = build_network(self.config)
        network.load_state_dict(self.network.state_dict() | self.average)
        return network.to(self.device).eval()

    @contextmanager
    def numbers_kept(self) -> Iterator[None]:
        """Whatever draws random numbers inside, the run's own go on as if nothing had."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield

    def save(self, path: Path) -> None:
        """Write a checkpoint that `load` continues from, bit for bit on the same device.

        Where that fails, the one before stays. Raises: OSError naming the file; Diverged, if a
        weight is no number any more.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.network.parameters()):
            raise self._diverged("a weight is no number any more")
        state = {
            "config": self.config.to_json(),
            "basis": asdict(self.basis),
            "step": self.step,
            "commit": self.commit,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        write_atomically(path, functools.partial(_write, state))

    @classmethod
    def load(
        cls,
        path: Path,
        config: RunConfig | None = None,
        basis: Basis | None = None,
        device: torch.device = CPU,
    ) -> "Run":
        """Read a checkpoint, to go on under `config` and `basis` (its own when None).

        A checkpoint of any device goes on on any other. Raises: FileNotFoundError; ValueError if
        the file is no checkpoint, or if config or basis differ where they must not.
        """
        state = _read(path)
        try:
            saved = RunConfig.from_json(state["config"])
            stood = _basis(state, saved)
            if config is not None:
                _check_same(saved, config)
            if basis is not None:
                _check_basis(stood, basis)
            run = cls(config or saved, basis or stood, device)
            run.step, run.commit = state["step"], state["commit"]
            run.network.load_state_dict(state["network"])
            run.average = {name: value.to(device) for name, value in state["average"].items()}
            run.optimiser.load_state_dict(state["optimiser"])
            torch.set_rng_state(state["random"])
            if device.type == "cuda" and "random_cuda" in state:
                torch.cuda.set_rng_state(state["random_cuda"], device)
        except (KeyError, RuntimeError, TypeError) as fault:
            raise ValueError(f"{path} is not a checkpoint that `fit` wrote") from fault
        return run


def _write(state: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as fault:
        # torch's writer trips over its own clean-up, and hides what the system said.
        if isinstance(fault.__context__, OSError):
            raise fault.__context__ from None
        raise


def _optimiser(config: RunConfig, network: nn.Module) -> torch.optim.Optimizer:
    if config.optimiser == "adamw":
        return torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
    return Adan(
        network.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_gradient_norm,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        # To the CPU: random states live there, and the rest is moved as it is loaded.
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as fault:  # torch's reader raises whatever the bytes lead it to
        raise ValueError(f"{path} is damaged, or no checkpoint") from fault
    return state


def _basis(state: dict[str, Any], config: RunConfig) -> Basis:
    """Read what a checkpoint stands on; those of version 0.1 held nothing of it."""
    if "basis" not in state:
        return Basis(steps=config.steps or state["step"])
    stored = state["basis"]
    return Basis(**{**stored, "datasets": tuple(stored["datasets"])})


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


def _check_basis(stood: Basis, basis: Basis) -> None:
    if stood.rows_sha256 and stood.rows_sha256 != basis.rows_sha256:
        raise ValueError(
            "the checkpoint was trained on other rows than those given now (clips, their order or "
            "their classes have changed); choose another folder, or give the rows of before"
        )
    if stood.init_sha256 != basis.init_sha256:
        raise ValueError(
            f"the checkpoint started from {_start(stood)}, this run from {_start(basis)}; choose "
            "another folder"
        )


def _start(basis: Basis) -> str:
    if not basis.init_sha256:
        return "fresh weights"
    return f"{basis.init.split(' (')[0]}, SHA-256 {basis.init_sha256[:12]}…"

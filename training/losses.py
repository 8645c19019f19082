"""Losses, as pure functions."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own docs use

from training.config import RunConfig

__all__ = ["focal_loss", "loss_of"]


def focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean over the batch of (1 - p)^γ · (-log p), p the probability of the true class.

    Convention: logits (B, K) float, targets (B,) int64; no class weights. γ = 0 is cross-entropy.
    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4.
    """
    log_p = F.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
    # 1 - p through expm1: exact where p is near 1.
    return torch.mean((-torch.expm1(log_p)) ** gamma * -log_p)


def loss_of(config: RunConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of a run: logits (B, K) and targets (B,) → mean over the batch."""
    if config.loss == "cross_entropy":
        return F.cross_entropy
    return functools.partial(focal_loss, gamma=config.focal_gamma)

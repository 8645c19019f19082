"""The library's Adan is the paper's: two steps of Algorithm 1 (Xie et al. 2022) by hand.

And AdamW, its ablation, has its gradients clipped as Adan clips its own.
"""

import math
from dataclasses import replace

import pytest
import torch
from drawn_pairs import TINY
from pytorch_optimizer import Adan

from training.run import Basis, Run


@pytest.mark.parametrize("foreach", [True, False])
def test_two_steps_of_adan_worked_out_by_hand(foreach: bool) -> None:  # noqa: FBT001 - a parameter of the test
    rate, decay, first, second = 0.1, 0.02, 2.0, -1.0
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimiser = Adan([weight], lr=rate, weight_decay=decay, foreach=foreach)

    # Step 1: bias correction leaves m = g and √n = |g|, there is no difference yet.
    weight.grad = torch.tensor([first], dtype=torch.float64)
    optimiser.step()
    by_hand = (1.0 - rate * 1.0) / (1 + rate * decay)
    assert weight.item() == pytest.approx(by_hand)

    # Step 2, with β = (.98, .92, .99) the weights of the old moments.
    weight.grad = torch.tensor([second], dtype=torch.float64)
    optimiser.step()
    m = (0.98 * 0.02 * first + 0.02 * second) / (1 - 0.98**2)
    v = 0.08 * (second - first) / (1 - 0.92**2)
    looked_ahead = second + 0.92 * (second - first)
    n = (0.99 * 0.01 * first**2 + 0.01 * looked_ahead**2) / (1 - 0.99**2)
    by_hand = (by_hand - rate * (m + 0.92 * v) / math.sqrt(n)) / (1 + rate * decay)
    assert weight.item() == pytest.approx(by_hand)


@pytest.mark.parametrize("optimiser", ["adan", "adamw"])
def test_gradients_are_scaled_down_to_the_norm_of_the_config(optimiser: str) -> None:
    """The first moment after one step is 1 - β₁ times the gradient that was used."""
    config = replace(TINY, optimiser=optimiser, max_gradient_norm=0.001)
    run = Run(config, Basis(steps=4))
    image, flow = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    run.train_step(image, flow, torch.tensor([0, 1, 2, 0]))
    share = {"adan": 0.02, "adamw": 0.1}[optimiser]
    moments = [state["exp_avg"] for state in run.optimiser.state.values()]
    norm = math.sqrt(sum(moment.square().sum().item() for moment in moments)) / share
    assert norm == pytest.approx(0.001, rel=1e-3)
    assert isinstance(run.optimiser, {"adan": Adan, "adamw": torch.optim.AdamW}[optimiser])

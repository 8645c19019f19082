import math
from dataclasses import replace

import pytest
import torch
from drawn_pairs import TINY
from hypothesis import given
from hypothesis import strategies as st

from training.losses import focal_loss, loss_of


def logits_of(*rows: tuple[float, ...]) -> torch.Tensor:
    """Logits whose softmax is the given probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def test_focal_loss_of_two_pairs_worked_out_by_hand() -> None:
    """True classes have p = .5 and p = .8: mean of .5²·ln 2 and .2²·ln 1.25."""
    logits = logits_of((0.5, 0.3, 0.2), (0.1, 0.1, 0.8))
    expected = (0.25 * math.log(2) + 0.04 * math.log(1.25)) / 2
    assert focal_loss(logits, torch.tensor([0, 2])).item() == pytest.approx(expected)


def test_gamma_zero_is_cross_entropy() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(
        focal_loss(logits, labels, gamma=0.0), torch.nn.functional.cross_entropy(logits, labels)
    )


@given(margin=st.floats(-80, 80))
def test_gradient_is_finite_however_sure_the_network_is(margin: float) -> None:
    logits = torch.tensor([[margin, 0.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0])).backward()  # type: ignore[no-untyped-call] # torch's own
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_config_names_the_loss_of_its_run() -> None:
    logits = logits_of((0.5, 0.3, 0.2), (0.1, 0.1, 0.8))
    truth = torch.tensor([0, 2])
    entropy = (math.log(2) + math.log(1.25)) / 2
    focal = (0.5 * math.log(2) + 0.2 * math.log(1.25)) / 2  # γ = 1
    assert loss_of(replace(TINY, loss="cross_entropy"))(logits, truth) == pytest.approx(entropy)
    assert loss_of(replace(TINY, focal_gamma=1.0))(logits, truth) == pytest.approx(focal)

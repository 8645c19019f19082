import math
from dataclasses import replace

import pytest
from drawn_pairs import TINY

from training.divergence import PATIENCE, TOO_HIGH, Diverged, DivergenceWatch, chance_loss

CHANCE = 4 / 9 * math.log(3)  # (1 - 1/3)² · ln 3: focal loss, γ = 2, three classes


def test_guessing_costs_what_the_formula_says() -> None:
    assert chance_loss(TINY) == pytest.approx(CHANCE)
    assert chance_loss(replace(TINY, loss="cross_entropy")) == pytest.approx(math.log(3))


def test_a_loss_that_stays_far_above_guessing_is_divergence() -> None:
    watch = DivergenceWatch(TINY)
    for step in range(1, PATIENCE):
        watch.see(step, 1.01 * TOO_HIGH * CHANCE, 1e-4)
    with pytest.raises(Diverged, match=f"step {PATIENCE}: .*guessing \\(0.488\\), now it is 1.97"):
        watch.see(PATIENCE, 1.01 * TOO_HIGH * CHANCE, 1e-4)


def test_a_loss_near_guessing_is_none_however_long() -> None:
    watch = DivergenceWatch(TINY)
    for step in range(1, 10 * PATIENCE):
        watch.see(step, 0.99 * TOO_HIGH * CHANCE, 1e-4)
    assert watch.calm


def test_spikes_that_training_recovers_from_are_none() -> None:
    watch = DivergenceWatch(TINY)
    for step in range(1, 4 * PATIENCE):
        watch.see(step, 1e6 if step % 5 < 2 else 0.1, 1e-4)


def test_no_checkpoint_is_worth_keeping_while_the_loss_is_high() -> None:
    watch = DivergenceWatch(TINY)
    assert watch.calm
    watch.see(1, 0.5, 1e-4)
    watch.see(2, 50.0, 1e-4)
    assert not watch.calm
    watch.see(3, 0.5, 1e-4)
    assert watch.calm


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({}, "a lower learning_rate or a longer warmup_fraction. The last"),
        ({"bfloat16": True}, "a longer warmup_fraction or bfloat16 = false"),
        ({"max_gradient_norm": 0.0}, "a longer warmup_fraction or a max_gradient_norm"),
    ],
)
def test_the_error_says_what_to_try(change: dict[str, float], advice: str) -> None:
    assert advice in str(Diverged(replace(TINY, **change), 3, "the loss is nan", 1e-3))

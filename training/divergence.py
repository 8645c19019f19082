"""A run that has gone astray says so, instead of wasting the night."""

from collections import deque

import torch

from training.config import RunConfig
from training.losses import loss_of

__all__ = ["PATIENCE", "TOO_HIGH", "Diverged", "DivergenceWatch", "chance_loss"]

TOO_HIGH = 4.0
"""A mean loss above so many times that of even guessing is divergence (ours): an untrained network
starts near 1, one that merely learns nothing stays there."""
PATIENCE = 50
"""Steps of the mean. In it a loss counts for at most twice the limit, so that it takes half of them
to cross it: a spike that training recovers from is no divergence."""


class Diverged(ValueError):
    """The loss is no number any more, or far above that of guessing for long."""

    def __init__(self, config: RunConfig, step: int, what: str, rate: float) -> None:
        remedies = ["a lower learning_rate", "a longer warmup_fraction"]
        if not config.max_gradient_norm:
            remedies.append("a max_gradient_norm (5 is the default)")
        if config.bfloat16:
            remedies.append("bfloat16 = false")
        super().__init__(
            f"training diverged at step {step}: {what}, at learning rate {rate:.1e}; try "
            f"{', '.join(remedies[:-1])} or {remedies[-1]}. The last checkpoint before it stays"
        )


def chance_loss(config: RunConfig) -> float:
    """Return the loss of giving every class the same probability: ln K, for cross-entropy."""
    even = torch.zeros(1, len(config.classes))
    return loss_of(config)(even, torch.tensor([0])).item()


class DivergenceWatch:
    """Follows the loss of one run."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._limit = TOO_HIGH * chance_loss(config)
        self._recent: deque[float] = deque(maxlen=PATIENCE)

    def see(self, step: int, loss: float, rate: float) -> None:
        """Take note of one step's loss. Raises: Diverged."""
        self._recent.append(min(loss, 2 * self._limit))
        if len(self._recent) == PATIENCE and not self.calm:
            what = (
                f"for {PATIENCE} steps the loss was on average more than {TOO_HIGH:g} times that "
                f"of guessing ({self._limit / TOO_HIGH:.3g}), now it is {loss:.3g}"
            )
            raise Diverged(self._config, step, what, rate)

    @property
    def calm(self) -> bool:
        """Whether the mean of late is below the limit: then a checkpoint is worth keeping."""
        return sum(self._recent) <= self._limit * len(self._recent)

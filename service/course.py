"""How far one request has come, and how fast requests are answered."""

import time
from dataclasses import dataclass, field

from service.answers import Moments
from service.observer import Place

__all__ = ["Course", "Pace"]

_MEMORY = 0.95
"""What a completion weighs, once another one came."""


@dataclass(slots=True, eq=False)
class Course:
    """How far one pair, clip or stack of tensors has come."""

    deadline_s: float
    """From the moment it was asked for."""
    asked_ns: int = field(default_factory=time.time_ns)
    asked: float = field(default_factory=time.perf_counter)
    begun: float | None = None
    prepared: float | None = None

    @property
    def place(self) -> Place:
        """Where it is now."""
        if self.begun is None:
            return "waiting"
        return "working" if self.prepared is None else "network"

    def moments(self, answered: float) -> Moments:
        """Return when what happened; `answered` is of `time.perf_counter`."""
        assert self.begun is not None  # noqa: S101 - an answered one has been worked on
        assert self.prepared is not None  # noqa: S101 - likewise
        return Moments(
            self.asked_ns, self._at(self.begun), self._at(self.prepared), self._at(answered)
        )

    def infer_s(self, answered: float) -> float:
        """Return how long the network took, with the wait for it; `answered` likewise."""
        assert self.prepared is not None  # noqa: S101 - likewise
        return answered - self.prepared

    def _at(self, moment: float) -> int:
        return self.asked_ns + round((moment - self.asked) * 1e9)


class Pace:
    """The mean time between two completions while there is work, of the last few dozen."""

    def __init__(self) -> None:
        self._since = self._total_s = self._completions = 0.0

    @property
    def seconds(self) -> float:
        """Of one completion; 0 before the first."""
        return self._total_s / self._completions if self._completions else 0.0

    def begin(self, under_way: int, more: int) -> None:
        """Hear of new work: idle time up to here does not count."""
        if more and not under_way:
            self._since = time.perf_counter()

    def done(self, count: int) -> None:
        """Hear of completions."""
        if not count:
            return
        now = time.perf_counter()
        kept = _MEMORY**count
        self._total_s = kept * self._total_s + now - self._since
        self._completions = kept * self._completions + count
        self._since = now

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
    place: Place = "waiting"
    """Where it is now."""
    begun: float | None = None
    """When a worker took it; the next three follow it in this order."""
    prepared: float | None = None
    """When the worker was done: the network is asked."""
    inferred: float | None = None
    """When the network had answered."""
    resumed: float | None = None
    """When a worker took it again, to measure what the fused graph made."""
    answered: float | None = None
    """When all was there that the answer tells."""

    def taken(self) -> float:
        """Note that a worker takes it, for the first time or again; return its age, seconds."""
        now = time.perf_counter()
        if self.begun is None:
            self.begun = now
        elif self.inferred is not None:
            self.resumed = now
        self.place = "working"
        return now - self.asked

    def asks(self) -> None:
        """Note that the network is asked; once more, where a fused run was lost."""
        self.prepared = time.perf_counter()
        self.place = "network"

    def measures(self) -> None:
        """Note that the network has answered, and that a worker is needed again."""
        self.inferred = time.perf_counter()
        self.place = "waiting"

    def moments(self) -> Moments:
        """Return when what happened, of one that is answered."""
        assert self.begun is not None  # noqa: S101 - an answered one has been worked on
        assert self.prepared is not None  # noqa: S101 - likewise
        assert self.inferred is not None  # noqa: S101 - likewise
        assert self.answered is not None  # noqa: S101 - likewise
        return Moments(
            asked_ns=self.asked_ns,
            begun_ns=self._at(self.begun),
            prepared_ns=self._at(self.prepared),
            inferred_ns=self._at(self.inferred),
            resumed_ns=self._at(self.inferred if self.resumed is None else self.resumed),
            answered_ns=self._at(self.answered),
        )

    @property
    def infer_s(self) -> float:
        """How long the network took, with the wait for it."""
        assert self.prepared is not None  # noqa: S101 - likewise
        assert self.inferred is not None  # noqa: S101 - likewise
        return self.inferred - self.prepared

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

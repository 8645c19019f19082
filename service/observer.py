"""What the engine tells of its work as it happens, to whoever wants to count it."""

from typing import Literal

from model.errors import FlowFault

__all__ = ["Change", "Observer", "Place", "Wait", "Why"]

Wait = Literal["worker", "network"]
"""What is waited for: a worker that decodes and aligns, or a run of the network."""
Place = Literal["waiting", "working", "network"]
"""Where a request was when it was dropped: before its worker, in it, or before the network."""
Why = Literal["cancelled", "deadline"]
"""Why nobody waits for an answer any more: the caller has gone, or the time is up."""
Change = Literal["loaded", "replaced", "unloaded", "refused"]
"""What became of a model whose files appeared, changed or went away while serving."""


class Observer:
    """Hears of the engine's work and does nothing; listeners override what they want to hear.

    What concerns runs of the network (`waited` for it, `batch_ran`, `batch_failed`) is told in
    the thread that runs it, what was `waited` for a worker in that worker, and `flow_failed` in
    any; the rest is told in the event loop.
    Every method must return at once, be safe to call from several threads, and ask nothing of
    the thread or the context that it is called in.
    """

    def waited(self, what: Wait, seconds: float) -> None:
        """Hear that an item had waited for a worker, or for a run of the network."""

    def batch_ran(self, model: str, size: int, seconds: float) -> None:
        """Hear of one run of the network: how many items, how long."""

    def batch_failed(self, model: str, size: int, error: BaseException) -> None:
        """Hear of a run of the network that raised."""

    def flow_failed(self, model: str, fault: FlowFault, *, fell_back: bool) -> None:
        """Hear that the GPU failed at the flow of one pair, and whether it was computed again."""

    def dropped(self, place: Place, why: Why) -> None:
        """Hear of a request that nobody waits for any more: nothing further is started for it."""

    def worker_died(self, what: Wait) -> None:
        """Hear that a thread ended that never should; another has taken its place."""

    def model_changed(self, name: str, change: Change, fault: str = "") -> None:
        """Hear what became of a model's files; `fault` says why they were refused."""

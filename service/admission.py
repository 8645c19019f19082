"""How many predictions are under way, and whether new ones are taken."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Admission"]


class Admission:
    """Counts predictions from their request's headers to the last byte of their answer.

    What was admitted is answered, also when `drain` was called meanwhile.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def under_way(self) -> int:
        """Predictions that were admitted and are not answered yet."""
        return self._under_way

    @property
    def full(self) -> bool:
        """Whether as many predictions are under way as may be."""
        return self._under_way >= self._most

    @property
    def draining(self) -> bool:
        """Whether the service shuts down and admits nothing more."""
        return self._draining

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count one prediction for as long as it lasts."""
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if self._under_way == 0:
                self._idle.set()

    def drain(self) -> None:
        """Admit nothing more."""
        self._draining = True

    async def idle(self) -> None:
        """Wait until no prediction is under way."""
        await self._idle.wait()

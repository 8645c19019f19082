"""How many predictions are under way, whether new ones are taken, and whose upload makes room."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from service.faults import Closed

__all__ = ["Admission", "Upload"]

_SLOW_BYTES_PER_S = 2**14
"""An upload slower than this gives its place to a newcomer, when all are taken."""
_SPARED_S = 1.0
"""How long an upload has for its first bytes before it is called slow."""


class Upload:
    """The body of one request on its way: bounded in bytes and seconds."""

    def __init__(self, receive: Receive, most_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._most = most_bytes
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._late = self._began + timeout_s
        self._waiting: asyncio.Timeout | None = None
        self._taken = 0
        self._complete = False

    @property
    def bytes_per_s(self) -> float:
        """How fast the body has come so far."""
        return self._taken / max(self._loop.time() - self._began, 1e-3)

    @property
    def slow(self) -> bool:
        """Whether this upload must make room for others."""
        spared = self._loop.time() - self._began < _SPARED_S
        return not self._complete and not spared and self.bytes_per_s < _SLOW_BYTES_PER_S

    async def receive(self) -> Message:
        """Return the next message. Raises: HTTPException (408, 413)."""
        if self._complete:  # what comes now is the caller's leaving, whenever that is
            return await self._receive()
        message = await self._next()
        self._taken += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._taken > self._most:
            raise self.too_large()
        return message

    def too_large(self) -> HTTPException:
        """Return what a body of more bytes is answered with."""
        return HTTPException(413, f"The request body may hold {self._most} bytes.")

    def stop(self) -> None:
        """Wait for no more of the body."""
        self._late = self._loop.time()
        if self._waiting is not None:
            self._waiting.reschedule(self._late)

    async def _next(self) -> Message:
        late = HTTPException(408, "The request body did not arrive in time.")
        if self._loop.time() >= self._late:  # what has arrived already would not wait for a timeout
            raise late
        try:
            async with asyncio.timeout_at(self._late) as self._waiting:
                return await self._receive()
        except TimeoutError:
            raise late from None
        finally:
            self._waiting = None


class Admission:
    """Counts predictions from their request's headers to the last byte of their answer.

    What was admitted is answered, also when `drain` was called meanwhile; `cut_off` answers what
    took too long for that.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way = 0
        self._uploads: set[Upload] = set()
        self._unanswered: set[asyncio.Timeout] = set()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def under_way(self) -> int:
        """Predictions that were admitted and are not answered yet."""
        return self._under_way

    @property
    def draining(self) -> bool:
        """Whether the service shuts down and admits nothing more."""
        return self._draining

    def has_room(self) -> bool:
        """Whether one more prediction may be admitted; if need be, the slowest upload is stopped.

        So callers who trickle their bodies cannot keep out those who send them.
        """
        if len(self._uploads) < self._most:
            return True
        slow = [one for one in self._uploads if one.slow]
        if not slow:
            return False
        slowest = min(slow, key=lambda one: one.bytes_per_s)
        self._uploads.discard(slowest)  # its place is free before its caller has heard of it
        slowest.stop()
        return True

    @asynccontextmanager
    async def admitted(self, upload: Upload) -> AsyncIterator[Callable[[], None]]:
        """Count one prediction for as long as it lasts; yield what tells that its answer begins.

        Raises: Closed, from wherever it waits, when it is cut off before.
        """
        self._under_way += 1
        self._uploads.add(upload)
        self._idle.clear()
        patience = asyncio.timeout(None)
        self._unanswered.add(patience)
        try:
            async with patience:
                yield lambda: self._unanswered.discard(patience)
        except TimeoutError:
            if not patience.expired():
                raise
            if patience in self._unanswered:
                raise Closed("the service has shut down before the answer was there") from None
        finally:
            self._unanswered.discard(patience)
            self._uploads.discard(upload)
            self._under_way -= 1
            if self._under_way == 0:
                self._idle.set()

    def drain(self) -> None:
        """Admit nothing more."""
        self._draining = True

    def cut_off(self) -> int:
        """Give up on all that is not being answered yet; return how many those are."""
        for patience in self._unanswered:
            patience.reschedule(asyncio.get_running_loop().time())
        return len(self._unanswered)

    async def idle(self) -> None:
        """Wait until no prediction is under way."""
        await self._idle.wait()

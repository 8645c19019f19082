"""How many connections there may be, and how long and how large the head of a request may be.

uvicorn has no timeout for headers, nor one for a caller who never reads his answer; its only cap on
connections answers in plain text; it resets a connection whose caller is still sending when he is
answered, so that he may never read why; and llhttp bounds no header.
"""

import asyncio
import logging
import math
import resource
import time
import uuid
from typing import Any, ClassVar, Literal, cast

import httptools
from starlette.exceptions import HTTPException
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import Cut, problem_of, problem_response
from service.security import PROTECTIVE
from service.settings import Settings

__all__ = ["BoundedProtocol", "allow_open_files", "bounded_protocol"]

_ERRORS = logging.getLogger("mfdan.connections")
"""For uvicorn's own words on a connection. Those below an error we say ourselves, or not at all:
what was malformed is told with its id, and who offers to upgrade is answered."""
_ERRORS.setLevel(logging.ERROR)
_FRAMING_BYTES = 2**16
"""Of a request beside its body: request line, headers, trailers, the lengths of chunks."""
_MOST_PIPELINED = 16
"""Requests of one connection that may wait for the answer of an earlier one."""
_OTHER_FILES = 128
"""Open beside connections: libraries, models while they are loaded, the event loop's own."""


class _Politely:
    """A transport that is closed when its caller has read the answer, and not while he is sending.

    Closed with bytes unread, a connection is reset, and the answer is lost on its way.
    """

    def __init__(self, transport: asyncio.Transport, protocol: "BoundedProtocol") -> None:
        self._transport = transport
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a transport has
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._protocol.lingers or self._transport.is_closing()

    def close(self) -> None:
        if not self._protocol.linger(self._transport):
            self._transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """One connection: closed where its caller is too slow, too wordy, or one too many.

    A connection waits from its beginning, and from the end of an answer, until the headers of the
    next request are complete. Where there are too many, the one that has waited longest makes room:
    callers who never finish a request cannot keep out those who do.
    """

    header_timeout_s: ClassVar[float]
    max_connections: ClassVar[int]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = _ERRORS
        self._framing = 0
        self._body = 0
        self._receiving: Literal["nothing", "head", "body"] = "nothing"
        self.lingers = False
        """Whether all is said, and the caller is still sending what nobody reads."""
        self.waiting_since = math.inf
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection in, if need be in the place of another."""
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", _Politely(transport, self))
        self._wait()
        if len(self.connections) > self.max_connections:
            self._longest_waiting().leave("too_many_connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        _cancel(self._late)
        _cancel(self._unread)

    def data_received(self, data: bytes) -> None:
        """Parse what came; refuse a request of which too much is no body."""
        if self.lingers:
            return
        self._framing += len(data)
        super().data_received(data)
        if self._framing > _FRAMING_BYTES + self._body and not self.transport.is_closing():
            self._refuse(431, "The headers of the request are too large.")

    def on_message_begin(self) -> None:
        """Begin one request."""
        super().on_message_begin()
        self._body = 0
        self._receiving = "head"

    def on_headers_complete(self) -> None:
        """Begin to answer: from here on the guard counts bytes and seconds."""
        self.waiting_since = math.inf
        self._receiving = "body"
        _cancel(self._late)
        super().on_headers_complete()
        if len(self.pipeline) > _MOST_PIPELINED:
            raise httptools.HttpParserError("too many requests before the first answer")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._framing -= len(body)
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End one request; what the same packet still holds belongs to the next."""
        super().on_message_complete()
        self._framing = 0
        self._receiving = "nothing"

    def on_response_complete(self) -> None:
        """End one answer. Its caller may be sending a body still that nobody wants any more."""
        super().on_response_complete()
        self._unset_keepalive_if_required()  # ours also holds while something trickles in
        if self.cycle.response_complete:
            self._wait()

    def pause_writing(self) -> None:
        """Hear that the caller reads more slowly than is answered."""
        super().pause_writing()
        _cancel(self._unread)
        self._unread = self.loop.call_later(self.header_timeout_s, self.leave, "answer_not_read")

    def resume_writing(self) -> None:
        """Hear that the caller reads on."""
        super().resume_writing()
        _cancel(self._unread)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words, in plain text
        """Refuse what is no HTTP."""
        self._refuse(400, "The request is not valid HTTP.")

    def leave(self, why: Cut | None) -> None:
        """Close the connection at once, whatever of an answer is unread."""
        if why is not None:
            self._tell(why)
        self.connections.discard(self)
        self.transport.abort()

    def linger(self, transport: asyncio.Transport) -> bool:
        """Say that all is said, where the caller is still sending; False where he is not."""
        if self._receiving == "nothing" or transport.is_closing():
            return False
        if not self.lingers:
            self.lingers = True
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True  # its answer could not be sent any more
                self.cycle.message_event.set()
            self.flow.resume_reading()
            transport.write_eof()
            self._wait()  # and no longer
        return True

    def shutdown(self) -> None:
        """Close the connection once nothing is being answered on it: the server ends."""
        if self.cycle is None or self.cycle.response_complete:
            self._receiving = "nothing"  # that anybody will read
        super().shutdown()

    def _wait(self) -> None:
        _cancel(self._late)
        self.waiting_since = time.monotonic()  # the loop's stands still for a moment
        self._late = self.loop.call_later(self.header_timeout_s, self._headers_are_late)

    def _headers_are_late(self) -> None:
        # Nobody is refused who asked for nothing, or was answered and is still sending.
        self.leave("headers_timeout" if self._receiving == "head" else None)

    def _longest_waiting(self) -> "BoundedProtocol":
        """Return who waits longest for headers; itself where all others are being answered."""
        waiting = (one for one in self.connections if isinstance(one, BoundedProtocol))
        return min(waiting, key=lambda one: one.waiting_since)

    def _refuse(self, status: int, detail: str) -> None:
        request_id = uuid.uuid4().hex
        problem = problem_of(HTTPException(status, detail), request_id)
        answering = self.cycle is not None and self.cycle.response_started
        if not self.pipeline and (not answering or self.cycle.response_complete):
            answer = problem_response(problem, retry_after_s=0)
            answer.headers.update(PROTECTIVE | {"X-Request-ID": request_id, "Connection": "close"})
            lines = [name + b": " + value + b"\r\n" for name, value in answer.raw_headers]
            self.transport.write(
                b"".join([STATUS_LINE[status], *lines, b"\r\n", bytes(answer.body)])
            )
        self._tell(problem.code)
        self.app_state["telemetry"].log.info(
            "request",
            request_id=request_id,
            method="other",
            route="unmatched",
            status=status,
            code=problem.code,
        )
        self._receiving = "body"  # whatever it is
        self.transport.close()

    def _tell(self, why: str) -> None:
        self.app_state["telemetry"].rejected(why)


def bounded_protocol(settings: Settings) -> type[BoundedProtocol]:
    """Return what uvicorn makes for each connection."""

    class Protocol(BoundedProtocol):
        header_timeout_s = settings.header_timeout_ms / 1e3
        max_connections = settings.max_connections

    return Protocol


def allow_open_files(connections: int) -> None:
    """Raise this process' own limit of open files, so that so many connections fit.

    Raises: OSError, where the system allows fewer.
    """
    wanted = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise OSError(
            f"{connections} connections need {wanted} open files, and the system allows {hard}: "
            "raise that (ulimit -n), or lower MFDAN_MAX_CONNECTIONS"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

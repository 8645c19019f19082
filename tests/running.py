"""The service over real HTTP in the test's own event loop, so that all it leaves can be counted."""

import asyncio
import gc
import logging
import re
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from serving import until

from service.app import create_app
from service.engine import Engine
from service.server import Server
from service.settings import Settings

_ANSWERED_WITHIN_S = 30
MIB = 2**20


@dataclass(frozen=True)
class Running:
    port: int
    engine: Engine


@asynccontextmanager
async def running(
    settings: Settings, open_engine: Callable[..., Any] = Engine.open
) -> AsyncIterator[Running]:
    """Serve as `mfdan serve` does; warm when it is given."""
    # asyncio's pool would grow by chance, whenever two things are asked of it at one moment.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    server = Server(create_app(settings, open_engine), settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        logging.disable(logging.WARNING)  # pytest keeps every line until the test ends
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        engine: Engine = server.lifespan.state["engine"]
        await engine.warmed_up()
        try:
            yield Running(listener.getsockname()[1], engine)
        finally:
            server.should_exit = True
            await serving
            logging.disable(logging.NOTSET)


@dataclass(frozen=True)
class Answer:
    status: int
    """0: the connection was closed without one."""
    kind: str
    body: bytes


def request(
    path: str, body: bytes = b"", kind: str = "", method: str = "POST", **headers: str
) -> bytes:
    """Return a whole request as it goes over the wire; the connection is closed after it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: here", "Connection: close"]
    if method == "POST":
        lines += [f"Content-Length: {len(body)}", f"Content-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def form_body(parts: Sequence[tuple[str, bytes]]) -> bytes:
    """Return a multipart body whose boundary is `b`; every part is a file."""
    heads = (
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode()
        for name, _ in parts
    )
    contents = (content for _, content in parts)
    return b"".join(h + c + b"\r\n" for h, c in zip(heads, contents, strict=True)) + b"--b--\r\n"


FORM = "multipart/form-data; boundary=b"


async def ask(port: int, sent: bytes, leave_after: float | None = None) -> Answer:
    """Send bytes, read until the other end hangs up; or hang up first, after so many seconds.

    Raises: TimeoutError when it answers nothing and does not hang up either.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(sent)
        if leave_after is not None:
            await asyncio.sleep(leave_after)
        else:
            async with asyncio.timeout(_ANSWERED_WITHIN_S):
                with suppress(ConnectionError):
                    while chunk := await reader.read(MIB):
                        answer += chunk
    finally:
        await _hang_up(writer)
    return _answer(answer)


class Kept:
    """Connections that are kept for one request after the other: as many as are needed at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self.asked = 0
        self.opened = 0

    async def ask(self, sent: bytes) -> Answer:
        """Send one request, read its answer, and keep the connection if the service does.

        Raises: TimeoutError, EOFError: hung up without an answer.
        """
        reader, writer = await self._connection()
        self.asked += 1
        writer.write(sent.replace(b"Connection: close", b"Connection: keep-alive", 1))
        async with asyncio.timeout(_ANSWERED_WITHIN_S):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)^content-length: (\d+)", head, re.MULTILINE)
            assert length, head
            body = await reader.readexactly(int(length[1]))
        if re.search(rb"(?i)^connection: close", head, re.MULTILINE):
            await _hang_up(writer)
        else:
            self._idle.append((reader, writer))
        return _answer(head + body)

    async def close(self) -> None:
        while self._idle:
            await _hang_up(self._idle.popleft()[1])

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.popleft()
            if not reader.at_eof():
                return reader, writer
            await _hang_up(writer)
        self.opened += 1
        return await asyncio.open_connection("127.0.0.1", self._port)


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def _answer(received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1.1 (\d{3})", head)
    kind = re.search(rb"(?i)^content-type: ([^\r;]*)", head, re.MULTILINE)
    return Answer(int(status[1]) if status else 0, kind[1].strip().decode() if kind else "", body)


@dataclass(frozen=True)
class Footprint:
    """What this process holds."""

    tasks: int
    threads: int
    files: int
    objects: int
    """That the garbage collector knows of."""
    resident_mib: float

    @classmethod
    def take(cls) -> Self:
        gc.collect()
        status = Path("/proc/self/status").read_text()
        (kibibytes,) = re.findall(r"^VmRSS:\s+(\d+)", status, re.MULTILINE)
        return cls(
            len(asyncio.all_tasks()),
            threading.active_count(),
            len(list(Path("/proc/self/fd").iterdir())),
            len(gc.get_objects()),
            int(kibibytes) / 1024,
        )

    def assert_no_larger(self, before: Self, *, objects: int, resident_mib: float) -> None:
        """No task, thread or file more than before, and so many objects and MiB at the most."""
        assert self.tasks <= before.tasks, (before, self)
        assert self.threads <= before.threads, (before, self)
        assert self.files <= before.files, (before, self)
        assert self.objects - before.objects < objects, (before, self)
        assert self.resident_mib - before.resident_mib < resident_mib, (before, self)

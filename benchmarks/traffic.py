"""What the load benchmarks share: a served process, requests at a constant rate, what came back."""

import asyncio
import io
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.settings import cores

ROOT = Path(__file__).parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")
_STARTS_WITHIN_S = 120
_BOUNDARY = "pair"
_OK = 200
_CALLERS = 16
"""Requests under way when the service is full: two of its largest batches."""
_RAMP_S = 2.0
_REST_S = 1.0
"""For the batches of those who have hung up: what is measured next must not share the cores."""


def drawn_pair() -> tuple[bytes, bytes]:
    """Draw the pair of `make example`, 640x480 PNG: a face raises its brows by 1.5 pixels."""
    folder = str(ROOT / "tests")
    sys.path.insert(0, folder)
    from drawn_face import draw_face  # noqa: PLC0415 - the tests' folder is no package

    sys.path.remove(folder)  # other processes inherit it, and would take tests/model for model
    return _png(draw_face()), _png(draw_face(brow_lift=1.5))


def _png(frame: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def prediction_request(onset: bytes, apex: bytes) -> bytes:
    """Return a whole `POST /predict`, as it goes over the wire."""
    body = b"".join(
        f"--{_BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode()
        + picture
        + b"\r\n"
        for name, picture in (("onset", onset), ("apex", apex))
    )
    body += f"--{_BOUNDARY}--\r\n".encode()
    head = (
        "POST /predict HTTP/1.1\r\nHost: here\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def machine_cpu_s() -> float:
    """Return the processor time that all processes, and the hypervisor's other guests, took."""
    user, nice, system, _idle, _waiting, *others = (
        Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    )
    interrupts_and_stolen = others[:3]  # what comes after is part of user and nice
    return sum(map(int, (user, nice, system, *interrupts_and_stolen))) / _TICKS


class Served:
    """A running `mfdan serve`."""

    def __init__(self, pid: int, port: int) -> None:
        self._folder = Path("/proc", str(pid))
        self.port = port

    def cpu_s(self) -> float:
        """Return the processor time that it has spent, seconds."""
        # utime and stime are fields 14 and 15; the name before them may hold blanks
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_bytes(self) -> int:
        """Return the memory that it holds."""
        status = (self._folder / "status").read_text()
        (kibibytes,) = re.findall(r"^VmRSS:\s+(\d+)", status, re.MULTILINE)
        return int(kibibytes) * 1024


@contextmanager
def serving() -> Iterator[Served]:
    """Serve in a process of its own, on a free port, with the settings of this environment.

    Raises: SystemExit when it ends, or does not get ready within two minutes.
    """
    command = [sys.executable, "-c", "from service.main import main; main()"]
    process = subprocess.Popen(
        [*command, "serve", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,  # a line for each request
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        served = Served(process.pid, _port(process))
        asyncio.run(_until_ready(served))
        yield served
    finally:
        process.terminate()
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _port(process: subprocess.Popen[str]) -> int:
    told = ""
    for line in process.stderr or ():
        told += line
        if found := re.search(r"serves .* on http://\S+:(\d+)", line):
            return int(found[1])
    raise SystemExit(f"mfdan serve ended with status {process.wait()}: {told.strip()}")


async def _until_ready(served: Served) -> None:
    try:
        async with asyncio.timeout(_STARTS_WITHIN_S):
            while not await _is_ready(served):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise SystemExit(f"mfdan serve was not ready within {_STARTS_WITHIN_S} s") from None


async def _is_ready(served: Served) -> bool:
    try:
        async with Caller.connected(served.port) as caller:
            asking = b"GET /health/ready HTTP/1.1\r\nHost: here\r\n\r\n"
            return await caller.ask(asking) == _OK
    except ConnectionError:  # bound, and not listening yet
        return False


class Caller:
    """One connection that is kept; it costs a tenth of what a full HTTP client does."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._last = False

    @property
    def kept(self) -> bool:
        """Whether the other end still takes requests, as far as it has said."""
        return not self._last and not self._reader.at_eof()

    @classmethod
    @asynccontextmanager
    async def connected(cls, port: int) -> AsyncIterator[Self]:
        """Connect to a port of this machine; hang up at the end."""
        caller = cls(*await asyncio.open_connection("127.0.0.1", port))
        try:
            yield caller
        finally:
            await caller.hang_up()

    async def ask(self, request: bytes) -> int:
        """Send one request, read its whole answer, return the status.

        Raises: OSError, asyncio.IncompleteReadError when the other end hangs up.
        """
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        (length,) = re.findall(r"^content-length: (\d+)", head, re.MULTILINE)
        await self._reader.readexactly(int(length))
        self._last = "\r\nconnection: close\r\n" in head
        return int(head.split(" ", 2)[1])

    async def hang_up(self) -> None:
        """Close the connection."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


@dataclass
class Outcome:
    """What a stretch of traffic came to."""

    seconds: float = 0.0
    """From the first intended send to the last answer, and at least what was asked for."""
    latency_s: list[float] = field(default_factory=list)
    """Of the answers with status 200, from the intended send."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Answers by status; 0 is a connection that broke."""
    lag_s: float = 0.0
    """By how much a request was sent later than intended, at the worst."""

    @property
    def answered_rate(self) -> float:
        """Answers with status 200, each second."""
        return len(self.latency_s) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies in milliseconds; NaN where nothing was answered."""
        if not self.latency_s:
            return float("nan")
        return 1e3 * float(np.percentile(self.latency_s, percent))


async def open_loop(port: int, request: bytes, rate: float, seconds: float) -> Outcome:
    """Send at a constant rate, whatever the answers do.

    Latency counts from when a request should have been sent: a generator that waited for slow
    answers would leave out the very requests that had to wait.
    """
    loop = asyncio.get_running_loop()
    outcome = Outcome()
    idle: list[Caller] = []
    start = loop.time()

    async def connection() -> Caller:
        while idle:
            caller = idle.pop()
            if caller.kept:
                return caller
            await caller.hang_up()
        return Caller(*await asyncio.open_connection("127.0.0.1", port))

    async def one(intended: float) -> None:
        outcome.lag_s = max(outcome.lag_s, loop.time() - intended)
        try:
            caller = await connection()
            status = await caller.ask(request)
            idle.append(caller)
        except (OSError, asyncio.IncompleteReadError):
            status = 0
        outcome.statuses[status] += 1
        if status == _OK:
            outcome.latency_s.append(loop.time() - intended)

    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            intended = start + number / rate
            await asyncio.sleep(intended - loop.time())
            group.create_task(one(intended))
    outcome.seconds = max(seconds, loop.time() - start)
    for caller in idle:
        await caller.hang_up()
    return outcome


@dataclass(frozen=True)
class Stretch:
    """One stretch at full load."""

    rate: float
    """Pairs a second."""
    cpu_ms: float
    """Processor time of the measured process for each pair."""
    others_share: float
    """Of all cores, what other processes took (the generator among them) or a hypervisor kept."""
    generator_share: float = 0.0
    """Of all cores, what the generator took."""


async def full_load(served: Served, request: bytes, seconds: float) -> Stretch:
    """Keep the service full for so long, after a ramp that is not counted."""
    answers: asyncio.Queue[float] = asyncio.Queue()
    load = asyncio.create_task(_closed_loop(served.port, request, _CALLERS, answers))
    begin, _ = await _answers_until(load, answers, time.perf_counter() + _RAMP_S)
    cpu, own, all_cpu = served.cpu_s(), time.process_time(), machine_cpu_s()
    end, done = await _answers_until(load, answers, begin + seconds)
    spent, generator = served.cpu_s() - cpu, time.process_time() - own
    others = machine_cpu_s() - all_cpu - spent
    load.cancel()
    await asyncio.wait([load])
    await asyncio.sleep(_REST_S)
    wall = (end - begin) * cores()
    return Stretch(done / (end - begin), 1e3 * spent / done, others / wall, generator / wall)


async def _answers_until(
    load: asyncio.Task[None], answers: asyncio.Queue[float], moment: float
) -> tuple[float, int]:
    """Wait for the first answer after a moment; return when it came, and how many came.

    A batch's answers come together, so both ends of a stretch are the first of a batch.
    """
    came = 0
    while True:
        answer = asyncio.create_task(answers.get())
        await asyncio.wait({answer, load}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise SystemExit(f"the service was not to be kept full: {load.exception()}")
        came += 1
        if answer.result() >= moment:
            return answer.result(), came


async def _closed_loop(
    port: int, request: bytes, callers: int, answers: asyncio.Queue[float]
) -> None:
    """Keep so many requests under way until cancelled; note when each was answered.

    Raises: RuntimeError when one is not answered 200: a service that refuses is not measured.
    """

    async def one() -> None:
        async with Caller.connected(port) as caller:
            while (status := await caller.ask(request)) == _OK:
                answers.put_nowait(time.perf_counter())
            raise RuntimeError(f"a request was answered {status}")

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(one())

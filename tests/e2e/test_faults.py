"""What a service meets in the world: callers who trickle or tear, full disks, jumping clocks."""

import asyncio
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path

import httpx2
import pytest
from connecting import metric, posted
from key_files import ALICE, BOB, stanza
from processes import Process, serving_process
from serving import Pictures, wait_for
from tiny_model import write_tiny_model

from service.connections import allow_open_files

SLOW = 500
"""Callers of each kind: those who trickle headers, and those who trickle bodies."""
TORN = 100
TRIES = 20
HEAD = b"POST /predict HTTP/1.1\r\nHost: here\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n--b\r\n"
DAY_S = 86_400


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures()


@pytest.fixture(scope="module")
def process(models: Path) -> Iterator[Process]:
    """A service whose standard output is a full disk, which is soon tired of waiting."""
    short = {"MFDAN_HEADER_TIMEOUT_MS": "1500", "MFDAN_UPLOAD_TIMEOUT_MS": "3000"}
    with (
        Path("/dev/full").open("w") as full,
        serving_process(models, full.fileno(), MFDAN_MAX_CONNECTIONS="1000", **short) as process,
    ):
        process.wait_until_ready()
        yield process


def open_files(process: Process) -> int:
    return len(list(Path(f"/proc/{process.popen.pid}/fd").iterdir()))


def test_a_full_disk_behind_the_log_costs_lines_and_no_answers(
    process: Process, pictures: Pictures
) -> None:
    before = metric(process.url, "mfdan_log_lines_lost_total")
    for _ in range(3):
        httpx2.post(f"{process.url}/predict", files=pictures.pair).raise_for_status()
    assert metric(process.url, "mfdan_log_lines_lost_total") >= before + 3


def test_a_thousand_slow_callers_keep_nobody_out_and_are_all_gone_at_last(
    process: Process, pictures: Pictures
) -> None:
    allow_open_files(2 * SLOW)
    before = open_files(process)

    async def run() -> list[int]:
        url, port = process.url, process.port
        async with asyncio.TaskGroup() as group:
            slow = [group.create_task(trickle(port, HEAD)) for _ in range(SLOW)]
            slow += [group.create_task(trickle(port, HEAD + FORM)) for _ in range(SLOW)]
            tries = []
            async with httpx2.AsyncClient(timeout=30) as client:
                while not all(one.done() for one in slow):
                    tries.append(await tries_until_answered(client, url, pictures))
                    await asyncio.sleep(0.05)
        return tries

    tries = asyncio.run(run())
    assert len(tries) > 3
    assert max(tries) < TRIES
    wait_for(lambda: open_files(process) <= before)


async def trickle(port: int, said: bytes) -> None:
    """Say a byte now and then until the other side closes."""
    with suppress(ConnectionError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(said)
            while not reader.at_eof():
                writer.write(b"x")
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await reader.read(65536)
        finally:
            writer.close()


async def tries_until_answered(client: httpx2.AsyncClient, url: str, pictures: Pictures) -> int:
    """Ask on a connection of one's own, as a newcomer does; come back where that is asked for."""
    for tries in range(1, TRIES + 1):
        headers = {"connection": "close"}
        answer = await client.post(f"{url}/predict", files=pictures.pair, headers=headers)
        if answer.is_success:
            return tries
        assert answer.status_code == 429
        await asyncio.sleep(float(answer.headers["retry-after"]) / 4)
    raise AssertionError("kept out")


def test_half_sent_bodies_and_torn_connections_leave_nothing_behind(
    process: Process, pictures: Pictures
) -> None:
    wait_for(lambda: metric(process.url, "mfdan_requests_in_flight") == 1)  # this one
    before = open_files(process)
    whole = posted("/predict", **pictures.pair)
    for place in range(TORN):
        connection = socket.create_connection(("127.0.0.1", process.port))
        connection.sendall(whole[: len(whole) * (place + 1) // (TORN + 1)])
        if place % 2:  # torn, not closed: what is sent last is not even delivered
            reset = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        connection.close()
    wait_for(lambda: metric(process.url, "mfdan_requests_in_flight") == 1)
    wait_for(lambda: open_files(process) <= before)
    httpx2.post(f"{process.url}/predict", files=pictures.pair).raise_for_status()


class WallClock:
    """The time of day as a process sees it, in a file that libfaketime reads."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.jump(0)
        package = find_spec("libfaketime")
        assert package is not None
        assert package.origin is not None
        library = Path(package.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
        self.variables = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: int) -> None:
        """Set the clock so much before or behind."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}s\n")
        new.replace(self._file)  # at once: it is read at every look at the clock


def test_a_clock_that_jumps_by_a_day_changes_no_answer_deadline_or_limit(
    models: Path, pictures: Pictures, tmp_path: Path
) -> None:
    clock = WallClock(tmp_path)
    keys = tmp_path / "keys.toml"
    keys.write_text(stanza("alice", ALICE) + stanza("bob", BOB, quota_per_day=1))
    keys.chmod(0o600)
    variables = {"MFDAN_API_KEYS_FILE": str(keys), "MFDAN_UPLOAD_TIMEOUT_MS": "20000"}
    with serving_process(models, subprocess.DEVNULL, **variables, **clock.variables) as process:
        process.wait_until_ready()
        first = ask(process, ALICE, pictures)
        assert ask(process, BOB, pictures).status_code == 200
        with socket.create_connection(("127.0.0.1", process.port)) as upload:
            whole = posted("/predict", **pictures.pair)
            key = f"\r\nX-API-Key: {ALICE}\r\n".encode()
            upload.sendall(whole[:-9].replace(b"\r\n", key, 1))
            for jump in (DAY_S, -DAY_S):
                clock.jump(jump)
                wait_for(lambda jump=jump: believes(process, jump))
                answer = ask(process, ALICE, pictures)
                assert answer.status_code == 200
                assert answer.json()["faces"] == first.json()["faces"]
                limited = ask(process, BOB, pictures)
                assert limited.status_code == 429
                assert 0 < int(limited.headers["retry-after"]) <= DAY_S
                assert httpx2.get(f"{process.url}/health/ready").status_code == 200
            upload.sendall(whole[-9:])  # under way all the while, and not late
            upload.settimeout(20)
            assert b" 200 OK" in upload.recv(65536)


def ask(process: Process, key: str, pictures: Pictures) -> httpx2.Response:
    headers = {"X-API-Key": key}
    return httpx2.post(f"{process.url}/predict", files=pictures.pair, headers=headers)


def believes(process: Process, jump: int) -> bool:
    """Whether the service's time of day has jumped; its server looks at it once a second."""
    date = httpx2.get(f"{process.url}/health/live").headers["date"]
    return abs(parsedate_to_datetime(date).timestamp() - time.time() - jump) < DAY_S / 2

import asyncio
import fcntl
import gc
import io
import json
import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TextIO

import pytest

from service.logs import LogStream, library_lines, open_log

SECRET = "maria.png"  # noqa: S105 - what must never be told


class Lost:
    def __init__(self) -> None:
        self.lines = 0

    def __call__(self) -> None:
        self.lines += 1


@pytest.fixture
def lost() -> Lost:
    return Lost()


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def _libraries(output: io.StringIO, lost: Lost) -> Iterator[None]:
    # uvicorn's level holds for the whole process, and the last test that served has set another.
    log = logging.getLogger("uvicorn.error")
    before = log.level
    log.setLevel(logging.WARNING)
    with library_lines(open_log("info", LogStream(output, lost))):
        yield
    log.setLevel(before)


def fail() -> None:
    raise ValueError(SECRET)


def lines(output: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_a_line_is_json_with_level_and_time(output: io.StringIO, lost: Lost) -> None:
    open_log("info", LogStream(output, lost)).warning("event", number=1)
    (line,) = lines(output)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "event", "level": "warning", "number": 1}
    assert lost.lines == 0


def test_a_full_disk_costs_lines_and_raises_nothing(lost: Lost) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        log = open_log("info", LogStream(full, lost))
        log.info("one")
        log.info("two")
    assert lost.lines == 2


def test_a_line_that_a_full_disk_tore_does_not_tear_the_next(tmp_path: Path) -> None:
    """The limit of a file's size stands for the disk: it too takes the first bytes of a line."""
    path = tmp_path / "log"
    code = f"""
import resource, sys
from service.logs import LogStream
lost = []
with open({str(path)!r}, "w") as file:
    stream = LogStream(file, lambda: lost.append(1))
    stream.msg("whole")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, -1))
    stream.msg("torn and lost")
    stream.msg("lost")
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    stream.msg("again")
sys.exit(10 + len(lost))
"""
    run = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert run.returncode == 12, run.stderr
    assert path.read_text() == "whole\ntorn\nagain\n"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        yield reader, stream


def test_a_closed_pipe_costs_lines_and_raises_nothing(pipe: tuple[int, TextIO], lost: Lost) -> None:
    reader, stream = pipe
    os.close(reader)
    open_log("info", LogStream(stream, lost)).info("event")
    assert lost.lines == 1


def test_a_pipe_that_nobody_reads_is_not_waited_for(pipe: tuple[int, TextIO], lost: Lost) -> None:
    reader, stream = pipe
    log_stream = LogStream(stream, lost)
    writing = threading.Thread(
        target=lambda: [log_stream.msg(f"{number:0100}") for number in range(2000)], daemon=True
    )
    writing.start()
    writing.join(20)
    assert not writing.is_alive()
    read = os.read(reader, 2**20).decode().splitlines()
    os.close(reader)
    assert len(read) + lost.lines == 2000
    assert lost.lines > 0
    assert [int(line) for line in read] == [*range(len(read))]


def test_a_line_longer_than_the_room_in_a_pipe_is_not_waited_for_but_lost(
    pipe: tuple[int, TextIO], lost: Lost
) -> None:
    reader, stream = pipe
    fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, 4 * 4096)
    os.write(stream.fileno(), b"x" * 3 * 4096)  # leaves one page
    log_stream = LogStream(stream, lost)
    writing = threading.Thread(target=log_stream.msg, args=("y" * 9000,), daemon=True)
    writing.start()
    writing.join(20)
    assert not writing.is_alive()
    assert lost.lines == 1
    os.read(reader, 2**20)
    log_stream.msg("z" * 9000)
    log_stream.msg("whole")
    assert os.read(reader, 2**20).decode().splitlines() == ["", "z" * 9000, "whole"]
    os.close(reader)
    assert lost.lines == 1


def test_a_closed_stream_costs_lines_and_raises_nothing(output: io.StringIO, lost: Lost) -> None:
    output.close()
    open_log("info", LogStream(output, lost)).info("event")
    assert lost.lines == 1


def test_nothing_is_written_to_the_file_that_got_a_closed_streams_number(
    tmp_path: Path, lost: Lost
) -> None:
    stream = (tmp_path / "log").open("w")
    number, log = stream.fileno(), open_log("info", LogStream(stream, lost))
    stream.close()
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_WRONLY)
    os.dup2(other, number)
    log.info("event")
    for descriptor in {other, number}:
        os.close(descriptor)
    assert (tmp_path / "other").read_bytes() == b""
    assert lost.lines == 1


@pytest.mark.usefixtures("_libraries")
def test_lines_of_libraries_are_json_with_the_name_of_their_logger(output: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("mfdan").info("a model of %d classes", 3)
    logging.getLogger("uvicorn.error").info("not a warning")
    assert [(line["logger"], line["level"], line["event"]) for line in lines(output)] == [
        ("uvicorn.error", "warning", "Invalid HTTP request received."),
        ("mfdan", "info", "a model of 3 classes"),
    ]


@pytest.mark.usefixtures("_libraries")
@pytest.mark.parametrize(
    "tell",
    [
        lambda log, error: log.error("it failed: %s", error, exc_info=True),  # noqa: LOG014 - is in a handler
        lambda log, error: log.error(error),
        lambda log, error: log.error("it failed: %s", error),
        lambda log, error: log.error("it failed\n%s", error, exc_info=error),
    ],
)
def test_of_an_exception_only_type_and_place_are_told(
    output: io.StringIO, tell: Callable[[logging.Logger, Exception], None]
) -> None:
    for name in ("uvicorn.error", "mfdan", "a_library"):
        try:
            fail()
        except ValueError as error:
            tell(logging.getLogger(name), error)
    assert SECRET not in output.getvalue()
    assert len(lines(output)) == 3


@pytest.mark.usefixtures("_libraries")
def test_an_exceptions_line_names_its_type_and_function(output: io.StringIO) -> None:
    try:
        fail()
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    (line,) = lines(output)
    assert line["event"] == "Exception in ASGI application"
    assert line["fault"] == "ValueError"
    assert line["where"][-1].startswith("fail:")


@pytest.mark.usefixtures("_libraries")
def test_a_line_whose_words_cannot_be_filled_in_is_told_all_the_same(output: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").warning("%d connections", Decimal(3))
    assert [line["event"] for line in lines(output)] == ["%d connections"]


@pytest.mark.usefixtures("_libraries")
def test_of_an_unknown_library_only_the_place_is_told(output: io.StringIO) -> None:
    logging.getLogger("a_library.part").warning(f"cannot read {SECRET}")  # noqa: G004 - as they do
    (line,) = lines(output)
    assert line["event"] == "a library's line"
    assert line["logger"] == "a_library.part"
    assert line["where"][0].startswith("test_of_an_unknown_library_only_the_place_is_told:")
    assert SECRET not in output.getvalue()


@pytest.mark.usefixtures("_libraries")
def test_what_asyncio_tells_of_tasks_and_callbacks_quotes_nothing(output: io.StringIO) -> None:
    async def fail_later() -> None:
        fail()

    def callback(_: str) -> None:
        raise KeyError(SECRET)

    async def main() -> None:
        task = asyncio.create_task(fail_later())
        await asyncio.wait([task])
        del task
        gc.collect()
        asyncio.get_running_loop().call_soon(callback, SECRET)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert SECRET not in output.getvalue()
    assert {line["fault"] for line in lines(output)} == {"ValueError", "KeyError"}
    assert {line["logger"] for line in lines(output)} == {"asyncio"}


@pytest.mark.usefixtures("_libraries")
def test_a_thread_that_ends_by_an_exception_is_told_without_its_message(
    output: io.StringIO,
) -> None:
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    (line,) = lines(output)
    assert (line["event"], line["fault"]) == ("a thread ended", "ValueError")
    assert SECRET not in output.getvalue()


@pytest.mark.usefixtures("_libraries")
def test_an_exception_that_nobody_could_catch_is_told_without_its_message(
    output: io.StringIO,
) -> None:
    class Fails:
        def __del__(self) -> None:
            fail()

    Fails()
    gc.collect()
    (line,) = lines(output)
    assert line["fault"] == "ValueError"
    assert SECRET not in output.getvalue()


def test_a_process_that_only_borrows_the_log_gets_its_logging_back(
    output: io.StringIO, lost: Lost
) -> None:
    root = logging.getLogger()
    before = [*root.handlers], root.level, threading.excepthook, sys.unraisablehook
    with library_lines(open_log("info", LogStream(output, lost)), "debug"):
        assert root.handlers != before[0]
    assert ([*root.handlers], root.level, threading.excepthook, sys.unraisablehook) == before

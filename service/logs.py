"""JSON lines on standard output, those of libraries too. No picture, no message of an exception.

A line that cannot be written is counted and forgotten: no request waits for a log or fails by it.
"""

import logging
import os
import re
import select
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TextIO

import structlog

__all__ = ["Level", "Log", "LogStream", "library_lines", "open_log", "where"]

Level = Literal["debug", "info", "warning", "error"]
Log = structlog.typing.FilteringBoundLogger

_SPEAKING = {"asyncio", "concurrent", "fastapi", "mfdan", "opentelemetry", "uvicorn"}
"""Loggers whose words are known to quote no upload; of others only the place is told."""
_QUOTED = re.compile(r"[<(\n]")
"""Begins what asyncio quotes of a task or a callback: results, arguments, exceptions."""
_LONGEST = 200
"""Characters of a library's line that are told."""
_FRAMES = 8
"""Functions of a traceback that are told, the innermost last."""
_PAGE = 4096
"""Bytes that a pipe with any room at all takes without waiting."""


class LogStream:
    """Writes lines to a stream; never raises and never waits.

    A full disk, a closed pipe, or a pipe whose reader is stuck costs the line, not the request:
    `on_lost` hears of it. Safe to use from several threads.
    """

    def __init__(self, stream: TextIO, on_lost: Callable[[], None]) -> None:
        self._stream = stream
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._torn = False
        self._poll = select.poll()
        try:
            self._fd: int | None = stream.fileno()
            self._poll.register(self._fd, select.POLLOUT)
        except (OSError, ValueError):  # a stream in memory
            self._fd = None

    def msg(self, line: str) -> None:
        """Write one line."""
        with self._lock:
            try:
                self._write(line)
            except (OSError, ValueError):  # ValueError: the stream is closed
                self._on_lost()

    debug = info = warning = error = critical = msg  # the names that structlog calls

    def _write(self, line: str) -> None:
        if self._fd is None:
            self._stream.write(line + "\n")
            self._stream.flush()
            return
        if self._stream.closed:  # its number may be another file's by now
            raise ValueError
        # Not through the stream: what its buffer could not write it would try again at the end of
        # the process, and fail that.
        left = memoryview(b"\n" * self._torn + line.encode() + b"\n")
        while left:
            if not self._poll.poll(0):
                raise BlockingIOError
            left = left[os.write(self._fd, left[:_PAGE]) :]
            self._torn = bool(left)


def open_log(level: Level, stream: LogStream) -> Log:
    """Return a logger of its own, without any global configuration, that writes JSON lines."""
    log: Log = structlog.wrap_logger(
        stream,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
    )
    return log


def where(error: BaseException) -> Sequence[str]:
    """Return the last functions and lines of a traceback: never its messages or its values."""
    frames = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        frames.append(f"{code.co_qualname}:{step.tb_lineno}")
        step = step.tb_next
    return frames[-_FRAMES:]


@contextmanager
def library_lines(log: Log, level: Level = "info") -> Iterator[None]:
    """Have what libraries log written through `log`, for the whole process, while this lasts.

    For a program that owns its process, such as `mfdan serve`. Lines of `level` and above of this
    project, warnings and errors of all others. Ends of threads by an exception are told likewise.
    """
    root, own = logging.getLogger(), logging.getLogger("mfdan")
    before = root.handlers, root.level, own.level, threading.excepthook, sys.unraisablehook
    root.handlers = [_Handler(log)]
    root.setLevel(logging.WARNING)
    own.setLevel(level.upper())
    threading.excepthook = lambda ended: _tell(log, "a thread ended", ended.exc_value)
    sys.unraisablehook = lambda lost: _tell(log, "an exception nobody could catch", lost.exc_value)
    try:
        yield
    finally:
        root.handlers, level_before, own.level, threading.excepthook, sys.unraisablehook = before
        root.setLevel(level_before)


class _Handler(logging.Handler):
    """Writes what a library logs as one of our lines."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        about: dict[str, Any] = {"logger": record.name}
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            about |= {"fault": type(error).__name__, "where": where(error)}
        elif not _speaks(record):
            about |= {"where": [f"{record.funcName}:{record.lineno}"]}
        self._log.log(_standard_level(record.levelno), _words(record), **about)


def _tell(log: Log, event: str, error: BaseException | None) -> None:
    if error is not None:
        log.error(event, fault=type(error).__name__, where=where(error))


def _speaks(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in _SPEAKING


def _words(record: logging.LogRecord) -> str:
    """Return what a record says, as far as it cannot be anything that a caller sent."""
    if not _speaks(record):
        return "a library's line"
    if not isinstance(record.msg, str):  # an exception in place of a message
        return type(record.msg).__name__
    words = record.msg
    if isinstance(record.args, tuple) and record.args:
        try:
            words %= tuple(map(_harmless, record.args))
        except (TypeError, ValueError):  # %d of what became a name
            words = record.msg
    end = _QUOTED if record.name == "asyncio" else "\n"
    return re.split(end, words, maxsplit=1)[0].strip()[:_LONGEST]


def _harmless(value: object) -> object:
    """Return numbers and texts; of anything else, an exception above all, its type's name."""
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _standard_level(level: int) -> int:
    """Return the standard level at or below: structlog knows no others."""
    return max(logging.DEBUG, min(logging.CRITICAL, level // 10 * 10))

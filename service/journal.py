"""What `mfdan score` has done so far: one line for each file, appended as soon as it is answered.

The first line says what fixes the answers (model, version, options); the others hold the names and
stamp of a file, its rows, and whether they are final: a fault that another try may heal is not.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from service.sources import Source, Stamp

__all__ = ["Journal", "JournalInUse", "JournalMismatch"]

Row = Mapping[str, object]


class JournalMismatch(Exception):
    """The journal was written with another model, version or other options."""


class JournalInUse(Exception):
    """Another run is writing the journal."""


class Journal:
    """An append-only file of answered sources. The rows stay on disk, so it grows no memory.

    A last line that was cut short, by a crash or a full disk, is taken off when it is opened.
    """

    def __init__(self, path: Path, run: Mapping[str, object]) -> None:
        """Open the journal of a run, or begin it.

        Raises: JournalMismatch, JournalInUse, OSError.
        """
        self._file = path.open("a+b")
        try:
            self._lock()
            self._places: dict[tuple[str, ...], tuple[Stamp, bool, int]] = {}
            self._read(json.loads(json.dumps(run)))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def is_done(self, source: Source, stamp: Stamp) -> bool:
        """Whether there is a final answer to the source as it is now."""
        known = self._places.get(source.names)
        return known is not None and known[:2] == (stamp, True)

    def append(self, source: Source, stamp: Stamp, rows: Sequence[Row], *, final: bool) -> None:
        """Note the rows of a source. Raises: OSError."""
        line = {"names": source.names, "stamp": stamp, "final": final, "rows": rows}
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(_line(line))
        self._file.flush()
        self._places[source.names] = (stamp, final, place)

    def rows(self, source: Source) -> list[dict[str, Any]]:
        """Return the newest rows of a source; none when it was not answered."""
        known = self._places.get(source.names)
        if known is None:
            return []
        self._file.seek(known[2])
        rows: list[dict[str, Any]] = json.loads(self._file.readline())["rows"]
        return rows

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalInUse from None

    def _read(self, run: Mapping[str, object]) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(iter(self._file.readline, b"")):
            noted = _parsed(line)
            if number == 0 and noted != {"run": run} and not _line({"run": run}).startswith(line):
                raise JournalMismatch
            if not line.endswith(b"\n"):
                break
            if number and noted is not None:
                self._note(noted, end)
            end += len(line)
        self._file.truncate(end)
        if end == 0:
            self._file.write(_line({"run": run}))
            self._file.flush()

    def _note(self, noted: dict[str, Any], place: int) -> None:
        with suppress(KeyError, TypeError, ValueError):  # a line that says less says nothing
            names, final, _ = tuple(noted["names"]), bool(noted["final"]), noted["rows"]
            stamp = tuple((int(size), int(time)) for size, time in noted["stamp"])
            self._places[names] = (stamp, final, place)


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None

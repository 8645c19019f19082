"""Files that exist whole or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["write_atomically", "write_text_atomically"]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, then put it in its place at once.

    Nothing is left behind when `write` raises, and what was at `path` stays. Raises: OSError, which
    names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as fault:
        if fault.filename not in (None, str(temporary)):
            raise  # of another file, which it names
        told = fault.strerror or str(fault)
        raise OSError(fault.errno or errno.EIO, told, str(path)) from fault
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a text file (UTF-8) at once."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

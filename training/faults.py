"""What a user's fault or Ctrl-C looks like in the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from model.errors import MfdanError

__all__ = ["told_in_one_line"]


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """End a command with one line on stderr: exit code 1 after a fault, 130 after Ctrl-C.

    Faults are OSError, ValueError and MfdanError; any other exception is a bug and passes.
    """
    try:
        yield
    except KeyboardInterrupt:
        _tell("Stopped. The same command goes on where this one left off.")
        raise typer.Exit(130) from None
    except (OSError, ValueError, MfdanError) as fault:
        _tell(" ".join(str(fault).split()), "red")
        raise typer.Exit(1) from None


def _tell(line: str, style: str | None = None) -> None:
    Console(stderr=True).print(line, style=style, markup=False, highlight=False, soft_wrap=True)

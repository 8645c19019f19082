"""The command `mfdan` from its first moment: a signal ends it in one line also while it loads."""

import os
import signal
from types import FrameType
from typing import NoReturn

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    # Not by catching KeyboardInterrupt: what loads may swallow it, or turn it into ImportError.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:  # a job in the background may have it ignored
        signal.signal(signal.SIGINT, _stop)
    # Until a service that can drain takes it over. As the first process of a container, nothing
    # else would end it.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)
    from service.cli import app  # noqa: PLC0415 - it takes a second

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    app()


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, b"mfdan: stopped\n")
    os._exit(128 + number)  # at once, as without us: what is open survives a kill

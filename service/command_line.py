"""What the commands of `mfdan` share: settings and models, and how a command fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from model.errors import MfdanError
from model.session import Session
from model.solver import backend_here
from service.engine import open_sessions
from service.settings import Settings

__all__ = [
    "BAD_USAGE",
    "INTERRUPTED",
    "ModelOption",
    "failed",
    "open_models",
    "read_settings",
    "told_when_stopped",
]

BAD_USAGE = 2
"""Exit status of a command that was asked for something it cannot begin."""

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Name of the model (default: MFDAN_MODEL, or the first), or an ONNX file.",
    ),
]


def read_settings(**given: Any) -> Settings:  # noqa: ANN401 - pydantic checks
    """Read the settings; what the command line gives goes before the environment."""
    if (given.get("model") or "").endswith(".onnx"):
        given["models_dir"] = given.pop("model")
        given["model"] = ""  # not the one that the environment names in another folder
    try:
        return Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise failed(f"settings: {faults}", status=BAD_USAGE) from None
    except SettingsError as error:  # a list in the environment that is not JSON
        raise failed(f"settings: {error}; write lists as [1, 2]", status=BAD_USAGE) from None


def open_models(settings: Settings) -> dict[str, Session]:
    """Load the models, the default first; end the command where that fails.

    Also where their flow may not be had as the settings say: opening it takes seconds, and whoever
    waits for the service has been told by then that it serves.
    """
    try:
        sessions = open_sessions(settings)
        for session in sessions.values():
            backend_here(session.spec, settings.flow, settings.placement)
    except OSError as error:
        raise failed(f"{error.filename} cannot be read: {error.strerror}") from None
    except MfdanError as error:
        raise failed(str(error)) from None
    return sessions


@contextmanager
def told_when_stopped() -> Iterator[None]:
    """End a command after Ctrl-C with one line; typer alone ends it without a word."""
    try:
        yield
    except KeyboardInterrupt:
        raise failed("stopped", status=INTERRUPTED) from None


def failed(message: str, status: int = 1) -> typer.Exit:
    """Tell one line on standard error; return what ends the command with that status."""
    typer.echo(f"mfdan: {message}", err=True)
    return typer.Exit(status)

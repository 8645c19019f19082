"""What `mfdan serve` does: open the port, answer, and go only when everybody is answered."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from types import FrameType

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, start_http_server
from rich.console import Console
from starlette.types import Message, Receive, Scope, Send

from model.errors import MfdanError
from service.app import OpenEngine, create_app
from service.command_line import BAD_USAGE, failed, open_models
from service.connections import allow_open_files, bounded_protocol
from service.engine import Engine
from service.keys import KeysInvalid, answers_others
from service.logs import library_lines, where
from service.settings import Settings
from service.tracing import TracingRefused

__all__ = ["Server", "loaded", "run_server"]

_LAST_BYTES_S = 1
"""For answers to leave after the last prediction was answered, in whatever way."""


class Server(uvicorn.Server):
    """uvicorn's server, which drains with its port open and ends when the models cannot be warmed.

    So whoever balances the load hears from the port itself that it is to go elsewhere.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                self._asked,
                interface="asgi3",
                lifespan="on",
                http=bounded_protocol(settings),
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_LAST_BYTES_S,
            )
        )
        self.fault: str | None = None
        """Why the service ended by itself."""
        self._app = app
        self._settings = settings
        self._told_to_stop = False
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - of a signal
        """Hear of a signal: the first begins to drain, the second ends the process at once."""
        if self._told_to_stop:
            os.write(2, b"mfdan: stopped\n")
            os._exit(128 + sig)
        self._told_to_stop = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the application; where that fails, `fault` says so and the server ends."""
        try:
            await super().startup(sockets)
        except SystemExit:
            self.should_exit = True

    async def main_loop(self) -> None:
        """Serve until there is a reason to stop."""
        warming = asyncio.create_task(self._watch_warming())
        await super().main_loop()
        warming.cancel()

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether to stop."""
        if self._told_to_stop and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _asked(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open and close the application; tell by type and place why one of them failed."""
        doing = "start"

        async def send_no_traceback(message: Message) -> None:
            nonlocal doing
            if message["type"] == "lifespan.startup.complete":
                doing = "stop"
            await send({"type": message["type"]})  # uvicorn would log the rest

        try:
            await self._app(scope, receive, send_no_traceback)
        except Exception as error:
            what = f"the service could not {doing}"
            tell = self._app.state.telemetry.log.error
            tell(what, fault=type(error).__name__, where=where(error))
            self.fault = self.fault or f"{what}: {_words(error)}"
            raise

    async def _drain(self) -> None:
        admission = self.lifespan.state["admission"]
        admission.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_s):
                await asyncio.sleep(self._settings.drain_grace_s)
                await admission.idle()
        if admission.cut_off():
            await asyncio.sleep(_LAST_BYTES_S)
        self.should_exit = True

    async def _watch_warming(self) -> None:
        try:
            await self.lifespan.state["engine"].warmed_up()
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing will ever be answered
            self.fault = f"the models could not be warmed up: {_words(error)}"
            self.should_exit = True


def loaded(settings: Settings) -> tuple[list[str], OpenEngine]:
    """Load the models; return their names, and what opens one engine with them.

    Nothing else holds them, so that a model that is replaced later is freed.
    Raises: typer.Exit, told in one line, where they cannot be loaded.
    """
    once = [open_models(settings)]
    return [*once[0]], lambda given, observer: Engine.open(given, observer, once.pop())


def run_server(settings: Settings) -> None:
    """Serve until a signal. Raises: typer.Exit, told in one line, where that cannot be."""
    if settings.api_keys_file is None and answers_others(settings.host):
        raise failed(
            f"{settings.host} can be reached from other machines, and there are no API keys: name "
            "their file in MFDAN_API_KEYS_FILE (mfdan keys new makes one)",
            status=BAD_USAGE,
        )
    names, open_engine = loaded(settings)
    try:
        app = create_app(settings, open_engine)
        allow_open_files(settings.max_connections)
    except KeysInvalid as error:
        raise failed(f"API keys: {error}") from None
    except (TracingRefused, OSError) as error:
        raise failed(str(error)) from None
    telemetry = app.state.telemetry
    server = Server(app, settings)
    telemetry.requests.connections.set_function(lambda: len(server.server_state.connections))
    with (
        _listener(settings) as listener,  # first, because port 0 has no number before
        _metrics_on_their_own(settings, telemetry.registry) as metrics,
        library_lines(telemetry.log, settings.log_level),
    ):
        address = _address(settings.host, listener.getsockname()[1])
        what = f"mfdan {version('mfdan')} serves {', '.join(names)}"
        _say(f"{what} on {address} (documentation: /docs)", *metrics)
        server.run(sockets=[listener])
    if server.fault is not None:
        raise failed(server.fault)


@contextmanager
def _listener(settings: Settings) -> Iterator[socket.socket]:
    """Yield a socket that listens where the settings say."""
    host = settings.host
    both = host == "::" and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with _told_if_taken(host, settings.port):
        listener = socket.create_server((host, settings.port), family=family, dualstack_ipv6=both)
    with listener:
        yield listener


@contextmanager
def _metrics_on_their_own(settings: Settings, registry: CollectorRegistry) -> Iterator[list[str]]:
    """Serve /metrics on its port, where it has one; yield what to tell of it."""
    port, host = settings.metrics_port, settings.metrics_host
    if port is None:
        yield []
        return
    with _told_if_taken(host, port):
        server, thread = start_http_server(port, host, registry)
    try:
        yield [f"metrics on {_address(host, server.server_port)}/metrics"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _told_if_taken(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0]  # says the address again
        raise failed(f"cannot listen on {host}, port {port}: {why}") from None


def _words(error: Exception) -> str:
    """Return what an exception says, where the words are ours; others' may quote anything."""
    return str(error) if isinstance(error, MfdanError) else type(error).__name__


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(*lines: str) -> None:
    say = Console(stderr=True)
    for line in lines:
        say.print(line, highlight=False, markup=False, soft_wrap=True)

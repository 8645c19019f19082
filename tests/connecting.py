"""What tests of connections share: the real server in a thread, and callers who speak in bytes."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx2
from serving import HeldSession, wait_for

from service.app import create_app
from service.engine import Engine
from service.server import Server
from service.settings import Settings

LIVE = b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n"


class Doors:
    """A service that listens on a port of this machine."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def connect(self, *said: bytes) -> socket.socket:
        """Connect and say something."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(b"".join(said))
        return connection

    @property
    def connections(self) -> int:
        """Connections that the service holds."""
        return len(self.server.server_state.connections)

    def rejections(self, code: str) -> float:
        """How often it refused with this code."""
        return metric(self.url, f'mfdan_rejections_total{{code="{code}"}}')


@contextmanager
def open_doors(settings: Settings, session: HeldSession | None = None) -> Iterator[Doors]:
    """Serve as `mfdan serve` does, but for signals; yield when warm."""
    sessions = session and {session.spec.name: session}
    server = Server(create_app(settings, partial(Engine.open, sessions=sessions)), settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            doors = Doors(server, listener.getsockname()[1])
            wait_for(lambda: httpx2.get(f"{doors.url}/health/ready").is_success)
            yield doors
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def read_to_end(connection: socket.socket) -> bytes:
    """Return all that comes until the other side closes, in whatever way."""
    said = b""
    try:
        while some := connection.recv(65536):
            said += some
    except ConnectionResetError:
        pass
    return said


def read_answer(connection: socket.socket) -> bytes:
    """Return one answer that announces its length, and leave what comes after it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        some = connection.recv(1)
        assert some, f"closed after {head!r}"
        head += some
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return head + body


def posted(path: str, **parts: bytes) -> bytes:
    """Return the bytes of a form, head and body."""
    request = httpx2.Request("POST", f"http://127.0.0.1{path}", files=parts)
    body = request.read()
    lines = [f"POST {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def metric(url: str, name: str) -> float:
    """Return the value of one metric with its labels; 0 where it was never counted."""
    for line in httpx2.get(f"{url}/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rsplit(" ", 1)[1])
    return 0.0

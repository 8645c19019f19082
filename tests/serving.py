"""What the tests of the service share: pictures, a network that can be held, types of fixtures."""

import asyncio
import ctypes
import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx2
import numpy as np
import uvicorn
from drawn_face import Image, background, draw_face
from fastapi.testclient import TestClient
from PIL import Image as Pillow
from starlette.types import ASGIApp

from model.errors import FlowFault
from model.session import Session
from service.observer import Change, Observer, Place, Wait, Why
from service.settings import Settings

MakeSettings = Callable[..., Settings]
"""Settings on the tiny model; keyword arguments change them."""
Serve = Callable[..., AbstractContextManager[TestClient]]
"""`serve(session=None, **settings)`: a client of a service of its own, warm."""


def encode(frame: Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(frame).save(buffer, kind)
    return buffer.getvalue()


class Pictures:
    """Encoded frames of a drawn face."""

    def __init__(self) -> None:
        place = {"centre": (160.0, 110.0), "eye_distance": 50.0}
        scene = background(240, 320)
        self.onset = encode(draw_face(scene, **place))
        self.smile = encode(draw_face(scene, **place, smile=2.0))
        self.brows = encode(draw_face(scene, **place, brow_lift=2.0))
        self.moved_head = encode(draw_face(scene, centre=(162.2, 110.0), eye_distance=50.0))
        self.far_head = encode(draw_face(scene, centre=(166.0, 110.0), eye_distance=50.0))
        self.empty = encode(scene)
        border = {"centre": (35.0, 110.0), "eye_distance": 50.0}
        self.border = encode(draw_face(scene, **border))
        self.border_smile = encode(draw_face(scene, **border, smile=3.0))
        self.two = encode(_two_faces(0.0))
        self.two_smile = encode(_two_faces(3.0))

    @property
    def pair(self) -> dict[str, bytes]:
        """The parts of a form that is answered with one moved face."""
        return {"onset": self.onset, "apex": self.smile}


def _two_faces(smile: float) -> Image:
    """The larger face keeps still, the smaller one smiles."""
    scene = draw_face(background(240, 480), centre=(130.0, 110.0), eye_distance=52.0)
    return draw_face(scene, centre=(350.0, 110.0), eye_distance=45.0, smile=smile)


def form(*parts: tuple[str, bytes | str | None]) -> dict:
    """A browser's form: bytes are a chosen file, None is a file that was not chosen, text is text.

    httpx leaves an empty file name out, and browsers do not.
    """
    body = b""
    for name, value in parts:
        file = "" if isinstance(value, str) else f'; filename="{"f" if value else ""}"'
        content = value.encode() if isinstance(value, str) else value or b""
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    return {"content": body + b"--b--\r\n", "headers": headers}


class HeldSession:
    """A real session whose runs wait until they may go."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.spec, self.provider = session.spec, session.provider
        self.path = session.path
        self.fell_back = session.fell_back
        self.runs = 0
        self.started = threading.Event()
        self.may_go = threading.Event()

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        self._session.warm_up(batch_sizes)

    def run(self, image: np.ndarray, flow: np.ndarray) -> np.ndarray:
        self.runs += 1
        self.started.set()
        assert self.may_go.wait(20)
        return self._session.run(image, flow)


class Listener(Observer):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int, float]] = []
        self.failed: list[tuple[str, int, str]] = []
        self.flows: list[tuple[str, str, bool]] = []
        self.waits: list[tuple[str, float]] = []
        self.drops: list[tuple[str, str]] = []
        self.deaths: list[str] = []
        self.changes: list[tuple[str, str, str]] = []

    @property
    def sizes(self) -> list[int]:
        return [size for _, size, _ in self.ran]

    def waited(self, what: Wait, seconds: float) -> None:
        self.waits.append((what, seconds))

    def batch_ran(self, model: str, size: int, seconds: float) -> None:
        self.ran.append((model, size, seconds))

    def batch_failed(self, model: str, size: int, error: BaseException) -> None:
        self.failed.append((model, size, str(error)))

    def flow_failed(self, model: str, fault: FlowFault, *, fell_back: bool) -> None:
        self.flows.append((model, fault, fell_back))

    def dropped(self, place: Place, why: Why) -> None:
        self.drops.append((place, why))

    def worker_died(self, what: Wait) -> None:
        self.deaths.append(what)

    def model_changed(self, name: str, change: Change, fault: str = "") -> None:
        self.changes.append((name, change, fault))


def async_client(app: ASGIApp, state: object) -> httpx2.AsyncClient:
    """Return a client in the test's own event loop; state is what the lifespan gave."""

    async def with_state(scope: dict, receive: object, send: object) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    transport = httpx2.ASGITransport(with_state)
    return httpx2.AsyncClient(transport=transport, base_url="http://here", timeout=30)


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve an app over real HTTP on a free port of this machine; yield its address, ready."""
    config = uvicorn.Config(app, port=0, log_config=None, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: httpx2.get(f"{url}/health/ready").is_success)
        yield url
    finally:
        server.should_exit = True
        thread.join(20)


def end_thread(thread: threading.Thread) -> None:
    """Have SystemExit raised in a thread, wherever it is, when it next runs Python."""
    if thread.ident is not None:
        ended = ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        )
        assert ended <= 1  # 0: it has ended already


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)

"""Nothing that is uploaded reaches a disk, and nothing in a request names a file or an address."""

import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx2
import numpy as np
import pytest
from drawn_clips import encode_clip, encode_pictures
from drawn_expression_clips import drawn_clip
from serving import Pictures, encode, form, wait_for
from tiny_model import tiny_spec
from watched_service import WATCHED

MIB = 2**20
ROOT = Path(__file__).parents[2]
SAMPLE_S = 0.005


class Watched:
    """A serving process of which every file that it opens is known."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self._told = process.stderr.fileno()
        os.set_blocking(self._told, False)  # what it did is told before it answers
        fcntl.fcntl(self._told, fcntl.F_SETPIPE_SZ, MIB)
        self._rest = b""
        self._log: list[bytes] = []
        self._reading = threading.Thread(target=self._log.extend, args=(process.stdout,))
        self._reading.start()
        self.start = self._until_it_serves()
        self.client = httpx2.Client(base_url=self.url, timeout=60)
        wait_for(lambda: self.client.get("/health/ready").is_success)
        self.start += self.heard()

    def heard(self) -> list[str]:
        """What it opened and called since this was asked last."""
        while True:
            try:
                read = os.read(self._told, MIB)
            except BlockingIOError:
                break
            if not read:
                break
            self._rest += read
        *lines, self._rest = self._rest.split(b"\n")
        found = [line.decode(errors="replace") for line in lines]
        for line in found:
            if serves := re.search(r"serves \S+ on (\S+)", line):
                self.url = serves[1]
        return [line.removeprefix(f"{WATCHED} ") for line in found if line.startswith(WATCHED)]

    def log(self) -> str:
        return b"".join(self._log).decode()

    def writable(self) -> set[str]:
        """The files, named or not, that it holds open for writing at this moment."""
        found = set()
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                target = str(entry.readlink())
                info = (entry.parents[1] / "fdinfo" / entry.name).read_text()
            except FileNotFoundError:  # closed meanwhile
                continue
            flags = int(re.search(r"^flags:\s+(\d+)", info, re.MULTILINE)[1], 8)
            if flags & os.O_ACCMODE != os.O_RDONLY and target.startswith("/"):
                found.add(target)
        return {target for target in found if not target.startswith("/dev/")}

    @contextmanager
    def sampled(self) -> Iterator[set[str]]:
        """Yield a set into which every file goes that is held open for writing in the block."""
        seen: set[str] = set()
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(SAMPLE_S):
                seen.update(self.writable())

        sampling = threading.Thread(target=sample)
        sampling.start()
        try:
            yield seen
        finally:
            ended.set()
            sampling.join()

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        self._reading.join()
        self.process.stdout.close()
        self.process.stderr.close()

    def _until_it_serves(self) -> list[str]:
        self.url = ""
        found: list[str] = []

        def serves() -> bool:
            found.extend(self.heard())
            return bool(self.url) or self.process.poll() is not None

        wait_for(serves)
        assert self.url, self._rest
        return found


@pytest.fixture(scope="module")
def watched(models_dir: Path) -> Iterator[Watched]:
    environment = {
        "MFDAN_MODELS_DIR": str(models_dir),
        "MFDAN_PORT": "0",
        "MFDAN_MAX_CLIP_BYTES": str(32 * MIB),
        "MFDAN_MAX_BODY_BYTES": str(34 * MIB),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and script
        [sys.executable, ROOT / "tests" / "watched_service.py"],
        env={"PATH": "", **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        service = Watched(process)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    yield service
    service.close()


def noise(height: int, width: int) -> bytes:
    """A picture that no codec makes small."""
    return encode(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pair() -> tuple[str, dict]:
    picture = noise(1840, 1850)
    return "/predict", {"files": {"onset": picture, "apex": picture}}


def batch() -> tuple[str, dict]:
    pictures = [noise(950, 950)] * 4
    files = [(name, picture) for picture in pictures for name in ("onset", "apex")]
    return "/predict/batch", {"files": files}


def burst() -> tuple[str, dict]:
    files = [("frames", noise(800, 850 + step)) for step in (0, 0)] * 5
    return "/predict", {"files": files, "data": {"fps": "100"}}


@cache
def clip() -> tuple[str, dict]:
    """A face amid noise that no codec makes small."""
    noise = np.random.default_rng(5)
    frames = []
    for face in drawn_clip(fps=50, seconds=0.56)[0]:
        frame = noise.integers(0, 256, (640, 960, 3), dtype=np.uint8)
        frame[200 : 200 + face.shape[0], 300 : 300 + face.shape[1]] = face
        frames.append(frame)
    return "/predict", {"files": {"clip": encode_clip(frames, 50, "mkv", "ffv1")}}


def animation() -> tuple[str, dict]:
    noise = np.random.default_rng(7)
    frames = [noise.integers(0, 256, (960, 1280, 3), dtype=np.uint8) for _ in range(6)]
    return "/predict", {"files": {"clip": encode_pictures(frames, 50)}}


def tensors() -> tuple[str, dict]:
    size, count = tiny_spec().input_size, 18
    blob = bytes(4 * count * 3 * size * size)
    inputs = ", ".join(
        f'{{"name": "{name}", "datatype": "FP32", "shape": [{count}, 3, {size}, {size}], '
        f'"parameters": {{"binary_data_size": {len(blob)}}}}}'
        for name in ("image", "flow")
    )
    head = f'{{"inputs": [{inputs}]}}'.encode()
    headers = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    return "/v2/models/tiny/infer", {"content": head + blob + blob, "headers": headers}


def broken_pair() -> tuple[str, dict]:
    path, request = pair()
    return path, {"files": {name: data[: -MIB // 8] for name, data in request["files"].items()}}


def large_pair() -> tuple[str, dict]:
    return "/predict", {"files": {"onset": bytes(11 * MIB), "apex": bytes(11 * MIB)}}


def broken_clip() -> tuple[str, dict]:
    path, request = clip()
    return path, {"files": {"clip": request["files"]["clip"][: -MIB // 4]}}


def no_clip() -> tuple[str, dict]:
    return "/predict", {"files": {"clip": np.random.default_rng(1).bytes(20 * MIB)}}


def unknown_field() -> tuple[str, dict]:
    return "/predict", {"files": {"film": bytes(20 * MIB)}}


def endless_form() -> tuple[str, dict]:
    request = form(("onset", bytes(20 * MIB)))
    return "/predict", request | {"content": request["content"][:-9]}


def too_much() -> tuple[str, dict]:
    """Chunked, so that nothing announces it."""
    content = form(("clip", bytes(40 * MIB)))
    chunks = (content["content"][at : at + MIB] for at in range(0, 36 * MIB, MIB))
    return "/predict", content | {"content": chunks}


@pytest.mark.parametrize(
    ("upload", "status"),
    [
        (pair, 200),
        (batch, 200),
        (burst, 200),
        (clip, 200),
        (animation, 200),
        (tensors, 200),
        (broken_pair, 400),
        (large_pair, 413),
        (broken_clip, 400),
        (no_clip, 415),
        (unknown_field, 422),
        (endless_form, 400),
        (too_much, 413),
    ],
)
def test_twenty_megabytes_of_it_are_written_nowhere(
    watched: Watched, upload: Callable[[], tuple[str, dict]], status: int
) -> None:
    path, request = upload()
    watched.heard()
    with watched.sampled() as held_open:
        response = watched.client.post(path, **request)
    assert response.status_code == status, response.text
    assert int(response.request.headers.get("content-length", 36 * MIB)) > 20_000_000
    assert [line for line in watched.heard() if not line.startswith("read ")] == []
    assert held_open == set()


def test_an_upload_that_is_given_up_is_written_nowhere(watched: Watched) -> None:
    host, port = watched.url.removeprefix("http://").split(":")
    head = "POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 25000000\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    body = form(("clip", bytes(20 * MIB)))["content"]
    with watched.sampled() as held_open, socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body[: 20 * MIB])
    counted = re.compile(r'^mfdan_requests_total{.*status="499"} 1', re.MULTILINE)
    wait_for(lambda: counted.search(watched.client.get("/metrics").text) is not None)
    assert [line for line in watched.heard() if not line.startswith("read ")] == []
    assert held_open == set()


def test_the_watch_would_notice(watched: Watched) -> None:
    """The process tried a file without a name and one in memory before it began to serve."""
    assert [line for line in watched.start if line.startswith("failed")] == [
        "failed File too large",
        "failed File too large",
    ]
    assert [line for line in watched.start if line.startswith("write")] != []
    assert any("tiny.onnx" in line for line in watched.start)


PLACES = [
    "../../etc/passwd",
    "/etc/passwd",
    "/proc/self/environ",
    "file:///etc/passwd",
    "..\\..\\windows\\win.ini",
    "/dev/zero",
    "pipe:0",
    "concat:/etc/passwd|/etc/hostname",
]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        yield listener


@pytest.mark.parametrize("place", [*PLACES, "http://{here}/clip.mp4", "//{here}/share/clip.mp4"])
def test_no_place_that_a_request_names_is_opened_or_called(
    watched: Watched, pictures: Pictures, listener: socket.socket, place: str
) -> None:
    place = place.format(here=f"127.0.0.1:{listener.getsockname()[1]}")
    watched.client.get("/models")  # a connection, and what else is opened once
    watched.heard()
    named = {name: (place, data) for name, data in pictures.pair.items()}
    answers = {
        "as a file name": watched.client.post("/predict", files=named),
        "as text": watched.client.post("/predict", data={"clip": place}),
        "as texts": watched.client.post("/predict", data={"onset": place, "apex": place}),
        "as a model": watched.client.post("/predict", files=pictures.pair, data={"model": place}),
        "as a file": watched.client.post("/predict", files={"clip": (place, place.encode())}),
        "in the path": watched.client.get(f"/models/{place}"),
        "in the query": watched.client.get("/models", params={"url": place, "path": place}),
        "as a protocol's model": watched.client.get(f"/v2/models/{place}"),
        "as the boundary": watched.client.post(
            "/predict",
            content=b"--b--",
            headers={"content-type": f'multipart/form-data; boundary="{place}"'},
        ),
    }
    expected = {"as a file name": {200}, "in the query": {200}}
    for where, answer in answers.items():
        assert answer.status_code in expected.get(where, {400, 404, 415, 422}), (where, answer.text)
    assert watched.heard() == []
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert place not in watched.log()

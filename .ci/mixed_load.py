"""A stretch of everything that a service may be sent, good and bad, for its metrics to move."""

import asyncio
import io
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))  # before the tests: theirs is not this `model`
sys.path.append(str(Path(__file__).parents[1] / "tests"))

from drawn_clips import encode_clip
from drawn_expression_clips import drawn_clip
from drawn_face import background, draw_face
from tiny_model import tiny_spec, write_tiny_model
from tritonclient.http import InferenceServerClient, InferInput

from model.spec import load_spec, spec_path

TINY = "tiny"
SETTINGS = {
    "MFDAN_MAX_REQUESTS": "24",  # so that a burst fills it
    "MFDAN_CLIP_DEADLINE_MS": "6000",  # so that a long clip comes too late
    "MFDAN_RELOAD_S": "1",
}
"""Of the service that is sent all this."""
WANTED = {200, 401, 404, 415, 422, 429, 504}
"""Statuses that this load brings about."""
_MAY_BE = {408, 499, 503}
"""Statuses that it may bring about: callers hang up, and on a busy machine uploads are slow and a
network that is being loaded keeps others waiting. Any other is a fault."""
_KEYS_TRIED = 130
_BURST = 60
_LONG_CLIP_S = 50.0


@dataclass(frozen=True)
class Materials:
    """What is sent, made once."""

    onset: bytes
    moved: tuple[bytes, ...]
    """The same face with different expressions."""
    shifted: bytes
    """The same face elsewhere: the head has moved."""
    empty: bytes
    clips: tuple[bytes, ...]
    long_clip: bytes

    @classmethod
    def drawn(cls) -> "Materials":
        """Draw all of it; a few seconds."""
        moves = ({"smile": 1.0}, {"smile": 2.0}, {"brow_lift": 1.5}, {"brow_lift": 2.5})
        frames = drawn_clip(fps=25)[0]
        still = [np.asarray(draw_face(), np.uint8)] * 60
        return cls(
            onset=_png(draw_face()),
            moved=tuple(_png(draw_face(**move)) for move in moves),
            shifted=_png(draw_face(centre=(328.0, 220.0))),
            empty=_png(background()),
            clips=(
                encode_clip(frames, 25),
                encode_clip(drawn_clip(fps=25, movement="brow_lift")[0], 25, "webm", "vp8"),
            ),
            long_clip=encode_clip(still * int(_LONG_CLIP_S), 60),
        )


def _png(frame: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


class Load:
    """Sends everything at once, each kind at its own rate, and counts what came back."""

    def __init__(self, url: str, key: str, models: Path, seconds: float) -> None:
        self._url = url
        self._key = key
        self._models = models
        self._seconds = seconds
        self.statuses: Counter[int] = Counter()
        """Answers by status; 499 where nobody waited for it."""

    async def run(self, materials: Materials) -> None:
        """Send all of it. Raises: SystemExit when it did not bring about what it should."""
        async with (
            httpx2.AsyncClient(
                base_url=self._url,
                timeout=60,
                headers={"X-API-Key": self._key},
                limits=httpx2.Limits(max_connections=100),
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            for kind in (_pairs, _clips, _batches, _tensors, _malformed, _leavers):
                group.create_task(kind(self, client, materials))
            group.create_task(self._strangers())
            group.create_task(self._burst(client, materials))
            group.create_task(self._models_come_and_go())
        missing, strange = WANTED - self.statuses.keys(), self.statuses.keys() - WANTED - _MAY_BE
        if missing or strange:
            raise SystemExit(
                f"the load brought about {dict(self.statuses)}: missing {missing or 'none'}, "
                f"not expected {strange or 'none'}"
            )

    async def every(self, seconds: float) -> AsyncIterator[int]:
        """Yield numbers from 0, one each so many seconds, while the load lasts."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(int(self._seconds / seconds)):
            await asyncio.sleep(start + number * seconds - loop.time())
            yield number

    async def post(self, client: httpx2.AsyncClient, path: str, **sent: object) -> None:
        """Send one request and count its status."""
        self.statuses[(await client.post(path, **sent)).status_code] += 1

    async def _at(self, share: float) -> None:
        await asyncio.sleep(share * self._seconds)

    async def _strangers(self) -> None:
        """Try keys that are none."""
        await self._at(0.2)
        async with httpx2.AsyncClient(base_url=self._url) as client:
            for number in range(_KEYS_TRIED):
                answer = await client.get("/models", headers={"X-API-Key": f"mfdan_{number}"})
                self.statuses[answer.status_code] += 1

    async def _burst(self, client: httpx2.AsyncClient, materials: Materials) -> None:
        """Send more at once than there are places."""
        await self._at(0.6)
        files = {"onset": materials.onset, "apex": materials.moved[0]}
        async with asyncio.TaskGroup() as group:
            for _ in range(_BURST):
                group.create_task(self.post(client, "/predict", files=files))

    async def _models_come_and_go(self) -> None:
        """Add a model, add one that is none, replace the default, take the added one away."""
        (default,) = (path for path in self._models.glob("*.onnx") if path.stem != TINY)
        broken = self._models / "broken.onnx"
        await self._at(0.1)
        shutil.copy(default.with_name(f"{default.name}.json"), spec_path(broken))
        broken.write_bytes(b"no network")
        await self._at(0.25)
        spec = load_spec(default)
        spec_path(default).write_text(replace(spec, scores=()).to_json())
        await self._at(0.5)
        tiny = self._models / f"{TINY}.onnx"
        for path in (tiny, spec_path(tiny)):
            path.unlink()


def add_tiny_model(models: Path) -> None:
    """Put a second, quick model beside the default one."""
    write_tiny_model(models, tiny_spec(TINY))


Kind = Callable[[Load, httpx2.AsyncClient, Materials], Awaitable[None]]


async def _pairs(load: Load, client: httpx2.AsyncClient, materials: Materials) -> None:
    """Every third expression is real, every sixth picture is empty; the rest keeps still."""
    apexes = (*materials.moved, materials.onset, materials.onset, materials.shifted)
    async with asyncio.TaskGroup() as group:
        async for number in load.every(0.35):
            apex = apexes[number % len(apexes)]
            files = {"onset": materials.onset, "apex": apex}
            if number % 6 == 0:
                files = {"onset": materials.empty, "apex": materials.empty}
            model = {"model": TINY} if number % 11 == 0 else {}
            group.create_task(load.post(client, "/predict", files=files, data=model))


async def _clips(load: Load, client: httpx2.AsyncClient, materials: Materials) -> None:
    await load.post(client, "/predict", files={"clip": materials.long_clip})
    async for number in load.every(6):
        clip = materials.clips[number % len(materials.clips)]
        data = {"apex_frame": "14"} if number % 3 == 0 else {}
        await load.post(client, "/predict", files={"clip": clip}, data=data)


async def _batches(load: Load, client: httpx2.AsyncClient, materials: Materials) -> None:
    async for _ in load.every(7):
        pairs = [(materials.onset, apex) for apex in (*materials.moved[:2], b"no picture")]
        files = [part for onset, apex in pairs for part in (("onset", onset), ("apex", apex))]
        await load.post(client, "/predict/batch", files=files)


async def _tensors(load: Load, client: httpx2.AsyncClient, _materials: Materials) -> None:
    default = (await client.get("/models")).json()[0]["name"]
    draw = np.random.default_rng(0)
    inputs = [
        InferInput(name, [1, 3, 224, 224], "FP32").set_data_from_numpy(
            draw.uniform(-1, 1, (1, 3, 224, 224)).astype(np.float32)
        )
        for name in ("image", "flow")
    ]
    body, head = InferenceServerClient.generate_request_body(inputs)
    headers = {"Inference-Header-Content-Length": str(head)}
    async for _ in load.every(5):
        await load.post(client, f"/v2/models/{default}/infer", content=body, headers=headers)


async def _malformed(load: Load, client: httpx2.AsyncClient, materials: Materials) -> None:
    onset = materials.onset
    wrong = (
        {"files": {"onset": onset, "apex": b"no picture"}},
        {"files": {"onset": onset}},
        {"files": {"onset": onset, "apex": onset}, "data": {"model": "nobody"}},
        {"files": {"clip": b"no clip"}},
    )
    async for number in load.every(2.5):
        await load.post(client, "/predict", **wrong[number % len(wrong)])


async def _leavers(load: Load, client: httpx2.AsyncClient, materials: Materials) -> None:
    """Hang up while the answer is worked on."""
    files = {"onset": materials.onset, "apex": materials.moved[0]}
    async for _ in load.every(6):
        try:
            await client.post("/predict", files=files, timeout=0.03)
        except httpx2.TimeoutException:
            load.statuses[499] += 1

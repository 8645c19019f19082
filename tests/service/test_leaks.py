"""Ten thousand requests of every kind leave nothing behind."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from drawn_face import background, draw_face
from running import FORM, Footprint, Kept, ask, form_body, request, running
from serving import encode, until
from tiny_model import tiny_spec, write_tiny_model

from service.settings import Settings

SIDE = 28
"""Of the network's pictures: the smallest that a spec may ask for, as most of this is not about
the network."""
WARM_UP, REQUESTS = 1_500, 10_000
AT_ONCE = 12
KEPT = 0.5
"""The share of the requests that goes over connections which are kept."""
LEFT = "hung up"


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder, tiny_spec(input_size=SIDE))
    return folder


def tensors() -> bytes:
    """Ask for one pair under /v2, the tensors as bytes."""
    array = np.ones((1, 3, SIDE, SIDE), "<f4").tobytes()
    described = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": [1, 3, SIDE, SIDE],
            "parameters": {"binary_data_size": len(array)},
        }
        for name in ("image", "flow")
    ]
    head = json.dumps({"inputs": described}).encode()
    return request(
        "/v2/models/tiny/infer",
        head + 2 * array,
        "application/octet-stream",
        Inference_Header_Content_Length=str(len(head)),
    )


def mix() -> list[tuple[bytes, int | str]]:
    """Return a hundred requests, each with the status of its answer, or LEFT."""
    small = {"centre": (64.0, 44.0), "eye_distance": 26.0}
    scene = background(96, 128)
    pair = [
        ("onset", encode(draw_face(scene, **small))),
        ("apex", encode(draw_face(scene, **small, smile=2.0))),
    ]
    whole = request("/predict", form_body(pair), FORM)
    nobody = encode(background(48, 64))
    no_face = request("/predict", form_body([("onset", nobody), ("apex", nobody)]), FORM)
    no_pictures = request("/predict", form_body([("onset", b"text"), ("apex", nobody)]), FORM)
    no_clip = request("/predict", form_body([("clip", b"text" * 99)]), FORM)
    unknown = request("/predict", form_body([("face", nobody)]), FORM)
    no_form = request("/predict", b"--b\r\n\r\n--b", FORM)
    batch = request("/predict/batch", form_body([("onset", nobody), ("apex", b"GIF89a")]), FORM)
    no_tensors = request("/v2/models/tiny/infer", b'{"inputs": [}', "application/json")
    asked = {path: request(path, method="GET") for path in ("/health/live", "/health/ready")}
    return [
        *[(whole, 200)] * 2,
        *[(whole, LEFT), (whole[: len(whole) // 2], LEFT), (no_face, LEFT)],
        *[(no_face, 200)] * 5,
        *[(batch, 200)] * 3,
        *[(tensors(), 200)] * 10,
        *[(tensors(), LEFT)] * 2,
        *[(no_pictures, 415), (no_clip, 415)] * 4,
        *[(unknown, 422), (no_form, 400), (no_tensors, 400)] * 5,
        *[(asked["/health/live"], 200), (asked["/health/ready"], 200)] * 12,
        *[(request("/models", method="GET"), 200)] * 6,
        *[(request("/models/nobody", method="GET"), 404)] * 5,
        *[(request("/v2/models/tiny", method="GET"), 200)] * 6,
        *[(request("/nowhere", method="GET"), 404)] * 5,
        *[(request("/metrics", method="GET"), 200)],
        *[(b"GET / HTTP/1.1\r\nHost: \0\r\n\r\n", 400)] * 5,
    ]


async def send_all(
    count: int,
    requests: list[tuple[bytes, int | str]],
    one: Callable[[bytes, int | str], Awaitable[None]],
) -> None:
    left = iter(list(islice(cycle(requests), count)))

    async def sender() -> None:
        for sent, expected in left:
            await one(sent, expected)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(sender())


def test_ten_thousand_requests_leave_no_task_thread_file_or_memory(small_model: Path) -> None:
    rng = np.random.default_rng(5)
    requests = mix()
    assert len(requests) == 100
    requests = [requests[place] for place in rng.permutation(len(requests))]
    wrong: Counter[tuple[int | str, int]] = Counter()

    async def run() -> tuple[Footprint, Footprint]:
        settings = Settings(
            models_dir=small_model, worker_threads=2, log_level="error", max_requests=AT_ONCE * 2
        )
        async with running(settings) as service:

            async def one(sent: bytes, expected: int | str) -> None:
                if expected == LEFT:
                    await ask(service.port, sent, leave_after=rng.uniform(0, 0.02))
                    return
                over_kept = b"Connection: close" in sent and rng.random() < KEPT
                answer = await (kept.ask(sent) if over_kept else ask(service.port, sent))
                if answer.status != expected:
                    wrong[expected, answer.status] += 1

            async def idle() -> Footprint:
                await kept.close()
                await until(lambda: not service.engine.items + service.engine.busy_workers)
                await until(lambda: len(asyncio.all_tasks()) <= tasks)
                return Footprint.take()

            tasks, kept = len(asyncio.all_tasks()), Kept(service.port)
            await send_all(WARM_UP, requests, one)
            before = await idle()
            await send_all(REQUESTS - WARM_UP, requests, one)
            after = await idle()
            assert kept.asked > REQUESTS / 3
            assert kept.opened < kept.asked / 20
            return before, after

    before, after = asyncio.run(run())
    assert not wrong, "expected status, real one, how often"
    # A quarter of an object, or two kilobytes, for each request would be more.
    after.assert_no_larger(before, objects=REQUESTS // 4, resident_mib=20)

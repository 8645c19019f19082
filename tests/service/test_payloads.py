"""Requests that can be told apart, many at once: each gets its own answer, whoever else leaves."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pytest
from drawn_clips import encode_clip
from drawn_expression_clips import drawn_clip
from drawn_face import background, draw_face
from running import FORM, Running, ask, form_body, request, running
from serving import HeldSession, Listener, MakeSettings, encode, until

from service.engine import Engine, Upload
from service.settings import Settings

MOVES = (0.8, 1.2, 1.6, 2.0, 2.4, 2.8)
"""Of smiles and of brows, pixels: no two pairs are answered alike."""


@dataclass(frozen=True)
class Payloads:
    pairs: list[tuple[bytes, bytes]]
    clips: list[bytes]

    def requests(self) -> list[bytes]:
        """Return pairs, clips, batches of pairs and tensors, each of them unlike all others."""
        pairs = [form_body([("onset", one), ("apex", two)]) for one, two in self.pairs]
        batches = [
            form_body([*(("onset", one) for one, _ in some), *(("apex", two) for _, two in some)])
            for some in (self.pairs[:3], self.pairs[::-2])
        ]
        return [
            *(request("/predict", body, FORM) for body in pairs),
            *(request("/predict/batch", body, FORM) for body in batches),
            *(request("/predict", form_body([("clip", clip)]), FORM) for clip in self.clips),
            *(tensor_request(level) for level in (0.1, 0.4, 0.7)),
        ]


@pytest.fixture(scope="module")
def payloads() -> Payloads:
    place, scene = {"centre": (80.0, 55.0), "eye_distance": 33.0}, background(120, 160)
    onset = encode(draw_face(scene, **place))
    moved = chain.from_iterable(({"smile": by}, {"brow_lift": by}) for by in MOVES)
    pairs = [(onset, encode(draw_face(scene, **place, **move))) for move in moved]
    clips = [
        encode_clip(drawn_clip(fps=50, seconds=0.8, movement=movement)[0], 50)
        for movement in ("smile", "brow_lift")
    ]
    return Payloads(pairs, clips)


def tensor_request(level: float) -> bytes:
    shape = [2, 3, 224, 224]
    inputs = [
        np.full(shape, level, "<f4") * np.array([1, 0.5], "<f4")[:, None, None, None],
        np.full(shape, 1 - level, "<f4"),
    ]
    described = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": shape,
            "parameters": {"binary_data_size": one.nbytes},
        }
        for name, one in zip(("image", "flow"), inputs, strict=True)
    ]
    head = json.dumps({"inputs": described}).encode()
    return request(
        "/v2/models/tiny/infer",
        head + b"".join(one.tobytes() for one in inputs),
        "application/octet-stream",
        Inference_Header_Content_Length=str(len(head)),
    )


def told(body: bytes) -> object:
    """Return what is the same each time that a request is answered."""
    answer = json.loads(body)
    for one in (answer, *answer.get("results", ())):
        one.pop("request_id", None)
        one.pop("timings_ms", None)
    return answer


@asynccontextmanager
async def held_service(
    settings: Settings, session: HeldSession, heard: Listener | None = None
) -> AsyncIterator[Running]:
    """Serve with a network that can be held, and has let everything pass so far."""
    session.may_go.set()
    sessions = {session.spec.name: session}

    def opened(given: Settings, observer: Listener) -> object:
        return Engine.open(given, heard or observer, sessions=sessions)

    async with running(settings, opened) as service:
        yield service


def test_every_answer_belongs_to_its_request_in_batches_and_clips_mixed(
    make_settings: MakeSettings, held: HeldSession, payloads: Payloads
) -> None:
    heard = Listener()
    requests = payloads.requests()

    def prepared() -> int:
        return sum(what == "worker" for what, _ in heard.waits)

    async def run() -> None:
        async with held_service(make_settings(log_level="error"), held, heard) as service:
            alone = [told((await ask(service.port, one)).body) for one in requests]
            for place, one in enumerate(alone):
                assert one not in alone[:place], "two payloads that cannot be told apart"
            rng = np.random.default_rng(3)
            for _ in range(2):
                order = rng.permutation(2 * len(requests)) % len(requests)
                before = prepared()
                held.may_go.clear()  # so that they gather
                asked = [asyncio.create_task(ask(service.port, requests[at])) for at in order]
                await until(lambda: prepared() > before + 20)  # noqa: B023 - awaited here
                held.may_go.set()
                for at, answer in zip(order, await asyncio.gather(*asked), strict=True):
                    assert answer.status == 200
                    assert told(answer.body) == alone[at]

    asyncio.run(run())
    assert 8 in heard.sizes


def test_those_who_leave_neither_break_nor_delay_the_others(
    make_settings: MakeSettings, held: HeldSession, payloads: Payloads
) -> None:
    """Half of the callers hang up: before their pair is prepared, and while it waits."""
    heard = Listener()
    requests = [
        request("/predict", form_body([("onset", onset), ("apex", apex)]), FORM)
        for onset, apex in payloads.pairs
    ]

    async def run() -> None:
        async with held_service(make_settings(log_level="error"), held, heard) as service:
            alone = [told((await ask(service.port, one)).body) for one in requests]
            held.may_go.clear()
            held.started.clear()
            first = asyncio.create_task(ask(service.port, requests[0]))
            await until(held.started.is_set)
            asked = [asyncio.create_task(ask(service.port, one)) for one in requests]
            for one in asked[::4]:
                one.cancel()
            await until(lambda: service.engine.waiting == 0 and service.engine.busy_workers == 0)
            for one in asked[1::4]:
                one.cancel()
            staying = [at for at in range(len(asked)) if at % 4 > 1]
            await until(lambda: service.engine.items == 1 + len(staying))
            ran = sum(heard.sizes)
            held.may_go.set()  # and nobody has to come again for the others to be answered
            assert told((await first).body) == alone[0]
            for at in staying:
                assert told((await asked[at]).body) == alone[at]
            # Of those who left nothing was run.
            await until(lambda: service.engine.items == 0)
            assert sum(heard.sizes) - ran == 1 + len(staying)

    asyncio.run(run())


def test_a_call_cancelled_at_any_moment_costs_only_its_own_answer(
    make_settings: MakeSettings, payloads: Payloads
) -> None:
    uploads = [Upload(*pair) for pair in payloads.pairs]
    rng = np.random.default_rng(4)

    async def run() -> None:
        async with Engine.open(make_settings(batch_sizes=(1, 4))) as engine:
            await engine.warmed_up()
            alone = [(await engine.predict(one)).faces[0].verdict for one in uploads]
            order = rng.integers(len(uploads), size=60)
            asked = [asyncio.create_task(engine.predict(uploads[at])) for at in order]
            leavers = rng.permutation(len(asked))[: len(asked) // 2]
            for leaver in leavers:
                for _ in range(rng.integers(40)):
                    await asyncio.sleep(0.0005)
                asked[leaver].cancel()
            answers = await asyncio.gather(*asked, return_exceptions=True)
            for place, (at, answer) in enumerate(zip(order, answers, strict=True)):
                if isinstance(answer, asyncio.CancelledError):
                    assert place in leavers
                else:
                    assert not isinstance(answer, BaseException)
                    probabilities = answer.faces[0].verdict.probabilities
                    assert probabilities == pytest.approx(alone[at].probabilities, abs=1e-6)
            assert engine.items == 0

    asyncio.run(run())

"""Real requests, broken in hundreds of ways over a real connection: refused, and nothing else."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pytest
from drawn_clips import encode_clip
from drawn_face import background, draw_face
from running import FORM, Answer, Footprint, ask, form_body, request, running
from serving import MakeSettings, encode, until

Rng = np.random.Generator
Break = Callable[[Rng, bytes], bytes]

TIMES = 25
"""That each kind of request is broken in each way; by another seed each time."""
AT_ONCE = 12
PLAIN = "text/plain"


@dataclass(frozen=True)
class Sent:
    """A request in its pieces, any of which can be broken alone."""

    path: str
    contents: Sequence[tuple[str, bytes]]
    body: Callable[[Sequence[tuple[str, bytes]]], bytes] = form_body
    kind: str = FORM
    headers: dict[str, str] = field(default_factory=dict)

    def wire(self) -> bytes:
        return request(self.path, self.body(self.contents), self.kind, **self.headers)


def kinds() -> dict[str, Sent]:
    """Return a small real request of each kind that is answered 200."""
    scene, small = background(96, 128), {"centre": (64.0, 44.0), "eye_distance": 26.0}
    faces = [draw_face(scene, **small, smile=smile) for smile in (0.0, 1.0, 2.0, 1.0)]
    onset, *_ = pictures = [encode(face) for face in faces]
    jpeg = encode(faces[2], "JPEG")
    pair = [("onset", onset), ("apex", pictures[2])]
    head, tensors = tensor_request()
    return {
        "pair": Sent("/predict", pair),
        "batch": Sent("/predict/batch", [("onset", jpeg), *pair, ("apex", jpeg)]),
        "frames": Sent("/predict", [*(("frames", one) for one in pictures)], burst_body),
        "clip": Sent("/predict", [("clip", encode_clip(faces, 25))]),
        "gif": Sent("/predict", [("clip", encode_clip(faces, 25, "gif", "gif"))]),
        "tensors": Sent(
            "/v2/models/tiny/infer",
            [("json", head), ("tensors", tensors)],
            lambda parts: b"".join(content for _, content in parts),
            "application/octet-stream",
            {"Inference_Header_Content_Length": str(len(head))},
        ),
    }


def burst_body(parts: Sequence[tuple[str, bytes]]) -> bytes:
    fps = b'--b\r\nContent-Disposition: form-data; name="fps"\r\n\r\n25\r\n'
    return fps + form_body(parts)


def tensor_request() -> tuple[bytes, bytes]:
    array = np.ones((1, 3, 224, 224), "<f4").tobytes()
    inputs = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": [1, 3, 224, 224],
            "parameters": {"binary_data_size": len(array)},
        }
        for name in ("image", "flow")
    ]
    return json.dumps({"id": "1", "inputs": inputs}).encode(), 2 * array


def flipped(rng: Rng, data: bytes) -> bytes:
    """Change a few bytes anywhere."""
    broken = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 9)):
        broken[place] = rng.integers(256)
    return bytes(broken)


def cut(rng: Rng, data: bytes) -> bytes:
    """Leave the end out."""
    return data[: rng.integers(len(data))]


def hole(rng: Rng, data: bytes) -> bytes:
    """Leave something out."""
    begin, end = _slice(rng, data)
    return data[:begin] + data[end:]


def repeated(rng: Rng, data: bytes) -> bytes:
    """Say something twice."""
    begin, end = _slice(rng, data)
    return data[:end] + data[begin:]


def inserted(rng: Rng, data: bytes) -> bytes:
    """Put in what does not belong there."""
    begin, _ = _slice(rng, data)
    return data[:begin] + rng.bytes(rng.integers(1, 200)) + data[begin:]


def renumbered(rng: Rng, data: bytes) -> bytes:
    """Change one of the numbers written out as text, if there is one."""
    found = [*re.finditer(rb"\d+", data[:4096])]
    if not found:
        return flipped(rng, data)
    number = found[rng.integers(len(found))]
    other = rng.choice([b"0", b"-1", b"1e9", b"99999999999999999999", b"", b"NaN", b"07"])
    return data[: number.start()] + bytes(other) + data[number.end() :]


def _slice(rng: Rng, data: bytes) -> tuple[int, int]:
    begin = int(rng.integers(len(data)))
    return begin, min(len(data), begin + int(rng.integers(1, 1 + max(1, len(data) // 2))))


WAYS: tuple[Break, ...] = (flipped, cut, hole, repeated, inserted, renumbered)


def broken_content(rng: Rng, sent: Sent) -> bytes:
    """Break one picture, clip or tensor inside a form that is whole."""
    contents = list(sent.contents)
    place = rng.integers(len(contents))
    name, content = contents[place]
    contents[place] = (name, _way(rng)(rng, content))
    return request(sent.path, sent.body(contents), sent.kind, **sent.headers)


def broken_body(rng: Rng, sent: Sent) -> bytes:
    """Break the form, whose length is announced as it then is."""
    body = _way(rng)(rng, sent.body(sent.contents))
    return request(sent.path, body, sent.kind, **sent.headers)


def broken_framing(rng: Rng, sent: Sent) -> bytes:
    """Break the form, and announce the length that it had."""
    head, body = _split(sent)
    return head + _way(rng)(rng, body)


def broken_head(rng: Rng, sent: Sent) -> bytes:
    """Break the request's line and headers."""
    head, body = _split(sent)
    return _way(rng)(rng, head) + body


def _split(sent: Sent) -> tuple[bytes, bytes]:
    head, end, body = sent.wire().partition(b"\r\n\r\n")
    return head + end, body


def _way(rng: Rng) -> Break:
    return WAYS[rng.integers(len(WAYS))]


def corpus() -> Iterator[tuple[str, bytes]]:
    """Yield the name of each broken request, and the request."""
    places = (broken_content, broken_body, broken_framing, broken_head)
    for (kind, sent), place, number in product(kinds().items(), places, range(TIMES)):
        rng = np.random.default_rng([number, *kind.encode(), *place.__name__.encode()])
        yield f"{kind} {place.__name__} {number}", place(rng, sent)


@dataclass(frozen=True)
class Outcome:
    whole: list[Answer]
    """Of the requests as they were before they were broken; asked first, and again at the end."""
    answers: dict[str, Answer]
    before: Footprint
    after: Footprint


async def answer_all(make_settings: MakeSettings) -> Outcome:
    # Short, for what is announced and never sent, or sent and never finished.
    patience = {"upload_timeout_ms": 500, "header_timeout_ms": 500, "max_requests": 2 * AT_ONCE}
    async with running(make_settings(log_level="error", **patience)) as service:
        whole = [await ask(service.port, sent.wire()) for sent in kinds().values()]
        tasks = len(asyncio.all_tasks())
        broken, answers = list(corpus()), {}

        async def sender(left: Iterator[tuple[str, bytes]]) -> None:
            for name, sent in left:
                answers[name] = await ask(service.port, sent)

        async def send_all() -> Footprint:
            left = iter(broken)
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(sender(left))
            await until(lambda: not service.engine.items + service.engine.clips)
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            return Footprint.take()

        before, after = await send_all(), await send_all()  # the first fills what is kept
        whole += [await ask(service.port, sent.wire()) for sent in kinds().values()]
    return Outcome(whole, answers, before, after)


@pytest.fixture(scope="module")
def outcome(make_settings: MakeSettings) -> Outcome:
    return asyncio.run(answer_all(make_settings))


def test_more_than_500_malformed_requests_hang_nowhere_and_are_no_fault_of_the_service(
    outcome: Outcome,
) -> None:
    assert len(outcome.answers) >= 500
    failed = {name: one for name, one in outcome.answers.items() if one.status >= 500}
    assert not failed
    codes = Counter(
        json.loads(one.body)["code"]
        for one in outcome.answers.values()
        if one.kind == "application/problem+json"
    )
    assert len(codes) >= 6, codes  # they were broken in ways that matter


def test_a_malformed_request_is_told_what_is_wrong_with_it(outcome: Outcome) -> None:
    for name, one in outcome.answers.items():
        assert b"Traceback" not in one.body, name
        if one.status >= 400 and one.kind != PLAIN:  # plain: what is not even HTTP
            told = json.loads(one.body)
            assert told.get("detail") or told.get("error"), name


def test_after_malformed_requests_whole_ones_are_answered_as_before(outcome: Outcome) -> None:
    half = len(outcome.whole) // 2
    for before, after in zip(outcome.whole[:half], outcome.whole[half:], strict=True):
        assert (before.status, after.status) == (200, 200)
        assert _without_times(before.body) == _without_times(after.body)


def test_malformed_requests_leave_nothing_behind(outcome: Outcome) -> None:
    outcome.after.assert_no_larger(outcome.before, objects=len(outcome.answers), resident_mib=20)


def _without_times(body: bytes) -> bytes:
    return re.sub(rb'"request_id":"\w+"|"timings_ms":{[^}]*}', b"", body)

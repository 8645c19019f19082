"""Forms as bytes, in pieces, cut short and too large."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.multipart import FormBroken, FormLimits, Part, read_parts

LIMITS = FormLimits(max_files=4, max_texts=3, max_text_bytes=64)
KIND = "multipart/form-data; boundary=b"
NAMES = st.text("abcdefghij_", min_size=1, max_size=8)
TEXTS = st.builds(
    Part, NAMES, st.text(max_size=16).map(str.encode), st.none()
)  # at most 64 bytes as UTF-8
FILES = st.builds(Part, NAMES, st.binary(max_size=200), st.sampled_from(["", "f", "grün.png"]))
FORMS = st.tuples(st.lists(TEXTS, max_size=3), st.lists(FILES, max_size=4)).map(
    lambda both: both[0] + both[1]
)


def body_of(parts: Iterable[Part]) -> bytes:
    body = b""
    for part in parts:
        file = "" if part.filename is None else f'; filename="{part.filename}"'
        head = f'--b\r\nContent-Disposition: form-data; name="{part.name}"{file}\r\n\r\n'
        body += head.encode() + part.data + b"\r\n"
    return body + b"--b--\r\n"


def read(body: bytes, cuts: Iterable[int] = (), kind: str = KIND) -> list[Part]:
    ends = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]

    async def chunks() -> AsyncIterator[bytes]:
        for start, end in pairwise(ends):
            yield body[start:end]

    return asyncio.run(read_parts(kind, chunks(), LIMITS))


def is_whole(part: Part) -> bool:
    return b"\r\n--b" not in b"\r\n" + part.data


@given(FORMS, st.lists(st.integers(0, 1500), max_size=8))
def test_a_form_is_read_as_it_was_sent_however_it_is_cut_into_packets(
    parts: list[Part], cuts: list[int]
) -> None:
    parts = [part for part in parts if is_whole(part)]
    assert read(body_of(parts), cuts) == parts


@given(FORMS, st.integers(1, 1500))
def test_a_form_that_is_cut_short_is_never_taken_for_a_whole_one(
    parts: list[Part], length: int
) -> None:
    parts = [part for part in parts if is_whole(part)]
    whole = body_of(parts)
    cut = whole[: min(length, len(whole) - len(b"-\r\n"))]
    with pytest.raises(FormBroken):
        read(cut)


@given(st.binary(max_size=300))
def test_any_bytes_are_parts_or_a_fault(body: bytes) -> None:
    with suppress(FormBroken):
        assert all(isinstance(part, Part) for part in read(b"--b\r\n" + body))


def test_what_was_sent_as_text_is_utf_8_or_else_latin_1() -> None:
    assert Part("model", "größe".encode(), None).text == "größe"
    assert Part("model", "größe".encode("latin-1"), None).text == "größe"


def test_a_body_of_another_kind_or_none_has_no_parts() -> None:
    assert read(b"a=1", kind="application/x-www-form-urlencoded") == []
    assert read(b"a=1", kind="") == []
    assert read(b"") == []


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (body_of([Part("a", b"", "f")]), "multipart/form-data", "names no boundary"),
        (body_of([Part("a", b"", "f")] * 5), KIND, "may hold 4 files"),
        (body_of([Part("a", b"1", None)] * 4), KIND, "may hold 3 texts"),
        (body_of([Part("a", bytes(65), None)]), KIND, "may hold 64 bytes"),
        (b"--b\r\nContent-Type: text/plain\r\n\r\na\r\n--b--\r\n", KIND, "has no name"),
        (b"--c\r\n", KIND, "not a multipart form"),
    ],
)
def test_a_form_beyond_its_limits_is_refused_in_words(body: bytes, kind: str, words: str) -> None:
    with pytest.raises(FormBroken, match=words):
        read(body, kind=kind)

"""Bytes of a clip → its container, and whether its own structure is whole. Nothing is decoded.

FFmpeg trusts what a file says of itself: it plays what is left of a file that was cut short, and
makes room for as many frames as a header of a few bytes claims. Both are looked at here first.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from model.errors import BrokenClip, ClipTooLarge, NotAClip

__all__ = [
    "Animation",
    "check_structure",
    "demuxer_of",
    "read_animation",
    "sniff_container",
]

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypqt  ", "mov"),
    (4, b"ftyp", "mp4"),
    *((4, atom, "mov") for atom in (b"moov", b"mdat", b"wide", b"free", b"skip")),
    (0, b"\x1a\x45\xdf\xa3", "mkv"),
    (8, b"AVI ", "avi"),
    (8, b"WEBP", "webp"),
    (0, b"GIF8", "gif"),
)
"""Offset, the bytes there, the container."""
_DEMUXERS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "matroska"}
_EBML_HEADER = 64
"""Bytes; the header that names WebM is shorter."""
_KINDS = "MP4, MOV, MKV, WebM, AVI, GIF or animated WebP"


def sniff_container(data: bytes) -> str:
    """Tell the container by its signature: mp4, mov, mkv, webm, avi, gif or webp.

    A file's name says nothing, and FFmpeg's own guess would also take playlists, which name other
    files and addresses. Raises: NotAClip.
    """
    if not data:
        raise NotAClip("the clip holds no bytes")
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset):
            if name == "mkv" and b"webm" in data[:_EBML_HEADER]:
                return "webm"
            return name
    raise NotAClip(f"the bytes are not an {_KINDS} clip")


def demuxer_of(container: str) -> str:
    """Return FFmpeg's name of the one demuxer that may read a container."""
    return _DEMUXERS.get(container, container)


def check_structure(data: bytes, container: str) -> None:
    """Check that a file reaches the end that it gives itself, and claims no absurd tables.

    A Matroska file or a fragmented MP4 that was cut between two of its parts, and an AVI written
    as a stream, do not tell: they end where they end.
    Raises: BrokenClip, ClipTooLarge.
    """
    if container in {"mp4", "mov"}:
        _check_boxes(data)
    elif not _is_whole(data, container):
        raise BrokenClip("the clip is cut short")


def _is_whole(data: bytes, container: str) -> bool:
    if container == "gif":
        return _gif_ends(data)
    if container in {"mkv", "webm"}:
        return _segment_end(data) <= len(data)
    return _riff_end(data) <= len(data)


def _little(digits: bytes) -> int:
    return int.from_bytes(digits, "little")


# MP4 and MOV: boxes, each of a length and a name.

_BOX_HEAD = 8
_LONG_BOX_HEAD = 16
_MOST_BOXES = 100_000
_MOST_SAMPLES = 8_000_000
"""In all tracks, times the edits of them: each takes 24 bytes of FFmpeg's memory, and a table of
samples of one size has no entries that the file would have to hold. A minute of uncompressed
sound at 48 kHz has three million."""
_MOST_HEADER = 8 * 2**20
"""Bytes of all that are not frames. FFmpeg takes a second for twenty million of empty boxes."""
_TABLES = re.compile(rb"(?P<name>stsz|stz2|trun|elst)(?P<flags>.{4})(?P<rest>.{8})|cmov", re.DOTALL)


def _check_boxes(data: bytes) -> None:
    """Walk the top-level boxes, and add up what the tables in them claim.

    The tables are sought by name at any depth, since FFmpeg finds them in any box that it opens.
    """
    samples, edits, header = 0, 1, 0
    for name, start, end in _boxes(data):
        if end > len(data):
            raise BrokenClip("the clip is cut short")
        if name == b"mdat":  # frames, not tables
            continue
        header += end - start
        if header > _MOST_HEADER:
            raise ClipTooLarge(f"the clip's header has more than {_MOST_HEADER} bytes")
        for table in _TABLES.finditer(data, start, end):
            if table["name"] is None:
                raise BrokenClip("the clip's header is compressed, which mfdan does not read")
            rest = table["rest"]
            count = int.from_bytes(rest[4:] if table["name"].startswith(b"st") else rest[:4])
            if table["name"] == b"elst":
                edits = max(edits, count)
            else:
                samples += count
    if samples * edits > _MOST_SAMPLES:
        raise ClipTooLarge("the clip's tables claim more frames or sound than a clip holds")


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of the top-level boxes; the last may end beyond the file."""
    start, size = 0, len(data)
    for _ in range(_MOST_BOXES):
        head = data[start : start + _LONG_BOX_HEAD]
        length = int.from_bytes(head[:4])
        if length == 1:  # the length follows the name
            length = int.from_bytes(head[_BOX_HEAD:])
        elif length == 0:  # up to the end of the file
            length = size - start
        if len(head) < _BOX_HEAD or length < _BOX_HEAD:
            return  # trailing bytes: FFmpeg stops here as well
        yield head[4:8], start, start + length
        start += length
        if start >= size:
            return
    raise BrokenClip("the clip has more parts than a clip can have")


# Matroska and WebM: elements, each of an id and a length.

_MATROSKA_ID_BYTES = 4


def _segment_end(data: bytes) -> int:
    """Return where the segment ends as it says itself; 0 if it does not say."""
    header, at = _read_length(data, _MATROSKA_ID_BYTES)
    if header is None:
        return 0
    segment, at = _read_length(data, at + header + _MATROSKA_ID_BYTES)
    return 0 if segment is None else at + segment


def _read_length(data: bytes, at: int) -> tuple[int | None, int]:
    """Read an EBML length, and where it ends.

    Leading zero bits count the bytes that follow; all ones mean an unknown length.
    """
    first = data[at : at + 1]
    if not first or not first[0]:
        return None, at
    length = 9 - first[0].bit_length()
    bits = 7 * length
    value = int.from_bytes(data[at : at + length]) & ((1 << bits) - 1)
    return (None if value == (1 << bits) - 1 else value), at + length


# AVI and WebP: RIFF chunks, each of a name and a length, padded to even ones.

_CHUNK_HEAD = 8
_MOST_CHUNKS = 100_000
_UNKNOWN_LENGTHS = (0, 0xFFFFFFFF)
"""What a writer leaves that could not go back to fill it in."""


def _riff_end(data: bytes) -> int:
    """Return where the last RIFF chunk of the file ends as it says itself; 0 if it does not.

    An AVI beyond a gigabyte has several.
    """
    end = 0
    for _ in range(_MOST_CHUNKS):
        if not data.startswith(b"RIFF", end):
            break
        length = _little(data[end + 4 : end + _CHUNK_HEAD])
        if length in _UNKNOWN_LENGTHS:
            return 0
        end += _CHUNK_HEAD + length + length % 2
    return end - 1 if end == len(data) + 1 else end  # the last byte of padding may be missing


@dataclass(frozen=True, slots=True)
class Animation:
    """What an animated WebP says of itself."""

    width: int
    height: int
    seconds: tuple[float, ...]
    """How long each frame stands."""


_STILL_SECONDS = 0.1
"""Of a frame that says 0, as browsers have it."""


def read_animation(data: bytes) -> Animation:
    """Read the frames' number, size and times of a WebP file. A still picture has one frame.

    Raises: BrokenClip.
    """
    if _riff_end(data) > len(data):
        raise BrokenClip("the clip is cut short")
    width = height = 0
    seconds = []
    for name, start in _webp_chunks(data):
        if name == b"VP8X":
            width, height = (1 + _little(data[start + at : start + at + 3]) for at in (4, 7))
        elif name == b"ANMF":
            milliseconds = _little(data[start + 12 : start + 15])
            seconds.append(milliseconds / 1e3 if milliseconds else _STILL_SECONDS)
    return Animation(width, height, tuple(seconds) or (_STILL_SECONDS,))


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield (name, where its content starts) of the chunks of a WebP file."""
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + _CHUNK_HEAD > len(data):
            return
        length = _little(data[at + 4 : at + _CHUNK_HEAD])
        yield data[at : at + 4], at + _CHUNK_HEAD
        at += _CHUNK_HEAD + length + length % 2
    raise BrokenClip("the clip has more parts than a clip can have")


# GIF: blocks, each a chain of up to 255 bytes at a time.

_GIF_HEAD = 13
_GIF_IMAGE, _GIF_EXTENSION, _GIF_TRAILER = 0x2C, 0x21, 0x3B
_LEAST_LINK = 64
"""Bytes, in the mean, of a chain's links; encoders fill them up to 255."""
_SPARE_LINKS = 100_000


def _gif_ends(data: bytes) -> bool:
    """Whether the blocks of a GIF lead to its trailer."""
    if len(data) < _GIF_HEAD:
        return False
    at = _GIF_HEAD + _palette_bytes(data[10])
    links = len(data) // _LEAST_LINK + _SPARE_LINKS
    while at < len(data) and links:
        kind, at, links = data[at], at + 1, links - 1
        if kind == _GIF_TRAILER:
            return True
        if kind == _GIF_IMAGE and at + 9 < len(data):
            at += 10 + _palette_bytes(data[at + 8])  # also the byte before the chain
        elif kind == _GIF_EXTENSION:
            at += 1
        elif kind:  # a zero too many is harmless
            return False
        else:
            continue
        while at < len(data) and (length := data[at]) and links:
            at, links = at + length + 1, links - 1
        at += 1
    return False


def _palette_bytes(flags: int) -> int:
    return 3 * 2 ** (1 + (flags & 7)) if flags & 0x80 else 0

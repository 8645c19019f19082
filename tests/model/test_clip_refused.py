"""Clips that are refused: each with a fault of its own, and before the work is done."""

import io
import struct
import time
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from drawn_clips import encode_clip, encode_pictures, encode_sound, grey_steps, repeat_last
from hypothesis import given, settings
from hypothesis import strategies as st

from model.clip import ClipLimits, open_burst, open_clip
from model.errors import (
    BrokenClip,
    ClipTooLarge,
    ImageTooLarge,
    ImageTooSmall,
    InputError,
    NotAClip,
    NotAnImage,
    TooFewFrames,
)

KINDS = [
    ("mp4", "h264"),
    ("mp4", "hevc"),
    ("mov", "mjpeg"),
    ("mkv", "ffv1"),
    ("webm", "vp9"),
    ("avi", "mpeg4"),
    ("gif", "gif"),
    ("webp", "webp"),
]


@cache
def noisy(container: str, codec: str) -> bytes:
    """Return a small file whose every byte counts."""
    noise = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
    frames = [np.roll(noise, number, axis=1) for number in range(6)]
    if codec == "webp":
        return encode_pictures(frames)
    return encode_clip(frames, 30, container, codec)


def decode(data: bytes, limits: ClipLimits | None = None) -> int:
    """Return how many frames a clip shows."""
    clip = open_clip(data, limits or ClipLimits())
    return sum(frame.rgb().ndim == 3 <= frame.grey().ndim + 1 for frame in clip.frames())


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test whose clip comes as far as to be decoded, if for one frame."""

    def decode_nothing(*_: object) -> None:
        pytest.fail("a frame was about to be decoded")

    for name in ("model.video._frames", "model.clip._animation_frames", "model.clip._burst_frames"):
        monkeypatch.setattr(name, decode_nothing)


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test whose bytes come as far as FFmpeg, or as an animation."""

    def open_nothing(*_: object, **__: object) -> None:
        pytest.fail("the bytes were about to be opened")

    monkeypatch.setattr("model.video._opened", open_nothing)
    monkeypatch.setattr("model.clip._open_animation", open_nothing)


# Cut short, spoilt, or something else altogether


@settings(deadline=None, max_examples=150)
@given(kind=st.sampled_from(KINDS), share=st.floats(0, 1))
def test_a_clip_cut_short_anywhere_is_a_fault(kind: tuple[str, str], share: float) -> None:
    data = noisy(*kind)
    kept = int(share * len(data))
    if kept >= len(data) - 1:  # the last byte may be padding
        assert decode(data) == 6
    else:
        with pytest.raises((BrokenClip, NotAClip)):
            decode(data[:kept])


@settings(deadline=None, max_examples=200)
@given(
    kind=st.sampled_from(KINDS),
    spots=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    ends=st.booleans(),
)
def test_spoilt_bytes_give_frames_or_a_fault_and_nothing_else(
    kind: tuple[str, str],
    spots: list[tuple[float, int]],
    ends: bool,  # noqa: FBT001 - hypothesis' argument
) -> None:
    """`ends`: where the headers are, at the front and at the back."""
    data = bytearray(noisy(*kind))
    for share, value in spots:
        at = int(share * (len(data) - 1))
        if ends:
            at = at % 1000 - (1000 if share > 0.5 else 0)
        data[at] = value
    with suppress(InputError):
        assert decode(bytes(data)) <= 6


@settings(deadline=None, max_examples=100)
@given(
    head=st.sampled_from(
        [
            b"",
            b"\0\0\0\x18ftypisom",
            b"\0\0\0\x08moov",
            b"\x1a\x45\xdf\xa3",
            b"RIFF\xff\xff\xff\xffAVI LIST",
            b"RIFF\x20\0\0\0WEBPVP8X",
            b"GIF89a",
        ]
    ),
    rest=st.binary(max_size=300),
)
def test_random_bytes_are_no_clip(head: bytes, rest: bytes) -> None:
    with pytest.raises(InputError):
        decode(head + rest)


@pytest.mark.parametrize("data", [b"", b"\0", b"a text, not a clip" * 9, b"\x89PNG\r\n\x1a\n" * 9])
@pytest.mark.usefixtures("unopened")
def test_other_bytes_are_no_clip(data: bytes) -> None:
    with pytest.raises(NotAClip):
        open_clip(data)


def test_a_frame_whose_data_are_missing_is_a_fault_not_patched_up() -> None:
    data = bytearray(noisy("mp4", "h264"))
    spot = data.index(b"mdat") + 6000
    data[spot : spot + 100] = bytes(100)
    with pytest.raises(BrokenClip):
        decode(bytes(data))


def test_a_clip_whose_frames_change_their_size_is_a_fault() -> None:
    """Two streams of JPEG pictures: one in the name of the other."""
    small, large = (encode_clip(grey_steps(3, *size), 30, "mkv", "mjpeg") for size in SIZES)
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(small)) as first,
        av.open(io.BytesIO(large)) as second,
        av.open(file, "w", format="matroska") as muxer,
    ):
        stream = muxer.add_stream_from_template(first.streams.video[0])
        packets = [p for source in (first, second) for p in source.demux() if p.size]
        for number, packet in enumerate(packets):
            packet.stream = stream
            packet.pts = packet.dts = 40 * number
            muxer.mux(packet)
    with pytest.raises(BrokenClip, match="change their size"):
        decode(file.getvalue())


SIZES = [(48, 64), (64, 48)]


# No frames, or too few


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm", "avi"])
@pytest.mark.usefixtures("undecoded")
def test_sound_alone_is_no_clip(container: str) -> None:
    with pytest.raises(NotAClip, match="no video"):
        open_clip(encode_sound(container))


@pytest.mark.usefixtures("undecoded")
def test_an_album_cover_is_no_video() -> None:
    """A song of an MP4 with a picture in its tags, which FFmpeg gives out as a stream."""
    cover = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    art = _box(b"covr", _box(b"data", struct.pack(">II", 14, 0) + cover))
    tags = _box(b"meta", bytes(4) + _HANDLER + _box(b"ilst", art))
    song = _with_box(encode_sound("mp4"), b"udta", _box(b"udta", tags), (b"moov",))
    with av.open(io.BytesIO(song)) as file:
        assert len(file.streams.video) == 1
    with pytest.raises(NotAClip, match="no video"):
        open_clip(song)


_HANDLER = b"\0\0\0\x21hdlr" + bytes(8) + b"mdirappl" + bytes(9)


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def _with_box(film: bytes, name: bytes, box: bytes, parents: tuple[bytes, ...]) -> bytes:
    """Put a box in the place of the first of that name, and set its parents' lengths."""
    at = film.index(name) - 4
    length = int.from_bytes(film[at : at + 4])
    changed = bytearray(film[:at] + box + film[at + length :])
    for parent in parents:
        start = film.index(parent) - 4
        size = int.from_bytes(film[start : start + 4]) + len(box) - length
        changed[start : start + 4] = size.to_bytes(4)
    return bytes(changed)


def test_a_codec_of_no_camera_is_not_read() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as muxer:
        stream = muxer.add_stream("flv", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in grey_steps(3):
            muxer.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        muxer.mux(stream.encode())
    with pytest.raises(NotAClip, match="codec"):
        open_clip(file.getvalue())


@pytest.mark.parametrize(("container", "codec"), KINDS)
@pytest.mark.usefixtures("undecoded")
def test_one_frame_is_too_few(container: str, codec: str) -> None:
    frame = grey_steps(1)
    one = encode_pictures(frame) if codec == "webp" else encode_clip(frame, 30, container, codec)
    with pytest.raises(TooFewFrames, match="in the clip: 1"):
        open_clip(one)


@pytest.mark.usefixtures("undecoded")
def test_no_frame_is_too_few() -> None:
    """A burst of nothing, a GIF of its header and its trailer alone, a film of empty tables."""
    with pytest.raises(TooFewFrames):
        open_clip(b"GIF89a\x40\0\x30\0\x80\0\0\0\0\0\xff\xff\xff;")
    with pytest.raises(TooFewFrames, match="in the clip: 0"):
        open_burst([], 25)
    film = noisy("mov", "mjpeg")
    for name in (b"stts", b"stsc", b"stco", b"stsz"):
        box = _box(name, bytes(12 if name == b"stsz" else 8))
        film = _with_box(film, name, box, (b"moov", b"trak", b"mdia", b"minf", b"stbl"))
    with pytest.raises(TooFewFrames, match="in the clip: 0"):
        open_clip(film)


# Too much


@pytest.mark.usefixtures("unopened")
def test_more_bytes_than_allowed_are_refused() -> None:
    with pytest.raises(ClipTooLarge, match="101 bytes"):
        open_clip(b"\0" * 101, ClipLimits(max_bytes=100))
    with pytest.raises(ClipTooLarge, match="102 bytes"):
        open_burst([b"\0" * 51] * 2, 25, ClipLimits(max_bytes=100))


@pytest.mark.parametrize(("container", "codec"), [("mp4", "h264"), ("mkv", "vp9"), ("webm", "vp8")])
@pytest.mark.usefixtures("undecoded")
def test_ten_thousand_frames_are_too_many(container: str, codec: str) -> None:
    few = encode_clip(grey_steps(3), 200, container, codec)
    with pytest.raises(ClipTooLarge, match="more than 6000 frames"):
        open_clip(repeat_last(few, 10_000, 200, container))


@pytest.mark.usefixtures("undecoded")
def test_ten_thousand_frames_of_a_picture_are_too_many() -> None:
    gif, webp = (encode_pictures(grey_steps(2), kind=kind) for kind in ("gif", "webp"))
    last = gif[gif.rindex(b"\x21\xf9") : -1]
    with pytest.raises(ClipTooLarge, match="more than 6000 frames"):
        open_clip(gif[:-1] + 10_000 * last + b";")
    last = webp[webp.rindex(b"ANMF") :]
    long = webp + 10_000 * last
    with pytest.raises(ClipTooLarge, match="more than 6000 frames"):
        open_clip(long[:4] + struct.pack("<I", len(long) - 8) + long[8:])
    with pytest.raises(ClipTooLarge, match="more than 6000 frames"):
        open_burst([b""] * 10_000, 200)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (ClipLimits(max_pixels=48 * 64 - 1), "64x48 pixels"),
        (ClipLimits(max_frames=9), "more than 9 frames"),
        (ClipLimits(max_seconds=0.3), "s are taken"),
        (ClipLimits(max_decoded_pixels=10 * 48 * 64 - 1), "10 frames of 64x48"),
    ],
)
@pytest.mark.parametrize(("container", "codec"), KINDS)
@pytest.mark.usefixtures("undecoded")
def test_a_clip_beyond_a_limit_is_refused(
    container: str, codec: str, limits: ClipLimits, told: str
) -> None:
    frames = grey_steps(10)
    data = (
        encode_pictures(frames, 30)
        if codec == "webp"
        else encode_clip(frames, 30, container, codec)
    )
    with pytest.raises(ClipTooLarge, match=told):
        open_clip(data, limits)


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_a_clip_at_the_limits_is_taken(container: str, codec: str) -> None:
    frames = grey_steps(10)
    data = (
        encode_pictures(frames, 30)
        if codec == "webp"
        else encode_clip(frames, 30, container, codec)
    )
    limits = ClipLimits(
        max_bytes=len(data),
        max_pixels=48 * 64,
        max_frames=10,
        max_seconds=0.41,
        max_decoded_pixels=10 * 48 * 64,
        min_side=48,
    )
    assert decode(data, limits) == 10
    with pytest.raises(ImageTooSmall):
        open_clip(data, replace(limits, min_side=49))


@pytest.mark.usefixtures("undecoded")
def test_a_burst_beyond_a_limit_is_refused() -> None:
    pictures = [cv2.imencode(".png", frame)[1].tobytes() for frame in grey_steps(10)]
    for limits, fps in (
        (ClipLimits(max_frames=9), 30),
        (ClipLimits(), 0.1),
        (ClipLimits(max_decoded_pixels=10 * 48 * 64 - 1), 30),
    ):
        with pytest.raises(ClipTooLarge):
            open_burst(pictures, fps, limits)
    with pytest.raises(ImageTooLarge, match="frame 0"):
        open_burst(pictures, 30, ClipLimits(max_pixels=48 * 64 - 1))
    with pytest.raises(ImageTooSmall, match="frame 0"):
        open_burst(pictures, 30, ClipLimits(min_side=49))
    with pytest.raises(NotAnImage, match="frame 0"):
        open_burst([b"GIF89a" + bytes(99)] * 2, 30)


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "h264"), ("mkv", "mjpeg"), ("avi", "mjpeg")]
)
@pytest.mark.usefixtures("undecoded")
def test_frames_of_sixteen_thousand_pixels_a_row_are_refused(container: str, codec: str) -> None:
    wide = [np.zeros((640, 15_872, 3), np.uint8)] * 2
    start = time.process_time()
    data = encode_clip(wide, 30, container, codec)
    encoding, start = time.process_time() - start, time.process_time()
    with pytest.raises(ClipTooLarge, match="15872x640 pixels"):
        open_clip(data)
    assert time.process_time() - start < encoding / 10  # FFmpeg itself decoded none to look at


@pytest.mark.usefixtures("undecoded")
def test_a_header_of_sixteen_thousand_pixels_is_refused() -> None:
    """Little files that claim large frames."""
    gif = bytearray(encode_pictures(grey_steps(3), kind="gif"))
    gif[6:10] = struct.pack("<HH", 16_384, 16_384)
    webp = bytearray(encode_pictures(grey_steps(3)))
    at = webp.index(b"VP8X") + 12
    webp[at : at + 6] = struct.pack("<I", 16_382)[:3] * 2
    avi = bytearray(encode_clip(grey_steps(3), 30, "avi", "mjpeg"))
    at = avi.index(b"strf") + 12
    avi[at : at + 8] = struct.pack("<II", 16_384, 16_384)
    for data in (gif, webp, avi):
        with pytest.raises(ClipTooLarge, match=r"x1638[34] pixels"):
            open_clip(bytes(data))


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_a_header_that_claims_little_or_nothing_is_not_believed(codec: str) -> None:
    """Of MPEG-4 FFmpeg does not read it at all."""
    data = bytearray(encode_clip(grey_steps(3), 30, "mp4", codec))
    at = data.index({"h264": b"avc1", "mpeg4": b"mp4v"}[codec], data.index(b"stsd")) + 28
    assert data[at : at + 4] == struct.pack(">HH", 64, 48)
    data[at : at + 4] = struct.pack(">HH", 32, 32)
    with pytest.raises(ClipTooLarge, match="64x48"):
        open_clip(bytes(data), ClipLimits(max_pixels=64 * 48 - 1))
    with pytest.raises(ClipTooLarge, match="3 frames of 64x48"):
        open_clip(bytes(data), ClipLimits(max_decoded_pixels=3 * 64 * 48 - 1))


@pytest.mark.usefixtures("undecoded")
def test_two_hundred_kilobytes_that_decode_to_gigabytes_are_refused() -> None:
    still = encode_clip([np.full((2400, 3600, 3), 90, np.uint8)] * 2, 30)
    bomb = repeat_last(still, 700)
    assert len(bomb) < 250_000
    assert 702 * 2400 * 3600 * 3 / 2 > 9e9  # bytes, as the decoder would have them
    with pytest.raises(ClipTooLarge, match="702 frames of 3600x2400"):
        open_clip(bomb)


@pytest.mark.parametrize(
    "table",
    [
        _box(b"stsz", struct.pack(">III", 0, 1, 2**31)),
        _box(b"stz2", struct.pack(">III", 0, 4, 2**31)),
        _box(b"trun", struct.pack(">III", 0, 2**31, 0)),
        _box(b"stsz", struct.pack(">III", 0, 1, 9_000))
        + _box(b"elst", b"\0\0\0\0\0\0\xff\xff" * 2),
    ],
)
@pytest.mark.usefixtures("unopened")
def test_a_table_that_claims_thousands_of_millions_of_frames_is_refused(table: bytes) -> None:
    """FFmpeg would make room for all of them: gigabytes for a file of a hundred bytes."""
    data = _box(b"ftyp", b"isom\0\0\0\0isom") + _box(b"moov", _box(b"trak", table))
    with pytest.raises(ClipTooLarge, match="tables"):
        open_clip(data)


@pytest.mark.usefixtures("unopened")
def test_a_compressed_header_is_not_unpacked() -> None:
    data = _box(b"ftyp", b"qt  \0\0\0\0qt  ") + _box(b"moov", _box(b"cmov", bytes(64)))
    with pytest.raises(BrokenClip, match="compressed"):
        open_clip(data)


@pytest.mark.usefixtures("unopened")
def test_millions_of_empty_parts_are_refused() -> None:
    empty = _box(b"free", b"") * 200_000
    with pytest.raises(BrokenClip, match="more parts"):
        open_clip(_box(b"ftyp", b"isom\0\0\0\0isom") + empty)
    with pytest.raises(ClipTooLarge, match="header"):
        open_clip(_box(b"ftyp", b"isom\0\0\0\0isom") + _box(b"moov", empty * 6))


@pytest.mark.usefixtures("undecoded")
def test_packets_that_share_their_bytes_are_refused() -> None:
    """Tables of five thousand frames, each of them all frames of the file."""
    film, count = noisy("mov", "mjpeg"), 5000
    start = film.index(b"mdat") + 4
    whole = film.index(b"moov") - 4 - start
    tables = {
        b"stts": (1, count, 1),
        b"stsc": (1, 1, 1, 1),
        b"stsz": (whole, count),
        b"stco": (count, *(count * [start])),
    }
    for name, numbers in tables.items():
        box = _box(name, struct.pack(f">{1 + len(numbers)}I", 0, *numbers))
        film = _with_box(film, name, box, (b"moov", b"trak", b"mdia", b"minf", b"stbl"))
    with av.open(io.BytesIO(film)) as file:
        assert sum(packet.size for packet in file.demux()) > 1000 * whole
    with pytest.raises(BrokenClip):
        open_clip(film)


# Nothing but the bytes themselves is read


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXTINF:10,\n{name}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile {name}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={name}\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "dash": '<?xml version="1.0"?><MPD><Period><BaseURL>{name}</BaseURL></Period></MPD>',
    "smil": "<smil><body><video src='{name}'/></body></smil>",
    "reference": "[Reference]\nRef1={name}\n",
}


@pytest.mark.parametrize("playlist", PLAYLISTS)
@pytest.mark.parametrize("name", ["clip.mp4", "http://127.0.0.1:9/clip.mp4", "concat:a|b"])
@pytest.mark.usefixtures("unopened")
def test_a_playlist_is_no_clip_and_what_it_names_is_not_opened(
    tmp_path: Path, playlist: str, name: str
) -> None:
    (tmp_path / "clip.mp4").write_bytes(encode_clip(grey_steps(4)))
    if name == "clip.mp4":
        name = str(tmp_path / name)
    text = PLAYLISTS[playlist].format(name=name).encode()
    with pytest.raises(NotAClip):
        open_clip(text)


@pytest.mark.parametrize(
    "head", [b"\0\0\0\x14ftypisom\0\0\0\0isom", b"\x1a\x45\xdf\xa3", b"GIF89a"]
)
@pytest.mark.parametrize("playlist", PLAYLISTS)
def test_a_playlist_behind_a_clips_signature_is_a_fault(
    tmp_path: Path, playlist: str, head: bytes
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_clip(grey_steps(4)))
    with pytest.raises(InputError):
        decode(head + PLAYLISTS[playlist].format(name=path).encode())


def test_a_film_whose_frames_lie_in_another_file_is_a_fault(tmp_path: Path) -> None:
    """QuickTime can name the file that holds a track's frames."""
    whole = encode_clip(grey_steps(4), 30, "mov", "mjpeg")
    other = tmp_path / "frames.mov"
    other.write_bytes(whole)
    outside = _name_other_file(whole, other)
    with av.open(io.BytesIO(outside), options={"enable_drefs": "1", **_ANY_PATH}) as told:
        assert sum(1 for _ in told.decode(video=0)) == 4  # the file is as it should be
    with pytest.raises(InputError):
        decode(outside)


_ANY_PATH = {"use_absolute_path": "1", "protocol_whitelist": "file"}


def _name_other_file(film: bytes, other: Path) -> bytes:
    """Give a film's one track a Macintosh alias to another file, and blank its own frames."""
    path = str(other).encode()
    path += bytes(len(path) % 2)
    alias = bytes(4 + 10 + 28 + 12 + 64 + 16) + struct.pack(">hh", -1, -1) + bytes(16)
    alias += struct.pack(">hH", 2, len(path)) + path + struct.pack(">hH", -1, 0)
    reference = _box(b"dref", struct.pack(">II", 0, 1) + _box(b"alis", alias))
    start, end = film.index(b"mdat") + 4, film.index(b"moov") - 4
    blank = film[:start] + bytes(end - start) + film[end:]
    return _with_box(blank, b"dref", reference, (b"moov", b"trak", b"mdia", b"minf", b"dinf"))

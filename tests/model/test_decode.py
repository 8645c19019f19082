import io
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from model.decode import Limits, decode_image
from model.errors import (
    BrokenImage,
    EmptyImage,
    ImageTooLarge,
    ImageTooSmall,
    InputError,
    NotAnImage,
)


def quarters(height: int = 40, width: int = 64) -> np.ndarray:
    """A picture whose four quarters tell every orientation apart."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (200, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 200, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 200)
    return picture


def encode(picture: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's own options
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 6),
    ],
)
def test_each_format_decodes_to_the_same_rgb_frame(
    kind: str, options: dict[str, Any], tolerance: int
) -> None:
    frame = decode_image(encode(quarters(), kind, **options))
    assert frame.dtype == np.uint8
    np.testing.assert_allclose(frame.astype(int), quarters(), atol=tolerance)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.fromarray(quarters())
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_image(encode(stored, "PNG", exif=exif)), quarters())


def test_grey_becomes_three_equal_channels() -> None:
    grey = np.tile(np.arange(64, dtype=np.uint8), (40, 1))
    frame = decode_image(encode(grey, "PNG"))
    np.testing.assert_array_equal(frame, np.repeat(grey[..., None], 3, axis=2))


def test_sixteen_bit_grey_keeps_its_upper_byte() -> None:
    deep = np.tile(np.arange(64, dtype=np.uint16) * 1000, (40, 1))
    frame = decode_image(encode(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(frame[..., 0], deep >> 8)


def test_sixteen_bit_colour_keeps_its_upper_byte() -> None:
    deep = quarters().astype(np.uint16) * 257
    encoded = cv2.imencode(".png", np.ascontiguousarray(deep[..., ::-1]))[1].tobytes()
    np.testing.assert_array_equal(decode_image(encoded), quarters())


def test_transparent_pixels_lie_on_mid_grey() -> None:
    picture = np.dstack([quarters(), np.full((40, 64), 255, np.uint8)])
    picture[:20, :32, 3] = 0
    frame = decode_image(encode(picture, "PNG"))
    assert (frame[:20, :32] == 128).all()
    np.testing.assert_array_equal(frame[20:], quarters()[20:])


def test_a_palette_picture_decodes_to_its_colours() -> None:
    image = Image.fromarray(quarters()).convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(decode_image(encode(image, "PNG")), quarters())


def test_no_bytes_are_an_empty_image() -> None:
    with pytest.raises(EmptyImage):
        decode_image(b"")


@pytest.mark.parametrize("data", [b"hello, this is text", b"\x00" * 4096, b"GIF89a" + b"\x00" * 64])
def test_other_bytes_are_not_an_image(data: bytes) -> None:
    with pytest.raises(NotAnImage):
        decode_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_truncated_picture_is_broken_never_half_grey(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(noise, kind)
    with pytest.raises(BrokenImage):
        decode_image(data[: len(data) * 2 // 3])


def test_a_png_with_a_flipped_byte_among_its_pixels_is_broken() -> None:
    data = bytearray(
        encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), "PNG")
    )
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BrokenImage):
        decode_image(bytes(data))


def test_too_many_bytes_are_refused_before_parsing() -> None:
    with pytest.raises(ImageTooLarge, match="bytes"):
        decode_image(b"not even a picture", Limits(max_bytes=4))


def test_too_many_pixels_are_refused_from_the_header_alone() -> None:
    bomb = bytearray(encode(quarters(), "PNG")[:45])  # the header, and no pixel behind it
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    with pytest.raises(ImageTooLarge, match="pixels"):
        decode_image(bytes(bomb))


def test_a_picture_of_one_pixel_is_too_small() -> None:
    with pytest.raises(ImageTooSmall, match="1x1"):
        decode_image(encode(np.zeros((1, 1, 3), np.uint8), "PNG"))


@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_broken_metadata_never_costs_more_than_the_orientation(
    kind: str, edits: list[tuple[int, int]]
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "camera"
    exif[ExifTags.Base.XResolution] = 72.0
    exif[ExifTags.Base.DateTime] = "2026:11:22 10:00:00"
    block = bytearray(exif.tobytes())
    for place, value in edits:
        block[6 + place % (len(block) - 6)] = value  # behind the marker "Exif"
    try:
        frame = decode_image(encode(quarters(), kind, exif=bytes(block)))
    except InputError:
        return
    assert frame.shape in {(40, 64, 3), (64, 40, 3)}


@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
    keep=st.integers(1, 4000),
)
def test_whatever_the_bytes_the_answer_is_a_frame_or_a_named_fault(
    kind: str, edits: list[tuple[int, int]], keep: int
) -> None:
    data = bytearray(encode(quarters(), kind)[:keep])
    for place, value in edits:
        data[place % len(data)] = value
    try:
        frame = decode_image(bytes(data))
    except InputError:
        return
    assert frame.dtype == np.uint8
    assert frame.shape[2] == 3

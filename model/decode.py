"""Bytes → frames. Format and size are read from the header before any pixel is decoded."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from model.errors import (
    BrokenImage,
    EmptyImage,
    ImageTooLarge,
    ImageTooSmall,
    InputError,
    NotAnImage,
)

__all__ = ["PARSER_FAULTS", "Limits", "decode_image", "to_rgb"]

# What Pillow finds odd about a stranger's metadata is of no use on the operator's screen.
warnings.filterwarnings("ignore", module=r"PIL\.")

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn a picture upright, by the EXIF orientation it was stored with."""
PARSER_FAULTS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError)
"""What Pillow's readers are known to raise on hostile bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one picture may cost."""

    max_bytes: int = 10 * 2**20
    max_pixels: int = 25_000_000
    """Of the decoded frame, width times height."""
    min_side: int = 32
    """Pixels; a smaller frame holds no face that could be measured."""


_DEFAULT_LIMITS = Limits()


def decode_image(data: bytes, limits: Limits = _DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP or BMP picture.

    Returns (H, W, 3) uint8, RGB, turned as its EXIF orientation says. Grey becomes three
    equal channels, 16-bit samples keep their upper byte, transparent pixels lie on mid-grey.
    Of an animated picture the first frame is taken.

    Raises: EmptyImage, NotAnImage, BrokenImage (truncated or corrupt), ImageTooLarge (bytes
    or pixels), ImageTooSmall.
    """
    if not data:
        raise EmptyImage("the picture holds no bytes")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"the picture holds {len(data)} bytes, at most {limits.max_bytes} are taken"
        )
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            _check_size(picture, limits)
            picture.load()  # first: reading a PNG's metadata would load it and hide its faults
            return np.array(_upright(to_rgb(picture), _orientation(picture)))
    except InputError:
        raise
    except UnidentifiedImageError:
        raise NotAnImage("the bytes are not a JPEG, PNG, WebP or BMP picture") from None
    except Image.DecompressionBombError:
        raise ImageTooLarge(f"the picture has more than {limits.max_pixels} pixels") from None
    except PARSER_FAULTS:
        raise BrokenImage("the picture is truncated or corrupt") from None


def _orientation(picture: Image.Image) -> object:
    """Read the one EXIF tag that matters here; a broken EXIF block says nothing."""
    try:
        return picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - hostile metadata raises anything, and is not the picture
        return None


def _upright(picture: Image.Image, orientation: object) -> Image.Image:
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _check_size(picture: Image.Image, limits: Limits) -> None:
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the picture has {width}x{height} pixels, at most {limits.max_pixels} are taken"
        )
    if min(width, height) < limits.min_side:
        raise ImageTooSmall(
            f"the picture has {width}x{height} pixels, at least {limits.min_side} a side are needed"
        )


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a loaded picture as RGB: see `decode_image` on grey, depth and transparency."""
    if picture.mode.startswith("I"):  # 16-bit grey: "I;16", "I;16B" or "I"
        samples = np.asarray(picture).astype(np.uint32)
        return Image.fromarray((samples >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        # What a transparent pixel holds is arbitrary; mid-grey makes no edge of its own.
        ground = Image.new("RGBA", picture.size, (128, 128, 128, 255))
        return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")

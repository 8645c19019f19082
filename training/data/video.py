"""A manifest's video → the aligned pair that the service would answer for first.

The clip is decoded and searched by the code that serves: its largest face, and of that the
strongest interval's onset and apex frames. Where nothing is spotted, the first frame that shows
the face and the middle one stand in, as annotated apexes sit at about half of a clip.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from model.clip import Clip, ClipLimits, open_clip
from model.clip_pipeline import ClipOptions, align_clip
from model.pipeline import AlignedPair, Preprocessor

__all__ = ["check_video", "method_digest", "read_video"]

_LIMITS = ClipLimits(
    max_bytes=2**30,
    max_pixels=25_000_000,
    max_frames=10_000,
    max_seconds=300.0,
    max_decoded_pixels=100_000_000_000,
    max_decode_seconds=3600.0,
)
"""A user's own files, not a stranger's: what memory and patience bear."""
_OPTIONS = ClipOptions(faces=1, candidates=1)
_METHOD = 1
"""Raised when other frames of a clip are chosen though the options stay as they are."""


def method_digest() -> str:
    """Tell the way in which a clip's frames are chosen from any other, for a cache's key."""
    settings = json.dumps([_METHOD, asdict(_OPTIONS)])
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def read_video(path: Path, preprocessor: Preprocessor) -> AlignedPair | None:
    """Align a clip's best onset and apex frame; None if it shows no face.

    Raises: OSError; whatever `model.clip` raises.
    """
    faces = align_clip(preprocessor, _open(path), _OPTIONS).faces
    return faces[0].candidates[0].pair if faces else None


def check_video(path: Path) -> None:
    """Decode a clip to its end, and seek no faces. Raises: as `read_video`."""
    for _ in _open(path).frames():
        pass


def _open(path: Path) -> Clip:
    with path.open("rb") as file:
        # One byte more than is taken is enough to be refused.
        return open_clip(file.read(_LIMITS.max_bytes + 1), _LIMITS)

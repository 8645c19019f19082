"""The stages before the network, in one worker: bytes as sent → the network's inputs."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.clip import Clip, ClipLimits, open_burst, open_clip
from model.clip_pipeline import ClipFace, ClipOptions, align_clip
from model.decode import Limits, decode_image
from model.errors import InputError, ShapeError
from model.pipeline import AlignedPair, Preprocessor, network_inputs
from model.quality import clip_warnings
from model.regions import RegionMotion, region_motions
from model.spec import ModelSpec
from model.spotting import Interval, MotionCurve
from service.answers import (
    AnswerWarning,
    Burst,
    ClipFacts,
    ClipUpload,
    Frames,
    Options,
    Upload,
)

__all__ = ["Check", "Item", "Prepared", "PreparedFace", "prepare_clip", "prepare_pair"]

FloatArray = NDArray[np.float32]
Check = Callable[[], None]
"""Called between two pieces of work; it raises when nobody waits for the rest."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One aligned pair, ready for the network."""

    pair: AlignedPair
    image: FloatArray
    flow: FloatArray
    interval: Interval | None = None
    """Of a clip: the frames that the pair was taken from."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedFace:
    """One face and the pairs to ask the network about; the first is the face's answer."""

    face_id: int
    items: tuple[Item, ...]
    regions: tuple[RegionMotion, ...] | None
    """Of the first pair, when an explanation was asked for."""
    curve: MotionCurve | None = None
    seen: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """All that a request asks the network about."""

    faces: tuple[PreparedFace, ...]
    warnings: tuple[AnswerWarning, ...]
    timings_ms: dict[str, float]
    clip: ClipFacts | None = None


def prepare_pair(
    preprocessor: Preprocessor,
    sent: Upload | Frames,
    options: Options,
    limits: Limits,
    check: Check,
) -> Prepared:
    """Decode and align one pair.

    Raises: InputError, naming the frame; ShapeError (of frames that are decoded already); what
    `check` raises.
    """
    start = time.perf_counter()
    onset, apex = _frames(sent, limits)
    decoded = time.perf_counter()
    check()
    pairs = preprocessor.align_pair(onset, apex, options.faces)
    aligned = time.perf_counter()
    check()
    spec = preprocessor.spec
    faces = tuple(
        PreparedFace(number, (_item(pair, spec),), _regions(pair, options))
        for number, pair in enumerate(pairs, start=1)
    )
    warnings: dict[AnswerWarning, bool] = {
        "several_faces": any(pair.quality.more_faces for pair in pairs),
        "identical_frames": np.array_equal(onset, apex),
    }
    timings = {"decode": (decoded - start) * 1e3, "detect": (aligned - decoded) * 1e3}
    if pairs:
        timings["detect"] = 0.0  # the pairs tell it apart from the rest
    for stage, ms in (item for pair in pairs for item in pair.timings_ms.items()):
        timings[stage] = timings.get(stage, 0.0) + ms
    timings["tensors"] = (time.perf_counter() - aligned) * 1e3
    return Prepared(faces, _that_apply(warnings), timings)


def prepare_clip(  # noqa: PLR0913, PLR0917 - two kinds of limits, for clips and for pictures
    preprocessor: Preprocessor,
    sent: ClipUpload | Burst,
    options: Options,
    limits: ClipLimits,
    picture_limits: Limits,
    check: Check,
) -> Prepared:
    """Decode, follow, spot and align one clip.

    Raises: InputError (of the clip, of a picture, of a frame's number); what `check` raises.
    """
    check()
    start = time.perf_counter()
    clip = _open(sent, limits, picture_limits)
    opened_ms = (time.perf_counter() - start) * 1e3
    aligned = align_clip(
        preprocessor,
        clip,
        ClipOptions(
            faces=options.faces,
            onset_frame=options.onset_frame,
            apex_frame=options.apex_frame,
            candidates=options.candidates,
        ),
        check,
    )
    start = time.perf_counter()
    faces = tuple(_clip_face(face, preprocessor.spec, options, check) for face in aligned.faces)
    timings = aligned.timings_ms | {"tensors": (time.perf_counter() - start) * 1e3}
    timings["decode"] += opened_ms
    best = [face.candidates[0].interval.source for face in aligned.faces]
    low_rate = clip_warnings(aligned.info.fps, preprocessor.spec.quality)
    warnings: dict[AnswerWarning, bool] = {
        "several_faces": aligned.more_faces and bool(aligned.faces),
        "not_seen_in_named_frames": options.names_a_frame and not aligned.faces,
        "low_frame_rate": "low_frame_rate" in low_rate,
        "scene_cuts": bool(aligned.scene_cuts),
        "middle_frame": "middle_frame" in best,
    }
    facts = ClipFacts(aligned.info, aligned.scene_cuts)
    return Prepared(faces, _that_apply(warnings), timings, facts)


def _open(sent: ClipUpload | Burst, limits: ClipLimits, picture_limits: Limits) -> Clip:
    if isinstance(sent, Burst):
        return open_burst(sent.pictures, sent.fps, limits, picture_limits)
    return open_clip(sent.data, limits)


def _clip_face(face: ClipFace, spec: ModelSpec, options: Options, check: Check) -> PreparedFace:
    items = []
    for candidate in face.candidates:
        check()
        items.append(_item(candidate.pair, spec, candidate.interval))
    regions = _regions(face.candidates[0].pair, options)
    return PreparedFace(face.face_id, tuple(items), regions, face.curve, face.seen)


def _item(pair: AlignedPair, spec: ModelSpec, interval: Interval | None = None) -> Item:
    image, flow = network_inputs(pair.onset, pair.flow, spec)
    return Item(pair, image, flow, interval)


def _regions(pair: AlignedPair, options: Options) -> tuple[RegionMotion, ...] | None:
    return region_motions(pair.flow, pair.landmarks) if options.explain else None


def _frames(sent: Upload | Frames, limits: Limits) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if isinstance(sent, Upload):
        return _decode("onset", sent.onset, limits), _decode("apex", sent.apex, limits)
    for field, frame in (("onset", sent.onset), ("apex", sent.apex)):
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:  # noqa: PLR2004 - RGB
            raise ShapeError(
                f"{field}: a frame is (H, W, 3) uint8, not {frame.shape} {frame.dtype}"
            )
    return sent.onset, sent.apex


def _decode(field: str, data: bytes, limits: Limits) -> NDArray[np.uint8]:
    try:
        return decode_image(data, limits)
    except InputError as error:
        raise type(error)(f"{field}: {error}") from None


def _that_apply(warnings: dict[AnswerWarning, bool]) -> tuple[AnswerWarning, ...]:
    return tuple(name for name, applies in warnings.items() if applies)

"""The stages in the workers: bytes as sent → the network's inputs; a fused run → its measures."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from model.clip import Clip, ClipLimits, open_burst, open_clip
from model.clip_pipeline import ClipFace, ClipOptions, align_clip
from model.decode import Limits, decode_image
from model.errors import InputError, ShapeError
from model.fused import FusedRow
from model.pipeline import AlignedPair, Crops, Preprocessor, network_inputs
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

__all__ = [
    "Check",
    "CroppedPair",
    "Decode",
    "Inputs",
    "Item",
    "Meanwhile",
    "Prepared",
    "PreparedFace",
    "crop_pair",
    "measure_pair",
    "prepare_clip",
    "prepare_pair",
    "solve_pair",
]

FloatArray = NDArray[np.float32]
Inputs = tuple[FloatArray, FloatArray]
"""Image and flow of one pair, as `network_inputs` makes them."""
Check = Callable[[], None]
"""Called between two pieces of work; it raises when nobody waits for the rest."""
Decode = Callable[[], NDArray[np.uint8]]
"""Returns one frame; raises InputError."""
Meanwhile = Callable[[Decode], AbstractContextManager[Decode]]
"""Has somebody else decode a frame, if there is anybody, and gives what waits for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One aligned pair that the network is asked about."""

    pair: AlignedPair
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
class CroppedPair:
    """A pair as it goes to the fused graph: aligned to each face, the flow not known yet."""

    crops: tuple[Crops, ...]
    warnings: tuple[AnswerWarning, ...]
    timings_ms: dict[str, float]
    """Of decode, detect, align."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """All that a request asks the network about."""

    faces: tuple[PreparedFace, ...]
    inputs: tuple[Inputs, ...]
    """Of the network, for each item of each face in their order; none after a fused run."""
    warnings: tuple[AnswerWarning, ...]
    timings_ms: dict[str, float]
    clip: ClipFacts | None = None


def prepare_pair(  # noqa: PLR0913, PLR0917 - as `crop_pair`
    preprocessor: Preprocessor,
    sent: Upload | Frames,
    options: Options,
    limits: Limits,
    check: Check,
    meanwhile: Meanwhile = nullcontext,
) -> Prepared:
    """Decode and align one pair, and compute its flow.

    Raises: InputError, naming the frame; ShapeError (of frames that are decoded already);
    FlowFailed; what `check` raises.
    """
    cropped = crop_pair(preprocessor, sent, options, limits, check, meanwhile)
    return solve_pair(preprocessor, cropped, options, check)


def solve_pair(
    preprocessor: Preprocessor, cropped: CroppedPair, options: Options, check: Check
) -> Prepared:
    """Compute a pair's flow. Raises: FlowFailed; what `check` raises."""
    pairs = []
    for crops in cropped.crops:
        check()
        pairs.append(preprocessor.solved(crops))
    check()
    start = time.perf_counter()
    inputs = tuple(network_inputs(pair.onset, pair.flow, preprocessor.spec) for pair in pairs)
    prepared = _prepared(cropped, pairs, options, inputs)
    return replace(
        prepared,
        timings_ms=cropped.timings_ms
        | prepared.timings_ms
        | {"tensors": (time.perf_counter() - start) * 1e3},
    )


def crop_pair(  # noqa: PLR0913, PLR0917 - what is asked, within what, and with whose help
    preprocessor: Preprocessor,
    sent: Upload | Frames,
    options: Options,
    limits: Limits,
    check: Check,
    meanwhile: Meanwhile = nullcontext,
) -> CroppedPair:
    """Decode and align one pair. Raises: as `prepare_pair`, but for FlowFailed."""
    start = time.perf_counter()
    onset, apex = _frames(sent, limits, meanwhile)
    decoded = time.perf_counter()
    check()
    crops = preprocessor.crop_pair(onset, apex, options.faces)
    # The crops tell it apart from the rest, where there are any.
    detecting_s = 0.0 if crops else time.perf_counter() - decoded
    timings = {"decode": (decoded - start) * 1e3, "detect": detecting_s * 1e3}
    timings |= _summed(one.timings_ms for one in crops)
    warnings: dict[AnswerWarning, bool] = {
        "several_faces": any(one.more_faces for one in crops),
        "identical_frames": np.array_equal(onset, apex),
    }
    return CroppedPair(tuple(crops), _that_apply(warnings), timings)


def measure_pair(cropped: CroppedPair, rows: Sequence[FusedRow], options: Options) -> Prepared:
    """Measure a pair whose flow the fused graph has computed; its rows are of the crops, in order.

    The timings are those of the measuring alone.
    """
    pairs = [
        Preprocessor.measured(crops, row.flow + row.head.over(row.flow), row.flow, row.head, "onnx")
        for crops, row in zip(cropped.crops, rows, strict=True)
    ]
    return _prepared(cropped, pairs, options)


def _prepared(
    cropped: CroppedPair,
    pairs: Sequence[AlignedPair],
    options: Options,
    inputs: tuple[Inputs, ...] = (),
) -> Prepared:
    faces = tuple(
        PreparedFace(number, (Item(pair),), _regions(pair, options))
        for number, pair in enumerate(pairs, start=1)
    )
    timings = _summed(pair.timings_ms for pair in pairs)
    measuring = {stage: ms for stage, ms in timings.items() if stage not in cropped.timings_ms}
    return Prepared(faces, inputs, cropped.warnings, measuring)


def _summed(timings_ms: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for stage, ms in (item for one in timings_ms for item in one.items()):
        found[stage] = found.get(stage, 0.0) + ms
    return found


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
    pairs = [one.pair for face in aligned.faces for one in face.candidates]
    inputs = tuple(_inputs(pair, preprocessor.spec, check) for pair in pairs)
    faces = tuple(_clip_face(face, options) for face in aligned.faces)
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
    return Prepared(faces, inputs, _that_apply(warnings), timings, facts)


def _open(sent: ClipUpload | Burst, limits: ClipLimits, picture_limits: Limits) -> Clip:
    if isinstance(sent, Burst):
        return open_burst(sent.pictures, sent.fps, limits, picture_limits)
    return open_clip(sent.data, limits)


def _clip_face(face: ClipFace, options: Options) -> PreparedFace:
    items = tuple(Item(candidate.pair, candidate.interval) for candidate in face.candidates)
    regions = _regions(items[0].pair, options)
    return PreparedFace(face.face_id, items, regions, face.curve, face.seen)


def _inputs(pair: AlignedPair, spec: ModelSpec, check: Check) -> Inputs:
    check()
    return network_inputs(pair.onset, pair.flow, spec)


def _regions(pair: AlignedPair, options: Options) -> tuple[RegionMotion, ...] | None:
    return region_motions(pair.flow, pair.landmarks) if options.explain else None


def _frames(
    sent: Upload | Frames, limits: Limits, meanwhile: Meanwhile
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if isinstance(sent, Upload):
        with meanwhile(partial(_decode, "apex", sent.apex, limits)) as apex:
            return _decode("onset", sent.onset, limits), apex()
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

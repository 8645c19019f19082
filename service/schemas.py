"""What the API says, as pydantic models."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from model.movement import Motion as MeasuredMotion
from model.quality import Quality as MeasuredQuality
from model.quality import QualityReason
from model.spec import FlowBackend, ModelSpec
from model.spotting import Interval
from model.spotting import MotionCurve as MeasuredCurve
from model.verdict import Verdict
from service.answers import (
    Answer,
    AnswerWarning,
    CandidateAnswer,
    ClipFacts,
    FaceAnswer,
    FaceWarning,
)

if TYPE_CHECKING:  # so that the client needs no ONNX Runtime
    from service.loaded import Loaded

__all__ = [
    "BatchPrediction",
    "Candidate",
    "Clip",
    "Face",
    "FieldFault",
    "Health",
    "ModelCard",
    "Prediction",
    "Problem",
    "Region",
]

# More digits would only pretend to a precision that no flow and no network has.
Rounded = Annotated[float, AfterValidator(lambda value: round(value, 3))]
Pixels = Rounded  # says the unit
Share = Annotated[float, Field(ge=0, le=1), AfterValidator(lambda value: round(value, 6))]
Seconds = Annotated[float, Field(ge=0), AfterValidator(lambda value: round(value, 4))]
FrameNumber = Annotated[int, Field(ge=0)]
"""From 0."""
Reason = Literal["no_expression_spotted", QualityReason, "no_movement", "low_confidence"]


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ModelName(_Schema):
    """Which model answered."""

    name: str
    version: str
    sha256: str
    """Of the ONNX file."""


class Flow(_Schema):
    """How the motion was measured."""

    backend: FlowBackend
    """Who computed it; of several movements, of which one fell back, who that one fell back to."""
    algorithm: Literal["tvl1", "farneback", "dis", "brox"]


class Box(_Schema):
    """A rectangle in pixels of the frame as turned upright; x right, y down."""

    x: Pixels
    y: Pixels
    width: Pixels
    height: Pixels


class Motion(_Schema):
    """How far the face moved from onset to apex, in pixels of the model's aligned crop."""

    mean_px: Pixels
    """Mean motion of the face, the head's own motion removed."""
    p95_px: Pixels
    """95th percentile of the same."""
    head_px: Pixels
    """Mean motion of the head, which was removed."""
    moved_px: Pixels
    """How far the part of the face that moved most went; noise, blinks and a head that turns do not
    count. Below the model's gate nothing moved."""

    @classmethod
    def of(cls, motion: MeasuredMotion) -> Self:
        """Shape what was measured."""
        return cls(**{name: getattr(motion, name) for name in cls.model_fields})


class Quality(_Schema):
    """What to know of the pictures before believing the answer; the worse of onset and apex."""

    eye_distance_px: Pixels
    """Between the eye centres in the frame as sent."""
    outside: Share
    """Share of the aligned crop that lies outside the frame."""
    blur_px: Pixels
    """Width of the face's sharpest edges: standard deviation, pixels of the aligned crop."""
    dark: Share
    """Share of the face that is as good as black."""
    bright: Share
    """Share of the face that is as good as white."""
    contrast: Rounded
    """Grey levels between the 5th and the 95th percentile of the face."""
    yaw_deg: Rounded
    """How far the head is turned at the onset; positive is towards the picture's right."""
    pitch_deg: Rounded
    """How far it is tilted at the onset; positive is down."""
    eyes_hidden: Share
    """How little either eye looks like one: of the eye that looks more like one."""
    mouth_hidden: Share
    """How little the mouth looks like one."""
    mismatch: Share
    """Share of the face's contrast that the apex does not show even where the flow says."""

    @classmethod
    def of(cls, quality: MeasuredQuality) -> Self:
        """Shape what was measured."""
        return cls(**{name: getattr(quality, name) for name in cls.model_fields})


class Region(_Schema):
    """Mean motion of one part of the face, pixels of the crop, the head's motion removed."""

    region: str
    """Left and right are the person's own."""
    right_px: Pixels
    """Towards the picture's right; negative is left."""
    down_px: Pixels
    """Towards the picture's bottom; negative is up."""
    length_px: Pixels
    """Mean length of the motion, whatever its direction."""


class MotionCurve(_Schema):
    """How far a face of a clip was from rest, moment by moment; arrays of one length."""

    frames: tuple[int, ...]
    times_s: tuple[float, ...]
    motion_px: tuple[float, ...]
    """Pixels of the model's aligned crop."""
    threshold_px: Pixels
    """Height that a movement needs to be spotted."""

    @classmethod
    def of(cls, curve: MeasuredCurve) -> Self:
        """Shape what was measured; rounded all at once, because there may be thousands."""
        return cls(
            frames=tuple(curve.frames.tolist()),
            times_s=tuple(curve.times_s.round(4).tolist()),
            motion_px=tuple(curve.motion_px.round(3).tolist()),
            threshold_px=curve.threshold_px,
        )


class Judged(_Schema):
    """The expression that one movement of one face looks like, and from where to where it went."""

    label: str
    """The likeliest class of expression, also when the answer abstains."""
    probabilities: dict[str, Share]
    """Of each class, given that there is an expression; they sum to 1."""
    abstained: bool
    """Whether the label should not be used."""
    reason: Reason | None
    """Why the answer abstains: the first of the reasons."""
    reasons: tuple[Reason, ...]
    """All that speaks against the answer; empty when it stands."""
    motion: Motion
    quality: Quality
    warnings: tuple[FaceWarning, ...]
    onset_frame: FrameNumber | None
    """Of a clip, as all that follows: frame in which the movement begins, counted from 0."""
    apex_frame: FrameNumber | None
    """Frame of its peak."""
    offset_frame: FrameNumber | None
    """Frame in which the face is back at rest; null where it is not seen to come back."""
    onset_s: Seconds | None
    """From the first frame of the clip, by the frames' own times."""
    apex_s: Seconds | None
    offset_s: Seconds | None
    source: Literal["spotted", "given", "middle_frame"] | None
    """Who chose the frames: the spotter, the caller (one or both), or nobody, when nothing was
    spotted: then the first frame and the middle one are taken, and the answer abstains."""
    strength_px: Pixels | None
    """How far the face left its rest, pixels of the model's aligned crop."""


class Candidate(Judged):
    """One movement that the spotter found in a clip, and what it looks like.

    A candidate, not a detection: most movements of a face are no micro-expressions.
    """

    @classmethod
    def of(cls, candidate: CandidateAnswer) -> Self:
        """Shape the engine's answer for one interval."""
        return cls(
            **_judged(candidate.verdict),
            **_interval(candidate.interval),
            motion=Motion.of(candidate.pair.motion),
            quality=Quality.of(candidate.pair.quality),
            warnings=candidate.warnings,
        )


class Face(Judged):
    """One face and the expression its motion looks like; of a clip, of its first candidate."""

    face_id: int
    """1, 2, …: a number within this answer. It identifies nobody."""
    box: Box
    """In the onset frame."""
    score: Share
    """How sure the mesh is that this is a face."""
    regions: tuple[Region, ...] | None = None
    """What moved, the most first; only when `explain` was asked for."""
    seen: Share | None
    """Of a clip: share of it through which this face was followed."""
    motion_curve: MotionCurve | None
    candidates: tuple[Candidate, ...]
    """Of a clip: the strongest movement first, which is the face's own answer. Empty for a pair."""

    @classmethod
    def of(cls, face: FaceAnswer) -> Self:
        """Shape the engine's answer for one face."""
        box = face.pair.face.box
        return cls(
            **_judged(face.verdict),
            **_interval(face.interval),
            motion=Motion.of(face.pair.motion),
            quality=Quality.of(face.pair.quality),
            warnings=face.warnings,
            face_id=face.face_id,
            box=Box(x=box.x, y=box.y, width=box.width, height=box.height),
            score=face.pair.face.score,
            regions=None
            if face.regions is None
            else tuple(Region(**asdict(region)) for region in face.regions),
            seen=face.seen,
            motion_curve=None if face.curve is None else MotionCurve.of(face.curve),
            candidates=tuple(map(Candidate.of, face.candidates)),
        )


def _judged(verdict: Verdict) -> dict[str, Any]:
    """Return the fields of `Judged` that a verdict fills; pydantic checks the reasons."""
    return {
        "label": verdict.label,
        "probabilities": verdict.probabilities,
        "abstained": verdict.abstained,
        "reason": verdict.reason,
        "reasons": verdict.reasons,
    }


def _interval(interval: Interval | None) -> dict[str, Any]:
    """Return the fields of `Judged` that an interval fills; a pair has none."""
    if interval is None:
        return dict.fromkeys(
            (
                *("onset_frame", "apex_frame", "offset_frame"),
                *("onset_s", "apex_s", "offset_s"),
                *("source", "strength_px"),
            )
        )
    return {
        "onset_frame": interval.onset,
        "apex_frame": interval.apex,
        "offset_frame": interval.offset,
        "onset_s": interval.onset_s,
        "apex_s": interval.apex_s,
        "offset_s": interval.offset_s,
        "source": interval.source,
        "strength_px": interval.strength_px,
    }


class Clip(_Schema):
    """What is known of the clip itself."""

    frames: int
    duration_s: Seconds
    fps: Rounded
    """Mean frames a second."""
    width: int
    """Of the frames as turned upright, pixels."""
    height: int
    variable_frame_rate: bool
    container: str
    """mp4, mov, mkv, webm, avi, gif, webp, or pictures."""
    codec: str
    scene_cuts: tuple[FrameNumber, ...]
    """First frame of each scene but the first. No movement is sought across a cut."""

    @classmethod
    def of(cls, facts: ClipFacts) -> Self:
        """Shape what was found of a clip."""
        return cls(**asdict(facts.info), scene_cuts=facts.scene_cuts)


class Prediction(_Schema):
    """The answer to one pair or clip. No face is a normal answer: `faces` is empty."""

    request_id: str
    model: ModelName
    provider: str
    """The ONNX Runtime execution provider that ran the network."""
    provider_fallback: bool
    """Whether a GPU was asked for and not got."""
    flow: Flow
    faces: tuple[Face, ...]
    """The largest first."""
    clip: Clip | None
    """Null for a pair."""
    warnings: tuple[AnswerWarning, ...]
    timings_ms: dict[str, float]
    """decode, detect, align, spot (clips only), flow, quality, tensors, infer (with its wait for a
    batch), total."""

    @classmethod
    def of(cls, answer: Answer, request_id: str) -> Self:
        """Shape the engine's answer to one pair or clip."""
        spec = answer.spec
        return cls(
            request_id=request_id,
            model=ModelName(name=spec.name, version=spec.version, sha256=spec.onnx_sha256),
            provider=answer.provider,
            provider_fallback=answer.provider_fallback,
            flow=Flow(backend=answer.flow_backend, algorithm=spec.flow.algorithm),
            faces=tuple(Face.of(face) for face in answer.faces),
            clip=None if answer.clip is None else Clip.of(answer.clip),
            warnings=answer.warnings,
            timings_ms={stage: round(ms, 3) for stage, ms in answer.timings_ms.items()},
        )


class FieldFault(_Schema):
    """What is wrong with one field of the request."""

    field: str
    message: str


class Problem(_Schema):
    """An error, as RFC 9457 shapes it."""

    type: str
    """A stable URI of the kind of fault: urn:mfdan:problem: and the code."""
    title: str
    """The status in words."""
    status: int
    code: str
    """The stable name of the fault, for programs."""
    detail: str
    """The fault in a sentence, for people."""
    request_id: str
    errors: tuple[FieldFault, ...] = ()
    """With code invalid_fields: each field that is wrong."""


class BatchPrediction(_Schema):
    """The answers to a batch, in request order; a bad pair has a problem in its place."""

    request_id: str
    results: tuple[Prediction | Problem, ...]


class ModelCard(_Schema):
    """One loaded model and everything that fixes its predictions."""

    name: str
    version: str
    sha256: str
    """Of the ONNX file."""
    default: bool
    """Whether it answers requests that name no model."""
    provider: str
    provider_fallback: bool
    """Whether a GPU was asked for and not got."""
    flow: Flow
    """How the motion is measured here, unless a GPU fails."""
    spec: ModelSpec
    """Classes, preprocessing, thresholds, data, licence, and measured scores."""

    @classmethod
    def of(cls, loaded: "Loaded", *, default: bool) -> Self:
        """Describe a loaded model."""
        spec = loaded.spec
        return cls(
            name=spec.name,
            version=spec.version,
            sha256=spec.onnx_sha256,
            default=default,
            provider=loaded.provider,
            provider_fallback=loaded.fell_back,
            flow=Flow(backend=loaded.flow_backend, algorithm=spec.flow.algorithm),
            spec=spec,
        )


class Health(_Schema):
    """That the process answers, or that it is ready."""

    status: Literal["live", "ready"]
